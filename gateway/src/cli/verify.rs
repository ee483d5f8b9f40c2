//! `bascule verify`: reads a registry again, every byte of it.

mod fetched;

use anyhow::Context as _;
use bascule_registry::{Finding, ModelName, Verification};
use clap::Args;
use serde_json::json;

use crate::compose;
use crate::config::Config;
use crate::config::env::Environment;

use super::args::ConfigArgs;
use super::failure::Failure;
use super::output::{bytes, note, print, print_json};
use super::publish::progress::Bar;
use super::{Outcome, in_background, versions_of};

/// Read every file of a registry again, and compare it with its manifest.
///
/// Files that are corrupt or missing are found, manifests that break a rule, and signatures that do not verify; where `registry.trust`
/// is set, also versions that a gateway would refuse. Versions of an OCI registry are fetched for it, one after the other; MLflow has no
/// digests to compare with. Exit code 1 where anything is wrong.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule verify digits --registry ./models")]
pub(super) struct Verify {
    /// Only this model [default: all].
    model: Option<ModelName>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let config = self.config.load([], environment)?.config;
        let place = &config.registry.only().map_err(Failure::new)?.url;
        let holds_manifests = compose::holds_journals(place)?;
        in_background(async {
            let model = self.model.as_ref();
            let verified = if holds_manifests { in_place(&config, model).await } else { fetched::verify(&config, model).await }?;
            self.show(&place.0, &verified)
        })
    }

    fn show(&self, registry: &str, read: &Verification) -> Outcome {
        if self.json {
            let finding =
                |finding: &Finding| json!({ "model": finding.model, "version": finding.version, "problem": finding.problem });
            print_json(&json!({
                "registry": registry, "versions": read.versions, "files": read.files, "bytes": read.bytes,
                "without_digests": read.without_digests, "unread": read.problems, "problems": read.findings.iter().map(finding).collect::<Vec<_>>(),
            }))?;
        } else {
            print(&format!("{registry}: versions {}, files {}, {} read", read.versions, read.files, bytes(read.bytes)))?;
        }
        for model in &read.without_digests {
            note(format!("note: {model} was not verified: its versions have no digests to be compared with"));
        }
        if read.findings.is_empty() && read.problems.is_empty() {
            return Ok(());
        }
        let failure = Failure::several(read.problems.iter().cloned().chain(read.findings.iter().map(said)));
        if read.findings.is_empty() {
            return Err(failure);
        }
        Err(failure.hint("publish a version again under another number, and `bascule yank` the one that is damaged"))
    }
}

/// Where there are manifests.
async fn in_place(config: &Config, model: Option<&ModelName>) -> Result<Verification, Failure> {
    let (registry, trust) = (versions_of::open(config)?, compose::trust(config)?);
    if let Some(model) = model {
        versions_of::model(&registry, model).await?;
    }
    let survey = registry.survey(model).await.context("can't read the registry")?;
    let bar = Bar::new(survey.bytes());
    let read = registry.verify(&survey, trust.as_deref(), &bar).await;
    bar.finish();
    Ok(read)
}

fn said(finding: &Finding) -> String {
    match finding.version {
        Some(version) => format!("{}@{version}: {}", finding.model, finding.problem),
        None => format!("{}: {}", finding.model, finding.problem),
    }
}
