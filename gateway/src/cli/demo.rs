//! `bascule demo`: the story in a minute. A version is served, real pictures are sent over HTTP and gRPC, the next version is published
//! in the middle of the traffic, and a table says what came of it.

mod clients;
mod repository;
mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use bascule_registry::{NoProgress, PublishRequest, Registry, collect_files};
use bascule_runtime_api::Runtime;
use clap::Args;
use tokio::sync::watch;

use crate::compose;
use crate::config::env::Environment;
use crate::config::{self, Effective, Given};
use crate::server::Server;
use crate::supervise::Supervised;

use super::Outcome;
use super::failure::Failure;
use super::gateway::{Gateway, model_path};
use super::output::{note, print, print_json};
use clients::Load;
use repository::{Stage, TestSet};
use table::Report;

/// Swap a version under real traffic, and print what happened; fails where a request failed.
///
/// Works on a copy of the sample repository, on free ports, and leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule demo --models models --clients 8")]
pub(super) struct Demo {
    /// The sample repository, with its test set.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// Callers at one time, half over HTTP and half over gRPC.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..=256))]
    clients: u16,
    /// How long traffic runs before the publish, and again after the swap.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    calm: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let scratch = tempfile::tempdir().context("can't make a folder for temporary files")?;
        let stage = Stage::set(&self.models, scratch.path())?;
        let effective = effective(&stage, environment)?;
        let runtimes = compose::runtimes(&effective.config);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("can't start the asynchronous runtime")?;
        let report = runtime.block_on(self.play(&stage, &effective, runtimes))?;
        if self.json {
            print_json(&report)?
        } else {
            print(&report.text())?
        }
        report.verdict().map_err(Failure::new)
    }

    async fn play(&self, stage: &Stage, effective: &Effective, runtimes: Vec<Arc<dyn Runtime>>) -> Result<Report, Failure> {
        let server = Server::start(effective, runtimes, Supervised::No).await?;
        let report = self.play_on(stage, &server).await;
        server.stop().await;
        report
    }

    async fn play_on(&self, stage: &Stage, server: &Server) -> Result<Report, Failure> {
        let gateway = Gateway::at(&format!("http://{}", server.addresses.admin))?;
        wait_for(&gateway, &stage.tests, stage.first.version).await?;
        self.say(&format!("version {} is served at http://{}", stage.first.version, server.addresses.http));
        let (go_on, stop) = watch::channel(());
        let load = Load::start(self.clients, server.addresses, Arc::clone(&stage.tests), stop);
        let outcome = self.swap(stage, &gateway).await;
        drop(go_on);
        let tally = load.finish().await?;
        let swap = outcome?;
        Ok(Report::of(stage, &tally, swap))
    }

    /// Publishes the next version in the middle of the traffic. When that began, and when it was served.
    async fn swap(&self, stage: &Stage, gateway: &Gateway) -> Result<(Instant, Instant), Failure> {
        tokio::time::sleep(self.calm).await;
        self.say(&format!("publishing version {} while {} clients send the test set", stage.second.version, self.clients));
        let began = Instant::now();
        publish(stage).await?;
        wait_for(gateway, &stage.tests, stage.second.version).await?;
        let served = Instant::now();
        self.say(&format!("version {} is served {:.2} s later", stage.second.version, served.duration_since(began).as_secs_f64()));
        tokio::time::sleep(self.calm).await;
        Ok((began, served))
    }

    fn say(&self, text: &str) {
        note(format!("demo: {text}"));
    }
}

/// A configuration of its own: whatever the user has set for real gateways is left out, but for the library.
fn effective(stage: &Stage, environment: &Environment) -> Result<Effective, Failure> {
    let any = "127.0.0.1:0".to_owned();
    let path = |path: &std::path::Path| path.display().to_string();
    let mut flags = vec![
        ("server.http", "--http", any.clone()),
        ("server.grpc", "--grpc", any.clone()),
        ("server.admin", "--admin", any),
        ("registry.url", "--registry", path(&stage.registry)),
        ("state.dir", "--state-dir", path(&stage.state)),
        ("registry.poll_interval", "--set", "200ms".to_owned()),
    ];
    let users = config::load(&Given::default(), environment)?.config;
    flags.extend(users.onnxruntime_library.map(|library| ("onnxruntime.library", "--set", path(&library))));
    std::fs::write(&stage.config, "# Settings of the demo are flags.\n").context("can't write a configuration")?;
    let given = Given { file: Some(stage.config.clone()), flags, ..Given::default() };
    Ok(config::load(&given, &environment.without_settings())?)
}

async fn publish(stage: &Stage) -> Result<(), Failure> {
    let second = &stage.second;
    let files = collect_files(&stage.second_files).context("can't read the next version")?;
    let registry = Registry::open_dir(&stage.registry).context("can't open the copy of the registry")?;
    let request = PublishRequest {
        version: Some(second.version),
        signature: second.signature.clone(),
        golden: second.golden.clone(),
        lineage: second.lineage.clone(),
        metrics: second.metrics.clone(),
        tags: second.tags.clone(),
        publisher: "bascule demo".to_owned(),
        ..PublishRequest::new(second.model.clone(), second.format.clone(), second.entrypoint.clone(), files)
    };
    registry.publish(request, &NoProgress).await.context("nothing was published")?;
    Ok(())
}

/// Waits until the gateway serves a version.
async fn wait_for(gateway: &Gateway, tests: &TestSet, version: u64) -> Result<(), Failure> {
    let path = format!("{}/versions/{version}/wait", model_path(&tests.model)?);
    let waited: serde_json::Value = gateway.get(&path, &[("timeout", "60s".to_owned())]).await?;
    if waited["outcome"] == "ready" {
        return Ok(());
    }
    let word = |name: &str| waited[name].as_str().unwrap_or("unknown").to_owned();
    Err(anyhow!(word("cause")).context(format!("version {version} is {} at {}", word("outcome"), word("stage"))).into())
}
