//! `bascule-benches`: what the gateway costs, measured in one run beside bare servers that answer the same bytes.
//!
//! Servers have one core and clients another. Every comparison alternates its sides pair by pair and reports the median with the
//! interval that holds it, because machines are noisy; server CPU per request is the figure that stays steady. See
//! `benches/README.md` for what each table says.

mod bare;
mod bars;
mod batching;
mod calls;
mod codec;
mod compute;
mod cores;
mod fetch;
mod gateway;
mod idle;
mod inprocess;
mod latency;
mod memory;
mod models;
mod open_loop;
mod overhead;
mod overload;
mod process;
mod report;
mod scale;
mod stats;
mod swap;
mod tools;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::bare::Recorded;
use crate::cores::Cores;
use crate::tools::Tools;

#[derive(Parser)]
#[command(about = "Measures the gateway beside bare servers that answer the same bytes", version)]
struct Arguments {
    #[command(subcommand)]
    scenario: Option<Scenario>,

    /// The gateway to measure.
    #[arg(long, default_value = "target/release/bascule", global = true)]
    gateway: PathBuf,

    /// A folder with wrk and h2load; without it they are taken from the path.
    #[arg(long, default_value = ".deps/load-tools/bin", global = true)]
    tools: PathBuf,

    /// The S3 server that `fetch` reads from.
    #[arg(long, default_value = ".deps/seaweedfs/bin/weed", global = true)]
    seaweedfs: PathBuf,

    /// Pairs of rounds that are compared; six at the least for an interval.
    #[arg(long, default_value_t = 9, global = true)]
    pairs: usize,

    /// Seconds of load in one round.
    #[arg(long, default_value_t = 1, global = true)]
    seconds: u64,

    /// Connections that send.
    #[arg(long, default_value_t = 32, global = true)]
    connections: usize,

    /// Only loads with this in their name, for example "gRPC".
    #[arg(long, global = true)]
    only: Option<String>,

    /// Also writes every figure to this file, as JSON.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand, Clone, PartialEq, Eq)]
enum Scenario {
    /// HTTP and gRPC against a bare hyper and a bare tonic server.
    Overhead,
    /// Time of a request where there is little to do.
    Latency,
    /// JSON of a large tensor beside general parsers.
    Codec,
    /// The model's share of the server's work.
    Compute,
    /// Throughput with requests joined, one by one, and without a server.
    Batching,
    /// What is answered of four times too much.
    Overload,
    /// Latency around a new version's start.
    Swap,
    /// Instructions a request with many models.
    Scale,
    /// Resident memory after many swaps.
    Memory,
    /// CPU time of a gateway that nobody asks.
    Idle,
    /// Throughput of a fetch from S3 beside a bare reader.
    Fetch,
    /// Every scenario.
    All,
    /// A gateway over a runtime that only waits; started by the benchmark itself.
    #[command(hide = true)]
    FakeGateway(overload::FakeGateway),
    /// A bare HTTP server; started by the benchmark itself.
    #[command(hide = true)]
    BareHttp(Recorded),
    /// A bare gRPC server; started by the benchmark itself.
    #[command(hide = true)]
    BareGrpc(Recorded),
}

/// How long and how often to measure, and on what.
pub(crate) struct Plan {
    gateway: PathBuf,
    pairs: usize,
    round: Duration,
    connections: usize,
    only: Option<String>,
    cores: Cores,
    scratch: tempfile::TempDir,
}

impl Plan {
    fn wants(&self, load: &str) -> bool {
        self.only.as_ref().is_none_or(|part| load.contains(part.as_str()))
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let scenario = arguments.scenario.unwrap_or(Scenario::All);
    match &scenario {
        Scenario::BareHttp(answer) => return runtime.block_on(bare::http(answer)),
        Scenario::BareGrpc(answer) => return runtime.block_on(bare::grpc(answer)),
        Scenario::FakeGateway(gateway) => return runtime.block_on(gateway.serve()),
        _ => {}
    }
    let plan = Plan {
        gateway: arguments.gateway,
        pairs: arguments.pairs.max(1),
        round: Duration::from_secs(arguments.seconds.max(1)),
        connections: arguments.connections.max(1),
        only: arguments.only,
        cores: Cores::find()?,
        scratch: tempfile::tempdir()?,
    };
    let tools = Tools::find(&arguments.tools, plan.cores)?;
    let mut report = report::Report::new(&plan);
    let mut bars = bars::Bars::default();
    let wants = |one: Scenario| scenario == one || scenario == Scenario::All;
    runtime.block_on(async {
        let (report, bars) = (&mut report, &mut bars);
        if wants(Scenario::Overhead) {
            overhead::measure(&plan, &tools, report, bars).await?;
        }
        if wants(Scenario::Latency) {
            latency::measure(&plan, &tools, bars).await?;
        }
        if wants(Scenario::Codec) {
            codec::measure(&plan, report, bars)?;
        }
        if wants(Scenario::Compute) {
            compute::measure(&plan, &tools, bars).await?;
        }
        if wants(Scenario::Batching) {
            batching::measure(&plan, &tools, report, bars).await?;
        }
        if wants(Scenario::Overload) {
            overload::measure(&plan, bars).await?;
        }
        if wants(Scenario::Swap) {
            swap::measure(&plan, &tools, report, bars).await?;
        }
        if wants(Scenario::Scale) {
            scale::measure(&plan, bars).await?;
        }
        if wants(Scenario::Memory) {
            memory::measure(&plan, bars).await?;
        }
        if wants(Scenario::Idle) {
            idle::measure(&plan, bars).await?;
        }
        if wants(Scenario::Fetch) {
            fetch::measure(&plan, &arguments.seaweedfs, report, bars).await?;
        }
        anyhow::Ok(())
    })?;
    bars.print(&mut report);
    report.finish(arguments.json.as_deref())
}
