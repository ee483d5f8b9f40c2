//! The C ABI between the gateway and a runtime that is loaded as a library of its own.
//!
//! A plugin exports one function, [`ENTRY`], which returns a table of functions. The table begins with the version of this ABI, in every
//! version: a host reads that number before anything else and refuses a plugin of another version. Within a version nothing changes, but
//! that JSON may get members that the other side does not know.
//!
//! What is seldom passed (options, signatures, errors of a load) is JSON; tensors are pointers. Memory is lent for the length of a call
//! ([`Lent`]), or given away together with the function that releases it ([`Given`]): neither side frees what the other allocated, so
//! their allocators need not be the same. No panic crosses the border. Every function may be called from any thread; a session is used
//! by one thread at a time.
//!
//! [`guest`] makes the table out of any [`crate::Runtime`]. The host's side, which opens the library, is a crate of its own.

pub mod guest;
mod wire;

use std::ffi::{CStr, c_void};
use std::sync::atomic::AtomicBool;

pub use self::wire::{About, Described, LoadFault};

/// The version of the table and of all that it passes.
pub const ABI_VERSION: u32 = 2;

/// The exported function: `extern "C" fn() -> *const Plugin`.
pub const ENTRY: &CStr = c"bascule_runtime_plugin";

/// Dimensions that a tensor which crosses the border may have.
pub const MAX_RANK: usize = 16;

/// It worked.
pub const OK: i32 = 0;
/// It did not. For a load the error is a [`LoadFault`] as JSON; for a run it is what the runtime said.
pub const FAILED: i32 = 1;
/// A run's inputs were refused.
pub const INVALID_INPUT: i32 = 2;
/// A run was stopped.
pub const INTERRUPTED: i32 = 3;

/// Bytes that may be read during a call. `data` may be anything where `len` is 0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Lent {
    /// The first byte.
    pub data: *const u8,
    /// How many there are.
    pub len: usize,
}

/// Bytes that belong to whoever receives them, and who releases them once.
#[repr(C)]
#[derive(Debug)]
pub struct Given {
    /// The first byte; may be anything where `len` is 0.
    pub data: *const u8,
    /// How many there are.
    pub len: usize,
    /// What `release` is called with.
    pub owner: *mut c_void,
    /// Releases them, on any thread; nothing where nothing was given.
    pub release: Option<unsafe extern "C" fn(owner: *mut c_void)>,
}

/// An input of a run.
#[repr(C)]
#[derive(Debug)]
pub struct LentTensor {
    /// The datatype's place in [`crate::DataType::ALL`].
    pub datatype: u32,
    /// Dimensions in `shape`.
    pub rank: usize,
    /// The dimensions, outermost first.
    pub shape: *const i64,
    /// The elements, as [`crate::Tensor`] holds them. They may lie at any address.
    pub bytes: Lent,
}

/// An output of a run.
#[repr(C)]
#[derive(Debug)]
pub struct GivenTensor {
    /// The datatype's place in [`crate::DataType::ALL`].
    pub datatype: u32,
    /// Dimensions in `shape`.
    pub rank: usize,
    /// The dimensions, outermost first.
    pub shape: [i64; MAX_RANK],
    /// The elements, as [`crate::Tensor`] holds them.
    pub bytes: Given,
}

/// What a run may know: see [`crate::RunContext`].
#[repr(C)]
#[derive(Debug)]
pub struct Call {
    /// True once the run is not wanted any more; null where nobody would say so.
    pub cancelled: *const AtomicBool,
    /// Nanoseconds until nobody waits any more; `u64::MAX` where there is no such time.
    pub deadline_ns: u64,
}

/// The table. Pointers named `runtime`, `session` and `interrupter` are what the functions that made them returned, until the one that
/// ends them is called. Where a function returns [`OK`] its results are there and `error` is untouched; else `error` is given.
#[repr(C)]
#[derive(Debug)]
pub struct Plugin {
    /// [`ABI_VERSION`] of the plugin. The first field in every version.
    pub abi_version: u32,
    /// Makes the runtime. `settings` is JSON of the runtime's own.
    pub open: unsafe extern "C" fn(settings: Lent, runtime: *mut *mut c_void, error: *mut Given) -> i32,
    /// Ends the runtime; its sessions have ended before.
    pub close: unsafe extern "C" fn(runtime: *mut c_void),
    /// Gives an [`About`].
    pub about: unsafe extern "C" fn(runtime: *mut c_void, about: *mut Given),
    /// Gives the library's version.
    pub version: unsafe extern "C" fn(runtime: *mut c_void, version: *mut Given, error: *mut Given) -> i32,
    /// Says whether the runtime can compute on a [`crate::Device`].
    pub check_device: unsafe extern "C" fn(runtime: *mut c_void, device: Lent, error: *mut Given) -> i32,
    /// Gives a [`crate::Footprint`]. `options` is a [`crate::LoadOptions`].
    pub estimate:
        unsafe extern "C" fn(runtime: *mut c_void, dir: Lent, options: Lent, footprint: *mut Given, error: *mut Given) -> i32,
    /// Makes a session and gives its [`Described`]. `options` is a [`crate::LoadOptions`].
    pub load: unsafe extern "C" fn(
        runtime: *mut c_void,
        dir: Lent,
        options: Lent,
        session: *mut *mut c_void,
        described: *mut Given,
        error: *mut Given,
    ) -> i32,
    /// Runs once. `outputs` has room for as many as the signature has; where the run fails none is given.
    pub run: unsafe extern "C" fn(
        session: *mut c_void,
        inputs: *const LentTensor,
        input_count: usize,
        call: *const Call,
        outputs: *mut GivenTensor,
        output_count: usize,
        error: *mut Given,
    ) -> i32,
    /// Ends the session.
    pub unload: unsafe extern "C" fn(session: *mut c_void),
    /// Makes something that stops the session's runs and may outlive it; null where the runtime can't.
    pub interrupter: unsafe extern "C" fn(session: *mut c_void) -> *mut c_void,
    /// Stops the run that is under way, from any thread.
    pub interrupt: unsafe extern "C" fn(interrupter: *mut c_void),
    /// Ends the interrupter.
    pub forget: unsafe extern "C" fn(interrupter: *mut c_void),
}

impl Given {
    /// Nothing.
    pub const NOTHING: Given = Given { data: std::ptr::null(), len: 0, owner: std::ptr::null_mut(), release: None };

    /// Gives bytes away that a Rust value owns; they must not move with the value.
    pub fn of<T: AsRef<[u8]> + Send + 'static>(owner: T) -> Given {
        #[expect(unsafe_code, reason = "the receiver has no other way to drop a value of a type that it does not know")]
        unsafe extern "C" fn release<T>(owner: *mut c_void) {
            // SAFETY: `owner` is what `Box::into_raw` returned below, and the receiver releases it once.
            drop(unsafe { Box::from_raw(owner.cast::<T>()) });
        }
        let owner = Box::new(owner);
        let bytes: &[u8] = (*owner).as_ref();
        let (data, len) = (bytes.as_ptr(), bytes.len());
        Given { data, len, owner: Box::into_raw(owner).cast(), release: Some(release::<T>) }
    }
}

impl Lent {
    /// Lends bytes.
    pub fn of(bytes: &[u8]) -> Lent {
        Lent { data: bytes.as_ptr(), len: bytes.len() }
    }

    /// The bytes.
    ///
    /// # Safety
    /// They must be there, and must not change, for as long as `'a` lasts.
    #[expect(unsafe_code, reason = "who lends says how long")]
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: the caller says so.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}
