//! Whether memory comes back: a version of about 100 MB is swapped for another, fifty times.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::Plan;
use crate::bars::{Bar, Bars};
use crate::gateway::{Gateway, publish};
use crate::models;

const MODEL: &str = "large";
const MEGABYTES: usize = 100;
const SWAPS: u64 = 50;

/// Freed memory is given back within this time of a drain, and a little.
const RELEASED: Duration = Duration::from_secs(32);

/// Compares resident memory after the last swap with that after the second.
pub(crate) async fn measure(plan: &Plan, bars: &mut Bars) -> Result<()> {
    let registry = tempfile::tempdir()?;
    let file = registry.path().join("model.onnx");
    std::fs::write(&file, models::table(MEGABYTES).bytes)?;
    publish(plan, registry.path(), MODEL, &file, 1).await?;
    let gateway = Gateway::start(plan, registry.path(), &["registry.poll_interval=200ms", "cache.max_bytes=512MiB"]).await?;
    let mut second = None;
    for version in 2..=SWAPS + 1 {
        publish(plan, registry.path(), MODEL, &file, version).await?;
        gateway.wait_for_version(MODEL, version).await?;
        if version == 3 {
            second = Some(settled(&gateway).await?);
        }
    }
    let (second, last) = (second.context("too few swaps")?, settled(&gateway).await?);
    let ratio = last as f64 / second as f64;
    let remark = format!("{} MiB after {} MiB", last >> 20, second >> 20);
    let name = format!("{SWAPS} swaps of {MEGABYTES} MB: resident memory ÷ that after the second");
    bars.add_once(&name, Bar::AtMost(1.05), ratio, &remark);
    Ok(())
}

/// Resident memory once what was freed has gone back.
async fn settled(gateway: &Gateway) -> Result<u64> {
    tokio::time::sleep(RELEASED).await;
    gateway.server.rss()
}
