//! What the reconciler shows of each model.

use std::sync::Arc;

use bascule_registry::VersionNumber;
use bascule_runtime_api::Device;

use super::Reconciler;
use super::event::Now;
use super::model::{ModelState, Residency};
use crate::budget::Budget;
use crate::persist::Operator;
use crate::state::Stage;
use crate::status::{CandidateStatus, DeviceMemory, MemoryStatus, ModelStatus, VersionStatus};
use crate::steering::names_stable;
use crate::table::{Split, Standing};
use crate::{BASIS_POINTS, LoadMode, RolloutStrategy, VersionPolicy};

/// Drains that the status shows.
pub(super) const RECEIPTS: usize = 16;

/// [`ModelStatus::standing`] of a model without a stable version that should have one.
pub(super) const NOT_READY: &str = "not_ready";

pub(super) fn memory(budget: &Budget) -> MemoryStatus {
    let main = budget.on(Device::Cpu);
    let devices = budget.iter().filter(|(device, _)| *device != Device::Cpu).map(|(device, ledger)| DeviceMemory {
        device: device.to_string(),
        budget_bytes: ledger.limit,
        reserved_bytes: ledger.reserved,
        ..DeviceMemory::default()
    });
    MemoryStatus { budget_bytes: main.limit, reserved_bytes: main.reserved, rss_bytes: None, devices: devices.collect() }
}

impl Reconciler {
    pub(super) fn model_status(&self, model: &ModelState, now: Now) -> ModelStatus {
        let settings = model.settings.model();
        let rollout = model.exists.as_ref().map(|exists| exists.rollout.clone()).unwrap_or_default();
        let mut problems: Vec<String> = model.settings.problems().collect();
        problems.extend(model.exists.iter().flat_map(|exists| exists.problems.iter().cloned()));
        problems.extend(settings.warnings.iter().cloned());
        // Where the source says which version is stable, none becomes so by itself.
        let steered = model.exists.as_deref().is_some_and(names_stable);
        let strategy = if steered { RolloutStrategy::Manual } else { settings.rollout };
        let candidate = model.route.as_ref().and_then(|route| route.candidate.as_ref());
        ModelStatus {
            name: model.name.to_string(),
            standing: standing_name(model).to_owned(),
            layout: model.exists.as_ref().map(|exists| exists.layout),
            held: self.held(model),
            load_mode: load_mode_name(self.rules.load_mode).to_owned(),
            policy: policy_name(&settings.version_policy),
            strategy: strategy_name(strategy).to_owned(),
            stable: model.route.as_ref().and_then(|route| route.stable.as_ref()).map(|servable| servable.version()),
            candidate: candidate.map(|candidate| {
                let (kind, weight_bp) = match candidate.split {
                    Split::Canary { weight_bp } => ("canary", weight_bp),
                    Split::Shadow { weight_bp } => ("shadow", weight_bp),
                };
                CandidateStatus { version: candidate.servable.version(), weight_bp, kind: kind.to_owned() }
            }),
            pinned: rollout.pinned,
            decided_at: rollout.since,
            journal_seq: rollout.seq,
            rejected: rollout.rejected.iter().copied().collect(),
            aliases: model.exists.as_ref().map(|exists| exists.aliases.clone()).unwrap_or_default(),
            frozen: rollout.frozen,
            aspired: model.aspired.versions.keys().copied().collect(),
            problems,
            versions: versions(model, now),
        }
    }

    fn held(&self, model: &ModelState) -> Option<String> {
        match self.operators.get(&model.name) {
            Some(Operator::Off { .. }) => Some("held: unloaded by operator".to_owned()),
            None if self.rules.load_mode == LoadMode::Explicit => Some("held: not loaded, `load.mode` is explicit".to_owned()),
            _ => None,
        }
    }
}

fn standing_name(model: &ModelState) -> &'static str {
    match model.route.as_ref().map(|route| &route.standing) {
        Some(Standing::Serving) => "serving",
        Some(Standing::OnDemand) => "on_demand",
        Some(Standing::Waking) => "waking",
        Some(Standing::Unloaded) => "unloaded",
        Some(Standing::NotReady { .. }) | None => NOT_READY,
    }
}

