//! Telling the source what was decided here: beside everything else, again until it has worked, and seen in the status while it has not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bascule_registry::{Decided, Entry, ModelName, Op, Rollout, Steering, Verdict, VersionNumber, WriteBack};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::journal_name;
use crate::error::with_causes;
use crate::reconcile::Looks;

/// Between two tries that fail, at first and at the most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// For one decision.
const PATIENCE: Duration = Duration::from_secs(120);

/// A decision that the source has not been told of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Owed {
    /// The entry's id, and a word for what of it is meant.
    pub(crate) id: (Uuid, &'static str),
    pub(crate) decided: Decided,
}

/// What a source is to be told of a journal, oldest first. What came back as a move of the source's own name is done, and so is what
/// was decided again since.
pub(crate) fn owed(steering: &Steering, entries: &[Entry]) -> Vec<Owed> {
    let mut rollout = Rollout::default();
    let mut owed: Vec<Owed> = Vec::new();
    let (stable, candidate) = (journal_name(steering, &steering.stable), journal_name(steering, &steering.candidate));
    let mut stable_from = BTreeSet::from([None]);
    for entry in entries {
        let before = (rollout.stable, rollout.candidate.map(|(version, _)| version));
        rollout.apply(entry);
        let after = (rollout.stable, rollout.candidate.map(|(version, _)| version));
        if let Op::Alias { name, version } = &entry.op
            && *name == stable
        {
            stable_from = [*version].into();
        }
        if entry.by == steering.by {
            match &entry.op {
                Op::Alias { name, .. } if *name == stable => owed.retain(|one| one.decided.verdict == Verdict::Aborted),
                Op::Alias { name, .. } if *name == candidate => owed.retain(|one| one.decided.verdict != Verdict::Aborted),
                _ => {}
            }
            continue;
        }
        let mut owe = |version: VersionNumber, verdict: Verdict| {
            owed.retain(|one| one.decided.version != version);
            let (by, at, reason) = (entry.by.clone(), entry.at, entry.reason.clone());
            let stable_from = stable_from.clone();
            owed.push(Owed {
                id: (entry.id, verdict.as_str()),
                decided: Decided { version, verdict, by, at, reason, stable_from },
            });
        };
        if let Some(dropped) = before.1.filter(|dropped| after.1 != Some(*dropped) && after.0 != Some(*dropped)) {
            owe(dropped, Verdict::Aborted);
        }
        if let Some(promoted) = after.0.filter(|promoted| before.0 != Some(*promoted)) {
            if let (Op::Rollback { .. }, Some(left)) = (&entry.op, before.0) {
                owe(left, Verdict::RolledBack);
            }
            owe(promoted, Verdict::Promoted);
            stable_from.insert(Some(promoted));
        }
    }
    // Only the last word on which version is stable counts.
    if let Some(last) = owed.iter().rposition(|one| one.decided.verdict == Verdict::Promoted) {
        let mut at = 0;
        owed.retain(|one| {
            at += 1;
            one.decided.verdict != Verdict::Promoted || at == last + 1
        });
    }
    owed
}

/// What each model's source is to be told.
type AllOwed = BTreeMap<ModelName, Vec<Owed>>;

/// Hands decisions to the task that tells.
#[derive(Debug)]
pub(crate) struct Teller {
    owed: watch::Sender<AllOwed>,
    /// Why the source could not be told, for people.
    failures: Arc<Mutex<BTreeMap<ModelName, String>>>,
}

impl Teller {
    /// Starts the task on the current runtime. It ends with the teller.
    pub(crate) fn start(write_back: Arc<dyn WriteBack>, looks: Arc<Looks>) -> Teller {
        let (owed, told) = watch::channel(AllOwed::new());
        let failures = Arc::default();
        tokio::spawn(tell(write_back, looks, told, Arc::clone(&failures)));
        Teller { owed, failures }
    }

    /// What is owed of a model now.
    pub(crate) fn set(&self, model: &ModelName, owed: Vec<Owed>) {
        self.owed.send_if_modified(|all| {
            if all.get(model).map_or(&[][..], Vec::as_slice) == owed {
                return false;
            }
            all.insert(model.clone(), owed);
            true
        });
    }

    /// Forgets models that are not there any more.
    pub(crate) fn retain(&self, is_there: impl Fn(&ModelName) -> bool) {
        self.owed.send_if_modified(|all| {
            let before = all.len();
            all.retain(|model, _| is_there(model));
            all.len() != before
        });
        self.lock().retain(|model, _| is_there(model));
    }

    pub(crate) fn failure(&self, model: &ModelName) -> Option<String> {
        self.lock().get(model).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ModelName, String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn tell(
    write_back: Arc<dyn WriteBack>,
    looks: Arc<Looks>,
    mut owed: watch::Receiver<AllOwed>,
    failures: Arc<Mutex<BTreeMap<ModelName, String>>>,
) {
    let mut done: BTreeSet<(Uuid, &'static str)> = BTreeSet::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let all = owed.borrow_and_update().clone();
        done.retain(|id| all.values().flatten().any(|one| one.id == *id));
        let mut failed = false;
        for (model, owed) in &all {
            let mut failure = None;
            for one in owed.iter().filter(|one| !done.contains(&one.id)).cloned().collect::<Vec<_>>() {
                match timeout(PATIENCE, write_back.tell(model, &one.decided)).await {
                    Ok(Ok(())) => {
                        let Decided { version, verdict, .. } = &one.decided;
                        tracing::info!(%model, version, verdict = verdict.as_str(), "the registry was told");
                        done.insert(one.id);
                        looks.ask();
                    }
                    Ok(Err(error)) => failure = Some(with_causes(&error)),
                    Err(_) => failure = Some(format!("no answer within {} s", PATIENCE.as_secs())),
                }
                // In order, or not at all.
                if failure.is_some() {
                    break;
                }
            }
            failed |= failure.is_some();
            note(&failures, &looks, model, failure);
        }
        pause = if failed { pause } else { FIRST_PAUSE };
        let changed =
            if failed { timeout_at(Instant::now() + pause, owed.changed()).await.unwrap_or(Ok(())) } else { owed.changed().await };
        if changed.is_err() {
            return;
        }
        pause = if failed { pause.saturating_mul(2).min(MAX_PAUSE) } else { FIRST_PAUSE };
    }
}

/// Shows why a source could not be told, or no longer does.
fn note(failures: &Mutex<BTreeMap<ModelName, String>>, looks: &Looks, model: &ModelName, failure: Option<String>) {
    let mut shown = failures.lock().unwrap_or_else(PoisonError::into_inner);
    if shown.get(model) == failure.as_ref() {
        return;
    }
    match failure {
        Some(failure) => {
            tracing::warn!(%model, error = failure, "the registry can't be told what was decided; it is tried again");
            shown.insert(model.clone(), format!("the registry was not told yet what was decided here: {failure}"));
        }
        None => drop(shown.remove(model)),
    }
    drop(shown);
    looks.ask_about(model.clone());
}
