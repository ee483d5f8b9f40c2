//! One model as the reconciler keeps it: what exists of it, what is resident, and what the table says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bascule_registry::{Digest, Generation, ListedModel, ModelName, VersionNumber};
use bascule_runtime_api::{Device, Footprint};

use super::bring::FetchProgress;
use super::event::{Files, ResidencyId};
use super::settings::SettingsCache;
use crate::aspire::{Aspired, counts_not_yet};
use crate::budget::DeviceBytes;
use crate::loader::Verified;
use crate::persist::Served;
use crate::plan::{Choice, Phase, ResidencyView};
use crate::state::{FailedStep, Failure, Stage, VersionState};
use crate::table::{LastUse, Route};
use crate::{ModelSettings, Servable};

/// How long the start waits for files that do not keep still.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);

/// One stay of one content of one version in memory.
#[derive(Debug)]
pub(super) struct Residency {
    pub(super) id: ResidencyId,
    pub(super) generation: Arc<Generation>,
    /// As they were when this attempt began.
    pub(super) settings: Arc<ModelSettings>,
    pub(super) state: VersionState,
    /// Gone with this: whoever works for it need not go on.
    pub(super) wish: Arc<()>,
    /// It served before the restart.
    pub(super) restored: bool,
    /// Failed attempts in a row.
    pub(super) attempts: u32,
    /// When this attempt began.
    pub(super) begun_at: Duration,
    /// How far its fetch is, while there is one.
    pub(super) fetch: Weak<FetchProgress>,
    pub(super) files: Option<Files>,
    pub(super) verified: Option<Box<Verified>>,
    /// The same while it has to be tried.
    pub(super) untried: Option<Box<Verified>>,
    /// Of all sessions: an estimate first, what the sessions say later.
    pub(super) footprint: Option<Footprint>,
    /// Taken from the budget for it.
    pub(super) reserved: DeviceBytes,
    pub(super) servable: Option<Arc<Servable>>,
    /// While it drains: when that should have ended.
    pub(super) drain_until: Duration,
    /// It drains for longer than that: a run can't be stopped, and nobody waits for its memory any more.
    pub(super) overdue: bool,
    pub(super) warnings: Vec<String>,
}

impl Residency {
    pub(super) fn new(id: ResidencyId, generation: Arc<Generation>, settings: Arc<ModelSettings>) -> Residency {
        Residency {
            id,
            generation,
            settings,
            state: VersionState::Pending,
            wish: Arc::default(),
            restored: false,
            attempts: 0,
            begun_at: Duration::ZERO,
            fetch: Weak::new(),
            files: None,
            verified: None,
            untried: None,
            footprint: None,
            reserved: DeviceBytes::default(),
            servable: None,
            drain_until: Duration::ZERO,
            overdue: false,
            warnings: Vec::new(),
        }
    }

    pub(super) fn version(&self) -> VersionNumber {
        self.generation.key.version
    }

    pub(super) fn stage(&self) -> Stage {
        self.state.stage()
    }

