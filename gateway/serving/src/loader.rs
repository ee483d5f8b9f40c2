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
mod verify;
pub(crate) mod warmup;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bascule_registry::{FORMAT_UNKNOWN, Generation, Manifest, format_of};
use bascule_runtime_api::{Device, Footprint, LoadError, LoadOptions, Runtime, Session, Signature};
use chrono::{DateTime, Utc};

pub(crate) use self::verify::{Surroundings, Verified, VerifyJob, try_out, verify};
use crate::budget::DeviceBytes;
use crate::error::{panicked, with_causes};
use crate::instance::Interrupters;
use crate::marks::{Mark, Marks, marked};
use crate::nan::NanOutputs;
use crate::reconcile::Files;
use crate::servable::Batching;
use crate::state::FailedStep;
use crate::{Gpus, ModelSettings, Servable, ServableSpec, memory};

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
    /// Whether a trial found it, at whatever step: the next one costs as much.
    pub(crate) in_trial: bool,
}

impl LoadFailure {
    pub(crate) fn new(step: FailedStep, cause: impl Into<String>) -> LoadFailure {
        LoadFailure { step, cause: cause.into(), in_trial: false }
    }

    /// The same, found in a trial.
    pub(crate) fn in_trial(self) -> LoadFailure {
        LoadFailure { in_trial: true, ..self }
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
    /// Memory of all its sessions.
    pub(crate) takes: DeviceBytes,
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
    let verified = Verified { devices: vec![verified.options.device], ..verified };
    let mut warm = aside(WARM_UP_LIMIT, move |limit| warm(&verified, &settings, &files, &|| None, limit, on_warming))?;
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
    gpus: &dyn Gpus,
) -> Result<(), String> {
    let runtimes = Runtimes::open(runtimes.to_vec());
    let settings = Arc::new(settings.clone());
    let (generation, files) = (Arc::clone(generation), Files::at(dir));
    let job = VerifyJob::alone(generation, Arc::clone(&settings), files);
    let tried = verify(&runtimes, &job, &Surroundings::untried(gpus)).and_then(|verified| {
        guarded(FailedStep::Loading, || {
            let failure = |cause: String| LoadFailure::new(FailedStep::Loading, cause);
            let session = verified.runtime.load(dir, &verified.options).map_err(|error| failure(described(&error)))?;
            reshape::view(session, &settings.reshapes).map(drop).map_err(failure)
        })
    });
    tried.map_err(|failure| format!("{}: {}", failure.step.name(), failure.cause))
}

/// Makes a session for each instance, warms them up, compares the golden samples and starts the instances. `on_warming` is called
/// between the first two. Sessions that come to nothing are dropped by the thread that made them. Blocks for as long as a load takes.
pub(crate) fn load(
    job: LoadJob,
    marks: Option<Arc<dyn Marks>>,
    on_warming: impl FnOnce() + Send + 'static,
    at: impl FnOnce() -> DateTime<Utc>,
) -> Result<Loaded, LoadFailure> {
    load_within(job, marks, WARM_UP_LIMIT, on_warming, at)
}

fn load_within(
    job: LoadJob,
    marks: Option<Arc<dyn Marks>>,
    warm_up_limit: Duration,
    on_warming: impl FnOnce() + Send + 'static,
    at: impl FnOnce() -> DateTime<Utc>,
) -> Result<Loaded, LoadFailure> {
    let LoadJob { generation, settings, files, verified } = job;
    let (runtime, runtime_version, measured) = (verified.runtime.name(), verified.runtime_version.clone(), verified.measured);
    let mut warnings = verified.warnings.clone();
    let warm = {
        let (settings, files, generation) = (Arc::clone(&settings), files.clone(), Arc::clone(&generation));
        let mark = move || marks.as_ref()?.mark(&generation);
        aside(warm_up_limit, move |limit| warm(&verified, &settings, &files, &mark, limit, on_warming))?
    };
    let (mut footprint, mut takes) = total(&warm.sessions);
    if let Some(bytes) = measured {
        takes.set(Device::Cpu, bytes);
        footprint = Footprint { host_bytes: bytes, measured: footprint.device_bytes == 0, ..footprint };
    }
    warnings.extend(warm.warnings);
    let spec = ServableSpec { generation, settings, runtime, runtime_version, footprint, loaded_at: at() };
    let servable = Servable::start(spec, warm.sessions)
        .map_err(|error| LoadFailure::new(FailedStep::Loading, format!("cannot start an instance's thread: {error}")))?;
    Ok(Loaded { servable, takes, warnings })
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
    mark: &dyn Fn() -> Option<Box<dyn Mark>>,
    limited: &Limited,
    on_warming: impl FnOnce(),
) -> Result<Warm, LoadFailure> {
    if verified.options.intra_op_threads == 1 {
        memory::lower_priority();
    }
    let mut file_signature = None;
    let mut sessions = guarded(FailedStep::Loading, || {
        let mut load = |device: Device| {
            let options = LoadOptions { device, ..verified.options.clone() };
            let load = || verified.runtime.load(files.dir(), &options).map_err(|error| described(&error));
            let session = marked(mark(), load)?;
            if !settings.reshapes.is_empty() {
                file_signature = Some(session.signature().clone());
            }
            reshape::view(session, &settings.reshapes)
        };
        // One after the other on each device in turn, so that callers who come first find them spread.
        let each = (0..settings.instances.max(1)).flat_map(|_| verified.devices.iter());
        let sessions: Result<Vec<_>, _> = each.map(|device| load(*device)).collect();
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
    // Every session of a version warns alike.
    let mut warnings = sessions.first().map(|session| session.warnings()).unwrap_or_default();
    let (mut warned_of_warm_up, mut nan) = (false, NanOutputs::default());
    for session in &mut sessions {
        let warned = limited
            .guarded(FailedStep::Warming, || warmup::warm_up(session.as_mut(), &settings.warmup, limited.is_over(), &mut nan))?;
        if !warned_of_warm_up {
            warned_of_warm_up = warned.is_some();
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

/// What all sessions take, and of which devices.
fn total(sessions: &[Box<dyn Session>]) -> (Footprint, DeviceBytes) {
    let mut takes = DeviceBytes::default();
    let each = sessions.iter().map(|session| {
        takes.add_all(&DeviceBytes::of(session.footprint(), session.device()));
        session.footprint()
    });
    let sum = each.reduce(|a, b| Footprint {
        host_bytes: a.host_bytes.saturating_add(b.host_bytes),
        device_bytes: a.device_bytes.saturating_add(b.device_bytes),
        measured: a.measured && b.measured,
    });
    (sum.unwrap_or_default(), takes)
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
