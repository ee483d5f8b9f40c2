//! Trying a version out before anything else is done with it, in a process of its own: whatever it does there, nothing that serves notices.
//!
//! [`Trial`] is what the engine asks; the program decides where and within which limits. [`examine`] is what happens there: the version is
//! loaded, warmed up and compared with its golden samples as the engine would do it, and measured on the way. [`record`] makes such
//! samples, in the same place.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bascule_registry::{Generation, ModelName};
use bascule_runtime_api::{RunContext, Runtime, Session, Signature};
use serde::{Deserialize, Serialize};

use crate::loader::golden::{self, RecordPlan, Recording};
use crate::loader::{self, LoadFailure, Runtimes, Surroundings, Verified, VerifyJob, warmup};
use crate::reconcile::Files;
use crate::state::FailedStep;
use crate::{Gpus, ModelSettings, memory};

/// Batch sizes whose latency is measured.
const BATCH_SIZES: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// What a session takes at the least, in bytes: small ones live in what their library had left over when it was opened.
const LEAST_BYTES: u64 = 1 << 20;

/// Runs of one batch size at the most.
const RUNS: usize = 20;

/// What is to be tried.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrialJob {
    /// The version.
    pub generation: Arc<Generation>,
    /// How it is to be loaded.
    pub settings: Arc<ModelSettings>,
    /// Where its files lie.
    pub dir: PathBuf,
    /// How long measuring the latency of one batch size may take; nothing is measured where it is zero.
    pub measure: Duration,
}

/// How long runs of so many rows take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Rows in a run.
    pub rows: usize,
    /// The median in microseconds.
    pub p50_us: f64,
    /// The longest in microseconds.
    pub max_us: f64,
}

/// What a trial found of a version that passed it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrialReport {
    /// The runtime, and the version of its library.
    pub runtime: String,
    /// The device that ran it.
    pub device: String,
    /// What it takes and gives.
    pub signature: Signature,
    /// The same as its files have it, where the settings reshape tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_signature: Option<Signature>,
    /// From its files to a session, in milliseconds.
    pub load_ms: f64,
    /// Main memory of one session, in bytes: what the process had more of its own after loading and warming it up.
    pub memory_bytes: Option<u64>,
    /// The same at the most, while it was loaded. Neither is known where the system does not tell.
    pub peak_bytes: Option<u64>,
    /// By batch size; empty where nothing was measured, or runs of made-up inputs fail.
    pub latency: Vec<Latency>,
    /// Whether there were golden samples, all of which it answered as it should.
    pub golden: bool,
    /// What went wrong without failing it.
    pub warnings: Vec<String>,
    /// What its process was not kept from, because the system refuses that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed: Vec<String>,
}

/// Why a version failed its trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialFailure {
    /// The step: `verifying`, `loading`, `warming`, `golden`, `trial` where the process ended without an answer, or `quarantine` where none
    /// was made. Where samples are
    /// recorded also `recording`, and `repeating` where two runs differ.
    pub step: String,
    /// What happened.
    pub cause: String,
}

impl TrialFailure {
    /// The step at which a sample can't be recorded.
    pub const RECORDING: &str = "recording";
    /// The step at which two runs of a sample differ.
    pub const REPEATING: &str = "repeating";
}

impl From<LoadFailure> for TrialFailure {
    fn from(failure: LoadFailure) -> TrialFailure {
        TrialFailure { step: failure.step.name().to_owned(), cause: failure.cause }
    }
}

impl From<TrialFailure> for LoadFailure {
    fn from(failure: TrialFailure) -> LoadFailure {
        let steps = [FailedStep::Verifying, FailedStep::Loading, FailedStep::Warming, FailedStep::Golden, FailedStep::Quarantine];
        let step = steps.into_iter().find(|step| step.name() == failure.step).unwrap_or(FailedStep::Trial);
        LoadFailure::new(step, failure.cause).in_trial()
    }
}

/// Whether a version is still to be tried. The default always is.
#[derive(Debug, Clone, Default)]
pub struct Wanted(Option<Weak<()>>);

impl Wanted {
    /// For as long as that lives.
    pub(crate) fn by(wish: &Arc<()>) -> Wanted {
        Wanted(Some(Arc::downgrade(wish)))
    }

    /// Whether it is.
    pub fn is_wanted(&self) -> bool {
        self.0.as_ref().is_none_or(|wish| wish.strong_count() > 0)
    }
}

/// Tries versions out. Blocks; called by the thread that verifies a version, never by one that serves.
pub trait Trial: Send + Sync {
    /// Whether a version may be loaded at all, wherever it is to run and whether or not it will be tried. Asked first.
    ///
    /// # Errors
    /// The version must not be loaded.
    fn admit(&self, _generation: &Generation) -> Result<(), TrialFailure> {
        Ok(())
    }

    /// What was found of the version before, where that still holds. Asked before anybody waits for anything.
    fn known(&self, _job: &TrialJob, _runtime: &str) -> Option<TrialReport> {
        None
    }

