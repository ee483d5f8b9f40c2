//! The process that supervises: it starts the gateway, passes signals on, and starts it again where it was ended by one that nobody sent
//! through here.

#![expect(unsafe_code, reason = "the standard library neither waits for signals nor for processes that it did not start")]

use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Supervised;
use crate::trial::{program, signal_name};

/// What is passed on to the gateway.
const PASSED_ON: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Signals by which native code ends its own process.
const CRASHES: [i32; 6] = [libc::SIGSEGV, libc::SIGABRT, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

/// A gateway that lived for so long is started again at once, whatever happened before.
const LONG: Duration = Duration::from_secs(60);

/// Between two starts of one that ends again and again, at the most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Starts a gateway with these arguments, and again whenever it crashes, until it ends by itself or is told to. Never returns where the
/// first one could be started.
///
/// # Errors
/// It can't be started.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let signals = Signals::block().context("can't wait for signals")?;
    let code = supervise(
        |supervised| start(arguments, supervised),
        |child| signals.until_ended(&child),
        |pause| signals.wait(pause).is_some(),
    )?;
    // What the gateway had to say, it has said.
    std::process::exit(code)
}

/// Starts gateways one after the other, and gives the code that the last one ends with. Once one could be started, nothing that the
/// system refuses ends this: it is tried again. `wait` says whether to stop instead.
fn supervise<G>(
    mut start: impl FnMut(Supervised) -> std::io::Result<G>,
    until_ended: impl Fn(G) -> End,
    wait: impl Fn(Duration) -> bool,
) -> Result<i32> {
    let (mut supervised, mut quick_ends, mut is_first) = (Supervised::Started, 0_u32, true);
    loop {
        let started = Instant::now();
        let (lived, how) = match start(supervised) {
            Ok(gateway) => {
                let end = until_ended(gateway);
                let lived = started.elapsed();
                match then(&end, is_first && lived < LONG) {
                    Then::End(code) => return Ok(code),
                    Then::Again(next) => supervised = next,
                }
                (lived, end.described())
            }
            Err(error) if is_first => return Err(error).context("can't start the gateway"),
            // What the one before it left is still to be looked at.
            Err(error) => (Duration::ZERO, format!("it can't be started: {error}")),
        };
        is_first = false;
        quick_ends = if lived < LONG { quick_ends.saturating_add(1) } else { 0 };
        let pause = pause(quick_ends);
        let lived = humantime::format_duration(Duration::from_secs(lived.as_secs())).to_string();
        tracing::error!(how, lived, ?pause, "the gateway is down and is started again");
        if wait(pause) {
            return Ok(0);
        }
    }
}

/// What comes after a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Nothing: the code to end with.
    End(i32),
    /// Another one, which is told this.
    Again(Supervised),
}

/// One that ends with an error though nobody told it to was ended by native code, or can't start; only where it is the first and has just
/// begun is that for whoever started it to mend.
fn then(end: &End, is_beginning: bool) -> Then {
    match (end.status.signal(), end.status.code()) {
        (Some(signal), _) if end.was_told => Then::End(128 + signal),
        (Some(signal), _) if CRASHES.contains(&signal) => Then::Again(Supervised::AfterCrash),
        (Some(_), _) => Then::Again(Supervised::Started),
        (None, Some(code)) if end.was_told || is_beginning || code == 0 => Then::End(code),
        (None, _) => Then::Again(Supervised::AfterCrash),
    }
}

/// How long to wait before the next start: not at all at first, and ever longer while it ends soon after each.
fn pause(quick_ends: u32) -> Duration {
    match quick_ends {
        0 | 1 => Duration::ZERO,
        more => Duration::from_secs(1 << (more - 2).min(5)).min(LONGEST_PAUSE),
    }
}

