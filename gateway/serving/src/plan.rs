//! What to do next for a model: a pure function of what should be, what is, the memory left and the time.
//!
//! Availability-preserving (TF Serving's policy of that name, with two changes: absence from storage does not un-aspire, and a failed
//! load is tried for ever): what answers stays until its successor is ready. Resource-preserving: what is no longer aspired goes
//! first. In both, one load at a time a model, none while something of the model drains, and one drain at a time unless all of it
//! goes.
//!
//! Memory is reserved before sessions are made. Where it does not suffice, idle models that were loaded on demand give way, least
//! recently used first; where that does not suffice either, the load fails with the arithmetic and nobody gives way for nothing.

mod choice;

use std::time::Duration;

use bascule_registry::{ModelName, VersionNumber};
use bascule_runtime_api::Device;

pub(crate) use self::choice::{Choice, choose};
use crate::TransitionPolicy;
use crate::aspire::Aspired;
use crate::budget::{Budget, DeviceBytes};
use crate::reconcile::ResidencyId;

/// How far a residency is, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Fetching,
    /// `needs` is known once the files were looked at: it then waits for so much memory.
    Verifying {
        needs: Option<DeviceBytes>,
    },
    /// Sessions are made or warmed up; it can't be stopped.
    Loading,
    Ready,
    /// `until` is when it should have ended: one that goes on after that, because a run can't be stopped, holds up nothing.
    Draining {
        until: Duration,
    },
    Failed {
        retry_at: Duration,
    },
}

/// One residency of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResidencyView {
    pub(crate) id: ResidencyId,
    pub(crate) version: VersionNumber,
    /// Its content and settings are those that are aspired.
    pub(crate) current: bool,
    /// It served before a restart: it is loaded even if something else is aspired by now, unless something is ready.
    pub(crate) restored: bool,
    pub(crate) phase: Phase,
    pub(crate) reserved: DeviceBytes,
}

/// Everything about one model that decides what is done next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelView<'a> {
    pub(crate) aspired: &'a Aspired,
    pub(crate) transition: TransitionPolicy,
    /// By id, ascending.
    pub(crate) residencies: &'a [ResidencyView],
}

/// What many models share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Means<'a> {
    pub(crate) budget: &'a Budget,
    /// Fetches that may still be begun.
    pub(crate) fetch_slots: usize,
}

/// A model that was loaded on demand and that nobody uses now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Idle {
    pub(crate) model: ModelName,
    /// See [`crate::table::LastUse::millis`].
    pub(crate) last_use: u64,
    pub(crate) reserved: DeviceBytes,
}

/// Models that were loaded on demand and hold memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Yielding {
    /// Those that nobody uses now.
    pub(crate) idle: Vec<Idle>,
    /// What the others hold, which are in use or on their way.
    pub(crate) busy: DeviceBytes,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing is resident of this content yet: it becomes pending.
    Begin { version: VersionNumber },
    /// It is pending, or failed long enough ago: its turn has come.
    Fetch { id: ResidencyId },
    /// So much memory is free for it.
    Load { id: ResidencyId, bytes: DeviceBytes },
    /// They are not, and won't be.
    Refuse { id: ResidencyId, cause: String },
    /// It has left the table.
    Unload { id: ResidencyId },
    /// Not loaded yet and no longer aspired.
    Abandon { id: ResidencyId },
    /// Its memory is needed.
    Evict { model: ModelName },
}

/// What to do, and what else has to happen before there is more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    /// A fetch waits for its slot.
    pub(crate) waits_for_slot: bool,
    /// A load waits for memory that is being freed.
    pub(crate) waits_for_memory: bool,
    /// When a failed load is tried again.
    pub(crate) wake_at: Option<Duration>,
}

/// Memory that others use now is looked at again after this long: nothing tells when a model becomes idle.
const BUSY_RECHECK: Duration = Duration::from_millis(50);

