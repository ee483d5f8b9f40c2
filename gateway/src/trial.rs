//! Trials of versions in a process of their own, and the verdicts that are kept.
//!
//! The process is this program again, told to try one version ([`inside`]). It has limits, lets every other process go first, and is the
//! first to go when the machine runs out of memory. However it ends, it ends alone: a crash, a hang or a growing appetite is a verdict.

mod child;
mod inside;
mod signature;
mod verdicts;
mod workers;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bascule_runtime_api::Signature;
use bascule_serving::{ModelSettings, RecordPlan, Recording, Trial, TrialFailure, TrialJob, TrialReport, Wanted};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::compose::Libraries;
pub use child::Limits;
use child::Process;
pub(crate) use child::signal_name;
pub use inside::run as run_inside;
pub use signature::{Unread, read as signature_here};
use verdicts::Verdicts;
use workers::Workers;

/// Memory that a version may take in its trial beyond four times what it is thought to take, where nothing else is set.
const SPARE_BYTES: u64 = 1 << 30;

/// What the process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) job: TrialJob,
    pub(crate) task: Task,
    pub(crate) libraries: Libraries,
    /// Seconds of processor time.
    pub(crate) cpu_seconds: u64,
}

/// What it is to do with the version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Task {
    /// A [`TrialReport`] is wanted.
    Examine,
    /// A [`Recording`] is wanted.
    Record(RecordPlan),
    /// A [`Signature`] is wanted, or why it can't be read.
    ReadSignature,
}

/// What it answers, in one line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answered<T> {
    pub(crate) answer: Answer<T>,
    /// Whether the process may try another version.
    pub(crate) is_fit: bool,
}

/// What came of a version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer<T> {
    Passed(T),
    Failed(TrialFailure),
}

impl<T> From<Result<T, TrialFailure>> for Answer<T> {
    fn from(result: Result<T, TrialFailure>) -> Answer<T> {
        match result {
            Ok(found) => Answer::Passed(found),
            Err(failure) => Answer::Failed(failure),
        }
    }
}

/// Tries one version in a process of its own. Blocks.
///
/// # Errors
/// The version failed, or the process ended without an answer.
pub fn try_once(job: &TrialJob, libraries: &Libraries, limits: Limits) -> Result<TrialReport, TrialFailure> {
    give(job, Task::Examine, libraries, limits)
}

/// Records golden samples of one version in a process of its own. Blocks.
///
/// # Errors
/// A sample can't be recorded, the version can't be loaded, or the process ended without an answer.
pub fn record_once(job: &TrialJob, plan: RecordPlan, libraries: &Libraries, limits: Limits) -> Result<Recording, TrialFailure> {
    give(job, Task::Record(plan), libraries, limits)
}

/// Reads the signature of one version in a process of its own. Blocks.
///
/// # Errors
/// The version can't be loaded, or the process ended without an answer.
pub fn signature_once(job: &TrialJob, libraries: &Libraries, limits: Limits) -> Result<Signature, Unread> {
    give(job, Task::ReadSignature, libraries, limits).unwrap_or_else(|failure| Err(Unread::Reason(failure.cause)))
}

fn give<T: DeserializeOwned>(job: &TrialJob, task: Task, libraries: &Libraries, limits: Limits) -> Result<T, TrialFailure> {
    let (answer, _) =
        Process::start()?.ask(&told(job, task, libraries, limits), limits, &|| true).map_err(|ended| ended.failure)?;
    answer
}

fn told(job: &TrialJob, task: Task, libraries: &Libraries, limits: Limits) -> Told {
    Told { job: job.clone(), task, libraries: libraries.clone(), cpu_seconds: limits.cpu_seconds() }
}

/// Trials for a gateway: one at a time, and each version once.
pub struct Trials {
    libraries: Libraries,
    timeout: Duration,
    memory_limit: Option<u64>,
    verdicts: Verdicts,
    /// Held by whoever tries a version, until its verdict is kept.
    turn: Mutex<()>,
    workers: Workers,
}

impl Trials {
    /// Trials whose verdicts are kept in `dir`.
    ///
    /// # Errors
    /// The thread that makes them can't be started.
    pub fn new(libraries: Libraries, timeout: Duration, memory_limit: Option<u64>, dir: PathBuf) -> std::io::Result<Trials> {
        let (verdicts, workers) = (Verdicts::in_dir(dir), Workers::start()?);
        Ok(Trials { libraries, timeout, memory_limit, verdicts, turn: Mutex::new(()), workers })
    }
}

impl Trial for Trials {
    fn try_out(
        &self,
        job: &TrialJob,
        runtime: &str,
        estimate_bytes: u64,
        wanted: &Wanted,
    ) -> Result<Option<TrialReport>, TrialFailure> {
        let subject = verdicts::subject(job, runtime, &self.libraries);
        if let Some(report) = self.verdicts.find(&subject) {
            return Ok(Some(report));
        }
        let known = || self.verdicts.find(&subject);
        self.in_turn(job, runtime, estimate_bytes, wanted, &subject, known).map(Some)
    }
}

impl Trials {
    /// Tries a version whatever was found of it before.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn try_anew(
        &self,
        job: &TrialJob,
        runtime: &str,
        estimate_bytes: u64,
        wanted: &Wanted,
    ) -> Result<TrialReport, TrialFailure> {
        let subject = verdicts::subject(job, runtime, &self.libraries);
        self.in_turn(job, runtime, estimate_bytes, wanted, &subject, || None)
    }

    fn in_turn(
        &self,
        job: &TrialJob,
        runtime: &str,
        estimate_bytes: u64,
        wanted: &Wanted,
        subject: &str,
        known: impl FnOnce() -> Option<TrialReport>,
    ) -> Result<TrialReport, TrialFailure> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever had the turn before may have tried the same files.
        if let Some(report) = known() {
            return Ok(report);
        }
        let memory_bytes = self.memory_limit.unwrap_or(estimate_bytes.saturating_mul(4).saturating_add(SPARE_BYTES));
        let limits = Limits { timeout: self.timeout, memory_bytes };
        let told = told(job, Task::Examine, &self.libraries, limits);
        let report = self.workers.try_version(runtime, told, limits, wanted).inspect_err(|failure| {
            tracing::debug!(model = %job.generation.key, step = failure.step, cause = failure.cause, "a trial failed");
        })?;
        tracing::info!(
            model = %job.generation.key.model, version = job.generation.key.version, load_ms = report.load_ms,
            memory_bytes = report.memory_bytes.unwrap_or_default(), "passed its trial"
        );
        self.verdicts.keep(subject, &report);
        Ok(report)
    }
}

/// The settings that make a difference to a trial.
fn relevant(settings: &ModelSettings) -> ModelSettings {
    let own = ModelSettings::default();
    ModelSettings {
        version_policy: own.version_policy,
        rollout: own.rollout,
        instances: own.instances,
        queue_capacity: own.queue_capacity,
        queue_timeout: own.queue_timeout,
        max_queue_delay: own.max_queue_delay,
        labels: own.labels,
        label_filenames: own.label_filenames,
        parameters: own.parameters,
        warnings: own.warnings,
        ..settings.clone()
    }
}

/// This program, to be started again. Where its file was replaced meanwhile, the one that runs.
pub(crate) fn program() -> PathBuf {
    let running = Path::new("/proc/self/exe");
    if running.exists() { running.to_owned() } else { std::env::current_exe().unwrap_or_default() }
}
