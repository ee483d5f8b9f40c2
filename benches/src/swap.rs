//! Latency before, during and after a new version takes over, over both protocols at once.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Plan;
use crate::gateway::{Gateway, copy_tree, get, grpc_call, json_call, sample_input};
use crate::load::{self, Outcome, Stop};
use crate::report::{Report, median};

const CONNECTIONS: usize = 4;

struct Phases {
    failed: u64,
    /// Milliseconds: p50, p99 and the worst, by phase.
    times: [[f64; 3]; 3],
    swap: f64,
    /// Resident memory before and after, in MiB.
    memory: [f64; 2],
}

/// Publishes a version in the middle of the load, once a round.
pub(crate) async fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let mut rounds = Vec::new();
    for _ in 0..plan.rounds {
        rounds.push(round(plan).await?);
    }
    let failed: u64 = rounds.iter().map(|round| round.failed).sum();
    let cell =
        |phase: usize, figure: usize| format!("{:.3}", median(rounds.iter().map(|round| round.times[phase][figure]).collect()));
    let rows: Vec<Vec<String>> = ["before", "during", "after"]
        .iter()
        .enumerate()
        .map(|(phase, name)| vec![(*name).to_owned(), cell(phase, 0), cell(phase, 1), cell(phase, 2)])
        .collect();
    let swap = median(rounds.iter().map(|round| round.swap).collect());
    let memory = [0, 1].map(|side| median(rounds.iter().map(|round| round.memory[side]).collect()));
    let title = format!(
        "Swap under load ({} rounds, {failed} failed requests, {swap:.0} ms from publish to ready, resident memory {:.0} MiB before and {:.0} MiB after)",
        plan.rounds, memory[0], memory[1]
    );
    report.table(&title, &["phase", "p50 ms", "p99 ms", "worst ms"], &rows);
    Ok(())
}

async fn round(plan: &Plan) -> Result<Phases> {
    let registry = tempfile::tempdir()?;
    copy_tree(&plan.models, registry.path())?;
    // Version 1's file is published again as version 3: another version for the gateway, the same work for the machine.
    let model = version_file(registry.path(), 1)?;
    let gateway = Gateway::start(&plan.gateway, registry.path()).await?;
    let (input, columns) = sample_input(&gateway, "digits").await?;
    let stop: Stop = Arc::default();
    let started = Instant::now();
    let http = {
        let (address, call, stop) = (gateway.http, json_call("digits", &input, columns), Arc::clone(&stop));
        tokio::spawn(async move { load::http(address, &call, CONNECTIONS, Duration::from_secs(60), &stop).await })
    };
    let grpc = {
        let (address, call, stop) = (gateway.grpc, grpc_call("digits", &input, columns), Arc::clone(&stop));
        tokio::spawn(async move { load::grpc(address, &call, CONNECTIONS, Duration::from_secs(60), &stop).await })
    };
    tokio::time::sleep(plan.round).await;
    let from = started.elapsed();
    let before = gateway.server.rss()?;
    publish(&plan.gateway, registry.path(), &model).await?;
    wait_for_version(&gateway, 3).await?;
    let to = started.elapsed();
    tokio::time::sleep(plan.round).await;
    let after = gateway.server.rss()?;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (http, grpc) = (http.await??, grpc.await??);
    let whole =
        Outcome { samples: [http.samples, grpc.samples].concat(), failed: http.failed + grpc.failed, took: started.elapsed() };
    let phase = |from, to| [0.5, 0.99, 1.0].map(|quantile| whole.quantile(quantile, from, to).as_secs_f64() * 1e3);
    Ok(Phases {
        failed: whole.failed,
        times: [phase(Duration::ZERO, from), phase(from, to), phase(to, Duration::MAX)],
        swap: (to - from).as_secs_f64() * 1e3,
        memory: [before, after].map(|bytes| bytes as f64 / f64::from(1 << 20)),
    })
}

fn version_file(registry: &Path, version: u64) -> Result<std::path::PathBuf> {
    let model = registry.join("digits");
    let manifest = std::fs::read(model.join(format!("versions/{version}/manifest.json")))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let file = manifest["files"].as_array().into_iter().flatten().find(|file| file["path"] == manifest["entrypoint"]);
    let sha = file.and_then(|file| file["sha256"].as_str()).context("the manifest names no entrypoint")?;
    let copy = registry.join("model.onnx");
    std::fs::copy(model.join("blobs").join(sha), &copy)?;
    Ok(copy)
}

async fn publish(program: &Path, registry: &Path, model: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.args(["publish", "digits"]).arg(model).args(["--version", "3", "--registry"]).arg(registry);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "publish failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn wait_for_version(gateway: &Gateway, version: u64) -> Result<()> {
    let path = format!("/admin/v1/models/digits/versions/{version}/wait?timeout=60s");
    let (status, body) = get(gateway.admin, &path).await?;
    let waited: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let ready = status == 200 && waited["outcome"] == "ready";
    ensure!(ready, "version {version} did not become ready: {}", String::from_utf8_lossy(&body));
    Ok(())
}
