//! The one place where versions change their state: one task, one mailbox, one writer of the table.
//!
//! [`Reconciler`] is told [`Event`]s and the time; it changes its own state, publishes the table at most once for all that was told
//! since the last time, and returns [`Effect`]s for others to carry out. It does no input or output and reads no clock, so a test can
//! drive it through any history. [`Shell`] is the task around it, [`Seer`] the one that looks at the source.
//!
//! The order that requests rely on: a version is in the table only while it is ready, and it is closed (an effect) only after a table
//! without it was published.

mod bring;
mod event;
mod loads;
mod look;
mod looks;
mod model;
mod operator;
mod report;
mod routes;
mod settings;
mod shell;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::ModelName;

pub(crate) use self::bring::{FetchProgress, Stock};
pub(crate) use self::event::{Drained, Effect, Event, Files, Now, ResidencyId, Snapshot};
#[cfg(test)]
pub(crate) use self::event::{Look, Unloading};
use self::look::{Healths, SourceView};
pub(crate) use self::looks::{Looks, Seer};
use self::model::{ModelState, Residency};
pub(crate) use self::shell::Shell;
use crate::LoadMode;
use crate::aspire::{Circumstances, Demand, aspire};
use crate::budget::{Budget, DeviceBytes};
use crate::engine::{EngineOptions, LiveOptions, RetryPolicy, SettingsReader};
use crate::persist::{Operator, Persisted, Write};
use crate::plan::{Action, Idle, Means, ModelView, Yielding, choose, plan};
use crate::state::Stage;
use crate::status::{DrainReceipt, ModelStatus, Readiness, Status};
use crate::table::Publisher;

/// Fetches at a time.
pub const MAX_FETCHES: usize = 8;

/// What the reconciler goes by.
#[derive(Clone)]
pub(crate) struct Rules {
    pub(crate) load_mode: LoadMode,
    pub(crate) explicit_models: Vec<ModelName>,
    pub(crate) live: LiveOptions,
    pub(crate) drain_timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) keep_previous: Duration,
    pub(crate) read_settings: SettingsReader,
}

impl Rules {
    pub(crate) fn of(options: &EngineOptions) -> Rules {
        Rules {
            load_mode: options.load_mode,
            explicit_models: options.explicit_models.clone(),
            live: options.live.clone(),
            drain_timeout: options.drain_timeout,
            retry: options.retry,
            keep_previous: options.keep_previous,
            read_settings: Arc::clone(&options.read_settings),
        }
    }
}

/// The state of everything that is not a request.
pub(crate) struct Reconciler {
    rules: Rules,
    publisher: Publisher,
    models: BTreeMap<ModelName, ModelState>,
    operators: BTreeMap<ModelName, Operator>,
    /// Models that were unloaded before a look could tell what exists of them.
    early: BTreeSet<ModelName>,
    /// Loads that were asked for, until the look that they wait for.
    asked: BTreeMap<ModelName, u64>,
    source: SourceView,
    /// Which model a residency belongs to.
    homes: HashMap<ResidencyId, ModelName>,
    next_id: u64,
    /// Models whose plan may have changed.
    dirty: BTreeSet<ModelName>,
    /// Models whose route or status may have changed since the last snapshot.
    touched: BTreeSet<ModelName>,
    /// Models that wait for a fetch slot.
    waiting_for_slot: BTreeSet<ModelName>,
    /// Models that wait for memory.
    waiting_for_memory: BTreeSet<ModelName>,
    budget: Budget,
    fetching: usize,
    /// Loads that run, and those that wait for a loader thread.
    loading: usize,
    loads: VecDeque<ResidencyId>,
    /// Verifications that run, and those that wait.
    verifying: usize,
    verifications: VecDeque<ResidencyId>,
    /// The same of trials.
    trying: usize,
    trials: VecDeque<ResidencyId>,
    trims: loads::Trims,
    receipts: Arc<VecDeque<(ResidencyId, DrainReceipt)>>,
    statuses: BTreeMap<ModelName, Arc<ModelStatus>>,
    /// Effects that must come after the publish, and those that need not.
    drains: Vec<Effect>,
    effects: Vec<Effect>,
    write: u64,
    drain: u64,
    /// The first set was decided once.
    decided: bool,
    /// With the limit of the last drains.
    stopping: Option<Duration>,
    exists: Arc<BTreeMap<ModelName, Arc<bascule_registry::ListedModel>>>,
}

