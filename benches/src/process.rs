//! Child processes that are measured: started on a free port, asked for their address, read for their CPU time and memory.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// A server process; it is ended when this is dropped.
pub(crate) struct Server {
    child: Child,
    /// The line that it printed when it was ready to take connections.
    pub(crate) greeting: String,
}

impl Server {
    /// Starts a command and waits for the first line on its standard output that `is_greeting` accepts.
    pub(crate) fn start(mut command: Command, is_greeting: impl Fn(&str) -> bool) -> Result<Server> {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().with_context(|| format!("can't start {command:?}"))?;
        let stdout = child.stdout.take().context("the child has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let greeting = loop {
            match lines.next() {
                Some(line) => {
                    let line = line?;
                    if is_greeting(&line) {
                        break line;
                    }
                }
                None => bail!("{command:?} ended before it was ready: {:?}", child.wait()?),
            }
        };
        // The pipe must be read to its end, or the child blocks on it.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Server { child, greeting })
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that the process has used, user and system, in all threads that it has had.
    #[expect(unsafe_code, reason = "clocks of other processes have no safe wrapper in the crates at hand")]
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let process = libc::pid_t::try_from(self.child.id())?;
        let mut clock = 0;
        // SAFETY: the call writes one clock's number, to a place that outlives it.
        let failed = unsafe { libc::clock_getcpuclockid(process, &raw mut clock) };
        ensure!(failed == 0, "no CPU clock of process {process}: {}", std::io::Error::from_raw_os_error(failed));
        clock_time(clock)
    }

    /// Resident memory in bytes.
    pub(crate) fn rss(&self) -> Result<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        let pages: u64 = statm.split(' ').nth(1).context("too few fields in /proc/PID/statm")?.parse()?;
        Ok(pages * 4096)
    }
}

/// CPU time that the calling thread has used.
pub(crate) fn thread_cpu() -> Result<Duration> {
    clock_time(libc::CLOCK_THREAD_CPUTIME_ID)
}

#[expect(unsafe_code, reason = "CPU clocks have no safe wrapper in the crates at hand")]
fn clock_time(clock: libc::clockid_t) -> Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one time, to a place that outlives it.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(failed == 0, "a CPU clock can't be read: {}", std::io::Error::last_os_error());
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