    /// Moves it on. A way that the table of transitions lacks is our mistake: it is logged, and the state stays.
    pub(super) fn go(&mut self, next: VersionState) {
        match self.state.moved_to(next) {
            Ok(next) => {
                tracing::debug!(model = %self.generation.key.model, version = self.version(), from = %self.stage(), to = %next.stage(), "state");
                self.state = next;
            }
            Err(error) => {
                tracing::error!(model = %self.generation.key.model, version = self.version(), %error, "a wrong transition was refused");
                debug_assert!(false, "{error}");
            }
        }
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        match &self.state {
            VersionState::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// All that is left to do before it is loaded is to have its memory.
    pub(super) fn may_load(&mut self, verified: Box<Verified>) {
        self.footprint = Some(verified.footprint());
        self.verified = Some(verified);
    }

    /// Whether its files are here and it is loaded or about to be.
    fn holds_content(&self) -> bool {
        matches!(self.stage(), Stage::Verifying | Stage::Loading | Stage::Warming | Stage::Ready)
    }

    fn phase(&self) -> Phase {
        match &self.state {
            VersionState::Pending => Phase::Pending,
            VersionState::Fetching => Phase::Fetching,
            VersionState::Verifying => Phase::Verifying { needs: self.verified.as_ref().map(|verified| verified.needs.clone()) },
            VersionState::Loading | VersionState::Warming => Phase::Loading,
            VersionState::Ready => Phase::Ready,
            // What is unloaded is taken out of the map in the same step.
            VersionState::Draining | VersionState::Unloaded => Phase::Draining { until: self.drain_until },
            VersionState::Failed(failure) => Phase::Failed { retry_at: failure.retry_at },
        }
    }
}

/// One model.
#[derive(Debug)]
pub(super) struct ModelState {
    pub(super) name: ModelName,
    /// As the looks have it.
    pub(super) listed: Option<Arc<ListedModel>>,
    /// As it is followed: the same, but for models in explicit mode that follow only when they are told to.
    pub(super) exists: Option<Arc<ListedModel>>,
    pub(super) settings: SettingsCache,
    /// Somebody asked for it; on demand only.
    pub(super) wanted: bool,
    /// What served before the restart and has not been loaded again yet.
    pub(super) restored: BTreeMap<VersionNumber, Digest>,
    pub(super) residencies: BTreeMap<ResidencyId, Residency>,
    /// The version that is stable, or was when one last was.
    pub(super) serving: Option<VersionNumber>,
    pub(super) aspired: Aspired,
    pub(super) choice: Choice,
    pub(super) route: Option<Arc<Route>>,
    pub(super) last_use: Arc<LastUse>,
    /// Versions that were loaded once and are not now.
    pub(super) unloaded: BTreeMap<VersionNumber, Digest>,
    /// What is kept on disk of it.
    pub(super) served: Option<Arc<Served>>,
    /// When it needs another look, although nothing happens.
    pub(super) wake_at: Option<Duration>,
    /// Since when nothing but files that change is known of it.
    pub(super) unsettled_since: Option<Duration>,
}

impl ModelState {
    pub(super) fn new(name: ModelName) -> ModelState {
        ModelState {
            name,
            listed: None,
            exists: None,
            settings: SettingsCache::default(),
            wanted: false,
            restored: BTreeMap::new(),
            residencies: BTreeMap::new(),
            serving: None,
            aspired: Aspired::default(),
            choice: Choice::default(),
            route: None,
            last_use: Arc::default(),
            unloaded: BTreeMap::new(),
            served: None,
            wake_at: None,
            unsettled_since: None,
        }
    }

    /// A model that was served before the restart: that exists until a look says otherwise. On demand it is loaded by its next request.
    pub(super) fn restored(name: ModelName, served: Served) -> ModelState {
        let mut model = ModelState::new(name);
        model.restored = served.versions.iter().map(|generation| (generation.key.version, generation.digest)).collect();
        model.serving = served.stable;
        model.exists = Some(Arc::new(served.as_listed()));
        model.served = Some(Arc::new(served));
        model
    }

    /// What exists of it by the last look: anything else is new.
    pub(super) fn known(&self) -> BTreeMap<VersionNumber, Digest> {
        let listed = self.listed.as_ref().or(self.exists.as_ref());
        let versions = listed.iter().flat_map(|listed| &listed.versions);
        versions.map(|(version, generation)| (*version, generation.digest)).collect()
    }

    /// Versions that are ready, whatever their content.
    pub(super) fn ready(&self) -> BTreeSet<VersionNumber> {
        self.residencies.values().filter(|residency| residency.stage() == Stage::Ready).map(Residency::version).collect()
    }

    /// Whether this content is loaded, about to be, or was before the restart.
    pub(super) fn is_resident(&self, generation: &Generation) -> bool {
        let version = generation.key.version;
        let is_it = |residency: &Residency| residency.version() == version && residency.generation.digest == generation.digest;
        self.restored.get(&version) == Some(&generation.digest)
            || self.residencies.values().any(|residency| is_it(residency) && residency.holds_content())
    }

    /// A version that may not be loaded any more, and is not, is as good as gone: others take its place. A listing may bring it back.
    pub(super) fn forget_refused(&mut self, refused: &Generation) {
        if self.is_resident(refused) {
            return;
        }
        let version = refused.key.version;
        for known in [&mut self.exists, &mut self.listed].into_iter().flatten() {
            if known.versions.get(&version).is_some_and(|generation| generation.digest == refused.digest) {
                Arc::make_mut(known).versions.remove(&version);
            }
        }
    }

    /// The residencies as the plan sees them.
    pub(super) fn views(&self) -> Vec<ResidencyView> {
        let view = |residency: &Residency| ResidencyView {
            id: residency.id,
            version: residency.version(),
            current: self.is_current(residency),
            restored: residency.restored,
            phase: residency.phase(),
            reserved: residency.reserved.clone(),
        };
        self.residencies.values().map(view).collect()
    }

    /// Whether a residency is what is aspired: the version, its content, and settings under which it would be loaded alike.
    fn is_current(&self, residency: &Residency) -> bool {
        let Some(aspired) = self.aspired.versions.get(&residency.version()) else { return false };
        let settings = self.settings.version(residency.version());
        aspired.digest == residency.generation.digest && settings.is_none_or(|settings| settings.loads_like(&residency.settings))
    }

    /// What failed for its settings does not wait for the next try where they can be read by now.
    pub(super) fn retry_mended_settings(&mut self) {
        for residency in self.residencies.values_mut() {
            let version = residency.version();
            if let VersionState::Failed(failure) = &mut residency.state
                && failure.step == FailedStep::Settings
                && self.settings.version(version).is_some()
            {
                failure.retry_at = Duration::ZERO;
            }
        }
    }

    /// Whether each version that should be loaded is, or has failed once.
    pub(super) fn is_decided(&self, now: Duration) -> bool {
        let decided = |version: &VersionNumber| {
            let mut lives = self.residencies.values().filter(|residency| residency.version() == *version);
            lives.any(|residency| residency.stage() == Stage::Ready || residency.attempts > 0)
        };
        // Files that have not kept still for long enough may be a version, as they are at every first look at a plain directory; but
        // files that never keep still are no reason to be unready for ever.
        let settles = self.unsettled_since.is_some_and(|since| now.saturating_sub(since) < SETTLE_PATIENCE);
        self.aspired.versions.keys().all(decided) && !settles
    }

    /// Takes note of whether nothing but files that change is known of it.
    pub(super) fn note_unsettled(&mut self, now: Duration) {
        let only_unsettled = self.exists.as_deref().is_some_and(counts_not_yet);
        self.unsettled_since = if only_unsettled { Some(self.unsettled_since.unwrap_or(now)) } else { None };
    }

    /// The highest version that runs on a GPU now, and on which.
    pub(super) fn on_gpu(&self) -> Option<(VersionNumber, Device)> {
        let ready = self.residencies.values().filter(|residency| residency.stage() == Stage::Ready);
        let on_gpu = ready.filter_map(|residency| {
            let devices = residency.servable.as_ref()?.devices();
            let gpu = devices.iter().find(|device| **device != Device::Cpu)?;
            Some((residency.version(), *gpu))
        });
        on_gpu.max()
    }

    /// Whether nothing of it is on its way and nobody uses it. What has failed holds nothing and may be tried again later.
    pub(super) fn is_idle(&self) -> bool {
        self.residencies.values().all(|residency| {
            let unused = residency.servable.as_ref().is_some_and(|servable| servable.stats().in_flight() == 0);
            match residency.stage() {
                Stage::Ready => unused,
                // What drains is on its way out already.
                stage => matches!(stage, Stage::Failed | Stage::Draining),
            }
        })
    }

    pub(super) fn residency(&self, id: Option<ResidencyId>) -> Option<&Residency> {
        self.residencies.get(&id?)
    }
}
