//! The functions of `shim/shim.cpp`. What they return is an error's text from `malloc`, or null where they worked.

#![expect(unsafe_code, reason = "they are C++: each says what it needs")]

use std::ffi::{CStr, c_char, c_void};

use torch_sys::{CIValue, CModule_};

unsafe extern "C" {
    /// Makes a frozen module out of one that lives, in evaluation mode.
    pub(crate) fn bascule_torch_freeze(module: *const CModule_, optimized: bool, frozen: *mut *mut CModule_) -> *mut c_char;

    /// Calls `forward` of a module that lives with `count` values that live.
    pub(crate) fn bascule_torch_forward(
        module: *mut CModule_,
        arguments: *const *mut CIValue,
        count: usize,
        inference_mode: bool,
        result: *mut *mut CIValue,
    ) -> *mut c_char;

    /// Gives back memory of GPUs that libtorch keeps and nothing uses. May be called by any thread at any time.
    fn bascule_torch_empty_cache() -> *mut c_char;

    fn free(pointer: *mut c_void);
}

/// Has libtorch give back the memory of GPUs that it keeps for later; other versions, and other libraries, may need it.
///
/// # Errors
/// What libtorch says.
pub(crate) fn empty_cache() -> Result<(), String> {
    // SAFETY: it takes nothing, and its text is taken once.
    unsafe { text(bascule_torch_empty_cache()).map_or(Ok(()), Err) }
}

/// Takes a text that was allocated by C.
///
/// # Safety
/// `pointer` is null, or a text from `malloc` that nobody else has.
pub(crate) unsafe fn text(pointer: *mut c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the caller says so.
    unsafe {
        let text = CStr::from_ptr(pointer).to_string_lossy().into_owned();
        free(pointer.cast());
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_nothing_to_give_back_where_there_is_no_gpu() {
        assert_eq!(super::empty_cache(), Ok(()));
    }
}
