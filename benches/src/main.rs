//! `bascule-benches`: what the gateway costs, measured in one run beside bare servers that answer the same bytes.
//!
//! Every comparison alternates its sides round by round and reports the median, because machines are noisy; server CPU per request is
//! the figure that stays steady. See `benches/README.md` for what each table says.

mod bare;
mod batching;
mod gateway;
mod load;
mod overhead;
mod process;
mod report;
mod swap;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures the gateway beside bare servers that answer the same bytes", version)]
struct Arguments {
    #[command(subcommand)]
    scenario: Option<Scenario>,

    /// The gateway to measure.
    #[arg(long, default_value = "target/release/bascule", global = true)]
    gateway: PathBuf,

    /// A folder with the sample model `digits`.
    #[arg(long, default_value = "models", global = true)]
    models: PathBuf,

    /// Rounds of each side; the median is reported.
    #[arg(long, default_value_t = 5, global = true)]
    rounds: usize,

    /// Seconds of load in one round.
    #[arg(long, default_value_t = 2.0, global = true)]
    seconds: f64,

    /// Connections that send.
    #[arg(long, default_value_t = 32, global = true)]
    connections: usize,

    /// Also writes every figure to this file, as JSON.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand, Clone, PartialEq, Eq)]
enum Scenario {
    /// HTTP and gRPC against a bare hyper and a bare tonic server.
    Overhead,
    /// Latency before, during and after a new version takes over.
    Swap,
    /// Throughput with requests joined and one by one.
    Batching,
    /// Every scenario.
    All,
    /// A bare HTTP server; started by the benchmark itself.
    #[command(hide = true)]
    BareHttp {
        /// File with the body to answer.
        answer: PathBuf,
        content_type: String,
    },
    /// A bare gRPC server; started by the benchmark itself.
    #[command(hide = true)]
    BareGrpc {
        /// File with the message to answer.
        answer: PathBuf,
    },
}

/// How long and how often to measure.
#[derive(Clone)]
pub(crate) struct Plan {
    gateway: PathBuf,
    models: PathBuf,
    rounds: usize,
    round: Duration,
    connections: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let plan = Plan {
        gateway: arguments.gateway,
        models: arguments.models,
        rounds: arguments.rounds.max(1),
        round: Duration::from_secs_f64(arguments.seconds),
        connections: arguments.connections.max(1),
    };
    let scenario = arguments.scenario.unwrap_or(Scenario::All);
    match scenario {
        Scenario::BareHttp { answer, content_type } => {
            return runtime.block_on(bare::http(std::fs::read(answer)?.into(), content_type));
        }
        Scenario::BareGrpc { answer } => {
            let message = std::fs::read(answer)?;
            let answer = prost::Message::decode(message.as_slice())?;
            return runtime.block_on(bare::grpc(answer));
        }
        _ => {}
    }
    let wants = |one: Scenario| scenario == one || scenario == Scenario::All;
    let mut report = report::Report::new(&plan);
    if wants(Scenario::Overhead) {
        runtime.block_on(overhead::measure(&plan, &mut report))?;
    }
    if wants(Scenario::Swap) {
        runtime.block_on(swap::measure(&plan, &mut report))?;
    }
    if wants(Scenario::Batching) {
        runtime.block_on(batching::measure(&plan, &mut report))?;
    }
    report.finish(arguments.json.as_deref())
}
