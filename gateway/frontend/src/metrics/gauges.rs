//! What is read at the time of a scrape: the engine's status, as gauges.

use bascule_serving::{ModelStatus, Status, VersionStatus};
use chrono::{DateTime, Utc};

use super::exposition::Family;
use crate::describe::latest;

/// What a version can be, outwardly.
const STATES: [&str; 4] = ["READY", "LOADING", "UNLOADING", "UNAVAILABLE"];
const BASIS_POINTS: f64 = 10_000.0;

/// The gauges of a status whose counters are live.
pub fn families(status: &Status, now: DateTime<Utc>) -> Vec<Family> {
    let mut families = program(status, now);
    families.extend(devices(status));
    families.extend(versions(status));
    families
}

fn program(status: &Status, now: DateTime<Utc>) -> Vec<Family> {
    let mut families = vec![
        Family::gauge("bascule_build_info", "Always 1; the labels name the build.")
            .with(&[("version", env!("CARGO_PKG_VERSION"))], 1.0),
        Family::gauge("bascule_ready", "1 where the gateway takes traffic.").with(&[], flag(status.ready)),
        Family::gauge("bascule_models", "Models that are known.").with(&[], status.models.len() as f64),
        Family::gauge("bascule_quarantined_versions", "Versions that are kept out because they ran in crashes of the gateway.")
            .with(&[], quarantined(status) as f64),
        Family::gauge("bascule_memory_reserved_bytes", "What loaded and loading versions take, by estimate or measurement.")
            .with(&[], status.memory.reserved_bytes as f64),
    ];
    families.extend(registries(status, now));
    families.extend(journal(status, now));
    let mut optional = |name, help, value: Option<f64>| {
        families.extend(value.map(|value| Family::gauge(name, help).with(&[], value)));
    };
    optional(
        "bascule_memory_budget_bytes",
        "What all versions together may take.",
        status.memory.budget_bytes.map(|bytes| bytes as f64),
    );
    optional(
        "process_resident_memory_bytes",
        "Main memory of the whole process.",
        status.memory.rss_bytes.map(|bytes| bytes as f64),
    );
    families
}

/// How looking at the registry goes; of each where there are several.
fn registries(status: &Status, now: DateTime<Utc>) -> impl Iterator<Item = Family> {
    let mut healthy = Family::gauge("bascule_registry_healthy", "1 where the last look at the registry succeeded.");
    let mut age = Family::gauge("bascule_registry_look_age_seconds", "Time since a look at the registry last succeeded.");
    let all = &status.registry;
    let mut add = |labels: &[(&'static str, &str)], error: &Option<String>, good: Option<DateTime<Utc>>| {
        healthy.add(labels, flag(error.is_none() && good.is_some()));
        if let Some(good) = good {
            age.add(labels, (now - good).as_seconds_f64().max(0.0));
        }
    };
    if all.registries.is_empty() {
        add(&[], &all.last_error, all.last_good_look);
    }
    for part in &all.registries {
        add(&[("registry", &part.name)], &part.last_error, part.last_good_look);
    }
    // Before the first look there is no age.
    [healthy, age].into_iter().filter(|family| !family.is_empty())
}

fn quarantined(status: &Status) -> usize {
    let versions = status.models.iter().flat_map(|model| &model.versions);
    versions.filter(|version| version.failed_step.as_deref() == Some("quarantine")).count()
}

/// How looking at the place of the rollout journals goes, where replicas share one.
fn journal(status: &Status, now: DateTime<Utc>) -> impl Iterator<Item = Family> {
    let mut healthy = Family::gauge("bascule_journal_healthy", "1 where the last look at the shared rollout journal succeeded.");
    let mut age =
        Family::gauge("bascule_journal_look_age_seconds", "Time since a look at the shared rollout journal last succeeded.");
    if let Some(journal) = &status.registry.journal {
        healthy.add(&[], flag(journal.last_error.is_none() && journal.last_good_look.is_some()));
        if let Some(good) = journal.last_good_look {
            age.add(&[], (now - good).as_seconds_f64().max(0.0));
        }
    }
    [healthy, age].into_iter().filter(|family| !family.is_empty())
}

/// Of each GPU that is there or has a limit.
fn devices(status: &Status) -> Vec<Family> {
    let mut reserved = Family::gauge(
        "bascule_device_memory_reserved_bytes",
        "Memory of a GPU that loaded and loading versions take, by estimate.",
    );
    let mut budget = Family::gauge("bascule_device_memory_budget_bytes", "Memory of a GPU that all versions together may take.");
    let mut free = Family::gauge("bascule_device_memory_free_bytes", "Memory of a GPU that no process uses.");
    for gpu in &status.memory.devices {
        let labels = [("device", gpu.device.as_str())];
        reserved.add(&labels, gpu.reserved_bytes as f64);
        for (family, bytes) in [(&mut budget, gpu.budget_bytes), (&mut free, gpu.free_bytes)] {
            if let Some(bytes) = bytes {
                family.add(&labels, bytes as f64);
            }
        }
    }
    if status.memory.devices.is_empty() { Vec::new() } else { vec![reserved, budget, free] }
}

fn versions(status: &Status) -> [Family; 5] {
    let mut states = Family::gauge("bascule_version_state", "1 for the state that a version is in, 0 for the others.");
    let mut memory = Family::gauge(
        "bascule_version_memory_bytes",
        "Main memory of a version's sessions; the label says whether it is an estimate.",
    );
    let mut queued = Family::gauge("bascule_queue_depth", "Requests that wait for an instance.");
    let mut devices = Family::gauge("bascule_version_device", "1 for each device that really runs a version's sessions.");
    let mut traffic = Family::gauge("bascule_version_traffic_ratio", "A version's share of the unversioned traffic, from 0 to 1.");
    let latest = status.models.iter().flat_map(|model| latest(model).into_iter().map(move |version| (model, version)));
    // What was unloaded stays in the status; its series would only ever grow in number.
    for (model, version) in latest.filter(|(_, version)| version.stage != "unloaded") {
        let number = version.version.to_string();
        let labels = [("model", model.name.as_str()), ("version", number.as_str())];
        let with = |name, value| [labels[0], labels[1], (name, value)];
        for state in STATES {
            states.add(&with("state", state), flag(version.state == state));
        }
        if let Some((bytes, measured)) = memory_of(model, version) {
            memory.add(&with("estimate", if measured { "false" } else { "true" }), bytes as f64);
        }
        for device in version.device.iter().flat_map(|devices| devices.split(", ")) {
            devices.add(&with("device", device), 1.0);
        }
        if version.role.is_some() {
            queued.add(&labels, version.queued as f64);
            traffic.add(&labels, f64::from(version.traffic_bp) / BASIS_POINTS);
        }
    }
    [states, memory, devices, queued, traffic]
}

/// Memory of every life of a version: while its content changes, both are there.
fn memory_of(model: &ModelStatus, version: &VersionStatus) -> Option<(u64, bool)> {
    let lives = model.versions.iter().filter(|life| life.version == version.version);
    let known = lives.filter_map(|life| Some((life.memory_bytes?, life.memory_measured)));
    known.reduce(|(bytes, measured), (more, also)| (bytes.saturating_add(more), measured && also))
}

fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}
