//! `bascule models`: what exists.

use std::collections::BTreeMap;

use bascule_registry::{Generation, Listing};
use bascule_serving::{Status, VersionStatus};
use clap::Args;
use serde_json::{Value, json};

use crate::config::env::Environment;
use crate::config::{self, Config, Given};

use super::args::GatewayArgs;
use super::failure::Failure;
use super::gateway::Gateway;
use super::output::{bytes, note, print, print_json, rows, table};
use super::{Outcome, in_background, listing};

/// List the models and versions that a gateway knows, or with --registry all that exist.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule models --registry ./models")]
pub(super) struct Models {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// List what is in this registry instead of asking a gateway.
    #[arg(long, value_name = "PATH|URL")]
    registry: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Models {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let config = match self.registry.clone() {
            Some(registry) => {
                let given = Given { flags: vec![("registry.url", "--registry", registry)], ..Given::default() };
                Some(config::load(&given, environment)?.config)
            }
            None => None,
        };
        in_background(async {
            let (shown, problems) = match &config {
                Some(config) => of_registry(config).await?,
                None => of_gateway(&self.gateway).await?,
            };
            if self.json {
                return print_json(&shown);
            }
            for problem in problems {
                note(format!("warning: {problem}"));
            }
            print(&text(&shown))
        })
    }
}

type Shown = (Vec<Value>, Vec<String>);

async fn of_registry(config: &Config) -> Result<Shown, Failure> {
    let listing = listing::list(config).await?;
    let versions = listing.models.values().flat_map(|model| model.versions.values().map(|generation| existing(generation)));
    Ok((versions.collect(), problems(&listing)))
}

/// Everything that a listing complains of.
fn problems(listing: &Listing) -> Vec<String> {
    let of_models =
        listing.models.values().flat_map(|model| model.problems.iter().map(move |problem| format!("{}: {problem}", model.name)));
    listing.problems.iter().cloned().chain(of_models).collect()
}

fn existing(generation: &Generation) -> Value {
    let manifest = &generation.manifest;
    json!({
        "model": generation.key.model, "version": generation.key.version, "digest": generation.digest.to_string(),
        "state": if generation.tombstoned { "yanked" } else { "exists" },
        "layout": generation.layout.as_str(),
        "format": manifest.format, "bytes": generation.bytes, "created": manifest.created,
        "run_id": manifest.lineage.run_id, "metrics": manifest.metrics, "tags": manifest.tags,
    })
}

async fn of_gateway(gateway: &GatewayArgs) -> Result<Shown, Failure> {
    let status: Status = Gateway::at(&gateway.url)?.get("status", &[]).await?;
    let known = |model: &str, version: &VersionStatus| {
        json!({
            "model": model, "version": version.version, "digest": version.digest, "state": version.state,
            "run_id": version.run_id, "metrics": version.metrics,
        })
    };
    let versions = status.models.iter().flat_map(|model| model.versions.iter().map(|version| known(&model.name, version)));
    let bare = status
        .models
        .iter()
        .filter(|model| model.versions.is_empty())
        .map(|model| json!({ "model": model.name, "state": model.standing }));
    Ok((versions.chain(bare).collect(), status.registry.problems))
}

fn text(shown: &[Value]) -> String {
    if shown.is_empty() {
        return "no models".to_owned();
    }
    let word = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut table = table(["MODEL", "VERSION", "STATE", "FORMAT", "SIZE", "CREATED", "RUN", "METRICS"]);
    for version in shown {
        let metrics: BTreeMap<String, f64> = serde_json::from_value(version["metrics"].clone()).unwrap_or_default();
        let metrics: Vec<String> = metrics.iter().map(|(name, value)| format!("{name}={value}")).collect();
        table.add_row([
            word(&version["model"]),
            word(&version["version"]),
            word(&version["state"]),
            word(&version["format"]),
            version["bytes"].as_u64().map_or_else(|| "-".to_owned(), bytes),
            word(&version["created"]).chars().take(19).collect(),
            word(&version["run_id"]),
            metrics.join(" "),
        ]);
    }
    rows(&table)
}
