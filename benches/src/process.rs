//! Child processes that are measured: started on a free port, asked for their address, read for their CPU time.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

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

    /// CPU time that the process has used, user and system.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is the command in parentheses and may hold spaces.
        let after = stat.rsplit_once(") ").context("unexpected format of /proc/PID/stat")?.1;
        let mut fields = after.split(' ').skip(11);
        let ticks = [fields.next(), fields.next()]
            .into_iter()
            .map(|field| field.context("too few fields in /proc/PID/stat")?.parse::<u64>().map_err(Into::into))
            .sum::<Result<u64>>()?;
        Ok(Duration::from_millis(ticks * 1000 / ticks_per_second()))
    }

    /// Resident memory in bytes.
    pub(crate) fn rss(&self) -> Result<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        let pages: u64 = statm.split(' ').nth(1).context("too few fields in /proc/PID/statm")?.parse()?;
        Ok(pages * 4096)
    }
}

#[expect(unsafe_code, reason = "sysconf has no safe wrapper in the crates at hand")]
fn ticks_per_second() -> u64 {
    // SAFETY: sysconf takes a constant and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).unwrap_or(100).max(1)
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