impl Reconciler {
    /// The state after a restart: what served is aspired before the first look.
    pub(crate) fn new(rules: Rules, describe: String, persisted: Persisted, publisher: Publisher) -> Reconciler {
        let Persisted { mut operator, served } = persisted;
        if rules.load_mode == LoadMode::Explicit {
            for model in &rules.explicit_models {
                operator.entry(model.clone()).or_insert(Operator::On);
            }
        }
        let mut budget = Budget::default();
        budget.limit(&rules.live.memory_budgets);
        let models: BTreeMap<ModelName, ModelState> =
            served.into_iter().map(|(name, served)| (name.clone(), ModelState::restored(name, served))).collect();
        let names: BTreeSet<ModelName> = models.keys().cloned().collect();
        Reconciler {
            rules,
            publisher,
            operators: operator,
            early: BTreeSet::new(),
            asked: BTreeMap::new(),
            source: SourceView::new(describe, !models.is_empty()),
            models,
            homes: HashMap::new(),
            next_id: 1,
            dirty: names.clone(),
            touched: names,
            waiting_for_slot: BTreeSet::new(),
            waiting_for_memory: BTreeSet::new(),
            budget,
            fetching: 0,
            loading: 0,
            verifying: 0,
            loads: VecDeque::new(),
            verifications: VecDeque::new(),
            trying: 0,
            trials: VecDeque::new(),
            trims: loads::Trims::default(),
            receipts: Arc::default(),
            statuses: BTreeMap::new(),
            drains: Vec::new(),
            effects: Vec::new(),
            write: 0,
            drain: 0,
            decided: false,
            stopping: None,
            exists: Arc::default(),
        }
    }

