//! Versions on their way in and out: each step of a life, and the memory that is taken and given back on the way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::VersionNumber;
use bascule_runtime_api::Device;

use super::Reconciler;
use super::bring::{FetchProgress, NotBrought};
use super::event::{Drained, Effect, Files, Now, ResidencyId};
use super::model::{ModelState, Residency};
use crate::budget::{Budget, DeviceBytes};
use crate::loader::{LoadFailure, LoadJob, Loaded, Verified, VerifyJob};
use crate::memory::Trim;
use crate::meters;
use crate::persist::Write;
use crate::state::{FailedStep, Failure, Stage, VersionState};
use crate::status::DrainReceipt;
use crate::trial::Wanted;

/// Between two trims.
const TRIM_INTERVAL: Duration = Duration::from_secs(30);
/// Receipts that those who wait for a drain may still want to see.
const KEPT_RECEIPTS: usize = 256;
/// Versions that were loaded once and that the status still shows, for each model.
const KEPT_UNLOADED: usize = 16;
/// After its timeout a drain stops its runs; this long it may take for that to show.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// Verifications at a time: they only read files.
pub(super) const MAX_VERIFYING: usize = 16;
/// Trials at a time: one is made, and the next one is ready for its turn.
pub(super) const MAX_TRYING: usize = 2;
/// After a trial that did not end well, the next one is not sooner.
const TRIAL_RETRY: Duration = Duration::from_secs(600);
/// A retry never comes at once, whatever the settings say.
const MIN_RETRY: Duration = Duration::from_millis(1);

/// Giving memory back: at the most once in a while, after the last of several drains.
#[derive(Debug, Default)]
pub(super) struct Trims {
    last: Option<Duration>,
    running: bool,
    /// Something was drained since the last one.
    wanted: bool,
    /// What the trim that runs belongs to.
    waiting: Vec<(ResidencyId, DrainReceipt)>,
    draining: usize,
}

impl Trims {
    fn earliest(&self) -> Duration {
        self.last.map_or(Duration::ZERO, |last| last.saturating_add(TRIM_INTERVAL))
    }

    /// When one should be made, where one should.
    pub(super) fn due(&self) -> Option<Duration> {
        (self.wanted && !self.running && self.draining == 0).then(|| self.earliest())
    }
}

impl Reconciler {
    /// Something should be loaded that nothing is resident of.
    pub(super) fn begin(&mut self, model: &mut ModelState, version: VersionNumber) {
        let Some(generation) = model.aspired.versions.get(&version).cloned() else { return };
        let id = ResidencyId(self.next_id);
        self.next_id += 1;
        let settings = model.settings.version(version).cloned().unwrap_or_default();
        let restored = model.restored.get(&version) == Some(&generation.digest);
        let mut residency = Residency::new(id, generation, settings);
        residency.restored = restored;
        self.homes.insert(id, model.name.clone());
        model.residencies.insert(id, residency);
    }

    /// A load's turn has come.
    pub(super) fn fetch(&mut self, model: &mut ModelState, id: ResidencyId, now: Now) {
        let Some(residency) = model.residencies.get_mut(&id) else { return };
        if residency.stage() == Stage::Failed {
            residency.go(VersionState::Pending);
        }
        residency.begun_at = now.at;
        let version = residency.version();
        match (model.settings.version(version), model.settings.error(version)) {
            (Some(settings), _) => residency.settings = Arc::clone(settings),
            (None, Some(error)) => {
                let failure = LoadFailure::new(FailedStep::Settings, error.to_owned());
                return self.fail(model, id, failure, now);
            }
            // It served before the restart and no longer exists: it keeps what it began with.
            (None, None) => {}
        }
        residency.go(VersionState::Fetching);
        self.fetching += 1;
        let progress = Arc::new(FetchProgress::default());
        residency.fetch = Arc::downgrade(&progress);
        self.effects.push(Effect::Fetch { id, generation: Arc::clone(&residency.generation), progress });
    }

    pub(super) fn fetched(&mut self, id: ResidencyId, result: Result<Files, NotBrought>, now: Now) {
        self.with(id, |this, model| {
            let Some(residency) = model.residencies.get_mut(&id).filter(|residency| residency.stage() == Stage::Fetching) else {
                return;
            };
            this.fetching -= 1;
            match result {
                Ok(files) => {
                    residency.files = Some(files);
                    residency.go(VersionState::Verifying);
                    this.verifications.push_back(id);
                }
                Err(NotBrought::Failed(cause)) => this.fail(model, id, LoadFailure::new(FailedStep::Fetching, cause), now),
                Err(NotBrought::Refused(cause)) => {
                    let generation = Arc::clone(&residency.generation);
                    this.fail(model, id, LoadFailure::new(FailedStep::Fetching, cause), now);
                    model.forget_refused(&generation);
                }
            }
        });
    }

