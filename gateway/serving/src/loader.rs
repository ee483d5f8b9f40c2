//! From files on disk to a version that answers. Everything here blocks and runs on threads of its own, never on those of requests.
//!
//! Two steps, so that memory can be reserved between them: [`verify`] finds the runtime, reads what the manifest says, and
//! estimates; [`load`] makes the sessions, warms them up and compares the golden samples. A panic in either fails the version, and so
//! do warm-up runs that do not end.
//!
//! A thread that loads steps aside for those that serve. Threads inherit that, so instances are started by another one. What a
//! runtime starts for one session inherits it too: a load with several threads an operator keeps its priority.

pub(crate) mod golden;
mod reshape;
pub(crate) mod warmup;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bascule_registry::{FORMAT_UNKNOWN, Generation, Manifest, format_of};
use bascule_runtime_api::{Footprint, LoadError, LoadOptions, Runtime, Session, Signature};
use chrono::{DateTime, Utc};

use self::golden::Golden;
use crate::error::{panicked, with_causes};
use crate::instance::Interrupters;
use crate::nan::NanOutputs;
use crate::reconcile::Files;
use crate::servable::Batching;
use crate::state::FailedStep;
use crate::trial::{Trial, TrialJob, TrialReport};
use crate::{ModelSettings, Servable, ServableSpec, memory};

/// How long the warm-up runs and golden samples of a version may take together. A model that needs longer for them would hold up
/// every other load.
const WARM_UP_LIMIT: Duration = Duration::from_secs(120);

/// After the first interrupt, how often a run that goes on is stopped again.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(200);

/// Why a version could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadFailure {
    pub(crate) step: FailedStep,
    pub(crate) cause: String,
}

impl LoadFailure {
    pub(crate) fn new(step: FailedStep, cause: impl Into<String>) -> LoadFailure {
        LoadFailure { step, cause: cause.into() }
    }
}

/// The runtimes by the format that they load, and the versions of their libraries.
pub(crate) struct Runtimes(Vec<Entry>);

struct Entry {
    runtime: Arc<dyn Runtime>,
    version: Result<String, LoadError>,
}

impl Runtimes {
    /// Opens each runtime's library. Blocks.
    pub(crate) fn open(runtimes: Vec<Arc<dyn Runtime>>) -> Runtimes {
        Runtimes(runtimes.into_iter().map(|runtime| Entry { version: runtime.version(), runtime }).collect())
    }

    /// The formats whose library can't be used, and why; those that a gateway may lack are left out.
    pub(crate) fn unavailable(&self) -> impl Iterator<Item = (&'static str, &LoadError)> {
        self.0
            .iter()
            .filter(|entry| !entry.runtime.is_optional())
            .filter_map(|entry| Some((entry.runtime.format(), entry.version.as_ref().err()?)))
    }