    /// Takes one event in. What follows from it is decided by [`Reconciler::settle`].
    pub(crate) fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Looked { ticket, look, registries, journal } => {
                self.looked(ticket, look, Healths { registries, journal }, now);
            }
            Event::Fetched { id, result } => self.fetched(id, result, now),
            Event::Verified { id, result } => self.verified(id, result, now),
            Event::Tried { id, result } => self.tried(id, result, now),
            Event::Warming { id } => self.warming(id),
            Event::Loaded { id, result } => self.loaded(id, result, now),
            Event::Drained { id, drained } => self.drained(id, &drained, now),
            Event::Trimmed(trim) => self.trimmed(trim, now),
            Event::Load { model, ticket, reply } => {
                // Whoever asked may have gone: then nobody is to be told.
                drop(reply.send(self.load_asked(model, ticket)));
            }
            Event::Unload { model, reply } => drop(reply.send(self.unload_asked(&model, now))),
            Event::Wanted { model } => self.wanted(&model),
            Event::Changed(live) => self.change(*live),
            Event::Tick => self.tick(now),
            Event::Shutdown { drain_timeout } => {
                self.stopping = Some(drain_timeout);
                self.dirty.extend(self.models.keys().cloned());
            }
        }
    }

    /// Decides on everything that was told: at most one publish of the table and exactly one snapshot. The effects are to be carried
    /// out in order.
    pub(crate) fn settle(&mut self, now: Now) -> (Vec<Effect>, Snapshot) {
        self.drain += 1;
        self.note_overdue(now);
        while let Some(name) = self.dirty.pop_first().or_else(|| self.next_for_slot()) {
            self.settle_model(&name, now);
            self.touched.insert(name);
        }
        self.hand_out_jobs();
        self.publish();
        self.effects.append(&mut self.drains);
        self.trim_if_due(now);
        self.update_readiness(now);
        let snapshot = self.snapshot(now);
        (std::mem::take(&mut self.effects), snapshot)
    }

    /// A model that waits for a fetch slot, while one is free. Whoever is told and needs it no more leaves it to the next.
    fn next_for_slot(&mut self) -> Option<ModelName> {
        if self.fetching < MAX_FETCHES { self.waiting_for_slot.pop_first() } else { None }
    }

    /// When [`Event::Tick`] should come, if nothing else does.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        let models = self.models.values().filter_map(|model| model.wake_at);
        models.chain(self.trims.due()).min()
    }

    /// Goes by other rules from now on. What serves is not touched by that alone.
    fn change(&mut self, live: LiveOptions) {
        self.budget.limit(&live.memory_budgets);
        self.rules.live = live;
        self.dirty.extend(self.models.keys().cloned());
        self.retry_for_memory();
    }

    fn tick(&mut self, now: Now) {
        let due = self.models.values().filter(|model| model.wake_at.is_some_and(|at| at <= now.at));
        self.dirty.extend(due.map(|model| model.name.clone()));
    }

    fn demand(&self, model: &ModelState) -> Demand {
        if self.stopping.is_some() {
            return Demand::Off;
        }
        match (self.operators.get(&model.name), self.rules.load_mode) {
            (Some(Operator::Off { .. }), _) => Demand::Off,
            (_, LoadMode::Watch) | (Some(Operator::On), LoadMode::Explicit) => Demand::Wanted,
            (None, LoadMode::Explicit) => Demand::NotLoaded,
            (_, LoadMode::OnDemand) if model.wanted => Demand::Wanted,
            (_, LoadMode::OnDemand) => Demand::Idle,
        }
    }

    /// Plans and acts until nothing more can be done for this model without waiting.
    fn settle_model(&mut self, name: &ModelName, now: Now) {
        // Taken out, so that the model and the rest can both be changed.
        let Some(mut model) = self.models.remove(name) else { return };
        loop {
            self.aspire(&mut model, now);
            let views = model.views();
            let view = ModelView { aspired: &model.aspired, transition: self.rules.live.transition, residencies: &views };
            let means = Means { budget: &self.budget, fetch_slots: MAX_FETCHES.saturating_sub(self.fetching) };
            let plan = plan(&view, &means, || self.yielding_models(), now.at);
            let until =
                model.aspired.until.and_then(|until| (until - now.utc).to_std().ok()).map(|left| now.at.saturating_add(left));
            model.wake_at = [plan.wake_at, until].into_iter().flatten().min();
            set(&mut self.waiting_for_slot, name, plan.waits_for_slot);
            set(&mut self.waiting_for_memory, name, plan.waits_for_memory);
            if plan.actions.is_empty() {
                model.choice = choose(&model.aspired, self.rules.live.transition, &views);
                break;
            }
            // What is evicted gives its memory back when its own turn comes; asked again before that, this plan would evict more.
            let evicts = plan.actions.iter().any(|action| matches!(action, Action::Evict { .. }));
            for action in plan.actions {
                self.act(&mut model, action, now);
            }
            if evicts {
                model.choice = choose(&model.aspired, self.rules.live.transition, &model.views());
                break;
            }
        }
        if model.exists.is_some() || !model.residencies.is_empty() {
            self.models.insert(name.clone(), model);
        } else {
            self.forget(&model);
        }
    }

    fn aspire(&self, model: &mut ModelState, now: Now) {
        let Some(exists) = model.exists.clone() else {
            model.aspired = crate::aspire::Aspired::default();
            return;
        };
        model.settings.refresh(&exists, model.aspired.versions.keys(), &self.rules.read_settings);
        let ready = model.ready();
        let settings = model.settings.model();
        let aspired = aspire(&Circumstances {
            model: &exists,
            policy: &settings.version_policy,
            strategy: settings.rollout,
            transition: self.rules.live.transition,
            demand: self.demand(model),
            ready: &ready,
            serving: model.serving,
            keep_previous: self.rules.keep_previous,
            now: now.utc,
        });
        model.serving = aspired.stable.or(model.serving);
        model.aspired = aspired;
        model.settings.refresh(&exists, model.aspired.versions.keys(), &self.rules.read_settings);
        model.retry_mended_settings();
    }

    fn act(&mut self, model: &mut ModelState, action: Action, now: Now) {
        match action {
            Action::Begin { version } => self.begin(model, version),
            Action::Fetch { id } => self.fetch(model, id, now),
            Action::Load { id, bytes } => self.load(model, id, bytes),
            Action::Refuse { id, cause } => {
                self.fail(model, id, crate::loader::LoadFailure::new(crate::state::FailedStep::Memory, cause), now);
            }
            Action::Unload { id } => self.unload(model, id, now),
            Action::Abandon { id } => self.abandon(model, id),
            Action::Evict { model: evicted } => self.evict(&evicted, now),
        }
    }

    /// Models that could give way to another, now or once they are idle; the one that is being settled is not among them.
    fn yielding_models(&self) -> Yielding {
        let mut yielding = Yielding::default();
        if self.rules.load_mode != LoadMode::OnDemand {
            return yielding;
        }
        for model in self.models.values().filter(|model| model.wanted) {
            // What drains is counted as freeing already.
            let held = model.residencies.values().filter(|residency| residency.stage() != Stage::Draining);
            let mut reserved = DeviceBytes::default();
            held.for_each(|residency| reserved.add_all(&residency.reserved));
            if !reserved.is_empty() && model.is_idle() {
                let last_use = model.last_use.millis();
                yielding.idle.push(Idle { model: model.name.clone(), last_use, reserved });
            } else {
                yielding.busy.add_all(&reserved);
            }
        }
        yielding
    }

    fn evict(&mut self, name: &ModelName, now: Now) {
        let Some(model) = self.models.get_mut(name) else { return };
        tracing::info!(model = %name, "evicted, its memory is needed");
        model.wanted = false;
        // At once, so that the next plan counts what this one frees. It is idle: it only lets go, and evicts nobody.
        self.settle_model(name, now);
        self.touched.insert(name.clone());
    }

    /// Whether nothing is left to wait for after a shutdown. Loads that can't be stopped are not waited for by this: the process
    /// ends without them.
    fn is_stopped(&self) -> bool {
        let moving = |residency: &Residency| residency.stage() != Stage::Failed;
        self.stopping.is_some() && !self.models.values().flat_map(|model| model.residencies.values()).any(moving)
    }

    /// Whether the first set was decided once.
    pub(crate) fn has_decided(&self) -> bool {
        self.decided
    }

    fn update_readiness(&mut self, now: Now) {
        self.decided = self.decided || (self.source.is_decided() && self.models.values().all(|model| self.is_decided(model, now)));
    }

    /// Whether all that should be loaded of a model at the start is, or has failed once. Models that nobody wants are no matter.
    fn is_decided(&self, model: &ModelState, now: Now) -> bool {
        matches!(self.demand(model), Demand::Off | Demand::NotLoaded) || model.is_decided(now.at)
    }

    fn readiness(&self, now: Now) -> Readiness {
        if self.stopping.is_some() {
            return Readiness::Stopping;
        }
        let not_yet = |reason: String| Readiness::NotYet { reason };
        if !self.decided {
            let undecided = self.models.values().find(|model| !self.is_decided(model, now));
            return not_yet(match undecided {
                Some(model) => format!("model '{}' is being loaded", model.name),
                None => self.source.waiting_for(),
            });
        }
        let failing = |status: &&Arc<ModelStatus>| {
            let failed = status.versions.iter().any(|version| version.stage == Stage::Failed.name());
            failed || status.standing == report::NOT_READY
        };
        // Not looked for where nobody asks.
        let failing = if self.rules.live.strict_ready { self.statuses.values().find(failing) } else { None };
        failing.map_or(Readiness::Ready, |status| not_yet(format!("model '{}' is not ready", status.name)))
    }

    /// Models that were to be loaded at the start and that no source has.
    fn missing(&self) -> impl Iterator<Item = &ModelName> {
        let explicit = self.rules.load_mode == LoadMode::Explicit;
        self.rules.explicit_models.iter().filter(move |name| explicit && !self.models.contains_key(*name))
    }

    fn persist(&mut self, what: Write) {
        self.write += 1;
        self.effects.push(Effect::Persist { write: self.write, what });
    }

    /// What is shown before anything was decided.
    pub(crate) fn empty_snapshot(&mut self) -> Snapshot {
        let touched = std::mem::take(&mut self.touched);
        let snapshot = self.snapshot(Now { at: Duration::ZERO, utc: chrono::DateTime::UNIX_EPOCH });
        self.touched = touched;
        snapshot
    }

    fn snapshot(&mut self, now: Now) -> Snapshot {
        for name in std::mem::take(&mut self.touched) {
            match self.models.get(&name) {
                Some(model) => drop(self.statuses.insert(name, Arc::new(self.model_status(model, now)))),
                None => drop(self.statuses.remove(&name)),
            }
        }
        let readiness = self.readiness(now);
        let status = Status {
            models: self.statuses.values().cloned().collect(),
            registry: self.source.status(self.missing()),
            memory: report::memory(&self.budget),
            generation: self.publisher.table().generation(),
            ready: readiness.is_ready(),
            receipts: self.receipts.iter().rev().take(report::RECEIPTS).rev().map(|(_, receipt)| receipt.clone()).collect(),
        };
        Snapshot {
            drain: self.drain,
            status: Arc::new(status),
            readiness,
            looked: self.source.looked(),
            look_error: self.source.last_error().map(str::to_owned),
            models: Arc::clone(&self.exists),
            residents: Arc::new(self.homes.keys().copied().collect()),
            receipts: Arc::clone(&self.receipts),
            write: self.write,
            stopped: self.is_stopped(),
        }
    }
}

/// Puts a name into a set or takes it out.
fn set(names: &mut BTreeSet<ModelName>, name: &ModelName, member: bool) {
    if member {
        names.insert(name.clone());
    } else {
        names.remove(name);
    }
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
