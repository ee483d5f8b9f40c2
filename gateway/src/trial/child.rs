//! The process that tries a version, seen from outside: started, watched, and ended where it goes too far.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bascule_serving::{MAX_GOLDEN_BYTES, TrialFailure};
use serde::de::DeserializeOwned;

use super::{Answer, Answered, Told, program};

/// Between two looks at what the process takes.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long a process that has let go of its output may take to end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// No answer is longer: golden samples are text within text, so that each of their characters may take two.
const MAX_ANSWER_BYTES: u64 = 2 * MAX_GOLDEN_BYTES + (16 << 20);

/// How much of what it says last is told.
const SAID_BYTES: usize = 2048;

/// The step of a version whose process ended without an answer.
pub(super) const STEP: &str = "trial";

/// Memory that a version may take beyond four times what it is thought to take, where nothing else is set.
const SPARE_BYTES: u64 = 1 << 30;

/// How far a trial may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it may take.
    pub timeout: Duration,
    /// Main memory that its process may have.
    pub memory_bytes: u64,
}

impl Limits {
    /// Those that are set; where no memory is, four times what the version is thought to take and something beyond.
    pub fn new(timeout: Duration, memory_bytes: Option<u64>, estimate_bytes: u64) -> Limits {
        let memory_bytes = memory_bytes.unwrap_or(estimate_bytes.saturating_mul(4).saturating_add(SPARE_BYTES));
        Limits { timeout, memory_bytes }
    }

    /// Processor time, for a process that escapes whoever watches it: all cores for as long as it may take.
    pub(super) fn cpu_seconds(self) -> u64 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        self.timeout.as_secs().saturating_add(1).saturating_mul(cores)
    }
}

/// A process that tries versions, one after the other.
pub(super) struct Process {
    running: Running,
    /// Takes what it is told; it ends by itself once this has gone.
    told: SyncSender<Vec<u8>>,
    answers: Receiver<Vec<u8>>,
    said: Arc<Mutex<Said>>,
    /// Answers of this one so far.
    pub(super) tried: u32,
}

/// The end of what a process says on its standard error.
#[derive(Debug, Default)]
struct Said {
    last: Vec<u8>,
    has_ended: bool,
}

/// Why there is no more to be had of a process.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) failure: TrialFailure,
    /// Whether what the process tried before may have had a part in it.
    pub(super) may_be_an_earlier_one: bool,
}

