//! `bascule rollout`: who gets which version, decided by hand.

pub(super) mod journal;

use bascule_registry::{ModelName, Op, VersionNumber, Weight, parse_version};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::config::Config;
use crate::config::env::Environment;

use super::Outcome;
use super::args::{GatewayArgs, over};
use super::failure::Failure;
use super::gateway::{Gateway, model_path};
use super::output::{print, print_json};

/// Decide by hand which version gets which share of the traffic.
///
/// Decisions are written to the model's journal: through the gateway, or with --registry directly, where every gateway of that
/// registry reads them; for registries that hold no journal, where rollout.journal says.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  bascule rollout weight digits 2 10%\n  bascule rollout weight digits 2 100%\n  \
                        bascule rollout status digits\n  bascule rollout clear digits 2 --registry ./models")]
pub(super) struct Rollout {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
struct Target {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Write to the journal of this registry instead of asking a gateway: its place, or its name in bascule.toml.
    #[arg(long, value_name = "PATH|URL|NAME", global = true)]
    registry: Option<String>,
    /// Why, for the journal.
    #[arg(long, default_value = "", global = true)]
    reason: String,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

impl Target {
    /// The configuration with the registry that was named, by its place or its name there.
    fn config(&self, environment: &Environment) -> Result<Option<Config>, Failure> {
        self.registry.as_deref().map(|registry| over(registry, environment)).transpose()
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Give a version a share of the traffic: 100% makes it stable, 0% drops and rejects it.
    #[command(after_help = "Example:\n  bascule rollout weight digits 2 10%")]
    Weight {
        /// The model.
        model: ModelName,
        /// The version.
        #[arg(value_parser = version)]
        version: VersionNumber,
        /// Its share, 0% to 100%.
        weight: Weight,
    },
    /// Show stable, candidate, pin and rejected versions; with --registry also the journal.
    #[command(after_help = "Example:\n  bascule rollout status digits")]
    Status {
        /// The model.
        model: ModelName,
    },
    /// Send all traffic to a version until `unpin`, whatever is published.
    #[command(after_help = "Example:\n  bascule rollout pin digits 1")]
    Pin {
        /// The model.
        model: ModelName,
        /// The version.
        #[arg(value_parser = version)]
        version: VersionNumber,
    },
    /// End a pin.
    #[command(after_help = "Example:\n  bascule rollout unpin digits")]
    Unpin {
        /// The model.
        model: ModelName,
    },
    /// Forget that a version, or any, was rejected or held.
    #[command(after_help = "Example:\n  bascule rollout clear digits 2")]
    Clear {
        /// The model.
        model: ModelName,
        /// The version; all where none is given.
        #[arg(value_parser = version)]
        version: Option<VersionNumber>,
    },
}

fn version(text: &str) -> Result<VersionNumber, String> {
    parse_version(text).map_err(|error| error.to_string())
}

impl Verb {
    fn model(&self) -> &ModelName {
        match self {
            Verb::Weight { model, .. }
            | Verb::Status { model }
            | Verb::Pin { model, .. }
            | Verb::Unpin { model }
            | Verb::Clear { model, .. } => model,
        }
    }

