//! The process that tries a version, seen from outside: started, watched, and ended where it goes too far.

use std::io::{Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use bascule_serving::TrialFailure;
use serde::de::DeserializeOwned;

use super::{Answer, Told, program};

/// Between two looks at what the process takes.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long a process that has let go of its output may take to end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// How much of what it says last is told.
const SAID_BYTES: usize = 2048;

/// The step of a version whose process ended without an answer.
const STEP: &str = "trial";

/// How far a trial may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it may take.
    pub timeout: Duration,
    /// Main memory that its process may have.
    pub memory_bytes: u64,
}

impl Limits {
    /// Processor time, for a process that escapes whoever watches it: all cores for as long as it may take.
    pub(super) fn cpu_seconds(self) -> u64 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        self.timeout.as_secs().saturating_add(1).saturating_mul(cores)
    }
}

/// Starts the process, tells it what to try, and waits for its answer within the limits.
pub(super) fn run<T: DeserializeOwned>(told: &Told, limits: Limits) -> Result<T, TrialFailure> {
    let text = serde_json::to_vec(told).map_err(|error| failed(format!("the trial can't be told what to try: {error}")))?;
    let mut command = Command::new(program());
    command.args(["trial", "--inside"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own: what it starts ends with it, and a signal from a terminal is not meant for it.
    command.process_group(0);
    let not_started = |error| failed(format!("the trial's process can't be started: {error}; trial.mode = \"off\" goes without"));
    let mut child = Running { child: command.spawn().map_err(not_started)?, is_reaped: false };
    let max_answer_bytes = told.task.max_answer_bytes();
    let answered = in_background(child.child.stdout.take(), move |from| {
        let mut all = Vec::new();
        // What came before an error counts as well.
        drop(from.take(max_answer_bytes).read_to_end(&mut all));
        String::from_utf8_lossy(&all).into_owned()
    });
    let said = in_background(child.child.stderr.take(), |mut from| last_of(&mut from));
    if let Some(mut stdin) = child.child.stdin.take() {
        // Where it does not read, it has ended or is ended: then so does this thread.
        std::thread::spawn(move || drop(stdin.write_all(&text)));
    }
    let answer = watch(&child.child, &answered, limits)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Passed(found)) => return Ok(found),
        Ok(Answer::Failed(failure)) => return Err(failure),
        Err(_) => {}
    }
    // It has closed its output without an answer: it ends now, or is not waited for.
    let status = child.end().map_err(|error| failed(format!("how the trial's process ended is not known: {error}")))?;
    Err(failed(ended(status, &said)))
}

/// A process that is ended where nobody waits for it any more.
struct Running {
    child: Child,
    is_reaped: bool,
}

impl Running {
    /// How it ended. One that has let go of its output and not ended is given a moment, and then ended.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        let started = Instant::now();
        let (_nobody, never) = sync_channel::<()>(0);
        while started.elapsed() < END_PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                self.is_reaped = true;
                return Ok(status);
            }
            // Only the time passes.
            let _timed_out = never.recv_timeout(LOOK_INTERVAL);
        }
        self.kill();
        self.is_reaped = true;
        self.child.wait()
    }

    /// Ends it, and all that it has started.
    fn kill(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // SAFETY: a signal to the group that this process made, whose leader has not been waited for.
            #[expect(unsafe_code, reason = "the standard library ends single processes only")]
            unsafe {
                libc::kill(-group, libc::SIGKILL);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Until it is waited for, its group is its own, even where it has ended.
        if !self.is_reaped {
            self.kill();
            drop(self.child.wait());
        }
    }
}

/// Waits until the process has said all that it will say.
fn watch(child: &Child, answered: &Receiver<String>, limits: Limits) -> Result<String, TrialFailure> {
    let started = Instant::now();
    loop {
        match answered.recv_timeout(LOOK_INTERVAL) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Disconnected) => return Ok(String::new()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let timeout = limits.timeout;
        if started.elapsed() > timeout {
            return Err(failed(format!(
                "it did not end within {} and was killed; trial.timeout says how long it may take",
                humantime::format_duration(timeout)
            )));
        }
        if let Some(bytes) = resident_bytes(child.id()).filter(|bytes| *bytes > limits.memory_bytes) {
            let shown = |bytes: u64| bytesize::ByteSize(bytes).display().iec().to_string();
            let (has, limit) = (shown(bytes), shown(limits.memory_bytes));
            return Err(failed(format!(
                "it had {has} of memory, more than its limit of {limit}, and was killed; trial.memory_limit sets another"
            )));
        }
    }
}

/// Main memory of a process; `None` where it has ended, or the system does not tell.
fn resident_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What is made of all that comes, once nothing comes any more.
fn in_background<R: Read + Send + 'static>(from: Option<R>, work: impl FnOnce(R) -> String + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        let made = from.map(work).unwrap_or_default();
        // Whoever waits may have given up.
        drop(sender.send(made));
    });
    receiver
}

/// The end of what comes.
fn last_of(from: &mut impl Read) -> String {
    let (mut last, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        last.extend_from_slice(&chunk[..read]);
        last.drain(..last.len().saturating_sub(SAID_BYTES));
    }
    String::from_utf8_lossy(&last).trim().to_owned()
}

/// How a process ended that gave no answer, and what it said last.
fn ended(status: ExitStatus, said: &Receiver<String>) -> String {
    let how = match status.signal() {
        Some(signal) => format!("its process was ended by {}", signal_name(signal)),
        None => format!("its process ended without an answer ({status})"),
    };
    // What it has started may go on, and keep its output open.
    match said.recv_timeout(END_PATIENCE) {
        Ok(said) if !said.is_empty() => format!("{how}; it said: {said}"),
        _ => how,
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT, as abort() sends it",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGKILL => "SIGKILL, as the system sends it where memory runs out",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGXCPU => "SIGXCPU: it took more processor time than it may",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

fn failed(cause: String) -> TrialFailure {
    TrialFailure { step: STEP.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_process_ended_is_told_by_name() {
        let after = |command: &str, said: &str| {
            let status = Command::new("sh").args(["-c", command]).status().unwrap();
            ended(status, &in_background(Some(std::io::Cursor::new(said.to_owned())), |mut said| last_of(&mut said)))
        };
        assert_eq!(after("kill -SEGV $$", ""), "its process was ended by SIGSEGV");
        assert_eq!(
            after("kill -ABRT $$", "terminate called"),
            "its process was ended by SIGABRT, as abort() sends it; it said: terminate called"
        );
        assert_eq!(after("exit 7", ""), "its process ended without an answer (exit status: 7)");
    }

    #[test]
    fn only_the_end_of_what_is_said_is_told() {
        let said = format!("{}the end\n", "x".repeat(10 * SAID_BYTES));
        let told = last_of(&mut said.as_bytes());
        assert!(told.ends_with("the end") && told.len() < SAID_BYTES + 1, "{}", told.len());
    }
}
