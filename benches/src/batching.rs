//! Throughput of a compute-bound model with requests joined into batches and with each run by itself.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};

use bascule_onnx_writer::{Graph, OnnxModel};
use bascule_runtime_api::DataType;

use crate::Plan;
use crate::gateway::{Gateway, grpc_call};
use crate::load::{self, Stop};
use crate::report::{Report, median};
use std::time::Duration;

const WIDTH: usize = 512;
const LAYERS: usize = 4;

/// Measures an MLP of four 512 × 512 layers over gRPC.
pub(crate) async fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let registry = tempfile::tempdir()?;
    for (name, settings) in [
        ("joined", "max_batch_size = 32\ninline = \"never\"\n"),
        ("single", "max_batch_size = 32\ndynamic_batching = false\ninline = \"never\"\n"),
    ] {
        write_model(&registry.path().join(name), settings)?;
    }
    let gateway = Gateway::start(&plan.gateway, registry.path()).await?;
    let names = ["single", "joined"];
    let mut rates = [Vec::new(), Vec::new()];
    let mut tails = [Vec::new(), Vec::new()];
    for _ in 0..plan.rounds {
        for (side, name) in names.iter().enumerate() {
            let stop: Stop = Arc::default();
            let outcome = load::grpc(gateway.grpc, &grpc_call(name, "x", WIDTH), plan.connections, plan.round, &stop).await?;
            ensure!(outcome.failed == 0, "{} requests failed", outcome.failed);
            rates[side].push(outcome.rate());
            tails[side].push(outcome.quantile(0.99, Duration::ZERO, Duration::MAX).as_secs_f64() * 1e3);
        }
    }
    let floor = median(rates[0].clone());
    let rows: Vec<Vec<String>> = names
        .iter()
        .zip(rates.into_iter().zip(tails))
        .map(|(name, (rates, tails))| {
            let rate = median(rates);
            vec![(*name).to_owned(), format!("{rate:.0}"), format!("{:.2}", median(tails)), format!("{:.2}", rate / floor)]
        })
        .collect();
    report.table("Batching (MLP 4×512², gRPC)", &["requests", "requests/s", "p99 ms", "÷ single"], &rows);
    Ok(())
}

fn write_model(dir: &Path, settings: &str) -> Result<()> {
    std::fs::create_dir_all(dir.join("1"))?;
    std::fs::write(dir.join("1/model.onnx"), mlp().bytes)?;
    std::fs::write(dir.join("model.toml"), settings)?;
    Ok(())
}

/// `LAYERS` times: multiply by a `WIDTH` × `WIDTH` matrix, then cut off below zero.
fn mlp() -> OnnxModel {
    let shape = [-1, WIDTH as i64];
    let mut graph = Graph::new().input("x", DataType::Fp32, &shape).output("y", DataType::Fp32, &shape);
    let mut from = "x".to_owned();
    for layer in 0..LAYERS {
        let (weights, product) = (format!("weights{layer}"), format!("product{layer}"));
        let to = if layer + 1 == LAYERS { "y".to_owned() } else { format!("layer{layer}") };
        // Some pattern without symmetry; small enough that nothing overflows.
        let elements =
            (0..WIDTH * WIDTH).flat_map(|index| (((index * 37 + layer) % 101) as f32 / 5000.0 - 0.01).to_le_bytes()).collect();
        graph = graph
            .weights(&weights, DataType::Fp32, &[WIDTH as i64; 2], elements)
            .node("MatMul", &[&from, &weights], &[&product])
            .node("Relu", &[&product], &[&to]);
        from = to;
    }
    graph.build()
}