const fn load_mode_name(mode: LoadMode) -> &'static str {
    match mode {
        LoadMode::Watch => "watch",
        LoadMode::Explicit => "explicit",
        LoadMode::OnDemand => "on_demand",
    }
}

const fn strategy_name(strategy: RolloutStrategy) -> &'static str {
    match strategy {
        RolloutStrategy::Immediate => "immediate",
        RolloutStrategy::Manual => "manual",
    }
}

fn policy_name(policy: &VersionPolicy) -> String {
    match policy {
        VersionPolicy::Latest(count) => format!("latest {count}"),
        VersionPolicy::All => "all".to_owned(),
        VersionPolicy::Specific(versions) => {
            let versions: Vec<String> = versions.iter().map(VersionNumber::to_string).collect();
            format!("specific {}", versions.join(", "))
        }
    }
}

fn versions(model: &ModelState, now: Now) -> Vec<VersionStatus> {
    let mut versions: Vec<VersionStatus> = model.residencies.values().map(|residency| version(model, residency, now)).collect();
    for (number, digest) in &model.unloaded {
        if !versions.iter().any(|version| version.version == *number) {
            versions.push(unloaded(*number, digest.to_string()));
        }
    }
    // Stable: a version that is there twice keeps the order in which its lives began.
    versions.sort_by_key(|version| version.version);
    versions
}

fn unloaded(version: VersionNumber, digest: String) -> VersionStatus {
    VersionStatus {
        version,
        digest,
        state: Stage::Unloaded.outward().name().to_owned(),
        stage: Stage::Unloaded.name().to_owned(),
        cause: Some("unloaded".to_owned()),
        ..VersionStatus::default()
    }
}

fn version(model: &ModelState, residency: &Residency, now: Now) -> VersionStatus {
    let stage = residency.stage();
    let failure = residency.failure();
    let manifest = &residency.generation.manifest;
    let servable = residency.servable.as_ref();
    VersionStatus {
        version: residency.version(),
        digest: residency.generation.digest.to_string(),
        state: stage.outward().name().to_owned(),
        stage: stage.name().to_owned(),
        failed_step: failure.map(|failure| failure.step.name().to_owned()),
        cause: failure.map(|failure| failure.cause.clone()),
        retry_at: failure.map(|failure| now.utc_at(failure.retry_at)),
        attempts: residency.attempts,
        role: model.role(residency.id).map(str::to_owned),
        traffic_bp: traffic(model, residency),
        device: servable.map(|servable| servable.devices_shown()),
        runtime: servable.map(|servable| format!("{} {}", servable.spec().runtime, servable.spec().runtime_version)),
        instances: servable.map_or(0, |servable| u32::try_from(servable.instances()).unwrap_or(u32::MAX)),
        memory_bytes: residency.footprint.map(|footprint| footprint.host_bytes),
        memory_measured: residency.footprint.is_some_and(|footprint| footprint.measured),
        loaded_at: servable.map(|servable| servable.spec().loaded_at),
        held: model.exists.as_ref().is_some_and(|exists| exists.rollout.held.contains(&residency.version())),
        publisher: manifest.publisher.clone(),
        run_id: manifest.lineage.run_id.clone(),
        metrics: manifest.metrics.clone(),
        warnings: residency.warnings.clone(),
        bytes: residency.generation.bytes,
        fetch: residency.fetch.clone(),
        servable: servable.map(Arc::downgrade).unwrap_or_default(),
        ..VersionStatus::default()
    }
}

/// The share of unversioned requests, in basis points.
fn traffic(model: &ModelState, residency: &Residency) -> u32 {
    let weight = model.choice.candidate.map_or(0, |(_, weight_bp)| weight_bp);
    match model.role(residency.id) {
        Some("stable") => BASIS_POINTS.saturating_sub(weight),
        Some("candidate") => weight,
        _ => 0,
    }
}
