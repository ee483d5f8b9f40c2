//! `bascule where`: where a model, or one version of it, runs.

use std::collections::BTreeSet;
use std::str::FromStr;

use bascule_registry::{ModelName, VersionNumber, parse_version};
use clap::Args;
use serde_json::{Value, json};

use crate::config::env::Environment;

use super::Outcome;
use super::args::over;
use super::deployed::{GatewaysArgs, answered, deployed, shown};
use super::failure::Failure;
use super::journals::{Decision, Journals, RegistryJournals, said};
use super::output::{print, print_json, rows};

/// Show where a model or one of its versions runs: replica, device, stage, since when, who decided so and why, and which run made it.
///
/// What was decided comes from the model's journal: every gateway is asked for it, and with --registry that, too, where it holds one.
/// Where they differ, the difference is shown. SINCE is when the decision was made; where nobody decided, DECISION is the rollout strategy
/// and SINCE when the version was loaded. A gateway that does not answer is named; exit code 3 only where none does, 1 where it runs nowhere.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule where digits@3 --gateway http://127.0.0.1:8002 --registry ./models")]
pub(super) struct Where {
    /// The model, or model@version.
    #[arg(value_name = "MODEL[@N]")]
    wanted: Wanted,
    #[command(flatten)]
    gateways: GatewaysArgs,
    /// Also read the journal in this registry itself: its place, or its name in bascule.toml.
    #[arg(long, value_name = "PATH|URL|NAME")]
    registry: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is looked for.
#[derive(Debug, Clone)]
struct Wanted {
    model: ModelName,
    version: Option<VersionNumber>,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Wanted, String> {
        let (model, version) = match text.split_once('@') {
            Some((model, version)) => (model, Some(parse_version(version).map_err(|error| error.to_string())?)),
            None => (text, None),
        };
        Ok(Wanted { model: ModelName::new(model).map_err(|error| error.to_string())?, version })
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.model),
            None => write!(f, "{}", self.model),
        }
    }
}

impl Where {
    pub(super) async fn run(self, environment: &Environment) -> Outcome {
        let registry = registry(self.registry.as_deref(), environment).await?;
        let answered = answered(self.gateways.ask().await?)?;
        let mut found = deployed(&answered);
        found.retain(|one| {
            one.model == self.wanted.model.as_str() && self.wanted.version.is_none_or(|version| one.version == version)
        });
        let model = &self.wanted.model;
        let journals = Journals::read(&answered, registry.as_ref(), |known| known.name == model.as_str(), Some(model)).await?;
        journals.explain(&mut found);
        let versions: BTreeSet<VersionNumber> = found.iter().map(|one| one.version).chain(self.wanted.version).collect();
        let mut decisions = journals.decisions(model);
        decisions.retain(|version, _| versions.contains(version));
        let differences = journals.differences();
        if self.json {
            let decisions: Vec<_> = decisions.iter().map(|(version, decision)| told(*version, decision)).collect();
            print_json(&json!({
                "replicas": found, "decisions": decisions, "journals": journals.shown(), "differences": differences,
            }))?;
        } else {
            let is_shown = |version: &VersionNumber| found.iter().any(|one| one.version == *version);
            let rest = decisions.iter().filter(|(version, _)| !is_shown(version));
            let lines = (!found.is_empty()).then(|| rows(&shown(&found))).into_iter();
            let lines = lines.chain(rest.map(|(version, decision)| format!("version {version}: {}", said(&decision.entry))));
            for line in lines.chain(differences.iter().map(|difference| format!("difference: {difference}"))) {
                print(&line)?;
            }
        }
        if found.is_empty() {
            let nowhere = Failure::new(format!("{} runs on none of the gateways that answered: {}", self.wanted, answered.len()));
            return Err(nowhere.hint("`bascule status` says what became of it there; `bascule what` shows all that runs"));
        }
        Ok(())
    }
}

fn told(version: VersionNumber, decision: &Decision) -> Value {
    json!({ "version": version, "part": decision.part, "entry": decision.entry })
}

/// The registry whose journals are read beside those that gateways give.
pub(super) async fn registry(named: Option<&str>, environment: &Environment) -> Result<Option<RegistryJournals>, Failure> {
    match named {
        Some(registry) => {
            let config = over(registry, environment)?;
            RegistryJournals::open(config.registry.only().map_err(Failure::new)?.url.clone()).await
        }
        None => Ok(None),
    }
}