    /// The runtime of the version's format. Where its files don't tell that, the settings may: by the runtime or by the model file.
    fn find(&self, manifest: &Manifest, settings: &ModelSettings) -> Result<(Arc<dyn Runtime>, String), LoadFailure> {
        let unknown = manifest.format == FORMAT_UNKNOWN;
        let named = settings.runtime.as_deref().filter(|_| unknown);
        let told = settings.entrypoint.as_deref().filter(|_| unknown).and_then(format_of);
        let format = told.unwrap_or(&manifest.format);
        let is_it = |entry: &&Entry| match named {
            Some(name) => entry.runtime.name() == name,
            None => entry.runtime.format() == format,
        };
        let Some(entry) = self.0.iter().find(is_it) else {
            let known: Vec<&str> = self.0.iter().map(|entry| entry.runtime.format()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let hint = if unknown {
                "; which of its files is the model? `entrypoint` in model.toml or `default_model_filename` in config.pbtxt names it"
            } else {
                ""
            };
            return Err(LoadFailure::new(
                FailedStep::Verifying,
                format!("no runtime loads the format '{format}'; formats known: {known}{hint}"),
            ));
        };
        match &entry.version {
            Ok(version) => Ok((Arc::clone(&entry.runtime), version.clone())),
            // The library may have been put there meanwhile.
            Err(_) => match entry.runtime.version() {
                Ok(version) => Ok((Arc::clone(&entry.runtime), version)),
                Err(error) => Err(LoadFailure::new(FailedStep::Verifying, described(&error))),
            },
        }
    }
}

/// What is to be verified.
#[derive(Debug)]
pub(crate) struct VerifyJob {
    pub(crate) generation: Arc<Generation>,
    pub(crate) settings: Arc<ModelSettings>,
    pub(crate) files: Files,
}

/// A version that may be loaded once its memory is there.
pub(crate) struct Verified {
    runtime: Arc<dyn Runtime>,
    runtime_version: String,
    options: LoadOptions,
    golden: Option<Golden>,
    /// Memory of all sessions together, while they are loaded.
    pub(crate) estimate: Footprint,
    /// The same once they are, where a trial has measured it.
    measured: Option<Footprint>,
}

impl Verified {
    /// The runtime, and the version of its library.
    pub(crate) fn runtime_name(&self) -> String {
        format!("{} {}", self.runtime.name(), self.runtime_version)
    }

    /// Whether there are golden samples.
    pub(crate) fn has_golden(&self) -> bool {
        self.golden.is_some()
    }

    /// The same version, whatever it answers.
    pub(crate) fn without_golden(self) -> Verified {
        Verified { golden: None, ..self }
    }

    /// Goes by what a trial has measured of one session.
    fn take(&mut self, report: &TrialReport, instances: u64) {
        let (Some(memory), Some(peak)) = (report.memory_bytes, report.peak_bytes) else { return };
        // Memory of a device was not measured.
        let (device_bytes, measured) = (self.estimate.device_bytes, self.estimate.device_bytes == 0);
        let of = |host_bytes: u64| Footprint { host_bytes, device_bytes, measured };
        let all = memory.saturating_mul(instances);
        self.measured = Some(of(all));
        self.estimate = of(all.saturating_add(peak.saturating_sub(memory)));
    }
}

impl std::fmt::Debug for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verified").field("runtime", &self.runtime.name()).field("estimate", &self.estimate).finish_non_exhaustive()
    }
}

/// What is to be loaded.
#[derive(Debug)]
pub(crate) struct LoadJob {
    pub(crate) generation: Arc<Generation>,
    pub(crate) settings: Arc<ModelSettings>,
    pub(crate) files: Files,
    pub(crate) verified: Verified,
}

/// A version that answers.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) servable: Arc<Servable>,
    /// What went wrong without stopping the load.
    pub(crate) warnings: Vec<String>,
}

/// Sessions that are made and warm.
struct Warm {
    sessions: Vec<Box<dyn Session>>,
    /// What the files say that a session takes and gives, where the settings reshape it.
    file_signature: Option<Signature>,
    warnings: Vec<String>,
}

/// Reads everything that can be known without making a session here, and has the version tried where there is a trial.
pub(crate) fn verify(runtimes: &Runtimes, job: &VerifyJob, trial: Option<&dyn Trial>) -> Result<Verified, LoadFailure> {
    guarded(FailedStep::Verifying, || {
        let failure = |cause: String| LoadFailure::new(FailedStep::Verifying, cause);
        let manifest = &job.generation.manifest;
        let (runtime, runtime_version) = runtimes.find(manifest, &job.settings)?;
        let options = options(&job.generation, &job.settings)?;
        let golden = match &manifest.golden {
            Some(path) => {
                Some(Golden::read(&job.files.dir().join(path)).map_err(|error| failure(format!("golden file {path}: {error}")))?)
            }
            None => None,
        };
        let one = runtime.estimate(job.files.dir(), &options).map_err(|error| failure(described(&error)))?;
        let instances = u64::from(job.settings.instances.max(1));
        let estimate = Footprint {
            host_bytes: one.host_bytes.saturating_mul(instances),
            device_bytes: one.device_bytes.saturating_mul(instances),
            measured: one.measured,
        };
        let mut verified = Verified { runtime, runtime_version, options, golden, estimate, measured: None };
        if let Some(trial) = trial {
            let job = TrialJob::new(Arc::clone(&job.generation), Arc::clone(&job.settings), job.files.dir());
            if let Some(report) = trial.try_out(&job, &verified.runtime_name(), one.host_bytes)? {
                verified.take(&report, instances);
            }
        }
        Ok(verified)
    })
}