/// What to do next. `yielding` is asked only where memory is short.
pub(crate) fn plan(view: &ModelView<'_>, means: &Means<'_>, yielding: impl FnOnce() -> Yielding, now: Duration) -> Plan {
    let mut plan = Plan::default();
    let abandoned = abandon(view, &mut plan);
    let left: Vec<ResidencyView> =
        view.residencies.iter().filter(|residency| !abandoned.contains(&residency.id)).cloned().collect();
    begin(view, &left, &mut plan);
    let freed = unload(view, &left, now, &mut plan);
    reserve(&left, &freed, means, yielding, now, &mut plan);
    // A residency that was begun just now is pending from the next plan on.
    start(view, &left, means, now, &mut plan);
    plan
}

fn abandon(view: &ModelView<'_>, plan: &mut Plan) -> Vec<ResidencyId> {
    let any_ready = view.residencies.iter().any(|residency| residency.phase == Phase::Ready);
    let keeps_restored =
        view.transition == TransitionPolicy::AvailabilityPreserving && !any_ready && !view.aspired.versions.is_empty();
    let useless = |residency: &&ResidencyView| match residency.phase {
        Phase::Pending | Phase::Fetching | Phase::Verifying { .. } => !(residency.current || residency.restored && keeps_restored),
        Phase::Failed { .. } => !residency.current,
        Phase::Loading | Phase::Ready | Phase::Draining { .. } => false,
    };
    let ids: Vec<ResidencyId> = view.residencies.iter().filter(useless).map(|residency| residency.id).collect();
    plan.actions.extend(ids.iter().map(|id| Action::Abandon { id: *id }));
    ids
}

fn begin(view: &ModelView<'_>, left: &[ResidencyView], plan: &mut Plan) {
    let is_resident = |version: VersionNumber| {
        let lives = |residency: &ResidencyView| residency.current && !matches!(residency.phase, Phase::Draining { .. });
        left.iter().any(|residency| residency.version == version && lives(residency))
    };
    let missing = view.aspired.versions.keys().copied().filter(|version| !is_resident(*version));
    plan.actions.extend(missing.map(|version| Action::Begin { version }));
}

/// Unloads what answers nobody; the memory that this will free.
fn unload(view: &ModelView<'_>, left: &[ResidencyView], now: Duration, plan: &mut Plan) -> DeviceBytes {
    let choice = choose(view.aspired, view.transition, left);
    let mut leaving: Vec<&ResidencyView> =
        left.iter().filter(|residency| residency.phase == Phase::Ready && !choice.names(residency.id)).collect();
    leaving.sort_by_key(|residency| (residency.version, residency.id));
    if !view.aspired.versions.is_empty() {
        let draining = left.iter().any(|residency| drains(residency, now));
        leaving.truncate(usize::from(!draining));
    }
    plan.actions.extend(leaving.iter().map(|residency| Action::Unload { id: residency.id }));
    let mut freed = DeviceBytes::default();
    leaving.iter().for_each(|residency| freed.add_all(&residency.reserved));
    freed
}

/// Whether it is on its way out and within its time.
fn drains(residency: &ResidencyView, now: Duration) -> bool {
    matches!(residency.phase, Phase::Draining { until } if until > now)
}

/// Decides on the load that waits for memory, where there is one.
fn reserve(
    left: &[ResidencyView],
    freed: &DeviceBytes,
    means: &Means<'_>,
    yielding: impl FnOnce() -> Yielding,
    now: Duration,
    plan: &mut Plan,
) {
    let waiting = left.iter().find_map(|residency| match &residency.phase {
        Phase::Verifying { needs: Some(needs) } => Some((residency.id, needs)),
        _ => None,
    });
    let Some((id, needs)) = waiting else { return };
    let budget = means.budget;
    let free = |device: Device| budget.on(device).free().unwrap_or(u64::MAX);
    let soon = |device: Device| free(device).saturating_add(budget.on(device).freeing).saturating_add(freed.on(device));
    if needs.beyond(free).is_empty() {
        plan.actions.push(Action::Load { id, bytes: needs.clone() });
        return;
    }
    let fits = needs.beyond(|device| budget.on(device).limit.unwrap_or(u64::MAX)).is_empty();
    let missing = needs.beyond(soon);
    if fits && missing.is_empty() {
        plan.waits_for_memory = true;
        return;
    }
    let Yielding { idle, busy } = if fits { yielding() } else { Yielding::default() };
    let mut later = busy;
    idle.iter().for_each(|idle| later.add_all(&idle.reserved));
    let enough_later = missing.beyond(|device| later.on(device)).is_empty();
    match evict(missing, idle) {
        Some(models) if fits => {
            plan.actions.extend(models.into_iter().map(|model| Action::Evict { model }));
            plan.waits_for_memory = true;
        }
        // Nobody gives way before there is enough, and those who wait for the load wait on.
        _ if fits && enough_later => {
            plan.waits_for_memory = true;
            plan.wake_at = Some(now.saturating_add(BUSY_RECHECK));
        }
        _ => plan.actions.push(Action::Refuse { id, cause: shortage(needs, budget) }),
    }
}

