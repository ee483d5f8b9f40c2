//! The journal itself, without a gateway.

use anyhow::Context as _;
use bascule_registry::{Entry, JournalError, ModelName, Op, Proposal, Registry, Rollout, SharedJournal, VersionNumber};
use serde_json::json;

use crate::compose;
use crate::config::Config;

use super::super::failure::Failure;
use super::super::output::{print, print_json, rows, table};
use super::super::{Outcome, listing};
use super::{refused, said};

/// What holds the journal of a model.
enum Holder {
    /// Its registry.
    Registry(Box<Registry>),
    /// The place that `rollout.journal` names; and the registry, where that place goes on from a journal which is only read there.
    Shared(Box<SharedJournal>, Option<Box<Registry>>),
}

impl Holder {
    async fn of(config: &Config, model: &ModelName) -> Result<Holder, Failure> {
        let place = config.registry.only().map_err(Failure::new)?.url.clone();
        let opened = config.clone();
        let shared = blocking(move || compose::shared_journal(&opened, None)).await?.map(Box::new);
        if compose::holds_journals(&place)? {
            let registry = blocking({
                let place = place.clone();
                move || compose::open_registry(&place, false)
            });
            let registry = Box::new(registry.await?);
            let Some(shared) = shared else { return Ok(Holder::Registry(registry)) };
            let known = registry.model(model).await.map_err(anyhow::Error::new)?;
            return match known {
                Some(known) if known.layout.brings_journal() => Ok(Holder::Shared(shared, Some(registry))),
                Some(known) if !known.layout.holds_journal() => Ok(Holder::Shared(shared, None)),
                Some(_) | None => Ok(Holder::Registry(registry)),
            };
        }
        shared.map(|shared| Holder::Shared(shared, None)).ok_or_else(|| {
            let problem = format!("a registry at {}:// holds no rollout journal", place.scheme());
            Failure::new(problem).hint(
                "leave out --registry: the gateway that serves it keeps the journal, and --gateway names it; or set rollout.journal, here \
                 and there",
            )
        })
    }

    fn describe(&self) -> &str {
        match self {
            Holder::Registry(registry) => registry.describe(),
            Holder::Shared(journal, _) => journal.describe(),
        }
    }

    async fn entries(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError> {
        match self {
            Holder::Registry(registry) => registry.journal(model).await,
            Holder::Shared(journal, published) => {
                let entries = journal.journal(model).await?;
                match published {
                    Some(registry) if !Rollout::fold(&entries).is_decided_here() => registry.journal(model).await,
                    Some(_) | None => Ok(entries),
                }
            }
        }
    }
}

async fn blocking<T: Send + 'static>(open: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> Result<T, Failure> {
    Ok(tokio::task::spawn_blocking(open).await.context("a blocking thread ended early")??)
}

/// Writes a decision.
pub(super) async fn write(config: &Config, model: &ModelName, op: Op, by: &str, reason: &str, as_json: bool) -> Outcome {
    let holder = Holder::of(config, model).await?;
    let text = said(&op);
    let mut proposal = Proposal::new(op, by, reason);
    let seq = match &holder {
        Holder::Registry(registry) => registry.propose(model, &proposal).await,
        Holder::Shared(journal, published) => {
            proposal.highest = highest(config, model, &proposal.op).await?;
            if let Some(registry) = published {
                go_on(journal, registry, model).await.map_err(refused)?;
            }
            journal.propose(model, &proposal).await
        }
    };
    let seq = seq.map_err(refused)?;
    if as_json {
        return print_json(&json!({ "model": model, "seq": seq }));
    }
    print(&format!(
        "{model}: entry {seq} of the journal says {text}; every gateway of {} follows at its next look",
        holder.describe()
    ))
}

/// Lets the shared journal go on from that of a registry which is only read. Once it does, it can whatever becomes of that one.
async fn go_on(journal: &SharedJournal, registry: &Registry, model: &ModelName) -> Result<(), JournalError> {
    let published = registry.journal(model).await?;
    match journal.take_over(model, &published).await {
        Err(JournalError::Replaced { .. }) if journal.rollout(model).await?.is_decided_here() => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// The highest version of a model, where what is decided on exists: a journal beside the registry can't tell.
async fn highest(config: &Config, model: &ModelName, op: &Op) -> Result<Option<VersionNumber>, Failure> {
    let listing = listing::list(config).await?;
    let wrong = |error| Err(refused(error));
    let Some(listed) = listing.models.get(model) else {
        return wrong(JournalError::Model { model: model.to_string(), problem: "is not in this registry" });
    };
    let decided = match op {
        Op::Clear { .. } | Op::Weight { weight_bp: 0, .. } => None,
        op => op.version(),
    };
    let problem = |version| match listed.versions.get(&version) {
        Some(generation) if generation.tombstoned => Some("is tombstoned"),
        Some(_) => None,
        None => Some("does not exist"),
    };
    if let Some((version, problem)) = decided.and_then(|version| Some((version, problem(version)?))) {
        return wrong(JournalError::Version { model: model.to_string(), version, problem });
    }
    Ok(listed.versions.keys().chain(&listed.unsettled).max().copied())
}

/// Prints all decisions.
pub(super) async fn show(config: &Config, model: &ModelName, as_json: bool) -> Outcome {
    let entries = Holder::of(config, model).await?.entries(model).await.map_err(refused)?;
    if as_json {
        return print_json(&entries);
    }
    if entries.is_empty() {
        return print(&format!("the journal of {model} is empty: its strategy decides alone"));
    }
    let mut table = table(["ENTRY", "AT", "DECISION", "BY", "REASON"]);
    for entry in &entries {
        let at = entry.at.format("%Y-%m-%d %H:%M:%S").to_string();
        table.add_row([entry.seq.to_string(), at, said(&entry.op), entry.by.clone(), entry.reason.clone()]);
    }
    print(&rows(&table))
}
