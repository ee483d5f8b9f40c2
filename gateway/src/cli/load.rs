//! `bascule load`: loads a model on one gateway.

use std::convert::Infallible;
use std::io::IsTerminal as _;
use std::time::Duration;

use bascule_serving::ModelStatus;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::Outcome;
use super::args::GatewayArgs;
use super::gateway::{Gateway, model_path};
use super::output::{print, print_json};

/// Load a model on one gateway, or pick up its new content and settings; returns when it is ready.
///
/// This is of one replica: others are not asked. It undoes an unload.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule load digits --gateway http://127.0.0.1:8002")]
pub(super) struct Load {
    /// The model.
    model: String,
    #[command(flatten)]
    gateway: GatewayArgs,
    /// How long to wait for it to be ready.
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the model's status as JSON.
    #[arg(long)]
    json: bool,
}

impl Load {
    pub(super) async fn run(self) -> Outcome {
        let gateway = Gateway::at(&self.gateway.url)?.patient(self.timeout);
        let path = model_path(&self.model)?;
        let load = format!("{path}/load");
        let status: ModelStatus = tokio::select! {
            status = gateway.post(&load, &[], None) => status?,
            never = show_progress(&gateway, &path) => match never {},
        };
        if self.json {
            return print_json(&status);
        }
        let ready = status.versions.iter().filter(|version| version.state == "READY").map(|version| version.version.to_string());
        print(&format!("{} is loaded on {}: version {}", status.name, gateway.place(), ready.collect::<Vec<_>>().join(", ")))
    }
}

/// Between two looks at how far a load is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Draws how far the model's fetch is, on a terminal, until the caller has its answer and drops this.
async fn show_progress(gateway: &Gateway, path: &str) -> Infallible {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let bar = Clearing(ProgressBar::new(0));
    // A template that can't be read leaves the plain bar.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {binary_bytes}/{binary_total_bytes} {msg}") {
        bar.0.set_style(style);
    }
    loop {
        // A look that fails shows nothing new; the load's own answer tells what is wrong.
        if let Ok(model) = gateway.get::<ModelStatus>(path, &[]).await
            && let Some(version) = model.versions.iter().rev().find(|version| version.state == "LOADING")
        {
            bar.0.set_length(version.bytes);
            bar.0.set_position(version.fetched_bytes.unwrap_or(if version.stage == "pending" { 0 } else { version.bytes }));
            bar.0.set_message(format!("version {} {}", version.version, version.stage));
        }
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

/// A bar that leaves no line behind.
struct Clearing(ProgressBar);

impl Drop for Clearing {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
