//! `bascule publish`: writes a version into a registry; the last step of a training job.

pub(super) mod files;
pub(super) mod progress;
mod signature;
mod wait;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bascule_registry::{Lineage, ModelName, PublishError, PublishRequest, PublishTarget, Published, VersionNumber, parse_version};
use bascule_runtime_api::Signature;
use clap::Args;
use serde_json::json;

use crate::compose;
use crate::config::env::{Environment, GATEWAY_VARIABLE};
use crate::config::{Config, Place};
use crate::trial::Unread;

use super::args::{ConfigArgs, DEFAULT_GATEWAY, measure, pair};
use super::failure::Failure;
use super::gateway::Gateway;
use super::output::{bytes, note, or_dash, print, print_json};
use super::trial::{Subject, settings_of, try_files};
use super::{Outcome, in_background, signing_key};
use files::{Chosen, choose};
use progress::Bar;
use wait::{Quorum, gateways, wait_for};

/// Publish a model file, or a folder with one, as a new version.
///
/// The files are written first, the manifest last: a publish that is killed half way leaves nothing that is served. A version that
/// exists is refused. No gateway is needed, but for --wait.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule publish digits model.onnx --run-id run-42 --metric accuracy=0.979 --wait")]
pub(super) struct Publish {
    /// The model; made with its first version.
    model: ModelName,
    /// A model file, or a folder whose files belong to one version.
    path: PathBuf,
    /// The version [default: the one after the highest].
    #[arg(long, value_parser = |text: &str| parse_version(text).map_err(|error| error.to_string()))]
    version: Option<VersionNumber>,
    #[command(flatten)]
    config: ConfigArgs,
    /// The format [default: by the file's name].
    #[arg(long)]
    format: Option<String>,
    /// The file of a folder that the runtime opens [default: model.onnx, or the only one that can be].
    #[arg(long, value_name = "FILE")]
    entrypoint: Option<String>,
    /// What the model takes and gives, for formats that do not say: a model.toml with [signature], or JSON.
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Golden samples: a file of the folder [default: golden.json, where it is there], or any file for a single model file.
    #[arg(long, value_name = "FILE")]
    golden: Option<String>,
    /// The training run that made it.
    #[arg(long)]
    run_id: Option<String>,
    /// The code that made it: a commit, an image.
    #[arg(long)]
    code: Option<String>,
    /// The data that it was trained on.
    #[arg(long)]
    data: Option<String>,
    /// The version that it continues.
    #[arg(long)]
    parent: Option<String>,
    /// What its training measured; may be repeated.
    #[arg(long = "metric", value_name = "NAME=NUMBER", value_parser = measure)]
    metrics: Vec<(String, f64)>,
    /// A mark of your own; may be repeated.
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = pair)]
    tags: Vec<(String, String)>,
    /// Try it first, in a process of its own, as a gateway will: see `bascule trial`. Where it fails, nothing is published.
    #[arg(long)]
    verify: bool,
    /// Sign it with this private key: a file, file:PATH, or env:NAME for a variable that holds it; may be repeated.
    #[arg(long, value_name = "KEY")]
    sign: Vec<String>,
    /// Load it, but give it no traffic until a rollout says so.
    #[arg(long)]
    hold: bool,
    /// Wait until a gateway serves it; with several, until any or all do.
    #[arg(long, value_name = "any|all", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    wait: Option<Quorum>,
    /// How long to wait.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    wait_timeout: Duration,
    /// The admin API of a gateway to wait for; may be repeated.
    #[arg(long = "gateway", value_name = "URL", env = GATEWAY_VARIABLE, default_value = DEFAULT_GATEWAY, value_delimiter = ',')]
    gateways: Vec<String>,
    /// Print what was published as JSON.
    #[arg(long)]
    json: bool,
}