    /// Has the version tried, or finds that it was. `runtime` names the runtime with its library's version, `estimate_bytes` is the memory
    /// that it is thought to take. `None` where no trial was made. A trial that is not `wanted` any more ends early, with any failure.
    ///
    /// # Errors
    /// The version must not be loaded.
    fn try_out(
        &self,
        job: &TrialJob,
        runtime: &str,
        estimate_bytes: u64,
        wanted: &Wanted,
    ) -> Result<Option<TrialReport>, TrialFailure>;

    /// An operator wants a model to be loaded, whatever it did before. Blocks for no longer than a small file takes.
    fn forgive(&self, _model: &ModelName) {}
}

/// Loads a version, warms it up, compares its golden samples, and measures it, in this very process.
///
/// # Errors
/// The step that failed, and why.
pub fn examine(runtimes: &[Arc<dyn Runtime>], job: &TrialJob, gpus: &dyn Gpus) -> Result<TrialReport, TrialFailure> {
    let verified = verified(runtimes, job, gpus)?;
    let (has_golden, runtime) = (verified.has_golden(), verified.runtime_name());
    let (before, started) = (memory::own_bytes(), Instant::now());
    let warm = loader::warm_one(verified, (*job.settings).clone(), Files::at(&job.dir))?;
    let load_ms = warm.loaded_after.saturating_duration_since(started).as_secs_f64() * 1e3;
    let more = |before: u64, after: u64| after.saturating_sub(before).max(LEAST_BYTES);
    let memory_bytes = before.zip(memory::own_bytes()).map(|(before, after)| more(before, after));
    // What it had for a moment beyond what it has now.
    let for_a_moment = memory::peak_rss_bytes().zip(memory::rss_bytes()).map(|(peak, now)| peak.saturating_sub(now));
    let mut session = warm.session;
    let largest = job.settings.max_batch_size.map_or(32, |size| size as usize);
    let latency = if job.measure.is_zero() { Vec::new() } else { latencies(session.as_mut(), largest, job.measure) };
    Ok(TrialReport {
        runtime,
        device: session.device().to_string(),
        signature: session.signature().clone(),
        file_signature: warm.file_signature,
        load_ms,
        memory_bytes,
        peak_bytes: memory_bytes.zip(for_a_moment).map(|(memory, moment)| memory.saturating_add(moment)),
        latency,
        golden: has_golden,
        warnings: warm.warnings,
        exposed: Vec::new(),
    })
}

/// Loads a version, warms it up, and records golden samples of it, in this very process. Those that it has are not looked at.
///
/// # Errors
/// The step that failed, and why.
pub fn record(
    runtimes: &[Arc<dyn Runtime>],
    job: &TrialJob,
    plan: &RecordPlan,
    gpus: &dyn Gpus,
) -> Result<Recording, TrialFailure> {
    let verified = verified(runtimes, job, gpus)?.without_golden();
    let mut warm = loader::warm_one(verified, (*job.settings).clone(), Files::at(&job.dir))?;
    let mut recording = golden::record(warm.session.as_mut(), plan)?;
    recording.warnings.splice(0..0, warm.warnings);
    Ok(recording)
}

fn verified(runtimes: &[Arc<dyn Runtime>], job: &TrialJob, gpus: &dyn Gpus) -> Result<Verified, LoadFailure> {
    let (generation, settings) = (Arc::clone(&job.generation), Arc::clone(&job.settings));
    let job = VerifyJob::alone(generation, settings, Files::at(&job.dir));
    loader::verify(&Runtimes::open(runtimes.to_vec()), &job, &Surroundings::untried(gpus))
}

/// Runs made-up inputs of growing size, each for this long at the most. A size that fails ends it.
fn latencies(session: &mut dyn Session, largest: usize, limit: Duration) -> Vec<Latency> {
    let sizes: &[usize] = if session.signature().batch_axis.is_some() { &BATCH_SIZES } else { &BATCH_SIZES[..1] };
    let mut measured = Vec::new();
    for rows in sizes.iter().copied().filter(|rows| *rows <= largest.max(1)) {
        let Ok(inputs) = warmup::made_up(session, rows) else { break };
        let (begun, mut times) = (Instant::now(), Vec::new());
        while times.len() < RUNS && (times.is_empty() || begun.elapsed() < limit) {
            let started = Instant::now();
            if session.run(&inputs, &RunContext::default()).is_err() {
                return measured;
            }
            times.push(started.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_unstable_by(f64::total_cmp);
        let (p50_us, max_us) = (times[times.len() / 2], times.last().copied().unwrap_or_default());
        measured.push(Latency { rows, p50_us, max_us });
    }
    measured
}

/// Where a version's files lie in a job.
impl TrialJob {
    /// A job without measurements of latency.
    pub fn new(generation: Arc<Generation>, settings: Arc<ModelSettings>, dir: &Path) -> TrialJob {
        TrialJob { generation, settings, dir: dir.to_owned(), measure: Duration::ZERO }
    }
}