    /// What is to be written; `None` where something is to be read.
    fn op(&self) -> Option<Op> {
        Some(match self {
            Verb::Weight { version, weight, .. } => Op::Weight { version: *version, weight_bp: weight.0 },
            Verb::Pin { version, .. } => Op::Pin { version: *version },
            Verb::Unpin { .. } => Op::Unpin,
            Verb::Clear { version, .. } => Op::Clear { version: *version },
            Verb::Status { .. } => return None,
        })
    }
}

/// What a gateway says of a model's rollout.
#[derive(Debug, Serialize, Deserialize)]
struct RolloutShown {
    model: String,
    strategy: String,
    stable: Option<VersionNumber>,
    candidate: Option<Candidate>,
    pinned: Option<VersionNumber>,
    rejected: Vec<VersionNumber>,
    aliases: std::collections::BTreeMap<String, VersionNumber>,
    frozen: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Candidate {
    version: VersionNumber,
    weight_bp: u32,
    kind: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Decided {
    seq: u64,
    rollout: Option<RolloutShown>,
}

impl Rollout {
    pub(super) async fn run(self, environment: &Environment) -> Outcome {
        let (model, op) = (self.verb.model(), self.verb.op());
        let target = &self.target;
        match (target.config(environment)?, op) {
            (Some(config), None) => journal::show(&config, model, target.json).await,
            (Some(config), Some(op)) => journal::write(&config, model, op, &environment.user(), &target.reason, target.json).await,
            (None, None) => {
                let gateway = Gateway::at(&target.gateway.url)?;
                let shown: RolloutShown = gateway.get(&format!("{}/rollout", model_path(model.as_str())?), &[]).await?;
                if target.json { print_json(&shown) } else { print(&shown.text()) }
            }
            (None, Some(op)) => self.ask(model, &op, environment).await,
        }
    }

    async fn ask(&self, model: &ModelName, op: &Op, environment: &Environment) -> Outcome {
        let gateway = Gateway::at(&self.target.gateway.url)?;
        let body = decision(op, &environment.user(), &self.target.reason);
        let decided: Decided = gateway.post(&format!("{}/rollout", model_path(model.as_str())?), &[], Some(&body)).await?;
        if self.target.json {
            return print_json(&decided);
        }
        print(&format!(
            "{model}: entry {} of the journal says {}; `bascule rollout status {model}` shows what came of it",
            decided.seq,
            said(op)
        ))
    }
}

/// A decision as the admin API takes it.
fn decision(op: &Op, by: &str, reason: &str) -> Value {
    let mut body = json!({ "op": op.name(), "by": by, "reason": reason, "id": Uuid::new_v4() });
    if let Some(version) = op.version() {
        body["version"] = json!(version);
    }
    if let Op::Weight { weight_bp, .. } = op {
        body["weight_bp"] = json!(weight_bp);
    }
    body
}

/// An op for people.
pub(super) fn said(op: &Op) -> String {
    let version = op.version().map(|version| format!(" {version}")).unwrap_or_default();
    match op {
        Op::Weight { weight_bp, .. } | Op::Start { weight_bp, .. } | Op::Step { weight_bp } => {
            format!("{}{version} {}", op.name(), Weight(*weight_bp))
        }
        op => format!("{}{version}", op.name()),
    }
}

impl RolloutShown {
    fn text(&self) -> String {
        let number =
            |version: Option<VersionNumber>| version.map_or_else(|| "none".to_owned(), |version| format!("version {version}"));
        let mut lines = vec![format!("model      {}", self.model), format!("strategy   {}", self.strategy)];
        let rest =
            self.candidate.as_ref().filter(|candidate| candidate.kind == "canary").map_or(0, |candidate| candidate.weight_bp);
        let share = self.stable.map(|_| format!(", {}", Weight(10_000u32.saturating_sub(rest)))).unwrap_or_default();
        lines.push(format!("stable     {}{share}", number(self.stable)));
        lines.push(match &self.candidate {
            Some(candidate) => {
                format!("candidate  version {}, {} {}", candidate.version, candidate.kind, Weight(candidate.weight_bp))
            }
            None => "candidate  none".to_owned(),
        });
        lines.extend(self.pinned.map(|version| format!("pinned     version {version}")));
        if !self.rejected.is_empty() {
            let rejected: Vec<String> = self.rejected.iter().map(ToString::to_string).collect();
            lines.push(format!("rejected   version {}", rejected.join(", ")));
        }
        lines.extend(self.aliases.iter().map(|(alias, version)| format!("alias      {alias} = version {version}")));
        lines.extend(self.frozen.iter().map(|entry| format!("frozen     at an entry that this release does not know: {entry}")));
        lines.join("\n")
    }
}

/// A failure of a journal, with a hint where there is one.
fn refused(error: bascule_registry::JournalError) -> Failure {
    anyhow::Error::new(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_has_the_fields_of_its_op() {
        let body = decision(&Op::Weight { version: 2, weight_bp: 1_000 }, "ann", "try it");
        assert_eq!((&body["op"], &body["version"], &body["weight_bp"]), (&json!("weight"), &json!(2), &json!(1000)));
        assert_eq!((&body["by"], &body["reason"]), (&json!("ann"), &json!("try it")));
        let body = decision(&Op::Unpin, "ann", "");
        assert!(body.get("version").is_none() && body.get("weight_bp").is_none(), "{body}");
        assert_eq!(said(&Op::Weight { version: 2, weight_bp: 50 }), "weight 2 0.5%");
        assert_eq!(said(&Op::Clear { version: None }), "clear");
    }

    #[test]
    fn the_split_is_shown_in_percent() {
        let shown: RolloutShown = serde_json::from_value(json!({
            "model": "m", "strategy": "manual", "stable": 1, "candidate": { "version": 2, "weight_bp": 5000, "kind": "canary" },
            "pinned": null, "rejected": [3, 4], "aliases": { "prod": 1 }, "frozen": null
        }))
        .unwrap();
        assert_eq!(
            shown.text(),
            "model      m\nstrategy   manual\nstable     version 1, 50%\ncandidate  version 2, canary 50%\nrejected   version 3, 4\nalias      prod = version 1"
        );
    }
}