    pub(super) fn verified(&mut self, id: ResidencyId, result: Result<Box<Verified>, LoadFailure>, now: Now) {
        self.verifying -= 1;
        self.with(id, |this, model| {
            let Some(residency) = model.residencies.get_mut(&id).filter(|residency| residency.stage() == Stage::Verifying) else {
                return;
            };
            match result {
                Ok(verified) if verified.is_untried => {
                    residency.untried = Some(verified);
                    this.trials.push_back(id);
                }
                Ok(verified) => residency.may_load(verified),
                Err(failure) => this.fail(model, id, failure, now),
            }
        });
    }

    /// Its trial is over.
    pub(super) fn tried(&mut self, id: ResidencyId, result: Result<Box<Verified>, LoadFailure>, now: Now) {
        self.trying -= 1;
        self.with(id, |this, model| {
            let Some(residency) = model.residencies.get_mut(&id).filter(|residency| residency.stage() == Stage::Verifying) else {
                return;
            };
            match result {
                Ok(verified) => residency.may_load(verified),
                Err(failure) => this.fail(model, id, failure, now),
            }
        });
    }

    /// Its memory is there.
    pub(super) fn load(&mut self, model: &mut ModelState, id: ResidencyId, bytes: DeviceBytes) {
        let Some(residency) = model.residencies.get_mut(&id) else { return };
        residency.go(VersionState::Loading);
        self.budget.reserve(&bytes);
        if let Some(verified) = &residency.verified {
            verified.placed.reserved();
        }
        residency.reserved = bytes;
        self.loads.push_back(id);
    }

    /// Gives waiting work to threads that are free. Trials have their own: one that hangs must hold up no load, and nothing of which is
    /// known what a trial would find.
    pub(super) fn hand_out_jobs(&mut self) {
        while self.verifying < MAX_VERIFYING {
            let Some(id) = self.verifications.pop_front() else { break };
            self.verifying += usize::from(self.hand_out(id, verification));
        }
        while self.trying < MAX_TRYING {
            let Some(id) = self.trials.pop_front() else { break };
            self.trying += usize::from(self.hand_out(id, trial));
        }
        while self.loading < self.rules.live.loader_threads.max(1) {
            let Some(id) = self.loads.pop_front() else { break };
            self.loading += usize::from(self.hand_out(id, load));
        }
    }

    /// Hands out one piece of work, unless nobody wants it any more.
    fn hand_out(&mut self, id: ResidencyId, work: fn(&mut ModelState, ResidencyId, &Budget) -> Option<Effect>) -> bool {
        let model = self.homes.get(&id).and_then(|home| self.models.get_mut(home));
        let effect = model.and_then(|model| work(model, id, &self.budget));
        let is_wanted = effect.is_some();
        self.effects.extend(effect);
        is_wanted
    }

    pub(super) fn warming(&mut self, id: ResidencyId) {
        self.with(id, |_, model| {
            if let Some(residency) = model.residencies.get_mut(&id) {
                residency.go(VersionState::Warming);
            }
        });
    }

    pub(super) fn loaded(&mut self, id: ResidencyId, result: Result<Loaded, LoadFailure>, now: Now) {
        self.loading -= 1;
        self.with(id, |this, model| {
            let Some(residency) = model.residencies.get_mut(&id) else { return };
            let Loaded { servable, takes, warnings } = match result {
                Ok(loaded) => loaded,
                Err(failure) => return this.fail(model, id, failure, now),
            };
            residency.go(VersionState::Ready);
            residency.attempts = 0;
            residency.restored = false;
            residency.warnings = warnings;
            let footprint = servable.spec().footprint;
            residency.footprint = Some(footprint);
            this.budget.give_back(&residency.reserved);
            residency.reserved = takes;
            this.budget.reserve(&residency.reserved);
            residency.servable = Some(servable);
            let took = now.at.saturating_sub(residency.begun_at);
            let (name, version) = (&residency.generation.key.model, residency.version());
            tracing::info!(model = %name, version, digest = %residency.generation.digest.short(), ?took, "ready");
            meters::load_ended(true, took);
            model.restored.remove(&version);
            model.unloaded.remove(&version);
            // It may have needed less than was reserved.
            this.dirty.append(&mut this.waiting_for_memory);
        });
    }

