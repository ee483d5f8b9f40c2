//! Processes that are kept for the next version: opening a library takes longer than trying most models.
//!
//! One thread has them all, so that versions are tried one at a time, and so that a process lives as long as the gateway and no longer:
//! the system ends it with the thread that started it. A process that had a failure is not used again, whoever's fault that was; one that
//! ends in the middle of a version, and had tried others before, leaves that version to a fresh one: only that has nobody else to blame.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use bascule_runtime_api::Device;
use bascule_serving::{TrialFailure, TrialReport, Wanted};

use super::Told;
use super::child::{Limits, Process};

/// Versions that one process tries at the most: what a library never gives back does not pile up.
const TRIED_AT_MOST: u32 = 50;

/// A process that has had nothing to do for so long ends: it holds memory.
const IDLE: Duration = Duration::from_secs(60);

/// One version for a process.
struct Asked {
    /// The runtime's name with its library's version: each has a process of its own.
    runtime: String,
    told: Told,
    limits: Limits,
    wanted: Wanted,
    reply: SyncSender<Result<TrialReport, TrialFailure>>,
}

/// The thread that has the processes. It ends with this.
pub(super) struct Workers {
    asked: SyncSender<Asked>,
}

impl Workers {
    /// Starts the thread, and no process yet.
    ///
    /// # Errors
    /// The thread can't be started.
    pub(super) fn start() -> std::io::Result<Workers> {
        let (asked, queue) = sync_channel(1);
        std::thread::Builder::new().name("trials".to_owned()).spawn(move || work(&queue, answer))?;
        Ok(Workers { asked })
    }

    /// Has a version tried. Blocks until its turn has come and is over.
    ///
    /// # Errors
    /// What is wrong with the version.
    pub(super) fn try_version(
        &self,
        runtime: &str,
        told: Told,
        limits: Limits,
        wanted: &Wanted,
    ) -> Result<TrialReport, TrialFailure> {
        let (reply, replied) = sync_channel(1);
        let asked = Asked { runtime: runtime.to_owned(), told, limits, wanted: wanted.clone(), reply };
        let gone =
            || TrialFailure { step: super::child::STEP.to_owned(), cause: "the thread that tries versions has ended".to_owned() };
        self.asked.send(asked).map_err(|_| gone())?;
        replied.recv().unwrap_or_else(|_| Err(gone()))
    }
}

/// What was kept for the next version, by runtime.
type Idle = HashMap<String, Process>;

fn work(queue: &Receiver<Asked>, answer: impl Fn(&mut Idle, &Asked) -> Result<TrialReport, TrialFailure>) {
    let mut idle = Idle::new();
    loop {
        let asked = match queue.recv_timeout(IDLE) {
            Ok(asked) => asked,
            Err(RecvTimeoutError::Timeout) => {
                idle.clear();
                // Nothing happens until somebody asks.
                match queue.recv() {
                    Ok(asked) => asked,
                    Err(_) => return,
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // There is no other thread for those that come after.
        let result = catch_unwind(AssertUnwindSafe(|| answer(&mut idle, &asked))).unwrap_or_else(|_| {
            idle.clear();
            Err(TrialFailure { step: super::child::STEP.to_owned(), cause: "whoever tries versions panicked".to_owned() })
        });
        // Whoever asked may have gone.
        drop(asked.reply.send(result));
    }
}

fn answer(idle: &mut Idle, asked: &Asked) -> Result<TrialReport, TrialFailure> {
    let wanted = || asked.wanted.is_wanted();
    // It waited for those before it.
    if !wanted() {
        return Err(super::child::unwanted());
    }
    let mut process = match idle.remove(&asked.runtime) {
        Some(process) => process,
        None => Process::start()?,
    };
    let mut asked_of = process.ask(&asked.told, asked.limits, &wanted);
    if process.tried > 0
        && let Err(ended) = &asked_of
        && ended.may_be_an_earlier_one
    {
        tracing::debug!(cause = ended.failure.cause, "a process that had tried other versions ended, trying in a fresh one");
        process = Process::start()?;
        asked_of = process.ask(&asked.told, asked.limits, &wanted);
    }
    let (result, is_fit) = asked_of.map_err(|ended| ended.failure)?;
    if is_fit && process.tried < TRIED_AT_MOST && result.as_ref().is_ok_and(holds_nothing) {
        idle.insert(asked.runtime.clone(), process);
    }
    result
}

/// Whether a process that has tried a version holds no memory that others wait for: its context on a GPU, and what the libraries keep of
/// that for later, end with it.
fn holds_nothing(report: &TrialReport) -> bool {
    report.device == Device::Cpu.to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bascule_serving::TrialJob;

    use super::super::Task;
    use super::*;
    use crate::compose::Libraries;
    use crate::config::env::Environment;
    use crate::config::{Given, load};

    #[test]
    fn what_goes_wrong_with_one_version_is_not_the_end_of_all_trials() {
        let (asked, queue) = sync_channel(1);
        let answer = |_: &mut Idle, asked: &Asked| match asked.runtime.as_str() {
            "panics" => panic!("no thread is to be had"),
            _ => Ok(TrialReport::default()),
        };
        let thread = std::thread::spawn(move || work(&queue, answer));
        let workers = Workers { asked };
        let ask = |runtime: &str| {
            let job = TrialJob::new(crate::supervise::tests::generation("m", 1).into(), Arc::default(), Path::new("nowhere"));
            let libraries = Libraries::of(&load(&Given::default(), &Environment::default()).unwrap().config);
            let limits = Limits::new(Duration::from_secs(1), None, 0);
            workers.try_version(runtime, super::super::told(&job, Task::Examine, &libraries, limits), limits, &Wanted::default())
        };
        assert_eq!(ask("panics").unwrap_err().step, "trial");
        assert!(ask("works").is_ok());
        drop(workers);
        thread.join().unwrap();
    }

    #[test]
    fn a_process_that_holds_memory_of_a_gpu_is_not_kept() {
        let on = |device: &str| holds_nothing(&TrialReport { device: device.to_owned(), ..TrialReport::default() });
        assert!(on("cpu") && !on("cuda:0"));
    }
}
