//! What is answered when four times as much is asked as can be done: as much as can be done.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bascule::config::env::Environment;
use bascule::config::{self, Given};
use bascule::server::Server;
use bascule::supervise::Supervised;
use bascule_runtime_api::{DataType, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};

use crate::Plan;
use crate::bars::{Bar, Bars};
use crate::calls::Input;
use crate::cores::held_to;
use crate::gateway::Gateway;
use crate::open_loop::Clients;
use crate::stats::median;

const MODEL: Input<'_> = Input { model: "slow", name: "x", shape: &[1, 4] };
const INSTANCES: u32 = 4;
const RUN_MICROS: u64 = 5_000;
const CONNECTIONS: usize = 128;

/// How long it takes until the queue is full.
const SETTLED: Duration = Duration::from_millis(100);

/// Arguments of the gateway with the fake runtime, those of `bascule serve` that the benchmark uses.
#[derive(Debug, Clone, clap::Args, PartialEq, Eq)]
pub(crate) struct FakeGateway {
    #[arg(long)]
    registry: PathBuf,
    #[arg(long)]
    state_dir: PathBuf,
    #[arg(long)]
    http: SocketAddr,
    #[arg(long)]
    grpc: SocketAddr,
    #[arg(long)]
    admin: SocketAddr,
}

impl FakeGateway {
    /// Serves until it is killed: the gateway itself, over a runtime that waits instead of computing.
    #[expect(clippy::print_stdout, reason = "the parent reads the addresses from standard output")]
    pub(crate) async fn serve(&self) -> Result<()> {
        let flags = [
            ("server.http", "--http", self.http.to_string()),
            ("server.grpc", "--grpc", self.grpc.to_string()),
            ("server.admin", "--admin", self.admin.to_string()),
            ("registry.url", "--registry", self.registry.display().to_string()),
            ("state.dir", "--state-dir", self.state_dir.display().to_string()),
        ];
        let given = Given { flags: flags.to_vec(), ..Given::default() };
        let effective = config::load(&given, &Environment::default()).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let server = Server::start(&effective, vec![Arc::new(FakeRuntime::new())], Supervised::No).await?;
        let addresses = server.addresses;
        println!("bascule: http {} grpc {} admin {}", addresses.http, addresses.grpc, addresses.admin);
        std::future::pending().await
    }
}

/// Asks four times as often as the instances can run, and counts what was answered with success.
pub(crate) async fn measure(plan: &Plan, bars: &mut Bars) -> Result<()> {
    let registry = tempfile::tempdir()?;
    write_model(&registry.path().join(MODEL.model))?;
    let mut command = held_to(plan.cores.server, std::env::current_exe()?);
    command.arg("fake-gateway").arg("--registry").arg(registry.path());
    let gateway = Gateway::serve(command).await?;
    let capacity = f64::from(INSTANCES) * 1e6 / RUN_MICROS as f64;
    let (mut shares, mut refused, mut waits) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=plan.pairs {
        let samples = Clients::run(plan.cores.client, gateway.http, &MODEL.json(), CONNECTIONS, 4.0 * capacity, plan.round)?;
        let of = |status| samples.iter().filter(move |sample| sample.status == status);
        ensure!(of(200).count() + of(429).count() == samples.len(), "requests were answered neither with 200 nor with 429");
        // Queue and instances are full from here on.
        let full = samples.iter().map(|sample| sample.due).min().context("no request was answered")? + SETTLED;
        ensure!(of(429).count() > 0, "nothing was refused");
        let seconds = (plan.round - SETTLED).as_secs_f64();
        let rate = |status| of(status).filter(|sample| sample.due + sample.took > full).count() as f64 / seconds;
        if round > 0 {
            shares.push(rate(200) / capacity);
            refused.push(rate(429));
            let mut times: Vec<f64> = of(429).map(|sample| sample.took.as_secs_f64() * 1e3).collect();
            times.sort_by(f64::total_cmp);
            waits.push(times[times.len() * 99 / 100]);
        }
    }
    let remark = format!("{:.0} requests/s refused with 429, p99 {:.2} ms", median(&refused), median(&waits));
    let name = format!("overload, {INSTANCES} × {RUN_MICROS} µs, 4 × capacity: goodput ÷ capacity");
    bars.add(&name, Bar::AtLeast(0.95), &shares, &remark);
    Ok(())
}

fn write_model(dir: &Path) -> Result<()> {
    let spec = |name: &str| TensorSpec::new(name, DataType::Fp32, [-1, 4]);
    let identity = FakeModel::new(FakeOp::Identity, vec![spec("x")], vec![spec("y")]);
    let model = FakeModel { batch_axis: Some(0), delay_us: RUN_MICROS, ..identity };
    std::fs::create_dir_all(dir.join("1"))?;
    std::fs::write(dir.join("1/model.fake.json"), serde_json::to_vec(&model)?).context("can't write the model")?;
    let settings = format!("instances = {INSTANCES}\ndynamic_batching = false\nqueue_capacity = 16\n");
    std::fs::write(dir.join("model.toml"), settings)?;
    Ok(())
}