/// A session that is warm, and when it was loaded.
pub(crate) struct WarmOne {
    pub(crate) session: Box<dyn Session>,
    pub(crate) loaded_after: Instant,
    pub(crate) file_signature: Option<Signature>,
    pub(crate) warnings: Vec<String>,
}

/// Makes one session, warms it up and compares the golden samples.
pub(crate) fn warm_one(verified: Verified, settings: ModelSettings, files: Files) -> Result<WarmOne, LoadFailure> {
    let loaded = Arc::new(std::sync::OnceLock::new());
    let on_warming = {
        let loaded = Arc::clone(&loaded);
        move || {
            // Called once.
            let _is_first = loaded.set(Instant::now());
        }
    };
    // The others would be its like.
    let settings = ModelSettings { instances: 1, ..settings };
    let mut warm = aside(WARM_UP_LIMIT, move |limit| warm(&verified, &settings, &files, limit, on_warming))?;
    let session = warm.sessions.pop().ok_or_else(|| LoadFailure::new(FailedStep::Loading, "no session was made"))?;
    let loaded_after = loaded.get().copied().unwrap_or_else(Instant::now);
    Ok(WarmOne { session, loaded_after, file_signature: warm.file_signature, warnings: warm.warnings })
}

/// Whether a version whose files lie in `dir` can be loaded under these settings: makes one session and drops it. Blocks, as long as a
/// load takes.
///
/// # Errors
/// The step that fails, and why.
pub fn try_load(
    runtimes: &[Arc<dyn Runtime>],
    generation: &Arc<Generation>,
    settings: &ModelSettings,
    dir: &Path,
) -> Result<(), String> {
    let runtimes = Runtimes::open(runtimes.to_vec());
    let settings = Arc::new(settings.clone());
    let job = VerifyJob { generation: Arc::clone(generation), settings: Arc::clone(&settings), files: Files::at(dir) };
    let tried = verify(&runtimes, &job, None).and_then(|verified| {
        guarded(FailedStep::Loading, || {
            let failure = |cause: String| LoadFailure::new(FailedStep::Loading, cause);
            let session = verified.runtime.load(dir, &verified.options).map_err(|error| failure(described(&error)))?;
            reshape::view(session, &settings.reshapes).map(drop).map_err(failure)
        })
    });
    tried.map_err(|failure| format!("{}: {}", failure.step.name(), failure.cause))
}

/// The manifest's signature goes before that of the settings; the runtime compares it with the file. The model file is one of those that
/// the version's digest stands for.
fn options(generation: &Generation, settings: &ModelSettings) -> Result<LoadOptions, LoadFailure> {
    let manifest = &generation.manifest;
    let entrypoint = settings.entrypoint.as_deref().unwrap_or(&manifest.entrypoint);
    if !manifest.files.iter().any(|file| file.path == entrypoint) {
        let cause = format!("the settings name the model file {entrypoint:?}, which is not among the version's files");
        return Err(LoadFailure::new(FailedStep::Verifying, cause));
    }
    let declared = match &manifest.signature {
        Some(signature) => {
            let read = serde_json::from_value::<Signature>(signature.clone());
            Some(read.map_err(|error| LoadFailure::new(FailedStep::Verifying, format!("manifest field `signature`: {error}")))?)
        }
        None => settings.declared.clone(),
    };
    Ok(LoadOptions {
        entrypoint: entrypoint.into(),
        device: settings.device,
        intra_op_threads: settings.intra_op_threads,
        inter_op_threads: 1,
        declared,
        options: settings.runtime_options.clone(),
    })
}