fn start(arguments: &[OsString], supervised: Supervised) -> std::io::Result<Child> {
    let how = match supervised {
        Supervised::No => "no",
        Supervised::Started => "started",
        Supervised::AfterCrash => "after-crash",
    };
    let mut command = Command::new(program());
    // A group of its own: a signal from a terminal comes to it once, through here.
    command.args(arguments.iter().filter(|argument| *argument != "--supervise")).args(["--supervised", how]).process_group(0);
    // SAFETY: between the two processes only calls are made that may be made there: they take no lock and allocate nothing.
    unsafe {
        command.pre_exec(|| {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            // It stops in order where nobody supervises it any more.
            #[cfg(target_os = "linux")]
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
    command.spawn()
}

/// How a gateway ended, and whether it had been told to.
struct End {
    status: ExitStatus,
    was_told: bool,
}

impl End {
    fn described(&self) -> String {
        self.status.signal().map_or_else(|| self.status.to_string(), signal_name)
    }
}

/// Signals that are waited for, instead of interrupting.
struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them for this thread, which is the only one.
    fn block() -> std::io::Result<Signals> {
        // SAFETY: a set that is made empty before it is used, and numbers.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in PASSED_ON.into_iter().chain([libc::SIGCHLD]) {
                libc::sigaddset(&raw mut set, signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(Signals(set))
        }
    }

    /// Passes signals on until the gateway has ended. What else ends is waited for as well: processes without a parent come to the first
    /// one of a container.
    fn until_ended(&self, child: &Child) -> End {
        let Ok(gateway) = libc::pid_t::try_from(child.id()) else { unreachable!("a process has a number that fits") };
        let mut was_told = false;
        loop {
            let mut signal = 0;
            // SAFETY: the set is whole, and there is a place for the number.
            if unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } != 0 {
                continue;
            }
            if signal == libc::SIGCHLD {
                if let Some(status) = reap(gateway) {
                    return End { status, was_told };
                }
                continue;
            }
            was_told |= signal != libc::SIGHUP;
            // SAFETY: a process of ours that nobody has waited for yet.
            unsafe {
                libc::kill(gateway, signal);
            }
        }
    }

    /// Waits, and tells the signal that ended that early; a reload is none while there is no gateway.
    fn wait(&self, pause: Duration) -> Option<i32> {
        let until = Instant::now() + pause;
        loop {
            let left = until.checked_duration_since(Instant::now())?;
            let seconds = libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX);
            let time = libc::timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
            // SAFETY: the set and the time are whole; nothing is wanted of the signal but its number.
            let signal = unsafe { libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), &raw const time) };
            if signal == libc::SIGTERM || signal == libc::SIGINT {
                return Some(signal);
            }
        }
    }
}

/// Waits for every process that has ended; how the gateway did, where it is among them.
fn reap(gateway: libc::pid_t) -> Option<ExitStatus> {
    let mut ended = None;
    loop {
        let mut status = 0;
        // SAFETY: a place for the status.
        let process = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if process <= 0 {
            return ended;
        }
        if process == gateway {
            ended = Some(ExitStatus::from_raw(status));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the system encodes them.
    fn ended_by(signal: i32) -> End {
        End { status: ExitStatus::from_raw(signal), was_told: false }
    }

    fn ended_with(code: i32) -> End {
        End { status: ExitStatus::from_raw(code << 8), was_told: false }
    }

    /// Lets gateways end like this, one after the other: what each was told, and what came of it.
    fn supervised(ends: Vec<std::io::Result<End>>) -> (Vec<Supervised>, Result<i32>) {
        let (mut told, mut ends) = (Vec::new(), ends.into_iter());
        let start = |supervised| {
            told.push(supervised);
            ends.next().unwrap()
        };
        let code = supervise(start, |end| end, |_| false);
        (told, code)
    }

    #[test]
    fn a_restart_that_the_system_refuses_is_tried_again() {
        let refused = || Err(std::io::Error::from_raw_os_error(libc::EAGAIN));
        let (told, code) = supervised(vec![Ok(ended_by(libc::SIGSEGV)), refused(), refused(), Ok(ended_with(0))]);
        let [first, after] = [Supervised::Started, Supervised::AfterCrash];
        assert_eq!(told, [first, after, after, after], "what ran in the crash is not forgotten meanwhile");
        assert_eq!(code.unwrap(), 0);
        let (told, code) = supervised(vec![refused()]);
        assert_eq!(told, [first]);
        assert!(code.unwrap_err().to_string().starts_with("can't start the gateway"));
    }

    #[test]
    fn an_error_ends_the_first_gateway_alone() {
        let (told, code) = supervised(vec![Ok(ended_with(2))]);
        assert_eq!((told.len(), code.unwrap()), (1, 2));
        let ends = vec![Ok(ended_by(libc::SIGABRT)), Ok(ended_with(1)), Ok(ended_by(libc::SIGKILL)), Ok(ended_with(0))];
        let (told, code) = supervised(ends);
        let after = Supervised::AfterCrash;
        assert_eq!(told, [Supervised::Started, after, after, Supervised::Started]);
        assert_eq!(code.unwrap(), 0);
        assert_eq!(then(&ended_with(3), false), Then::Again(after), "one that lived was ended by native code");
        for (end, code) in [(ended_with(3), 3), (ended_by(libc::SIGABRT), 134)] {
            assert_eq!(then(&End { was_told: true, ..end }, false), Then::End(code));
        }
    }

    #[test]
    fn the_first_start_is_at_once_and_the_next_ones_ever_later() {
        let seconds: Vec<u64> = (0..10).map(|ends| pause(ends).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 1, 2, 4, 8, 16, 30, 30, 30]);
    }
}
