//! The process's memory: what the operating system counts, giving freed memory back to it, and threads that step aside.
//!
//! Which memory belongs to which version is not known here and not guessed from these figures.

use std::time::{Duration, Instant};

/// The nice value of threads whose work may wait: looks, fetches, loads and trims.
const LOW_PRIORITY: i32 = 10;

/// Main memory that the process has, as the operating system counts it; `None` where it does not tell.
pub(crate) fn rss_bytes() -> Option<u64> {
    told("VmRSS:")
}

/// The part of it that is the process's own: not the pages of files and libraries, which it shares and which can be read again.
pub(crate) fn own_bytes() -> Option<u64> {
    told("RssAnon:")
}

/// The most that it ever had.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    told("VmHWM:")
}

fn told(what: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Gives freed memory back to the operating system, as [`trim`] does, where nothing is to be known of it.
pub fn release(others: impl Fn()) {
    trim(others);
}

/// What a trim did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trim {
    /// How long the allocator was busy with it; allocations of other threads may have waited for as long.
    pub(crate) took: Duration,
    /// Memory of the process afterwards.
    pub(crate) rss_after: Option<u64>,
}

/// Gives freed memory back to the operating system, after `others` have done the same with what is theirs. Takes milliseconds: not for a
/// thread that has anything else to do. `None` where the allocator has no such call.
pub(crate) fn trim(others: impl Fn()) -> Option<Trim> {
    let started = Instant::now();
    others();
    if !malloc_trim() {
        return None;
    }
    Some(Trim { took: started.elapsed(), rss_after: rss_bytes() })
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn malloc_trim() -> bool {
    // SAFETY: malloc_trim takes the allocator's own locks and touches only what is free.
    #[expect(unsafe_code, reason = "glibc gives memory back only when it is asked to, and only C can ask")]
    unsafe {
        libc::malloc_trim(0);
    }
    true
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn malloc_trim() -> bool {
    false
}

/// Lets every other thread go before this one. Threads that this one starts inherit it, and nobody without privileges can take it
/// back: only for threads that end with their work. Where the system refuses, nothing changes.
pub fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: with 0 for "who", Linux changes the calling thread alone; no memory is involved.
        #[expect(unsafe_code, reason = "the standard library can't set a thread's priority")]
        let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOW_PRIORITY) } != 0;
        if refused {
            tracing::debug!(error = %std::io::Error::last_os_error(), "cannot lower a thread's priority");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_process_has_memory() {
        // A test program takes more than a megabyte and less than a tebibyte; a wrong unit would be outside.
        let bytes = rss_bytes().unwrap();
        assert!((1 << 20..1 << 40).contains(&bytes), "{bytes}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_low_priority_stays_with_its_thread() {
        let nice = || {
            // SAFETY: reads a number of the calling thread.
            #[expect(unsafe_code, reason = "the standard library can't read a thread's priority")]
            unsafe {
                libc::getpriority(libc::PRIO_PROCESS, 0)
            }
        };
        let before = nice();
        let lowered = std::thread::spawn(move || {
            lower_priority();
            nice()
        });
        assert_eq!(lowered.join().unwrap(), LOW_PRIORITY.max(before));
        assert_eq!(nice(), before);
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn freed_memory_goes_back() {
        // Many small pieces lie in the allocator's own arena, which keeps what is freed below its top until it is trimmed.
        let pieces: Vec<Vec<u8>> = (0..20_000).map(|_| vec![1; 4096]).collect();
        let guard = vec![1_u8; 64];
        let held = rss_bytes().unwrap();
        drop(pieces);
        let trimmed = trim(|| ()).unwrap().rss_after.unwrap();
        drop(guard);
        assert!(trimmed + (40 << 20) < held, "{held} bytes before, {trimmed} after");
    }
}
