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

    fn free(pointer: *mut c_void);
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
