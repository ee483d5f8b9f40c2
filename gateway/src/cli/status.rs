//! `bascule status`: what a gateway serves.

use std::time::Duration;

use bascule_registry::Weight;
use bascule_serving::{DeviceMemory, ModelStatus, Status, VersionStatus};
use chrono::{DateTime, Utc};
use clap::Args;
use comfy_table::Table;

use super::Outcome;
use super::args::GatewayArgs;
use super::failure::Failure;
use super::gateway::Gateway;
use super::output::{bytes, micros, or_dash, print, print_json, rows, table};

/// Show models, versions, states, traffic, memory, requests and latency of a gateway; and why what failed failed.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule status digits --json")]
pub(super) struct ShowStatus {
    /// Only this model.
    model: Option<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Print everything that is known, as JSON.
    #[arg(long)]
    json: bool,
}

impl ShowStatus {
    pub(super) async fn run(self) -> Outcome {
        let gateway = Gateway::at(&self.gateway.url)?;
        let mut status: Status = gateway.get("status", &[]).await?;
        if let Some(model) = &self.model {
            status.models.retain(|known| known.name == *model);
            if status.models.is_empty() {
                return Err(
                    Failure::new(format!("model '{model}' is not known")).hint("`bascule status` lists the models that are")
                );
            }
        }
        if self.json { print_json(&status) } else { print(&shown(&status)) }
    }
}

/// A GPU, and what of it is whose.
fn device(gpu: &DeviceMemory) -> String {
    let mut text = format!("{} {}", gpu.device, gpu.name.as_deref().unwrap_or_default()).trim_end().to_owned();
    if let (Some(free), Some(total)) = (gpu.free_bytes, gpu.total_bytes) {
        text += &format!(", {} of {} free", bytes(free), bytes(total));
    }
    text += &format!(", ~{} reserved", bytes(gpu.reserved_bytes));
    if let Some(budget) = gpu.budget_bytes {
        text += &format!(" of {}", bytes(budget));
    }
    text
}

/// How long ago a moment was, in whole seconds.
fn ago(moment: DateTime<Utc>) -> String {
    let seconds = (Utc::now() - moment).num_seconds();
    match u64::try_from(seconds) {
        Ok(0) | Err(_) => "just now".to_owned(),
        Ok(seconds) => format!("{} ago", humantime::format_duration(Duration::from_secs(seconds))),
    }
}

/// The status for people.
fn shown(status: &Status) -> String {
    let mut text = format!("{}, {}", status.registry.describe, if status.ready { "ready" } else { "not ready" });
    if let Some(look) = status.registry.last_good_look.filter(|_| status.registry.registries.is_empty()) {
        text += &format!(", looked at {}", ago(look));
    }
    if let Some(rss) = status.memory.rss_bytes {
        text += &format!(", memory {}", bytes(rss));
    }
    if let Some(budget) = status.memory.budget_bytes {
        text += &format!(", {} of {} reserved", bytes(status.memory.reserved_bytes), bytes(budget));
    }
    for part in &status.registry.registries {
        let look = part.last_good_look.map_or_else(|| "not read yet".to_owned(), |look| format!("looked at {}", ago(look)));
        text += &format!("\nregistry `{}` ({}), {look}", part.name, part.describe);
    }
    if let Some(journal) = &status.registry.journal {
        let look = journal.last_good_look.map_or_else(|| "not read yet".to_owned(), |look| format!("looked at {}", ago(look)));
        text += &format!("\nrollout journal ({}), {look}", journal.describe);
    }
    for gpu in &status.memory.devices {
        text += &format!("\n{}", device(gpu));
    }
    if status.models.is_empty() {
        text += "\nno models";
    } else {
        text += &format!("\n{}", rows(&versions(status)));
    }
    for line in notes(status) {
        text += &format!("\n{line}");
    }
    text
}

fn versions(status: &Status) -> Table {
    let mut table = table(["MODEL", "VERSION", "STATE", "ROLE", "TRAFFIC", "DEVICE", "MEMORY", "REQUESTS", "ERRORS", "P50", "P99"]);
    for model in &status.models {
        if model.versions.is_empty() {
            let standing = model.standing.to_uppercase();
            table.add_row([model.name.as_str(), "-", standing.as_str(), "-", "-", "-", "-", "-", "-", "-", "-"]);
        }
        for version in &model.versions {
            table.add_row(row(model, version));
        }
    }
    table
}

fn row(model: &ModelStatus, version: &VersionStatus) -> [String; 11] {
    // Outwardly both are the same.
    let state = match version.stage.as_str() {
        "fetching" => {
            format!("{} (fetching, {} of {})", version.state, bytes(version.fetched_bytes.unwrap_or(0)), bytes(version.bytes))
        }
        stage @ ("failed" | "unloaded") => format!("{} ({stage})", version.state),
        _ => version.state.clone(),
    };
    let estimate = if version.memory_measured { "" } else { "~" };
    [
        model.name.clone(),
        version.version.to_string(),
        state,
        version.role.clone().unwrap_or_else(|| "-".to_owned()),
        Weight(version.traffic_bp).to_string(),
        version.device.clone().unwrap_or_else(|| "-".to_owned()),
        or_dash(version.memory_bytes, |size| format!("{estimate}{}", bytes(size))),
        version.requests.to_string(),
        version.errors.to_string(),
        or_dash(version.p50_us, micros),
        or_dash(version.p99_us, micros),
    ]
}