/// Makes a session for each instance, warms them up, compares the golden samples and starts the instances. `on_warming` is called
/// between the first two. Sessions that come to nothing are dropped by the thread that made them. Blocks for as long as a load takes.
pub(crate) fn load(
    job: LoadJob,
    on_warming: impl FnOnce() + Send + 'static,
    at: impl FnOnce() -> DateTime<Utc>,
) -> Result<Loaded, LoadFailure> {
    load_within(job, WARM_UP_LIMIT, on_warming, at)
}

fn load_within(
    job: LoadJob,
    warm_up_limit: Duration,
    on_warming: impl FnOnce() + Send + 'static,
    at: impl FnOnce() -> DateTime<Utc>,
) -> Result<Loaded, LoadFailure> {
    let LoadJob { generation, settings, files, verified } = job;
    let (runtime, runtime_version, measured) = (verified.runtime.name(), verified.runtime_version.clone(), verified.measured);
    let warm = {
        let (settings, files) = (Arc::clone(&settings), files.clone());
        aside(warm_up_limit, move |limit| warm(&verified, &settings, &files, limit, on_warming))?
    };
    let footprint = measured.unwrap_or_else(|| total(&warm.sessions));
    let spec = ServableSpec { generation, settings, runtime, runtime_version, footprint, loaded_at: at() };
    let servable = Servable::start(spec, warm.sessions)
        .map_err(|error| LoadFailure::new(FailedStep::Loading, format!("cannot start an instance's thread: {error}")))?;
    Ok(Loaded { servable, warnings: warm.warnings })
}

/// The warm-up of a version as the thread that limits it sees it.
struct WarmUp {
    /// Set once it has taken too long: no run begins any more, and no failure has another cause.
    is_over: AtomicBool,
    limit: Duration,
}

/// What the thread that warms up holds of its limit.
struct Limited {
    warm_up: Arc<WarmUp>,
    begins: SyncSender<Interrupters>,
}

impl Limited {
    /// From now on the time counts.
    fn begin(&self, sessions: &[Box<dyn Session>]) {
        // Whoever limits it waits for this thread and outlives it.
        drop(self.begins.send(Interrupters::of(sessions)));
    }

    /// What a run is to look at before it begins.
    fn is_over(&self) -> &AtomicBool {
        &self.warm_up.is_over
    }

    /// Does a part of the warm-up; a failure after the limit is one of time.
    fn guarded<T>(&self, step: FailedStep, work: impl FnOnce() -> Result<T, LoadFailure>) -> Result<T, LoadFailure> {
        let result = guarded(step, work);
        if !self.warm_up.is_over.load(Ordering::SeqCst) {
            return result;
        }
        let limit = self.warm_up.limit;
        Err(LoadFailure::new(step, format!("warm-up runs and golden samples took more than {limit:?} together and were stopped")))
    }
}

/// Runs on a thread of its own, which ends with it, and stops its warm-up after `limit`. A run that can't be interrupted is waited
/// for all the same: it holds the session.
fn aside(limit: Duration, work: impl FnOnce(&Limited) -> Result<Warm, LoadFailure> + Send + 'static) -> Result<Warm, LoadFailure> {
    let failure = |cause: String| LoadFailure::new(FailedStep::Loading, cause);
    let warm_up = Arc::new(WarmUp { is_over: AtomicBool::new(false), limit });
    let (begins, begun) = sync_channel(1);
    let limited = Limited { warm_up: Arc::clone(&warm_up), begins };
    let thread = thread::Builder::new().name("loader".to_owned()).spawn(move || work(&limited));
    let thread = thread.map_err(|error| failure(format!("cannot start a thread: {error}")))?;
    stop_after(limit, &warm_up, &begun);
    thread.join().unwrap_or_else(|panic| Err(failure(format!("the runtime {}", panicked(panic.as_ref())))))
}

