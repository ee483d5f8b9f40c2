//! Where Rust code gets its memory.
//!
//! What it allocates, bodies above all, comes from mimalloc, which keeps large blocks at hand. Libraries such as ONNX Runtime stay with the
//! system's allocator, which gives freed memory back when it is told to.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Keeps the system's allocator from opening more arenas than this process has cores for: each keeps for itself what lies free at its top,
/// which no trim gives back (4 MiB each after swaps of a model of 100 MB), and its habit are eight a core. `MALLOC_ARENA_MAX` and
/// `GLIBC_TUNABLES` have precedence. Before the first thread.
pub(crate) fn limit_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(clippy::disallowed_methods, reason = "these are the C library's own variables, no settings of ours")]
        let is_set = std::env::var_os("MALLOC_ARENA_MAX").is_some()
            || std::env::var_os("GLIBC_TUNABLES").is_some_and(|tunables| tunables.to_string_lossy().contains("malloc.arena_max"));
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if let (false, Ok(cores)) = (is_set, libc::c_int::try_from(cores)) {
            #[expect(unsafe_code, reason = "only C can ask for it")]
            // SAFETY: no other thread exists yet that could use the allocator meanwhile.
            unsafe {
                libc::mallopt(libc::M_ARENA_MAX, cores);
            }
        }
    }
}

/// Gives freed memory back to the operating system, also that of threads that have ended, which each load leaves behind. Takes
/// milliseconds.
#[expect(unsafe_code, reason = "the crate has no safe wrapper for it")]
pub(crate) fn collect() {
    // SAFETY: any thread may call it at any time; it touches only what is free.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