impl Process {
    /// Starts one.
    ///
    /// # Errors
    /// The system does not start it.
    pub(super) fn start() -> Result<Process, TrialFailure> {
        let mut command = Command::new(program());
        command.args(["trial", "--inside"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A model's code has no business with what else is in there, such as keys to a registry.
        command.env_clear().envs(environment());
        // A group of its own: what it starts ends with it, and a signal from a terminal is not meant for it.
        command.process_group(0);
        let not_started =
            |error| failed(format!("the trial's process can't be started: {error}; trial.mode = \"off\" goes without"));
        let mut running = Running { child: command.spawn().map_err(not_started)?, is_reaped: false };
        tracing::debug!(process = running.child.id(), "started a process for trials");
        let (stdin, stdout, stderr) = (running.child.stdin.take(), running.child.stdout.take(), running.child.stderr.take());
        let (told, to_tell) = sync_channel::<Vec<u8>>(1);
        thread("tells a trial", move || {
            let Some(mut stdin) = stdin else { return };
            // Where it does not read, it has ended or is ended: then so does this thread.
            while to_tell.recv().is_ok_and(|text| stdin.write_all(&text).and_then(|()| stdin.flush()).is_ok()) {}
        })?;
        let (answer, answers) = sync_channel(1);
        thread("hears a trial", move || {
            let Some(stdout) = stdout else { return };
            let mut stdout = BufReader::new(stdout);
            while let Some(line) = line_of(&mut stdout) {
                if answer.send(line).is_err() {
                    return;
                }
            }
        })?;
        let said = Arc::new(Mutex::new(Said::default()));
        let listening = Arc::clone(&said);
        thread("hears a trial", move || {
            if let Some(mut stderr) = stderr {
                listen(&mut stderr, &listening);
            }
            listening.lock().unwrap_or_else(PoisonError::into_inner).has_ended = true;
        })?;
        Ok(Process { running, told, answers, said, tried: 0 })
    }

    /// Tells it what to try and waits for its answer within the limits: what came of the version, and whether the process may try another
    /// one. After an error it may not.
    pub(super) fn ask<T: DeserializeOwned>(
        &mut self,
        told: &Told,
        limits: Limits,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(Result<T, TrialFailure>, bool), Ended> {
        let own = |failure| Ended { failure, may_be_an_earlier_one: false };
        let mut text =
            serde_json::to_vec(told).map_err(|error| own(failed(format!("the trial can't be told what to try: {error}"))))?;
        text.push(b'\n');
        self.said.lock().unwrap_or_else(PoisonError::into_inner).last.clear();
        // Where it has ended, there will be no answer either.
        drop(self.told.send(text));
        let answer = self.watch(limits, is_wanted)?;
        self.tried += 1;
        match answer.and_then(|line| serde_json::from_slice(&line).ok()) {
            Some(Answered { answer: Answer::Passed(found), is_fit }) => Ok((Ok(found), is_fit)),
            Some(Answered { answer: Answer::Failed(failure), .. }) => Ok((Err(failure), false)),
            None => {
                // It has closed its output without an answer: it ends now, or is not waited for.
                let status = self.running.end();
                let status = status.map_err(|error| own(failed(format!("how the trial's process ended is not known: {error}"))))?;
                Err(Ended { failure: failed(ended(status, &self.last_said())), may_be_an_earlier_one: true })
            }
        }
    }

    /// Waits until the process answers, or lets go of its output.
    fn watch(&self, limits: Limits, is_wanted: &dyn Fn() -> bool) -> Result<Option<Vec<u8>>, Ended> {
        let started = Instant::now();
        let ended = |cause, may_be_an_earlier_one| Err(Ended { failure: failed(cause), may_be_an_earlier_one });
        loop {
            match self.answers.recv_timeout(LOOK_INTERVAL) {
                Ok(answer) => return Ok(Some(answer)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !is_wanted() {
                return Err(Ended { failure: unwanted(), may_be_an_earlier_one: false });
            }
            let timeout = limits.timeout;
            if started.elapsed() > timeout {
                let shown = humantime::format_duration(timeout);
                let cause = format!("it did not end within {shown} and was killed; trial.timeout says how long it may take");
                return ended(cause, false);
            }
            if let Some(bytes) = resident_bytes(self.running.child.id()).filter(|bytes| *bytes > limits.memory_bytes) {
                let shown = |bytes: u64| bytesize::ByteSize(bytes).display().iec().to_string();
                let (has, limit) = (shown(bytes), shown(limits.memory_bytes));
                let cause = format!(
                    "it had {has} of memory, more than its limit of {limit}, and was killed; trial.memory_limit sets another"
                );
                return ended(cause, true);
            }
        }
    }

    /// The end of what it said. What it has started may go on, and keep its output open: then what came so far.
    fn last_said(&self) -> String {
        let (_nobody, never) = sync_channel::<()>(0);
        let started = Instant::now();
        loop {
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.has_ended || started.elapsed() > END_PATIENCE {
                return String::from_utf8_lossy(&said.last).trim().to_owned();
            }
            drop(said);
            // Only the time passes.
            let _timed_out = never.recv_timeout(LOOK_INTERVAL);
        }
    }
}

/// Starts a thread; where the system has none to spare, that is why there is no trial now.
fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), TrialFailure> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map(drop).map_err(|error| failed(format!("a thread for the trial can't be started: {error}")))
}

/// Variables that a process for trials gets, by name.
const KEPT: [&str; 9] =
    ["PATH", "HOME", "TMPDIR", "LANG", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES", "LLVM_PROFILE_FILE"];

/// The same by the beginning of their names: those of libraries, and of this program's own errors.
const KEPT_FAMILIES: [&str; 20] = [
    "LC_",
    "CUDA_",
    "CUDNN_",
    "CUBLAS_",
    "NVIDIA_",
    "NCCL_",
    "TRT_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "DNNL_",
    "ONEDNN_",
    "ORT_",
    "TORCH_",
    "PYTORCH_",
    "ATEN_",
    "MALLOC_",
    "RUST_",
];

#[expect(clippy::disallowed_methods, reason = "these are no settings of ours: they are passed on to libraries")]
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_passed_on))
}

fn is_passed_on(name: &str) -> bool {
    KEPT.contains(&name) || KEPT_FAMILIES.iter().any(|family| name.starts_with(family))
}

/// The next answer; `None` where there is none, or it is too long.
fn line_of(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let read = from.take(MAX_ANSWER_BYTES).read_until(b'\n', &mut line);
    let is_whole = read.is_ok() && line.last() == Some(&b'\n');
    is_whole.then_some(line)
}

/// Keeps the end of what comes.
fn listen(from: &mut impl Read, said: &Mutex<Said>) {
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.last.extend_from_slice(&chunk[..read]);
        let excess = said.last.len().saturating_sub(SAID_BYTES);
        said.last.drain(..excess);
    }
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

/// Main memory of a process; `None` where it has ended, or the system does not tell.
fn resident_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// How a process ended that gave no answer, and what it said last.
fn ended(status: ExitStatus, said: &str) -> String {
    let how = match status.signal() {
        Some(signal) => format!("its process was ended by {}", signal_name(signal)),
        None => format!("its process ended without an answer ({status})"),
    };
    if said.is_empty() { how } else { format!("{how}; it said: {said}") }
}

/// A signal's name, and what it says of a process that was ended by it.
pub(crate) fn signal_name(signal: i32) -> String {
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

/// What is said of a version that nobody waits for.
pub(super) fn unwanted() -> TrialFailure {
    failed("nobody wants the version any more".to_owned())
}

fn failed(cause: String) -> TrialFailure {
    TrialFailure { step: STEP.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_process_ended_is_told_by_name() {
        let after = |command: &str, said: &str| ended(Command::new("sh").args(["-c", command]).status().unwrap(), said);
        assert_eq!(after("kill -SEGV $$", ""), "its process was ended by SIGSEGV");
        assert_eq!(
            after("kill -ABRT $$", "terminate called"),
            "its process was ended by SIGABRT, as abort() sends it; it said: terminate called"
        );
        assert_eq!(after("exit 7", ""), "its process ended without an answer (exit status: 7)");
    }

    #[test]
    fn only_the_end_of_what_is_said_is_kept() {
        let text = format!("{}the end\n", "x".repeat(10 * SAID_BYTES));
        let said = Mutex::new(Said::default());
        listen(&mut text.as_bytes(), &said);
        let last = said.into_inner().unwrap().last;
        assert!(last.ends_with(b"the end\n") && last.len() == SAID_BYTES, "{}", last.len());
    }

    #[test]
    fn credentials_are_not_passed_on() {
        for name in
            ["PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "ORT_DISABLE_TELEMETRY", "OMP_NUM_THREADS", "RUST_BACKTRACE"]
        {
            assert!(is_passed_on(name), "{name}");
        }
        for name in ["AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "BASCULE_REGISTRY", "HTTPS_PROXY", "PATHS", ""] {
            assert!(!is_passed_on(name), "{name}");
        }
    }

    #[test]
    fn one_limit_of_memory_holds_wherever_a_version_is_tried() {
        let limits = |set, estimate| Limits::new(Duration::from_secs(1), set, estimate).memory_bytes;
        assert_eq!(limits(None, 1 << 30), 5 << 30);
        assert_eq!(limits(Some(7), 1 << 30), 7);
        assert_eq!(limits(None, u64::MAX), u64::MAX);
    }

    #[test]
    fn an_answer_is_a_whole_line() {
        let mut from: &[u8] = b"one\ntwo\nthr";
        assert_eq!(line_of(&mut from), Some(b"one\n".to_vec()));
        assert_eq!(line_of(&mut from), Some(b"two\n".to_vec()));
        assert_eq!(line_of(&mut from), None);
    }
}