/// What the table has no room for: causes, warnings, what is held, and the registry's problems.
fn notes(status: &Status) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(status.registry.last_error.iter().map(|error| format!("registry: {error}")));
    notes.extend(status.registry.problems.iter().map(|problem| format!("registry: {problem}")));
    let journal = status.registry.journal.iter().filter_map(|journal| journal.last_error.as_ref());
    notes.extend(journal.map(|error| format!("rollout journal: {error}; what was decided stays")));
    for model in &status.models {
        let name = &model.name;
        notes.extend(model.held.iter().map(|held| format!("{name}: {held}")));
        notes.extend(model.pinned.iter().map(|version| format!("{name}: pinned to version {version}")));
        notes.extend(
            model
                .frozen
                .iter()
                .map(|entry| format!("{name}: the rollout is frozen at an entry that this release does not know: {entry}")),
        );
        if !model.rejected.is_empty() {
            let rejected: Vec<String> = model.rejected.iter().map(ToString::to_string).collect();
            notes.push(format!("{name}: rejected until `bascule rollout clear {name}`: version {}", rejected.join(", ")));
        }
        notes.extend(model.problems.iter().map(|problem| format!("{name}: {problem}")));
        for version in &model.versions {
            let number = version.version;
            if let Some(cause) = version.cause.as_ref().filter(|_| version.stage == "failed") {
                let step = version.failed_step.as_deref().unwrap_or(&version.stage);
                let retry = version.retry_at.map(|at| format!("; next try in {} s", (at - Utc::now()).num_seconds().max(0)));
                notes.push(format!("{name} version {number} failed at {step}: {cause}{}", retry.unwrap_or_default()));
            }
            notes.extend(version.warnings.iter().map(|warning| format!("{name} version {number}: warning: {warning}")));
            if version.nan_outputs > 0 {
                notes.push(format!("{name} version {number}: NaN in outputs of requests: {}", version.nan_outputs));
            }
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use bascule_serving::{MemoryStatus, RegistryPart, RegistryStatus};

    use super::*;

    fn version(change: impl FnOnce(&mut VersionStatus)) -> VersionStatus {
        let mut version = VersionStatus::default();
        change(&mut version);
        version
    }

    #[test]
    fn the_table_has_a_row_a_version_and_a_line_a_cause() {
        let ready = version(|ready| {
            (ready.version, ready.state, ready.stage) = (1, "READY".into(), "ready".into());
            (ready.role, ready.traffic_bp, ready.device) = (Some("stable".into()), 9_950, Some("cpu".into()));
            (ready.memory_bytes, ready.requests, ready.errors) = (Some(2 << 20), 10, 1);
            (ready.p50_us, ready.p99_us, ready.nan_outputs) = (Some(90), Some(1_500), 3);
        });
        let failed = version(|failed| {
            (failed.version, failed.state, failed.stage) = (2, "UNAVAILABLE".into(), "failed".into());
            (failed.failed_step, failed.cause) = (Some("loading".into()), Some("not a model".into()));
        });
        let model = ModelStatus { name: "m".into(), versions: vec![ready, failed], rejected: vec![3], ..ModelStatus::default() };
        let status = Status {
            models: vec![model.into()],
            registry: RegistryStatus { describe: "directory ./models".into(), ..RegistryStatus::default() },
            memory: MemoryStatus { rss_bytes: Some(1 << 30), ..MemoryStatus::default() },
            ready: true,
            ..Status::default()
        };
        let text = shown(&status);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(text.lines().next(), Some("directory ./models, ready, memory 1.0 GiB"));
        assert_eq!(lines[2], ["m", "1", "READY", "stable", "99.5%", "cpu", "~2.0", "MiB", "10", "1", "90", "µs", "1.5", "ms"]);
        assert_eq!(lines[3], ["m", "2", "UNAVAILABLE", "(failed)", "-", "0%", "-", "-", "0", "0", "-", "-"]);
        assert!(text.contains("\nm version 2 failed at loading: not a model"), "{text}");
        assert!(text.contains("\nm version 1: NaN in outputs of requests: 3"), "{text}");
        assert!(text.contains("\nm: rejected until `bascule rollout clear m`: version 3"), "{text}");
        assert!(shown(&Status::default()).ends_with("no models"));
        let mut status = Status::default();
        let (describe, last_error) = ("s3://journal".to_owned(), Some("rollout.journal s3://journal can't be reached".to_owned()));
        status.registry.journal = Some(RegistryPart { describe, last_error, ..RegistryPart::default() });
        let text = shown(&status);
        assert!(text.contains("\nrollout journal (s3://journal), not read yet\n"), "{text}");
        assert!(
            text.ends_with("\nrollout journal: rollout.journal s3://journal can't be reached; what was decided stays"),
            "{text}"
        );
    }
}