    /// A step of a load failed. Nothing that serves is touched.
    pub(super) fn fail(&mut self, model: &mut ModelState, id: ResidencyId, failure: LoadFailure, now: Now) {
        let Some(residency) = model.residencies.get_mut(&id) else { return };
        residency.attempts = residency.attempts.saturating_add(1);
        let LoadFailure { step, cause, in_trial } = failure;
        // The same files fail the same trial, and each costs as much.
        let is_dear = in_trial || matches!(step, FailedStep::Trial | FailedStep::Quarantine);
        let least = if is_dear { TRIAL_RETRY } else { MIN_RETRY };
        let retry_at = now.at.saturating_add(self.rules.retry.delay(residency.attempts).max(least));
        let (version, attempts) = (residency.version(), residency.attempts);
        tracing::warn!(model = %model.name, version, step = step.name(), cause, attempts, "a load failed");
        meters::load_ended(false, now.at.saturating_sub(residency.begun_at));
        residency.go(VersionState::Failed(Failure { step, cause, retry_at, attempts }));
        residency.files = None;
        residency.verified = None;
        residency.untried = None;
        model.restored.remove(&version);
        let bytes = std::mem::take(&mut residency.reserved);
        self.give_back(&bytes);
    }

    fn give_back(&mut self, bytes: &DeviceBytes) {
        self.budget.give_back(bytes);
        if !bytes.is_empty() {
            self.retry_for_memory();
        }
    }

    /// There may be more memory than before: what waits for it or was refused is worth another try at once.
    pub(super) fn retry_for_memory(&mut self) {
        self.dirty.append(&mut self.waiting_for_memory);
        for model in self.models.values_mut() {
            for residency in model.residencies.values_mut() {
                if let VersionState::Failed(failure) = &mut residency.state
                    && failure.step == FailedStep::Memory
                {
                    failure.retry_at = Duration::ZERO;
                    self.dirty.insert(model.name.clone());
                }
            }
        }
    }

    /// Not loaded yet and no longer aspired.
    pub(super) fn abandon(&mut self, model: &mut ModelState, id: ResidencyId) {
        let Some(mut residency) = model.residencies.remove(&id) else { return };
        if residency.stage() == Stage::Fetching {
            self.effects.push(Effect::CancelFetch { id });
            self.fetching -= 1;
        }
        residency.go(VersionState::Unloaded);
        self.left(model, &residency);
    }

    /// Lets a version go. It leaves the table with the publish of this drain of the mailbox, and is closed after it.
    pub(super) fn unload(&mut self, model: &mut ModelState, id: ResidencyId, now: Now) {
        let Some(residency) = model.residencies.get_mut(&id) else { return };
        let Some(servable) = residency.servable.take() else { return };
        residency.go(VersionState::Draining);
        self.budget.expect_back(&residency.reserved);
        self.trims.draining += 1;
        let timeout = self.stopping.unwrap_or(self.rules.drain_timeout);
        residency.drain_until = now.at.saturating_add(timeout).saturating_add(DRAIN_GRACE);
        self.drains.push(Effect::Drain { id, servable, timeout });
    }

    /// Drains that should have ended: a run can't be stopped. Their memory is not counted on any more, and what waits for them goes on.
    pub(super) fn note_overdue(&mut self, now: Now) {
        if self.trims.draining == 0 {
            return;
        }
        let mut any = false;
        for model in self.models.values_mut() {
            for residency in model.residencies.values_mut() {
                let late = residency.stage() == Stage::Draining && !residency.overdue && residency.drain_until <= now.at;
                if late {
                    any = true;
                    residency.overdue = true;
                    self.trims.draining -= 1;
                    self.budget.expect_no_more(&residency.reserved);
                    tracing::warn!(model = %model.name, version = residency.version(), "a drain does not end: a run can't be stopped");
                    self.dirty.insert(model.name.clone());
                }
            }
        }
        if any {
            // Whoever counted on its memory plans without it.
            self.retry_for_memory();
        }
    }

    pub(super) fn drained(&mut self, id: ResidencyId, drained: &Drained, now: Now) {
        self.with(id, |this, model| {
            let Some(mut residency) = model.residencies.remove(&id) else { return };
            residency.go(VersionState::Unloaded);
            let bytes = std::mem::take(&mut residency.reserved);
            let version = residency.version();
            if !residency.overdue {
                this.budget.expect_no_more(&bytes);
                this.trims.draining -= 1;
            }
            this.give_back(&bytes);
            model.unloaded.insert(version, residency.generation.digest);
            if model.unloaded.len() > KEPT_UNLOADED {
                model.unloaded.pop_first();
            }
            meters::drain_ended(drained.took);
            tracing::info!(model = %model.name, version, digest = %residency.generation.digest.short(), took = ?drained.took, "unloaded");
            let receipt = DrainReceipt {
                model: model.name.to_string(),
                version,
                reserved_bytes: bytes.on(Device::Cpu),
                device_bytes: bytes.iter().filter(|(device, _)| *device != Device::Cpu).map(|(_, bytes)| bytes).sum(),
                rss_before: drained.rss_before,
                rss_after: drained.rss_after,
                trimmed: false,
                took: drained.took,
                interrupted: drained.interrupted,
                at: now.utc,
            };
            this.left(model, &residency);
            this.trims.wanted = true;
            if this.stopping.is_none() && this.trims.due().is_some_and(|due| due <= now.at) {
                // Its receipt waits for the trim, and so does whoever waits for the drain.
                this.trims.waiting.push((id, receipt));
                this.homes.insert(id, model.name.clone());
            } else {
                this.receive(id, receipt);
            }
        });
    }

