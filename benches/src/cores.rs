//! Which core each side has: servers and clients that share one measure each other.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The cores of this machine that a run uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cores {
    /// Where every server runs.
    pub(crate) server: usize,
    /// Where every client runs.
    pub(crate) client: usize,
}

impl Cores {
    /// The first two that this process may use.
    ///
    /// # Errors
    /// Where there is one only.
    pub(crate) fn find() -> Result<Cores> {
        let status = std::fs::read_to_string("/proc/self/status").context("can't read /proc/self/status")?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).context("no Cpus_allowed_list")?;
        let cores = parse(list.trim());
        ensure!(cores.len() > 1, "server and client need a core each, and this process may use '{}' only", list.trim());
        Ok(Cores { server: cores[0], client: cores[1] })
    }
}

/// The numbers of a list such as `0-2,5`; what is no number is left out.
fn parse(list: &str) -> Vec<usize> {
    let range = |part: &str| -> Option<Vec<usize>> {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some((from.parse().ok()?..=to.parse().ok()?).collect())
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// A command that is held to a core.
pub(crate) fn held_to(core: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(program);
    command
}

/// Holds the calling thread to a core.
///
/// # Errors
/// The core is not this process's.
#[expect(unsafe_code, reason = "affinity has no safe wrapper in the crates at hand")]
pub(crate) fn hold_this_thread(core: usize) -> Result<()> {
    // SAFETY: a zeroed set is an empty one; the macros write within it, for they check the core against its size.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    ensure!(failed == 0, "can't hold a thread to core {core}: {}", std::io::Error::last_os_error());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(parse("0-1"), [0, 1]);
        assert_eq!(parse("3,5-6,9"), [3, 5, 6, 9]);
        assert_eq!(parse(""), [0; 0]);
    }
}
