//! The gateway against bare servers that read the same requests and answer the same bytes.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Result, ensure};
use bascule_proto::inference::ModelInferRequest;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

use crate::Plan;
use crate::gateway::{Gateway, binary_call, copy_tree, grpc_call, infer, json_call, post, sample_input};
use crate::load::{self, HttpCall, Stop};
use crate::process::Server;
use crate::report::{Report, median};

enum Call {
    Http(HttpCall),
    Grpc(ModelInferRequest),
}

struct Side<'a> {
    server: &'a Server,
    address: SocketAddr,
}

#[derive(Default)]
struct Figures {
    rate: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu: Vec<f64>,
}

/// Measures JSON, binary and gRPC requests of the sample model.
pub(crate) async fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let registry = tempfile::tempdir()?;
    copy_tree(&plan.models, registry.path())?;
    let gateway = Gateway::start(&plan.gateway, registry.path()).await?;
    let (input, columns) = sample_input(&gateway, "digits").await?;
    let mut rows = Vec::new();
    for (name, call) in
        [("HTTP JSON", json_call("digits", &input, columns)), ("HTTP binary", binary_call("digits", &input, columns))]
    {
        let (status, content_type, answer) = post(gateway.http, &call).await?;
        ensure!(status == 200, "the gateway answered {status}: {}", String::from_utf8_lossy(&answer));
        let bare = bare(&["bare-http"], &answer, Some(&content_type))?;
        let sides = [Side { server: &bare.0, address: bare.1 }, Side { server: &gateway.server, address: gateway.http }];
        rows.extend(compare(plan, name, "bare hyper", &Call::Http(call), sides).await?);
    }
    let call = grpc_call("digits", &input, columns);
    let answer: Bytes = prost::Message::encode_to_vec(&infer(gateway.grpc, &call).await?).into();
    let bare = bare(&["bare-grpc"], &answer, None)?;
    let sides = [Side { server: &bare.0, address: bare.1 }, Side { server: &gateway.server, address: gateway.grpc }];
    rows.extend(compare(plan, "gRPC", "bare tonic", &Call::Grpc(call), sides).await?);
    let head = ["protocol", "server", "requests/s", "p50 ms", "p99 ms", "server CPU µs/request", "CPU ÷ bare"];
    report.table("Overhead", &head, &rows);
    Ok(())
}

/// Starts a bare server of this very program.
fn bare(arguments: &[&str], answer: &[u8], content_type: Option<&str>) -> Result<(Server, SocketAddr)> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), answer)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).arg(file.path()).args(content_type);
    let server = Server::start(command, |line| line.starts_with("listening "))?;
    let address = server.greeting.trim_start_matches("listening ").parse()?;
    Ok((server, address))
}

async fn compare(plan: &Plan, protocol: &str, bare: &str, call: &Call, sides: [Side<'_>; 2]) -> Result<Vec<Vec<String>>> {
    let mut figures = [Figures::default(), Figures::default()];
    for side in &sides {
        round(plan, call, side, &mut Figures::default(), plan.round / 4).await?;
    }
    for _ in 0..plan.rounds {
        for (side, figures) in sides.iter().zip(&mut figures) {
            round(plan, call, side, figures, plan.round).await?;
        }
    }
    let floor = median(figures[0].cpu.clone());
    Ok(figures
        .into_iter()
        .zip([bare, "bascule"])
        .map(|(figures, name)| {
            let cpu = median(figures.cpu);
            vec![
                protocol.to_owned(),
                name.to_owned(),
                format!("{:.0}", median(figures.rate)),
                format!("{:.3}", median(figures.p50)),
                format!("{:.3}", median(figures.p99)),
                format!("{cpu:.1}"),
                format!("{:.2}", cpu / floor),
            ]
        })
        .collect())
}

async fn round(plan: &Plan, call: &Call, side: &Side<'_>, figures: &mut Figures, length: Duration) -> Result<()> {
    let stop: Stop = Arc::default();
    let before = side.server.cpu()?;
    let outcome = match call {
        Call::Http(call) => load::http(side.address, call, plan.connections, length, &stop).await?,
        Call::Grpc(message) => load::grpc(side.address, message, plan.connections, length, &stop).await?,
    };
    let cpu = side.server.cpu()? - before;
    ensure!(outcome.failed == 0, "{} requests failed", outcome.failed);
    let millis = |quantile| outcome.quantile(quantile, Duration::ZERO, Duration::MAX).as_secs_f64() * 1e3;
    figures.rate.push(outcome.rate());
    figures.p50.push(millis(0.5));
    figures.p99.push(millis(0.99));
    figures.cpu.push(cpu.as_secs_f64() * 1e6 / outcome.samples.len().max(1) as f64);
    Ok(())
}
