//! The process that tries a version, from inside: its limits, and the trial.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::FromRawFd as _;

use anyhow::{Context as _, Result, ensure};
use bascule_serving::{examine, record};

use super::{Answer, Task, Told, signature};
use crate::compose;

/// How readily the system ends this process where memory runs out: before all others.
const OOM_SCORE: &[u8] = b"1000";

/// Reads what to try from standard input, tries it, and writes the answer to what is standard output now. Before any other thread; never
/// returns where the answer was written.
///
/// # Errors
/// What is told can't be read, or the answer can't be written.
pub fn run() -> Result<()> {
    let mut answers = keep_for_answers()?;
    let mut text = Vec::new();
    std::io::stdin().lock().read_to_end(&mut text).context("can't read what to try")?;
    let told: Told = serde_json::from_slice(&text).context("what to try is not understood")?;
    confine(told.cpu_seconds);
    let runtimes = compose::open_runtimes(&told.libraries);
    let line = match &told.task {
        Task::Examine => serde_json::to_vec(&Answer::from(examine(&runtimes, &told.job))),
        Task::Record(plan) => serde_json::to_vec(&Answer::from(record(&runtimes, &told.job, plan))),
        Task::ReadSignature => serde_json::to_vec(&Answer::Passed(signature::read(&runtimes, &told.job))),
    };
    let line = line.context("can't write the answer")?;
    answers.write_all(&line).context("can't write the answer")?;
    drop(answers);
    // What libraries do when a program ends is no part of the trial: a gateway ends only once.
    #[expect(unsafe_code, reason = "the standard library ends a process only together with its libraries")]
    // SAFETY: nothing of this process is needed any more.
    unsafe {
        libc::_exit(0)
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

/// Takes from this process what a trial has no use for. What the system refuses is gone without: the process is watched from outside, too.
fn confine(cpu_seconds: u64) {
    bascule_serving::lower_priority();
    drop(std::fs::write("/proc/self/oom_score_adj", OOM_SCORE));
    #[cfg(target_os = "linux")]
    {
        let limit = |seconds: u64| libc::rlimit { rlim_cur: seconds, rlim_max: seconds.saturating_add(1) };
        let (cpu, core) = (limit(cpu_seconds), libc::rlimit { rlim_cur: 0, rlim_max: 0 });
        #[expect(unsafe_code, reason = "the standard library sets no limits")]
        // SAFETY: numbers, and structures that live longer than the calls; no other thread exists yet, as a new user namespace asks.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CPU, &raw const cpu);
            libc::setrlimit(libc::RLIMIT_CORE, &raw const core);
            // It ends with whoever started it, and gains nothing by running another program.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            // A network of its own, in which there is nobody. Users without privileges need a user namespace for that; the superuser
            // would lose there what lets it read the files of others.
            if libc::unshare(libc::CLONE_NEWNET) != 0 && libc::geteuid() != 0 {
                libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET);
            }
        }
    }
}
