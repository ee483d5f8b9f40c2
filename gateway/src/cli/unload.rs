//! `bascule unload`: switches a model off on one gateway.

use std::time::Duration;

use bascule_serving::DrainReceipt;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::Outcome;
use super::args::GatewayArgs;
use super::gateway::{Gateway, model_path};
use super::output::{bytes, micros, or_dash, print, print_json};

/// Unload a model on one gateway until `bascule load`; neither a restart nor a new version brings it back.
///
/// This is of one replica: others are not asked.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule unload digits --wait")]
pub(super) struct Unload {
    /// The model.
    model: String,
    /// Return when nothing of it is left in memory, and say what came back.
    #[arg(long)]
    wait: bool,
    /// How long to wait.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Print the receipts as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, Deserialize)]
struct Unloaded {
    model: String,
    receipts: Vec<DrainReceipt>,
}

impl Unload {
    pub(super) async fn run(self) -> Outcome {
        let gateway = Gateway::at(&self.gateway.url)?.patient(if self.wait { self.timeout } else { Duration::ZERO });
        let path = format!("{}/unload", model_path(&self.model)?);
        let unloaded: Unloaded = gateway.post(&path, &[("wait", self.wait.to_string())], None).await?;
        if self.json {
            return print_json(&unloaded);
        }
        print(&format!("{} is unloaded on {} until `bascule load {}`", unloaded.model, gateway.place(), unloaded.model))?;
        for receipt in &unloaded.receipts {
            print(&format!(
                "version {}: drained in {}, {} given back, memory of the process {} -> {}",
                receipt.version,
                micros(u64::try_from(receipt.took.as_micros()).unwrap_or(u64::MAX)),
                bytes(receipt.reserved_bytes),
                or_dash(receipt.rss_before, bytes),
                or_dash(receipt.rss_after, bytes),
            ))?;
        }
        Ok(())
    }
}
