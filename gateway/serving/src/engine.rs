//! Starting an engine: what it needs, and the tasks that it consists of.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::{
    Cache, Clock, Generation, ListedModel, Listing, ModelName, SystemClock, VersionKey, VersionNumber, VersionSource, WriteBack,
};
use bascule_runtime_api::{Device, Runtime};
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::error::with_causes;
use crate::journal::JournalStore;
use crate::loader::Runtimes;
use crate::persist::{self, Persisted, Writer, Written};
use crate::reconcile::{self, Looks, Reconciler, Rules, Stock};
use crate::serving::Shared;
use crate::trial::Trial;
use crate::{CrowdedTrial, Gpus, LoadMode, Marks, ModelSettings, NoGpus, Router, Serving, TransitionPolicy};

/// Events that may wait for the reconciler. Whoever posts one more waits.
const MAILBOX_CAPACITY: usize = 1024;

/// A model's settings can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SettingsError {
    /// The file, the field and what was expected.
    pub message: String,
}

/// Reads the settings of a model, or of one version where the settings name it. Called on the reconciler's task, once for each new
/// content of the files: it must not block.
pub type SettingsReader = Arc<dyn Fn(&ListedModel, Option<VersionNumber>) -> Result<ModelSettings, SettingsError> + Send + Sync>;

/// Judges a version that is to be loaded, now or again: why it may not be, where that is so, as a clause with `it`.
pub type Admit = Arc<dyn Fn(&Generation) -> Result<(), String> + Send + Sync>;

/// What happens to a version that serves and whose directory is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Absent {
    /// It stays served.
    #[default]
    Keep,
    /// It is unloaded.
    Unload,
}

/// When a failed load is tried again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// After the first failure.
    pub first: Duration,
    /// At the most.
    pub max: Duration,
    /// How much longer after each further failure.
    pub factor: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { first: Duration::from_secs(1), max: Duration::from_secs(60), factor: 2.0 }
    }
}

impl RetryPolicy {
    /// The wait after this many failures in a row.
    pub fn delay(&self, failures: u32) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.first.as_secs_f64() * self.factor.max(1.0).powi(exponent);
        Duration::try_from_secs_f64(seconds).unwrap_or(self.max).min(self.max)
    }
}

/// What may change while an engine runs: see [`Serving::change`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveOptions {
    /// Whether loaded models follow new versions in explicit mode.
    pub explicit_follow: bool,
    /// Whether a new version brings a model back that the operator has unloaded.
    pub resurrect: bool,
    /// In which order versions come and go.
    pub transition: TransitionPolicy,
    /// What happens to versions whose directory is gone.
    pub absent: Absent,
    /// Between two looks at the source. Half a tenth more or less by chance, so that replicas spread.
    pub poll_interval: Duration,
    /// Not ready while any model is not.
    pub strict_ready: bool,
    /// Bytes of each device that all versions may take together; main memory is that of the processor, and a device that is not named has
    /// no limit. One that is made smaller takes nothing away from what is loaded.
    pub memory_budgets: BTreeMap<Device, u64>,
    /// How long a request waits for a model that is loaded on demand.
    pub on_demand_wait: Duration,
    /// Loads at a time; 0 counts as 1.
    pub loader_threads: usize,
}

impl Default for LiveOptions {
    fn default() -> Self {
        LiveOptions {
            explicit_follow: false,
            resurrect: false,
            transition: TransitionPolicy::default(),
            absent: Absent::default(),
            poll_interval: Duration::from_secs(5),
            strict_ready: false,
            memory_budgets: BTreeMap::new(),
            on_demand_wait: Duration::from_secs(10),
            loader_threads: 2,
        }
    }
}