impl Publish {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let effective = self.config.load([], environment)?;
        // A slip in a URL is found before anything is committed.
        let gateways = if self.wait.is_some() { gateways(&self.gateways)? } else { Vec::new() };
        let signers = self.sign.iter().map(|key| signing_key::read(key, environment)).collect::<Result<Vec<_>, _>>()?;
        if signers.is_empty() && !effective.config.registry.trust.is_empty() {
            note(
                "note: `registry.trust` is set and this version is not signed: gateways with that setting refuse it until `bascule sign`",
            );
        }
        // Before anything else runs: see there.
        let request = PublishRequest { signers, ..self.request(&effective.config, environment)? };
        let spec = effective.config.registry.only().map_err(Failure::new)?;
        let target = compose::open_publish_target(&effective.config, spec)?;
        in_background(self.publish(target.as_ref(), request, gateways, &spec.url))
    }

    async fn publish(&self, target: &dyn PublishTarget, request: PublishRequest, gateways: Vec<Gateway>, place: &Place) -> Outcome {
        let bar = Bar::new(request.files.iter().filter_map(|(_, path)| path.metadata().ok()).map(|meta| meta.len()).sum());
        let signed_by: Vec<String> = request.signers.iter().map(|key| key.public().id()).collect();
        let published = target.publish(request, &bar).await;
        bar.finish();
        let published = published.map_err(refused)?;
        if !self.json {
            print(&said(&published, &signed_by, &target.describe()))?;
        }
        let waited = match self.wait {
            Some(quorum) => wait_for(gateways, quorum, &published, self.wait_timeout).await,
            None => Ok(Vec::new()),
        };
        if self.json {
            print_json(&json!({
                "model": published.key.model, "version": published.key.version, "digest": published.digest.to_string(),
                "bytes": published.bytes, "reused_bytes": published.reused_bytes, "registry": place.0, "signed_by": signed_by,
                "served_by": waited.as_ref().ok().map(|served| served.iter().map(|one| &one.gateway).collect::<Vec<_>>()),
            }))?;
        }
        for served in waited? {
            if !self.json {
                print(&format!("{} {}", published.key, served.how))?;
            }
        }
        Ok(())
    }

    fn request(&self, config: &Config, environment: &Environment) -> Result<PublishRequest, Failure> {
        let chosen = choose(&self.path, self.entrypoint.as_deref(), self.format.as_deref(), self.golden.as_deref())?;
        let declared = self.signature.as_deref().map(signature::declared).transpose()?;
        let settings = if self.verify { settings_of(&self.path) } else { None };
        let subject = Subject { name: self.model.clone(), settings, named: false, declared: declared.as_ref() };
        let signature = match self.verify {
            true => Some(self.verify(config, &chosen, &subject)?),
            false => self.signature(config, &chosen, &subject)?,
        };
        let Chosen { files, entrypoint, format, golden } = chosen;
        let signature =
            signature.map(|signature| serde_json::to_value(signature).context("can't write the signature")).transpose()?;
        Ok(PublishRequest {
            version: self.version,
            signature,
            golden,
            lineage: Lineage {
                run_id: self.run_id.clone(),
                code: self.code.clone(),
                data: self.data.clone(),
                parent: self.parent.clone(),
                ..Lineage::default()
            },
            metrics: self.metrics.iter().cloned().collect(),
            tags: self.tags.iter().cloned().collect(),
            publisher: environment.user(),
            hold: self.hold,
            resume_dir: environment.state_home().map(|home| home.join("bascule/uploads")),
            ..PublishRequest::new(self.model.clone(), format, entrypoint, files)
        })
    }
}

impl Publish {
    /// Has it tried under the settings beside it; its signature as its files have it.
    fn verify(&self, config: &Config, chosen: &Chosen, subject: &Subject<'_>) -> Result<Signature, Failure> {
        let report = try_files(config, &self.path, chosen, subject)?;
        note(format!(
            "passed its trial: {}, loaded in {:.0} ms, {} of memory",
            report.runtime,
            report.load_ms,
            or_dash(report.memory_bytes, bytes)
        ));
        Ok(report.file_signature.unwrap_or(report.signature))
    }

    /// Its signature, where it can be read here; else the one that is declared.
    fn signature(&self, config: &Config, chosen: &Chosen, subject: &Subject<'_>) -> Result<Option<Signature>, Failure> {
        match signature::read(config, &self.path, chosen, subject) {
            Ok(signature) => Ok(Some(signature)),
            Err(Unread::Lacks(missing)) => Err(self.lacks(&chosen.entrypoint, &missing)),
            Err(Unread::Reason(reason)) => {
                let declared = subject.declared;
                let fate = if declared.is_some() { "gets the signature as it is declared" } else { "gets no signature" };
                note(format!("note: the manifest {fate}: {reason}"));
                Ok(declared.cloned())
            }
        }
    }

    /// The model reads a file that would not be published.
    fn lacks(&self, entrypoint: &str, missing: &Path) -> Failure {
        let missing = missing.display();
        let failure =
            Failure::new(format!("nothing was published: {entrypoint} needs the file {missing}, which would not be published"));
        if self.path.is_dir() {
            return failure.hint(format!("put {missing} into {}", self.path.display()));
        }
        failure.hint(format!("publish the folder that holds both, with --entrypoint {entrypoint}"))
    }
}

fn refused(error: PublishError) -> Failure {
    let hint = error.hint();
    Failure::from(anyhow::Error::new(error).context("nothing was published")).maybe_hint(hint)
}

fn said(published: &Published, signed_by: &[String], registry: &str) -> String {
    let reused = match published.reused_bytes {
        0 => String::new(),
        reused => format!(", {} of it was there already", bytes(reused)),
    };
    let signed = if signed_by.is_empty() { String::new() } else { format!(", signed by {}", signed_by.join(" ")) };
    format!("published {} to {registry}: {}{reused}, sha256 {}{signed}", published.key, bytes(published.bytes), published.digest)
}
