//! `bascule verify`: reads a registry again, every byte of it.

use anyhow::Context as _;
use bascule_registry::{Finding, ModelName};
use clap::Args;
use serde_json::json;

use crate::compose;
use crate::config::env::Environment;

use super::args::ConfigArgs;
use super::failure::Failure;
use super::output::{bytes, print, print_json};
use super::publish::progress::Bar;
use super::{Outcome, in_background, versions_of};

/// Read every file of a registry again, and compare it with its manifest.
///
/// Files that are corrupt or missing are found, manifests that break a rule, and signatures that do not verify; where `registry.trust`
/// is set, also versions that a gateway would refuse. Exit code 1 where anything is wrong.
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
        let (registry, trust) = (versions_of::open(&config)?, compose::trust(&config)?);
        in_background(async {
            if let Some(model) = &self.model {
                versions_of::model(&registry, model).await?;
            }
            let survey = registry.survey(self.model.as_ref()).await.context("can't read the registry")?;
            let bar = Bar::new(survey.bytes());
            let verification = registry.verify(&survey, trust.as_deref(), &bar).await;
            bar.finish();
            if self.json {
                let finding =
                    |finding: &Finding| json!({ "model": finding.model, "version": finding.version, "problem": finding.problem });
                print_json(&json!({
                    "registry": registry.describe(), "versions": verification.versions, "files": verification.files,
                    "bytes": verification.bytes, "problems": verification.findings.iter().map(finding).collect::<Vec<_>>(),
                }))?;
            } else {
                print(&format!(
                    "{}: versions {}, files {}, {} read",
                    registry.describe(),
                    verification.versions,
                    verification.files,
                    bytes(verification.bytes)
                ))?;
            }
            if verification.findings.is_empty() {
                return Ok(());
            }
            let failure = Failure::several(verification.findings.iter().map(said));
            Err(failure.hint("publish a version again under another number, and `bascule yank` the one that is damaged"))
        })
    }
}

fn said(finding: &Finding) -> String {
    match finding.version {
        Some(version) => format!("{}@{version}: {}", finding.model, finding.problem),
        None => format!("{}: {}", finding.model, finding.problem),
    }
}