/// What an engine works with and how. [`EngineOptions::new`] has the defaults.
#[derive(Clone)]
pub struct EngineOptions {
    /// Which versions exist.
    pub source: Arc<dyn VersionSource>,
    /// Where rollout decisions go.
    pub journal: Arc<dyn JournalStore>,
    /// Who is told of decisions on models whose source has names of its own for stable and candidate; nobody where it is unset.
    pub write_back: Option<Arc<dyn WriteBack>>,
    /// Where versions lie on local disk.
    pub cache: Cache,
    /// Versions that nobody uses are evicted from the cache beyond this many bytes.
    pub cache_max_bytes: u64,
    /// Where the operator's state and what is served are kept.
    pub state_dir: PathBuf,
    /// What executes models, one a format.
    pub runtimes: Vec<Arc<dyn Runtime>>,
    /// Reads `model.toml` and `config.pbtxt`.
    pub read_settings: SettingsReader,
    /// What makes models load.
    pub load_mode: LoadMode,
    /// Loaded at the start, in explicit mode.
    pub explicit_models: Vec<ModelName>,
    /// What may change later.
    pub live: LiveOptions,
    /// How long a drain may take before its runs are stopped.
    pub drain_timeout: Duration,
    /// When failed loads are tried again.
    pub retry: RetryPolicy,
    /// How long the version that was stable before a promotion or rollback stays loaded.
    pub keep_previous: Duration,
    /// Called when nothing of a version is left in memory: metrics series of it can end.
    pub on_retired: Arc<dyn Fn(&VersionKey) + Send + Sync>,
    /// Called on a trim, beside the system allocator's own: what else holds freed memory gives it back.
    pub on_trim: Arc<dyn Fn() + Send + Sync>,
    /// Tries versions out before they are loaded; without it they are loaded at once.
    pub trial: Option<Arc<dyn Trial>>,
    /// Where a version is tried whose GPU has no room for a second copy.
    pub crowded_trial: CrowdedTrial,
    /// Looks at this machine's GPUs.
    pub gpus: Arc<dyn Gpus>,
    /// Where sessions mark that they run.
    pub marks: Option<Arc<dyn Marks>>,
    /// Judges what was served before the restart, and each version right before it is fetched and before it is loaded: its judgement may
    /// change. What is listed is the source's to judge.
    pub admit: Admit,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Where versions are looked for and fetched, which takes disk and processor; without it, on the runtime that [`Engine::start`] is
    /// called on. Its threads may let all others go first, where no request waits for a fetch: see [`crate::lower_priority`].
    pub background: Option<Handle>,
}

impl EngineOptions {
    /// The defaults, around what has none. Without a reader, every model has default settings.
    pub fn new(source: Arc<dyn VersionSource>, journal: Arc<dyn JournalStore>, cache: Cache, state_dir: PathBuf) -> EngineOptions {
        EngineOptions {
            source,
            journal,
            write_back: None,
            cache,
            cache_max_bytes: 20 << 30,
            state_dir,
            runtimes: Vec::new(),
            read_settings: Arc::new(|_, _| Ok(ModelSettings::default())),
            load_mode: LoadMode::default(),
            explicit_models: Vec::new(),
            live: LiveOptions::default(),
            drain_timeout: Duration::from_secs(30),
            retry: RetryPolicy::default(),
            keep_previous: Duration::from_secs(600),
            on_retired: Arc::new(|_| {}),
            on_trim: Arc::new(|| {}),
            trial: None,
            crowded_trial: CrowdedTrial::default(),
            gpus: Arc::new(NoGpus),
            marks: None,
            admit: Arc::new(|_| Ok(())),
            clock: Arc::new(SystemClock::default()),
            background: None,
        }
    }
}