/// Returns when the thread that warms up has let go of its end of the channel.
fn stop_after(limit: Duration, warm_up: &WarmUp, begun: &Receiver<Interrupters>) {
    let Ok(interrupters) = begun.recv() else { return };
    let mut wait = limit;
    while matches!(begun.recv_timeout(wait), Err(RecvTimeoutError::Timeout)) {
        if !warm_up.is_over.swap(true, Ordering::SeqCst) {
            tracing::warn!(?limit, "a warm-up takes too long and is stopped");
        }
        interrupters.interrupt();
        wait = INTERRUPT_INTERVAL;
    }
}

fn warm(
    verified: &Verified,
    settings: &ModelSettings,
    files: &Files,
    limited: &Limited,
    on_warming: impl FnOnce(),
) -> Result<Warm, LoadFailure> {
    if verified.options.intra_op_threads == 1 {
        memory::lower_priority();
    }
    let mut file_signature = None;
    let mut sessions = guarded(FailedStep::Loading, || {
        let mut load = || {
            let session = verified.runtime.load(files.dir(), &verified.options).map_err(|error| described(&error))?;
            if !settings.reshapes.is_empty() {
                file_signature = Some(session.signature().clone());
            }
            reshape::view(session, &settings.reshapes)
        };
        let sessions: Result<Vec<_>, _> = (0..settings.instances.max(1)).map(|_| load()).collect();
        sessions.map_err(|cause| LoadFailure::new(FailedStep::Loading, cause))
    })?;
    for session in &sessions {
        Batching::new(session.signature(), settings).map_err(|contradiction| {
            let entrypoint = verified.options.entrypoint.display();
            LoadFailure::new(FailedStep::Loading, format!("the settings contradict {entrypoint}: {contradiction}"))
        })?;
    }
    on_warming();
    limited.begin(&sessions);
    let (mut warnings, mut nan) = (Vec::new(), NanOutputs::default());
    for session in &mut sessions {
        let warned = limited
            .guarded(FailedStep::Warming, || warmup::warm_up(session.as_mut(), &settings.warmup, limited.is_over(), &mut nan))?;
        // Every session of a version warns alike.
        if warnings.is_empty() {
            warnings.extend(warned);
        }
    }
    if let (Some(golden), Some(session)) = (&verified.golden, sessions.first_mut()) {
        limited.guarded(FailedStep::Golden, || {
            let compared = golden.compare(session.as_mut(), limited.is_over(), &mut nan);
            compared.map_err(|cause| LoadFailure::new(FailedStep::Golden, cause))
        })?;
    }
    warnings.extend(nan.warning());
    Ok(Warm { sessions, file_signature, warnings })
}

fn total(sessions: &[Box<dyn Session>]) -> Footprint {
    let each = sessions.iter().map(|session| session.footprint());
    each.reduce(|a, b| Footprint {
        host_bytes: a.host_bytes.saturating_add(b.host_bytes),
        device_bytes: a.device_bytes.saturating_add(b.device_bytes),
        measured: a.measured && b.measured,
    })
    .unwrap_or_default()
}

/// The error with its causes, and what the operator can do where the runtime knows.
fn described(error: &LoadError) -> String {
    match error {
        LoadError::Unavailable { hint, .. } => format!("{}; {hint}", with_causes(error)),
        _ => with_causes(error),
    }
}

/// A panic of a runtime fails the version, not the gateway.
fn guarded<T>(step: FailedStep, work: impl FnOnce() -> Result<T, LoadFailure>) -> Result<T, LoadFailure> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(LoadFailure::new(step, format!("the runtime {}", panicked(panic.as_ref())))))
}

#[cfg(test)]
mod tests;
