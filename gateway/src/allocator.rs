//! Where Rust code gets its memory.
//!
//! What it allocates, bodies above all, comes from mimalloc, which keeps large blocks at hand. Libraries such as ONNX Runtime stay with the
//! system's allocator, which gives freed memory back when it is told to.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Gives freed memory back to the operating system, also that of threads that have ended, which each load leaves behind. Takes
/// milliseconds.
#[expect(unsafe_code, reason = "the crate has no safe wrapper for it")]
pub(crate) fn collect() {
    // SAFETY: any thread may call it at any time; it touches only what is free.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
