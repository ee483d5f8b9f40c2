//! What a gateway costs that nobody asks.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Plan;
use crate::bars::{Bar, Bars};
use crate::gateway::Gateway;
use crate::models;

const MODELS: usize = 50;

/// Long enough for what runs once a second or every few.
const ROUND: Duration = Duration::from_secs(5);

/// Measures the share of a core that goes by while 50 models are loaded.
pub(crate) async fn measure(plan: &Plan, bars: &mut Bars) -> Result<()> {
    let registry = tempfile::tempdir()?;
    for model in 0..MODELS {
        models::write(registry.path(), &format!("m{model:02}"), &models::perceptron(&[4, 8, 3]), "")?;
    }
    let gateway = Gateway::start(plan, registry.path(), &[]).await?;
    tokio::time::sleep(ROUND).await;
    let mut shares = Vec::new();
    for _ in 0..plan.pairs {
        let (began, before) = (Instant::now(), gateway.server.cpu()?);
        tokio::time::sleep(ROUND).await;
        let spent = gateway.server.cpu()? - before;
        shares.push(100.0 * spent.as_secs_f64() / began.elapsed().as_secs_f64());
    }
    bars.add(&format!("idle, {MODELS} models loaded: % of a core"), Bar::AtMost(0.5), &shares, "");
    Ok(())
}
