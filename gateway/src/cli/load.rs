//! `bascule load`: loads a model on one gateway.

use std::time::Duration;

use bascule_serving::ModelStatus;
use clap::Args;

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
        let status: ModelStatus = gateway.post(&format!("{}/load", model_path(&self.model)?), &[], None).await?;
        if self.json {
            return print_json(&status);
        }
        let ready = status.versions.iter().filter(|version| version.state == "READY").map(|version| version.version.to_string());
        print(&format!("{} is loaded on {}: version {}", status.name, gateway.place(), ready.collect::<Vec<_>>().join(", ")))
    }
}
