//! Latency around a swap: a version of 64 MB is fetched, verified and loaded while clients send at half of what the gateway can do.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;

use crate::Plan;
use crate::bars::{Bar, Bars};
use crate::calls::Input;
use crate::gateway::{Gateway, publish};
use crate::models;
use crate::open_loop::{Clients, Sample};
use crate::report::Report;
use crate::stats::median;
use crate::tools::Tools;

const MODEL: Input<'_> = Input { model: "table", name: "x", shape: &[1, 4] };
const MEGABYTES: usize = 64;
const CONNECTIONS: usize = 16;

/// What counts as around the swap: this much before the new version is asked for, and after it is ready.
const MARGIN: Duration = Duration::from_millis(250);

/// One swap. Times are in milliseconds.
struct Round {
    before: [f64; 2],
    around: [f64; 2],
    after: [f64; 2],
    worst: f64,
    swap: f64,
}

/// Publishes one version after the other.
pub(crate) async fn measure(plan: &Plan, tools: &Tools, report: &mut Report, bars: &mut Bars) -> Result<()> {
    let registry = tempfile::tempdir()?;
    let file = registry.path().join("model.onnx");
    std::fs::write(&file, models::table(MEGABYTES).bytes)?;
    publish(plan, registry.path(), MODEL.model, &file, 1).await?;
    // What is published is loaded when it is asked for: publishing takes the core that the clients have.
    let settings = ["load.mode=explicit", "load.models=table", "registry.poll_interval=200ms", "cache.max_bytes=512MiB"];
    let gateway = Gateway::start(plan, registry.path(), &settings).await?;
    gateway.wait_for_version(MODEL.model, 1).await?;
    let call = MODEL.binary();
    let rate = tools.http(gateway.http, &call, CONNECTIONS, plan.round)?.rate / 2.0;
    let mut rounds = Vec::new();
    for version in (2..).take(plan.pairs) {
        rounds.push(round(plan, &gateway, registry.path(), &file, version, rate).await?);
    }
    let all = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let name = format!("swap of {MEGABYTES} MB at half of what is possible");
    let remark = format!("{rate:.0} requests/s; none failed");
    bars.add(
        &format!("{name}: p99 around it ÷ before"),
        Bar::AtMost(1.5),
        &all(|round| round.around[1] / round.before[1]),
        &remark,
    );
    let worst = all(|round| round.worst).into_iter().fold(0.0, f64::max);
    bars.add_once(&format!("{name}: worst request of all swaps, ms"), Bar::AtMost(20.0), worst, &remark);
    let middle = |figure: fn(&Round) -> f64| format!("{:.3}", median(&all(figure)));
    let rows = [
        vec!["before".to_owned(), middle(|round| round.before[0]), middle(|round| round.before[1]), String::new(), String::new()],
        vec![
            "around".to_owned(),
            middle(|round| round.around[0]),
            middle(|round| round.around[1]),
            middle(|round| round.worst),
            middle(|round| round.swap),
        ],
        vec!["after".to_owned(), middle(|round| round.after[0]), middle(|round| round.after[1]), String::new(), String::new()],
    ];
    report.table("Swap under load", &["phase", "p50 ms", "p99 ms", "worst ms", "load to ready ms"], &rows);
    Ok(())
}

async fn round(
    plan: &Plan,
    gateway: &Gateway,
    registry: &std::path::Path,
    file: &std::path::Path,
    version: u64,
    rate: f64,
) -> Result<Round> {
    publish(plan, registry, MODEL.model, file, version).await?;
    let clients = Clients::start(plan.cores.client, gateway.http, &MODEL.binary(), CONNECTIONS, rate)?;
    tokio::time::sleep(plan.round + MARGIN).await;
    let began = Instant::now();
    gateway.load(MODEL.model).await?;
    let ready = Instant::now();
    tokio::time::sleep(plan.round + MARGIN).await;
    let samples = clients.end()?;
    ensure!(samples.iter().all(|sample| sample.status == 200), "a request failed");
    let (from, to) = (began.checked_sub(MARGIN).unwrap_or(began), ready + MARGIN);
    let (after, during): (Vec<Sample>, Vec<Sample>) = samples.into_iter().partition(|sample| sample.due >= to);
    let (before, around): (Vec<Sample>, Vec<Sample>) = during.into_iter().partition(|sample| sample.due + sample.took < from);
    ensure!([&before, &around, &after].iter().all(|phase| !phase.is_empty()), "too few requests around a swap");
    let [before, around, after] = [quantiles(&before)?, quantiles(&around)?, quantiles(&after)?];
    Ok(Round {
        before: [before[0], before[1]],
        around: [around[0], around[1]],
        after: [after[0], after[1]],
        worst: around[2],
        swap: (ready - began).as_secs_f64() * 1e3,
    })
}

/// The median, p99 and the worst, in milliseconds.
fn quantiles(samples: &[Sample]) -> Result<[f64; 3]> {
    let mut histogram = Histogram::<u64>::new(3)?;
    for sample in samples {
        histogram.record(u64::try_from(sample.took.as_nanos())?)?;
    }
    Ok([0.5, 0.99, 1.0].map(|quantile| histogram.value_at_quantile(quantile) as f64 / 1e6))
}
