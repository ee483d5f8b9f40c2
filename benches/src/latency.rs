//! What the gateway adds to the time of a request where there is little to do.

use anyhow::{Result, ensure};

use crate::Plan;
use crate::bars::{Bar, Bars};
use crate::gateway::{Gateway, post};
use crate::models;
use crate::open_loop::{Clients, Sample};
use crate::overhead::{TINY, start_bare_http};
use crate::stats::median;
use crate::tools::Tools;

const CONNECTIONS: usize = 8;

/// Part of what the gateway can do.
const LOAD: f64 = 0.2;

/// Compares medians at a fifth of the gateway's own rate, over HTTP with JSON.
pub(crate) async fn measure(plan: &Plan, tools: &Tools, bars: &mut Bars) -> Result<()> {
    let registry = tempfile::tempdir()?;
    models::write(registry.path(), TINY.model, &models::perceptron(&[4, 8, 3]), "")?;
    let gateway = Gateway::start(plan, registry.path(), &[]).await?;
    let call = TINY.json();
    let (_bare, bare) = start_bare_http(plan, &post(gateway.http, &call).await?)?;
    let rate = LOAD * tools.http(gateway.http, &call, CONNECTIONS, plan.round)?.rate;
    let mut added = Vec::new();
    let mut floor = Vec::new();
    for pair in 0..=plan.pairs {
        let mut medians = [0.0; 2];
        let mut order = [(0, gateway.http), (1, bare)];
        if pair % 2 == 0 {
            order.reverse();
        }
        for (side, address) in order {
            medians[side] = median_micros(Clients::run(plan.cores.client, address, &call, CONNECTIONS, rate, plan.round)?)?;
        }
        // The first pair warms up and does not count.
        if pair > 0 {
            added.push(medians[0] - medians[1]);
            floor.push(medians[1]);
        }
    }
    let name = format!("tiny model, HTTP JSON, {CONNECTIONS} connections at {rate:.0} requests/s: p50 over bare server's, µs");
    bars.add(&name, Bar::AtMost(25.0), &added, &format!("bare server's p50: {:.0} µs", median(&floor)));
    Ok(())
}

fn median_micros(samples: Vec<Sample>) -> Result<f64> {
    ensure!(samples.iter().all(|sample| sample.status == 200), "a request failed");
    ensure!(!samples.is_empty(), "no request was answered");
    Ok(median(&samples.iter().map(|sample| sample.took.as_secs_f64() * 1e6).collect::<Vec<_>>()))
}
