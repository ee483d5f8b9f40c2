//! Where Rust code gets its memory.
//!
//! What it allocates, bodies above all, comes from mimalloc, which keeps large blocks at hand. Libraries such as ONNX Runtime stay with the
//! system's allocator, which gives freed memory back when it is told to.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Keeps the system's allocator from opening more arenas than there are cores: each keeps a few megabytes for itself that no trim gives
/// back, and eight for each core, as is its habit, are more than threads that really run at once can use. `MALLOC_ARENA_MAX` has
/// precedence. Before the first thread.
pub(crate) fn limit_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(clippy::disallowed_methods, reason = "this is the C library's own variable, no setting of ours")]
        let is_set = std::env::var_os("MALLOC_ARENA_MAX").is_some();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if let (false, Ok(cores)) = (is_set, libc::c_int::try_from(cores)) {
            #[expect(unsafe_code, reason = "only C can ask for it")]
            // SAFETY: changes a number that the allocator looks at when a thread first needs memory.
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
