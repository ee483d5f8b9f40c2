//! The process that tries a version, from inside: its limits, and the trial.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::FromRawFd as _;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bascule_runtime_api::Runtime;
use bascule_serving::{TrialFailure, TrialReport, examine, record};
use serde::Serialize;

use super::{Answer, Answered, Task, Told, signature};
use crate::compose::{self, Libraries};

/// How readily the system ends this process where memory runs out: before all others.
const OOM_SCORE: &[u8] = b"1000";

/// Reads from standard input what to try, a line for each version, and writes the answers to what is standard output now, until nobody
/// asks any more. Before any other thread; never returns where all went well.
///
/// # Errors
/// What is told can't be read, or the answer can't be written.
pub fn run() -> Result<()> {
    let mut answers = keep_for_answers()?;
    let mut asked = BufReader::new(std::io::stdin());
    let mut opened: Option<(Libraries, Vec<Arc<dyn Runtime>>)> = None;
    let mut exposed = Vec::new();
    loop {
        let mut line = Vec::new();
        if asked.read_until(b'\n', &mut line).context("can't read what to try")? == 0 {
            break;
        }
        let told: Told = serde_json::from_slice(&line).context("what to try is not understood")?;
        drop(line);
        if opened.is_none() {
            exposed = confine();
        }
        limit_processor_time(told.cpu_seconds);
        let (_, runtimes) = match &mut opened {
            Some(known) if known.0 == told.libraries => known,
            other => other.insert((told.libraries.clone(), compose::open_runtimes(&told.libraries))),
        };
        answer(&told, runtimes, &exposed, &mut answers)?;
    }
    drop(answers);
    // What libraries do when a program ends is no part of the trial: a gateway ends only once.
    #[expect(unsafe_code, reason = "the standard library ends a process only together with its libraries")]
    // SAFETY: nothing of this process is needed any more.
    unsafe {
        libc::_exit(0)
    }
}

/// Tries one version, and gives back what that took before it says so: the next one is measured by what it takes itself.
fn answer(told: &Told, runtimes: &[Arc<dyn Runtime>], exposed: &[String], answers: &mut File) -> Result<()> {
    let gpus = compose::gpus();
    match &told.task {
        Task::Examine => {
            let found = examine(runtimes, &told.job, gpus.as_ref());
            say(found.map(|report| TrialReport { exposed: exposed.to_vec(), ..report }), answers)
        }
        // Whether the file has one is an answer, too.
        Task::ReadSignature => say(Ok(signature::read(runtimes, &told.job)), answers),
        Task::Record(plan) => say(record(runtimes, &told.job, plan, gpus.as_ref()), answers),
    }
}

fn say<T: Serialize>(found: Result<T, TrialFailure>, answers: &mut File) -> Result<()> {
    bascule_serving::release(crate::allocator::collect);
    let answered = Answered { answer: Answer::from(found), is_fit: forget_peak() };
    let mut line = serde_json::to_vec(&answered).context("can't write the answer")?;
    line.push(b'\n');
    answers.write_all(&line).context("can't write the answer")
}

/// Has the system forget how much memory this process had at the most; whether it does.
fn forget_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Lets the process have so much more processor time.
fn limit_processor_time(seconds: u64) {
    #[cfg(target_os = "linux")]
    {
        #[expect(unsafe_code, reason = "the standard library sets no limits")]
        // SAFETY: structures of plain numbers, which live longer than the calls.
        unsafe {
            let (mut used, mut limit): (libc::rusage, libc::rlimit) = (std::mem::zeroed(), std::mem::zeroed());
            if libc::getrusage(libc::RUSAGE_SELF, &raw mut used) == 0 && libc::getrlimit(libc::RLIMIT_CPU, &raw mut limit) == 0 {
                let so_far = used.ru_utime.tv_sec.saturating_add(used.ru_stime.tv_sec).saturating_add(1);
                limit.rlim_cur = u64::try_from(so_far).unwrap_or_default().saturating_add(seconds).min(limit.rlim_max);
                libc::setrlimit(libc::RLIMIT_CPU, &raw const limit);
            }
        }
    }
}

/// Takes standard output for the answer alone: what the model or its library prints goes to standard error.
fn keep_for_answers() -> Result<File> {
    #[expect(unsafe_code, reason = "the standard library does not move standard streams")]
    // SAFETY: no other thread exists yet; the new descriptor belongs to nobody else.
    unsafe {
        let kept = libc::fcntl(libc::STDOUT_FILENO, libc::F_DUPFD_CLOEXEC, 3);
        ensure!(kept >= 0 && libc::dup2(libc::STDERR_FILENO, libc::STDOUT_FILENO) >= 0, "standard output can't be moved");
        Ok(File::from_raw_fd(kept))
    }
}

/// Takes from this process what a trial has no use for. What the system refuses is gone without, and told where it matters: the process is
/// watched from outside, too.
fn confine() -> Vec<String> {
    bascule_serving::lower_priority();
    drop(std::fs::write("/proc/self/oom_score_adj", OOM_SCORE));
    #[cfg(target_os = "linux")]
    {
        let core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        #[expect(unsafe_code, reason = "the standard library sets no limits")]
        // SAFETY: numbers, and structures that live longer than the calls.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const core);
            // It ends with whoever started it, and gains nothing by running another program.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        }
    }
    exposed()
}

/// Takes what the system lets it take from this process, and says what that was not. Before any other thread.
pub(crate) fn exposed() -> Vec<String> {
    without_network().err().into_iter().collect()
}

/// Gives this process a network of its own, in which there is nobody. Before any other thread.
///
/// # Errors
/// What it is not kept from, and why.
#[cfg(target_os = "linux")]
fn without_network() -> std::result::Result<(), String> {
    #[expect(unsafe_code, reason = "the standard library has no namespaces")]
    // SAFETY: numbers; no other thread exists yet, as a new user namespace asks.
    let (refused, is_superuser) = unsafe {
        // Users without privileges need a user namespace for that; the superuser would lose there what lets it read the files of others.
        let is_superuser = libc::geteuid() == 0;
        let is_alone =
            libc::unshare(libc::CLONE_NEWNET) == 0 || !is_superuser && libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) == 0;
        ((!is_alone).then(std::io::Error::last_os_error), is_superuser)
    };
    let Some(error) = refused else { return Ok(()) };
    let mends = if is_superuser { "give it CAP_SYS_ADMIN, or run it as another user" } else { "allow user namespaces" };
    Err(format!("it can reach the network ({error}): {mends}"))
}

/// Elsewhere there is nothing of the kind.
#[cfg(not(target_os = "linux"))]
fn without_network() -> std::result::Result<(), String> {
    Err("it can reach the network: this system has no namespaces".to_owned())
}