/// Why an engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing can be kept there.
    #[error("state directory {} can't be used", dir.display())]
    State {
        /// The directory.
        dir: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The reconciler has nowhere to run.
    #[error("cannot start a thread")]
    Thread {
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The asynchronous runtime is on its way out.
    #[error("a blocking thread ended early")]
    Stopped,
}

/// The engine, before it runs.
#[derive(Debug, Clone, Copy)]
pub struct Engine;

impl Engine {
    /// Starts the engine's tasks on the current tokio runtime and returns their handle. What was served before is loaded at once,
    /// also while the source can't be reached.
    ///
    /// # Errors
    /// Where the state directory can't be used. A source that can't be read is no error: it shows in the status.
    pub async fn start(options: EngineOptions) -> Result<Serving, StartError> {
        let (persisted, stock, runtimes) = prepare(&options).await?;
        let (router, publisher) = Router::new();
        let (mailbox, events) = mpsc::channel(MAILBOX_CAPACITY);
        let (written, written_now) = watch::channel(Written::default());
        let looks = Arc::new(Looks::default());
        let (live, live_now) = watch::channel(options.live.clone());
        let (gpus, trial) = (Arc::clone(&options.gpus), options.trial.clone());
        let wanted = Arc::default();
        let writer = Writer::new(options.state_dir.clone());
        tokio::spawn(persist::keep(Arc::clone(&writer), written));
        let restored = restored(&persisted, options.clock.now());
        let reconciler = Reconciler::new(Rules::of(&options), options.source.describe(), persisted, publisher);
        let (shell, snapshots) =
            reconcile::Shell::new(reconciler, &options, stock, runtimes, mailbox.downgrade(), writer, Arc::clone(&wanted));
        shell.start(events).map_err(|source| StartError::Thread { source })?;
        let seer = reconcile::Seer::new(&options, live_now, Arc::clone(&looks), mailbox.downgrade(), restored);
        options.background.clone().unwrap_or_else(Handle::current).spawn(seer.run());
        let (stopping, _) = watch::channel(false);
        let (written, journal) = (written_now, options.journal);
        Ok(Serving::new(Shared { router, mailbox, snapshots, written, looks, journal, wanted, live, gpus, trial, stopping }))
    }
}

/// What was served before the restart, of models whose decisions are kept beside their source.
fn restored(persisted: &Persisted, now: DateTime<Utc>) -> Listing {
    let beside = persisted.served.values().filter(|served| !served.layout.holds_journal());
    let models = beside.map(|served| (served.model.clone(), Arc::new(served.as_listed())));
    Listing::new(false, models.collect(), now, Vec::new())
}

/// All that blocks at the start: reads what was kept and opens the runtimes' libraries, on a thread of ordinary priority, which the
/// threads that a library starts for itself inherit.
async fn prepare(options: &EngineOptions) -> Result<(Persisted, Arc<Stock>, Arc<Runtimes>), StartError> {
    let (state_dir, runtimes) = (options.state_dir.clone(), options.runtimes.clone());
    let (source, cache, max_bytes) = (Arc::clone(&options.source), options.cache.clone(), options.cache_max_bytes);
    let admit = Arc::clone(&options.admit);
    let prepared = tokio::task::spawn_blocking(move || {
        let mut persisted = Persisted::read(&state_dir).map_err(|source| StartError::State { dir: state_dir, source })?;
        persisted.served.retain(|name, served| {
            let stays = served.registry.as_ref().is_none_or(|registry| source.adopt(name, registry));
            if !stays {
                tracing::warn!(model = %name, registry = ?served.registry, "its registry is not configured any more: it is not served");
            }
            stays
        });
        persisted.admit(admit.as_ref());
        let served = persisted.served.values().flat_map(|served| &served.versions).map(|generation| generation.digest);
        let stock = Stock::new(source, cache, max_bytes, served, admit);
        let runtimes = Runtimes::open(runtimes);
        for (format, error) in runtimes.unavailable() {
            tracing::warn!(format, error = with_causes(error), "a runtime can't be used");
        }
        Ok((persisted, Arc::new(stock), Arc::new(runtimes)))
    });
    prepared.await.map_err(|_| StartError::Stopped)?
}

#[cfg(test)]
mod tests;
