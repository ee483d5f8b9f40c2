//! `bascule where`: where a model, or one version of it, runs.

use std::collections::BTreeSet;
use std::str::FromStr;

use bascule_registry::{Entry, ModelName, VersionNumber, parse_version};
use clap::Args;
use serde_json::json;

use crate::config::Config;
use crate::config::env::Environment;

use super::Outcome;
use super::args::over;
use super::deployed::{GatewaysArgs, answered, deployed, shown};
use super::failure::Failure;
use super::output::{print, print_json, rows};

/// Show where a model or one of its versions runs: replica, device, stage, since when, and which run made it.
///
/// With --registry the journal is read too, and says who last decided about each version. A gateway that does not answer is named; exit
/// code 3 only where none does, 1 where it runs nowhere.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule where digits@3 --gateway http://127.0.0.1:8002 --registry ./models")]
pub(super) struct Where {
    /// The model, or model@version.
    #[arg(value_name = "MODEL[@N]")]
    wanted: Wanted,
    #[command(flatten)]
    gateways: GatewaysArgs,
    /// Also read the journal of this registry: its place, or its name in bascule.toml.
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
        let config = self.registry.as_deref().map(|registry| over(registry, environment)).transpose()?;
        let answered = answered(self.gateways.ask().await?)?;
        let mut found = deployed(&answered);
        found.retain(|one| {
            one.model == self.wanted.model.as_str() && self.wanted.version.is_none_or(|version| one.version == version)
        });
        let versions: BTreeSet<VersionNumber> = found.iter().map(|one| one.version).chain(self.wanted.version).collect();
        let decisions = match config {
            Some(config) => decisions(&config, &self.wanted.model, &versions).await?,
            None => Vec::new(),
        };
        if self.json {
            print_json(&json!({ "replicas": found, "decisions": decisions }))?;
        } else if !found.is_empty() {
            print(&rows(&shown(&found)))?;
        }
        for entry in decisions.iter().filter(|_| !self.json) {
            print(&said(entry))?;
        }
        if found.is_empty() {
            let nowhere = Failure::new(format!("{} runs on none of the gateways that answered: {}", self.wanted, answered.len()));
            return Err(nowhere.hint("`bascule status` says what became of it there; `bascule what` shows all that runs"));
        }
        Ok(())
    }
}

/// The last entry of the journal about each of these versions.
async fn decisions(config: &Config, model: &ModelName, versions: &BTreeSet<VersionNumber>) -> Result<Vec<Entry>, Failure> {
    let entries = super::rollout::journal::entries(config, model).await?;
    let last = |version: &VersionNumber| entries.iter().rev().find(|entry| entry.op.version() == Some(*version)).cloned();
    Ok(versions.iter().filter_map(last).collect())
}

fn said(entry: &Entry) -> String {
    let version = entry.op.version().map(|version| format!("version {version}: ")).unwrap_or_default();
    let reason = if entry.reason.is_empty() { String::new() } else { format!(" ({})", entry.reason) };
    let by = if entry.by.is_empty() { "unknown" } else { &entry.by };
    format!("{version}{} by {by} at {}{reason}", super::rollout::said(&entry.op), entry.at.format("%Y-%m-%d %H:%M:%S"))
}
