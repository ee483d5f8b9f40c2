//! `bascule versions`: the versions of a model, from its registry.

use bascule_registry::{Generation, ListedModel, ModelName, VersionNumber, Weight};
use clap::Args;
use serde_json::{Value, json};

use crate::config::env::Environment;

use super::args::ConfigArgs;
use super::output::{bytes, note, print, print_json, rows, table};
use super::{Outcome, in_background, versions_of};

/// List the versions of a model in a registry: what its journal says of each, who made and who signed it.
///
/// Registries of other kinds tell less: MLflow has aliases and nobody's signature, a plain folder its files and no more.
///
/// `stable` and `candidate` are what was decided. While nothing was, each gateway follows its own policy: `bascule where` asks them.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule versions digits --registry ./models")]
pub(super) struct Versions {
    /// The model.
    model: ModelName,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Versions {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let config = self.config.load([], environment)?.config;
        in_background(async {
            let model = versions_of::listed(&config, &self.model).await?;
            for problem in &model.problems {
                note(format!("warning: {}: {problem}", model.name));
            }
            if self.json {
                return print_json(&model.versions.values().map(|version| shown(&model, version)).collect::<Vec<_>>());
            }
            print(&text(&model))
        })
    }
}

/// What is true of a version, the most important first.
pub(super) fn states(model: &ListedModel, generation: &Generation) -> Vec<String> {
    let (rollout, version): (_, VersionNumber) = (&model.rollout, generation.key.version);
    let mut states = Vec::new();
    let mut say = |is: bool, state: &str| states.extend(is.then(|| state.to_owned()));
    say(generation.tombstoned, "tombstoned");
    say(rollout.pinned == Some(version), "pinned");
    say(rollout.stable == Some(version), "stable");
    if let Some((_, weight_bp)) = rollout.candidate.filter(|(candidate, _)| *candidate == version) {
        say(true, &format!("candidate {}", Weight(weight_bp)));
    }
    say(rollout.held.contains(&version), "held");
    say(rollout.rejected.contains(&version), "rejected");
    // Names that steer a model are told apart from those that are only names.
    let steering = model.steering.iter().flat_map(|steering| [&steering.stable, &steering.candidate]);
    let steering = steering.filter_map(|alias| Some((&alias.name, alias.version?)));
    for (alias, of) in steering.chain(model.aliases.iter().map(|(alias, of)| (alias, *of))) {
        say(of == version, &format!("alias {alias}"));
    }
    states
}

fn shown(model: &ListedModel, generation: &Generation) -> Value {
    let manifest = &generation.manifest;
    let keys = generation.signatures.iter().filter_map(|signature| signature.signer(&generation.signed_digest()));
    json!({
        "model": generation.key.model, "version": generation.key.version, "states": states(model, generation),
        "digest": generation.digest.to_string(), "created": manifest.created, "bytes": generation.bytes,
        "format": manifest.format, "publisher": manifest.publisher, "lineage": manifest.lineage, "metrics": manifest.metrics,
        "tags": manifest.tags, "signed_by": keys.map(|key| key.to_string()).collect::<Vec<_>>(),
    })
}

fn text(model: &ListedModel) -> String {
    if model.versions.is_empty() {
        return format!("{} has no version that can be used", model.name);
    }
    let mut table = table(["VERSION", "STATE", "CREATED", "SIZE", "PUBLISHER", "RUN", "METRICS", "SIGNED BY"]);
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    for generation in model.versions.values() {
        let manifest = &generation.manifest;
        let metrics: Vec<String> = manifest.metrics.iter().map(|(name, value)| format!("{name}={value}")).collect();
        table.add_row([
            generation.key.version.to_string(),
            or_dash(states(model, generation).join(", ")),
            manifest.created.format("%Y-%m-%d %H:%M:%S").to_string(),
            bytes(generation.bytes),
            or_dash(manifest.publisher.clone()),
            or_dash(manifest.lineage.run_id.clone().unwrap_or_default()),
            or_dash(metrics.join(" ")),
            or_dash(versions_of::signers(generation).join(" ")),
        ]);
    }
    rows(&table)
}