/// The arithmetic of each device on which there is too little.
fn shortage(needs: &DeviceBytes, budget: &Budget) -> String {
    let short = needs.iter().filter_map(|(device, bytes)| {
        let ledger = budget.on(device);
        let (limit, free) = (ledger.limit?, ledger.free()?);
        if bytes <= free {
            return None;
        }
        let (of, reserved) = (if device == Device::Cpu { String::new() } else { format!(" for {device}") }, ledger.reserved);
        Some(format!(
            "it needs {bytes} bytes by estimate, and of the memory budget of {limit} bytes{of} {reserved} are reserved: {free} are left"
        ))
    });
    short.collect::<Vec<String>>().join("; ")
}

/// The least recently used models that give up what is missing together; `None` where all of them have less.
fn evict(mut missing: DeviceBytes, mut idle: Vec<Idle>) -> Option<Vec<ModelName>> {
    idle.sort_by(|a, b| (a.last_use, &a.model).cmp(&(b.last_use, &b.model)));
    let mut models = Vec::new();
    for candidate in idle {
        if missing.is_empty() {
            break;
        }
        // One whose memory is elsewhere would go for nothing.
        if missing.iter().any(|(device, _)| candidate.reserved.on(device) > 0) {
            missing = missing.beyond(|device| candidate.reserved.on(device));
            models.push(candidate.model);
        }
    }
    missing.is_empty().then_some(models)
}

/// Begins the next load, where nothing of the model is on its way in or out.
fn start(view: &ModelView<'_>, left: &[ResidencyView], means: &Means<'_>, now: Duration, plan: &mut Plan) {
    let retries = left.iter().filter_map(|residency| match residency.phase {
        Phase::Failed { retry_at } if residency.current && retry_at > now => Some(retry_at),
        _ => None,
    });
    let drains_until = left.iter().filter_map(|residency| match residency.phase {
        Phase::Draining { until } if until > now => Some(until),
        _ => None,
    });
    plan.wake_at = plan.wake_at.into_iter().chain(retries).chain(drains_until).min();
    let moving = |residency: &ResidencyView| {
        matches!(residency.phase, Phase::Fetching | Phase::Verifying { .. } | Phase::Loading) || drains(residency, now)
    };
    if left.iter().any(moving) || plan.actions.iter().any(|action| matches!(action, Action::Unload { .. })) {
        return;
    }
    let due = left.iter().filter(|residency| match residency.phase {
        Phase::Pending => true,
        Phase::Failed { retry_at } => residency.current && retry_at <= now,
        _ => false,
    });
    let any_ready = left.iter().any(|residency| residency.phase == Phase::Ready);
    let Some(first) = due.max_by_key(|residency| urgency(view.aspired, residency, any_ready)) else { return };
    if means.fetch_slots == 0 {
        plan.waits_for_slot = true;
    } else {
        plan.actions.push(Action::Fetch { id: first.id });
    }
}

/// The highest goes first: what never failed, then what served before a restart while nothing answers, then what should be stable,
/// then the candidate, then the highest number.
fn urgency(aspired: &Aspired, residency: &ResidencyView, any_ready: bool) -> (bool, u8, bool, bool, VersionNumber) {
    let version = Some(residency.version);
    let known_good = match (any_ready, residency.restored, aspired.fallback == version) {
        (false, true, _) => 2,
        (false, false, true) => 1,
        _ => 0,
    };
    let candidate = aspired.candidate.map(|(version, _)| version) == version;
    let fresh = residency.phase == Phase::Pending;
    (fresh, known_good, aspired.next == version, candidate, residency.version)
}

#[cfg(test)]
mod tests;
