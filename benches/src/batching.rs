//! Throughput of a compute-bound model: requests joined into batches, each by itself, and the best batch size without a server.

use std::time::Duration;

use anyhow::Result;
use bascule_runtime_api::Session;

use crate::Plan;
use crate::bars::{Bar, Bars};
use crate::calls::Input;
use crate::gateway::Gateway;
use crate::inprocess::InProcess;
use crate::models;
use crate::report::Report;
use crate::stats::median;
use crate::tools::Tools;

/// Four layers of 512 × 512.
const LAYERS: [usize; 5] = [512; 5];
const BATCH_SIZES: [i64; 6] = [1, 2, 4, 8, 16, 32];

/// Measures over HTTP with binary tensors.
pub(crate) async fn measure(plan: &Plan, tools: &Tools, report: &mut Report, bars: &mut Bars) -> Result<()> {
    let registry = tempfile::tempdir()?;
    let names = ["single", "joined"];
    for (name, settings) in names.into_iter().zip(["max_batch_size = 32\ndynamic_batching = false\n", "max_batch_size = 32\n"]) {
        models::write(registry.path(), name, &models::perceptron(&LAYERS), settings)?;
    }
    let gateway = Gateway::start(plan, registry.path(), &[]).await?;
    let mut session = InProcess::new(plan.cores).load(&registry.path().join("single/1"))?;
    let mut rates = [Vec::new(), Vec::new()];
    let mut tails = [Vec::new(), Vec::new()];
    let mut best = Vec::new();
    for pair in 0..=plan.pairs {
        let fixed = best_fixed(plan, session.as_mut())?;
        let mut order = [0, 1];
        if pair % 2 == 0 {
            order.reverse();
        }
        for side in order {
            let call = Input { model: names[side], name: "x", shape: &[1, 512] }.binary();
            let driven = tools.http(gateway.http, &call, plan.connections, plan.round)?;
            // The first pair warms up and does not count.
            if pair > 0 {
                rates[side].push(driven.rate);
                tails[side].push(driven.p99 / 1e3);
            }
        }
        if pair > 0 {
            best.push(fixed);
        }
    }
    let ratios = |over: &[f64]| rates[1].iter().zip(over).map(|(joined, other)| joined / other).collect::<Vec<_>>();
    let fixed_rates: Vec<f64> = best.iter().map(|best| best.1).collect();
    let (of_fixed, of_single) = (ratios(&fixed_rates), ratios(&rates[0]));
    let size = median(&best.iter().map(|best| best.0 as f64).collect::<Vec<_>>());
    let name = format!("batching, MLP 4 × 512², {} connections: throughput", plan.connections);
    bars.add(&format!("{name} ÷ best fixed batch in process"), Bar::AtLeast(0.85), &of_fixed, &format!("best at {size:.0} rows"));
    bars.add(&format!("{name} ÷ without batching"), Bar::AtLeast(1.6), &of_single, "");
    let mut rows: Vec<Vec<String>> = names
        .iter()
        .zip(rates.iter().zip(&tails))
        .map(|(name, (rates, tails))| vec![(*name).to_owned(), format!("{:.0}", median(rates)), format!("{:.2}", median(tails))])
        .collect();
    rows.push(vec![format!("in process, {size:.0} rows a run"), format!("{:.0}", median(&fixed_rates)), String::new()]);
    report.table("Batching (MLP 4 × 512², HTTP binary)", &["requests", "requests/s", "p99 ms"], &rows);
    Ok(())
}

/// The batch size that gives most rows a second, and how many.
fn best_fixed(plan: &Plan, session: &mut dyn Session) -> Result<(i64, f64)> {
    let runtime = InProcess::new(plan.cores);
    let mut best = (0, 0.0);
    for rows in BATCH_SIZES {
        let input = Input { model: "", name: "x", shape: &[rows, 512] };
        let ran = runtime.run(session, &input, (plan.round / 4).max(Duration::from_millis(100)))?;
        let rate = rows as f64 * 1e6 / ran.wall;
        if rate > best.1 {
            best = (rows, rate);
        }
    }
    Ok(best)
}
