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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bascule_runtime_api::{LoadOptions, Runtime, Signature};
use bascule_serving::{Gpus, ModelSettings, RecordPlan, Recording, Trial, TrialFailure, TrialJob, TrialReport, Wanted};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::compose::Libraries;
use crate::config::Config;
pub use child::Limits;
use child::Process;
pub(crate) use child::signal_name;
pub(crate) use inside::exposed;
pub use inside::run as run_inside;
pub use signature::{Unread, read as signature_here};
use verdicts::Verdicts;
use workers::Workers;

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
    gpus: Arc<dyn Gpus>,
    verdicts: Verdicts,
    /// Whether it was said what the processes are not kept from.
    has_warned: AtomicBool,
    /// Held by whoever tries a version, until its verdict is kept.
    turn: Mutex<()>,
    workers: Workers,
}

impl Trials {
    /// Trials whose verdicts are kept in `dir`.
    ///
    /// # Errors
    /// The thread that makes them can't be started.
    pub fn new(config: &Config, gpus: Arc<dyn Gpus>, dir: PathBuf) -> std::io::Result<Trials> {
        let (verdicts, workers) = (Verdicts::in_dir(dir), Workers::start()?);
        let (timeout, memory_limit) = (config.trial.timeout, config.trial.memory_limit.map(|limit| limit.0));
        let (libraries, has_warned, turn) = (Libraries::of(config), AtomicBool::new(false), Mutex::new(()));
        Ok(Trials { libraries, timeout, memory_limit, gpus, verdicts, has_warned, turn, workers })
    }

    fn subject(&self, job: &TrialJob, runtime: &str) -> String {
        verdicts::subject(job, runtime, &self.libraries, &self.gpus.list())
    }

    /// Says once, what the processes are not kept from.
    fn warn_of(&self, report: &TrialReport) {
        if !report.exposed.is_empty() && !self.has_warned.swap(true, Ordering::Relaxed) {
            let exposed = report.exposed.join("; ");
            tracing::warn!(exposed, "the processes in which versions are tried are less isolated than they could be");
        }
    }
}

impl Trial for Trials {
    fn known(&self, job: &TrialJob, runtime: &str) -> Option<TrialReport> {
        self.verdicts.find(&self.subject(job, runtime))
    }

    fn try_out(
        &self,
        job: &TrialJob,
        runtime: &str,
        estimate_bytes: u64,
        wanted: &Wanted,
    ) -> Result<Option<TrialReport>, TrialFailure> {
        let subject = self.subject(job, runtime);
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
        let subject = self.subject(job, runtime);
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
        let limits = Limits::new(self.timeout, self.memory_limit, estimate_bytes);
        let told = told(job, Task::Examine, &self.libraries, limits);
        let report = self.workers.try_version(runtime, told, limits, wanted).inspect_err(|failure| {
            tracing::debug!(model = %job.generation.key, step = failure.step, cause = failure.cause, "a trial failed");
        })?;
        tracing::info!(
            model = %job.generation.key.model, version = job.generation.key.version, load_ms = report.load_ms,
            memory_bytes = report.memory_bytes.unwrap_or_default(), "passed its trial"
        );
        self.warn_of(&report);
        self.verdicts.keep(subject, &report);
        Ok(report)
    }
}

/// Main memory that a version is thought to take, in bytes. Where its runtime can't say, twice its files.
pub(crate) fn estimate(runtimes: &[Arc<dyn Runtime>], job: &TrialJob) -> u64 {
    let manifest = &job.generation.manifest;
    let runtime = runtimes.iter().find(|runtime| runtime.format() == manifest.format);
    let options = LoadOptions { entrypoint: manifest.entrypoint.clone().into(), ..LoadOptions::default() };
    let estimate = runtime.and_then(|runtime| runtime.estimate(&job.dir, &options).ok());
    estimate.map_or(job.generation.bytes.saturating_mul(2), |estimate| estimate.host_bytes)
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
