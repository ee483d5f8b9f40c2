//! `bascule what`: everything that runs, on one or several gateways.

use clap::Args;

use super::Outcome;
use super::deployed::{GatewaysArgs, answered, deployed, shown};
use super::output::{print, print_json, rows};

/// Show which versions of all models run on these gateways: device, stage, since when, and which run made them.
///
/// A gateway that does not answer is named; exit code 3 only where none does.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule what --gateway http://127.0.0.1:8002 --gateway http://127.0.0.1:8012")]
pub(super) struct What {
    #[command(flatten)]
    gateways: GatewaysArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl What {
    pub(super) async fn run(self) -> Outcome {
        let answered = answered(self.gateways.ask().await?)?;
        let mut deployed = deployed(&answered);
        deployed.sort_by(|a, b| (&a.model, a.version).cmp(&(&b.model, b.version)));
        if self.json {
            return print_json(&deployed);
        }
        if deployed.is_empty() { print("nothing runs") } else { print(&rows(&shown(&deployed))) }
    }
}
