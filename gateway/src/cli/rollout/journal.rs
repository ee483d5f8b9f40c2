//! The journal itself, without a gateway.

use anyhow::Context as _;
use bascule_registry::{ModelName, Op, Registry};
use serde_json::json;
use uuid::Uuid;

use crate::compose;
use crate::config::Place;

use super::super::Outcome;
use super::super::failure::Failure;
use super::super::output::{print, print_json, rows, table};
use super::{refused, said};

async fn open(place: &Place) -> Result<Registry, Failure> {
    if !compose::holds_journals(place)? {
        let problem = format!("{} holds no rollout journal: an OCI registry has tags and no more", place.0);
        return Err(
            Failure::new(problem).hint("leave out --registry: the gateway that serves it keeps the journal; --gateway names it")
        );
    }
    let place = place.clone();
    let opened = tokio::task::spawn_blocking(move || compose::open_registry(&place, false)).await;
    Ok(opened.context("a blocking thread ended early")??)
}

/// Writes a decision.
pub(super) async fn write(place: &Place, model: &ModelName, op: Op, by: &str, reason: &str, as_json: bool) -> Outcome {
    let registry = open(place).await?;
    let text = said(&op);
    let seq = registry.append(model, op, by, reason, Uuid::new_v4()).await.map_err(refused)?;
    if as_json {
        return print_json(&json!({ "model": model, "seq": seq }));
    }
    print(&format!(
        "{model}: entry {seq} of the journal says {text}; every gateway of {} follows at its next look",
        registry.describe()
    ))
}

/// Prints all decisions.
pub(super) async fn show(place: &Place, model: &ModelName, as_json: bool) -> Outcome {
    let registry = open(place).await?;
    let entries = registry.journal(model).await.map_err(refused)?;
    if as_json {
        return print_json(&entries);
    }
    if entries.is_empty() {
        return print(&format!("the journal of {model} is empty: its strategy decides alone"));
    }
    let mut table = table(["ENTRY", "AT", "DECISION", "BY", "REASON"]);
    for entry in &entries {
        let at = entry.at.format("%Y-%m-%d %H:%M:%S").to_string();
        table.add_row([entry.seq.to_string(), at, said(&entry.op), entry.by.clone(), entry.reason.clone()]);
    }
    print(&rows(&table))
}
