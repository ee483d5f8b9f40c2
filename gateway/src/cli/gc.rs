//! `bascule gc`: removes what no version of a registry needs.

use std::time::Duration;

use anyhow::Context as _;
use bascule_registry::{GC_GRACE, Garbage, Leftover};
use clap::Args;
use serde_json::{Value, json};

use crate::config::env::Environment;

use super::args::ConfigArgs;
use super::failure::Failure;
use super::output::{bytes, note, print, print_json, rows, table};
use super::{Outcome, in_background, versions_of};

/// Find, and with --delete remove, files and signatures that no version of a registry names.
///
/// They come from publishes that were killed or lost their number. What is younger than the grace time stays, because a publish that is
/// under way may need it; nothing of a model goes while one of its manifests can't be read. Files of yanked versions stay.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  bascule gc --registry ./models\n  bascule gc --registry ./models --delete")]
pub(super) struct Gc {
    /// Remove them; without it, nothing is changed.
    #[arg(long)]
    delete: bool,
    /// How old they have to be. Less than a day is safe only while nobody publishes.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    grace: Duration,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Gc {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let config = self.config.load([], environment)?.config;
        let registry = versions_of::open(&config)?;
        if self.delete && self.grace < GC_GRACE {
            let grace = humantime::format_duration(self.grace);
            note(format!("warning: with a grace time of {grace} a publish that is under way may lose files"));
        }
        in_background(async {
            let garbage = registry.collect_garbage(self.grace, self.delete).await;
            let garbage = garbage.with_context(|| format!("can't collect the garbage of {}", registry.describe()))?;
            if self.json {
                print_json(&json!({ "deleted": self.delete, "models": garbage.iter().map(shown).collect::<Vec<_>>() }))?;
            } else {
                print(&self.text(&garbage))?;
            }
            let alone =
                garbage.iter().filter_map(|one| Some(format!("{}: nothing is removed: {}", one.model, one.left_alone.as_ref()?)));
            let alone: Vec<String> = alone.collect();
            if alone.is_empty() {
                return Ok(());
            }
            Err(Failure::several(alone).hint(
                "`bascule verify` says more about manifests that can't be read; a listing that is short is complete another time",
            ))
        })
    }

    fn text(&self, garbage: &[Garbage]) -> String {
        let mut table = table(["MODEL", "WRITTEN", "SIZE", "OBJECT"]);
        let (mut count, mut size, mut young) = (0_usize, 0_u64, 0_usize);
        for one in garbage {
            for leftover in &one.old {
                (count, size) = (count + 1, size.saturating_add(leftover.bytes));
                let written = leftover.written.format("%Y-%m-%d %H:%M:%S").to_string();
                table.add_row([one.model.to_string(), written, bytes(leftover.bytes), leftover.path.clone()]);
            }
            young += one.young.len();
        }
        let mut text = if count > 0 { rows(&table) + "\n" } else { String::new() };
        text += &match (count, self.delete) {
            (0, _) => "nothing to remove".to_owned(),
            (_, true) => format!("removed: {count}, {}", bytes(size)),
            (_, false) => format!("to be removed with --delete: {count}, {}", bytes(size)),
        };
        if young > 0 {
            let grace = humantime::format_duration(self.grace);
            text += &format!("; younger than {grace}, which may belong to a publish that is under way: {young}");
        }
        text
    }
}

fn shown(garbage: &Garbage) -> Value {
    let leftovers = |leftovers: &[Leftover]| -> Vec<Value> {
        leftovers.iter().map(|one| json!({ "object": one.path, "bytes": one.bytes, "written": one.written })).collect()
    };
    json!({
        "model": garbage.model, "old": leftovers(&garbage.old), "young": leftovers(&garbage.young), "left_alone": garbage.left_alone,
    })
}
