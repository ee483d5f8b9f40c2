//! Tables for people, JSON for machines.

use std::path::Path;

use anyhow::Result;
use comfy_table::Table;
use serde_json::{Value, json};

use crate::Plan;

/// Collects what was measured, and prints each table as soon as it is whole.
pub(crate) struct Report {
    scenarios: serde_json::Map<String, Value>,
}

impl Report {
    /// Starts with what was run on what.
    pub(crate) fn new(plan: &Plan) -> Report {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let machine = json!({
            "cores": cores,
            "processor": processor(),
            "pairs": plan.pairs,
            "seconds_a_round": plan.round.as_secs_f64(),
            "connections": plan.connections,
        });
        let mut scenarios = serde_json::Map::new();
        scenarios.insert("run".to_owned(), machine);
        Report { scenarios }
    }

    /// Prints a table and keeps its rows.
    #[expect(clippy::print_stdout, reason = "a benchmark's output is its table")]
    pub(crate) fn table(&mut self, title: &str, head: &[&str], rows: &[Vec<String>]) {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN).set_header(head);
        for row in rows {
            table.add_row(row);
        }
        println!("{title}\n\n{table}\n");
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| Value::Object(head.iter().zip(row).map(|(name, cell)| ((*name).to_owned(), json!(cell))).collect()))
            .collect();
        self.scenarios.insert(title.to_owned(), Value::Array(rows));
    }

    /// Keeps the values behind a row, pair by pair.
    pub(crate) fn keep(&mut self, row: &str, values: &[f64]) {
        let kept = self.scenarios.entry("values").or_insert_with(|| json!({}));
        kept[row] = json!(values);
    }

    /// Writes the JSON file, where one is wanted.
    pub(crate) fn finish(self, json: Option<&Path>) -> Result<()> {
        if let Some(path) = json {
            std::fs::write(path, serde_json::to_vec_pretty(&Value::Object(self.scenarios))?)?;
        }
        Ok(())
    }
}

fn processor() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}