    /// A residency is gone.
    fn left(&mut self, model: &ModelState, residency: &Residency) {
        self.homes.remove(&residency.id);
        let key = &residency.generation.key;
        if !model.residencies.values().any(|other| other.version() == key.version) {
            self.effects.push(Effect::Retired { key: key.clone() });
        }
    }

    fn receive(&mut self, id: ResidencyId, receipt: DrainReceipt) {
        self.homes.remove(&id);
        let receipts: &mut VecDeque<_> = Arc::make_mut(&mut self.receipts);
        receipts.push_back((id, receipt));
        if receipts.len() > KEPT_RECEIPTS {
            receipts.pop_front();
        }
    }

    pub(super) fn trim_if_due(&mut self, now: Now) {
        if self.stopping.is_none() && self.trims.due().is_some_and(|due| due <= now.at) {
            self.trims.running = true;
            self.trims.wanted = false;
            self.effects.push(Effect::Trim);
        }
    }

    pub(super) fn trimmed(&mut self, trim: Option<Trim>, now: Now) {
        self.trims.running = false;
        self.trims.last = Some(now.at);
        if let Some(trim) = trim {
            tracing::debug!(took = ?trim.took, rss_after = trim.rss_after, "freed memory was given back");
            meters::trimmed(trim.took);
        }
        for (id, mut receipt) in std::mem::take(&mut self.trims.waiting) {
            if let Some(trim) = trim {
                receipt.trimmed = true;
                receipt.rss_after = trim.rss_after;
            }
            self.receive(id, receipt);
        }
    }

    /// Nothing of a model exists any more, and nothing of it is in memory.
    pub(super) fn forget(&mut self, model: &ModelState) {
        self.waiting_for_slot.remove(&model.name);
        self.waiting_for_memory.remove(&model.name);
        if model.served.is_some() && self.stopping.is_none() {
            self.persist(Write::Served(model.name.clone(), None));
        }
    }

    /// Changes the model that a residency belongs to, where it is still there.
    fn with(&mut self, id: ResidencyId, change: impl FnOnce(&mut Reconciler, &mut ModelState)) {
        let Some(name) = self.homes.get(&id).cloned() else { return };
        // Taken out, so that the model and the rest can both be changed.
        let Some(mut model) = self.models.remove(&name) else { return };
        change(self, &mut model);
        self.models.insert(name.clone(), model);
        self.dirty.insert(name);
    }
}

/// What verifies a version; `None` where nobody wants it any more.
fn verification(model: &mut ModelState, id: ResidencyId, budget: &Budget) -> Option<Effect> {
    Some(Effect::Verify { id, job: Box::new(verify_job(model, id, budget)?) })
}

/// What tries a version; `None` where nobody wants it any more.
fn trial(model: &mut ModelState, id: ResidencyId, budget: &Budget) -> Option<Effect> {
    let job = Box::new(verify_job(model, id, budget)?);
    let verified = model.residencies.get_mut(&id)?.untried.take()?;
    Some(Effect::Try { id, job, verified })
}

fn verify_job(model: &ModelState, id: ResidencyId, budget: &Budget) -> Option<VerifyJob> {
    let residency = model.residencies.get(&id)?;
    let files = residency.files.clone().filter(|_| residency.stage() == Stage::Verifying)?;
    let (generation, settings) = (Arc::clone(&residency.generation), Arc::clone(&residency.settings));
    let (wanted, budget, on_gpu) = (Wanted::by(&residency.wish), budget.clone(), model.on_gpu());
    Some(VerifyJob { generation, settings, files, budget, wanted, on_gpu })
}

/// What loads a version; `None` where nobody wants it any more.
fn load(model: &mut ModelState, id: ResidencyId, _: &Budget) -> Option<Effect> {
    let residency = model.residencies.get_mut(&id)?;
    let files = residency.files.clone().filter(|_| residency.stage() == Stage::Loading)?;
    let verified = *residency.verified.take()?;
    let (generation, settings) = (Arc::clone(&residency.generation), Arc::clone(&residency.settings));
    Some(Effect::Load { id, job: Box::new(LoadJob { generation, settings, files, verified }) })
}
