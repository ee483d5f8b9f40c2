//! The plugin's side: any [`Runtime`] behind the table.
//!
//! Inputs are lent by the caller: a session must not keep them beyond the run, as none has a reason to. Outputs that share their bytes
//! are copied.

#![expect(unsafe_code, reason = "the border is C: each function says what it relies on")]

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    ABI_VERSION, About, Call, Described, FAILED, Given, GivenTensor, INTERRUPTED, INVALID_INPUT, Lent, LentTensor, LoadFault,
    MAX_RANK, OK, Plugin,
};
use crate::{AlignedBuffer, DataType, Interrupt, LoadError, LoadOptions, RunContext, RunError, Runtime, Session, Tensor};

/// Makes the runtime of a plugin.
pub trait Open {
    /// `settings` is what the host was configured with, as JSON.
    ///
    /// # Errors
    /// Why there is no runtime.
    fn open(settings: &[u8]) -> Result<Box<dyn Runtime>, LoadError>;
}

/// The table of a plugin whose runtime `T` makes. A plugin returns a reference to it from the function that it exports.
pub const fn table<T: Open>() -> Plugin {
    Plugin {
        abi_version: ABI_VERSION,
        open: open::<T>,
        close,
        about,
        version,
        check_device,
        estimate,
        load,
        run,
        unload,
        interrupter,
        interrupt,
        forget,
    }
}

type OwnRuntime = Box<dyn Runtime>;
type OwnSession = Box<dyn Session>;
type OwnInterrupter = Arc<dyn Interrupt>;

unsafe extern "C" fn open<T: Open>(settings: Lent, runtime: *mut *mut c_void, error: *mut Given) -> i32 {
    // SAFETY: lent for this call, and places for the results.
    unsafe {
        answer(error, || {
            let made: OwnRuntime = T::open(settings.bytes())?;
            *runtime = Box::into_raw(Box::new(made)).cast();
            Ok(())
        })
    }
}

unsafe extern "C" fn close(runtime: *mut c_void) {
    // SAFETY: made by `open`, and not used after this call.
    let runtime = unsafe { Box::from_raw(runtime.cast::<OwnRuntime>()) };
    quietly(|| drop(runtime));
}

unsafe extern "C" fn about(runtime: *mut c_void, about: *mut Given) {
    // SAFETY: made by `open`, and a place for the result.
    unsafe {
        let runtime = &*runtime.cast::<OwnRuntime>();
        quietly(|| about.write(json(&About { name: runtime.name().to_owned(), format: runtime.format().to_owned() })));
    }
}

unsafe extern "C" fn version(runtime: *mut c_void, version: *mut Given, error: *mut Given) -> i32 {
    // SAFETY: made by `open`, and places for the results.
    unsafe {
        let runtime = &*runtime.cast::<OwnRuntime>();
        answer(error, || {
            version.write(Given::of(runtime.version()?.into_bytes()));
            Ok(())
        })
    }
}

unsafe extern "C" fn check_device(runtime: *mut c_void, device: Lent, error: *mut Given) -> i32 {
    // SAFETY: made by `open`, lent for this call, and a place for the error.
    unsafe {
        let runtime = &*runtime.cast::<OwnRuntime>();
        answer(error, || runtime.check_device(read(device.bytes())?))
    }
}

unsafe extern "C" fn estimate(runtime: *mut c_void, dir: Lent, options: Lent, footprint: *mut Given, error: *mut Given) -> i32 {
    // SAFETY: made by `open`, lent for this call, and places for the results.
    unsafe {
        let runtime = &*runtime.cast::<OwnRuntime>();
        answer(error, || {
            let options: LoadOptions = read(options.bytes())?;
            footprint.write(json(&runtime.estimate(path(dir.bytes()), &options)?));
            Ok(())
        })
    }
}

unsafe extern "C" fn load(
    runtime: *mut c_void,
    dir: Lent,
    options: Lent,
    session: *mut *mut c_void,
    described: *mut Given,
    error: *mut Given,
) -> i32 {
    // SAFETY: made by `open`, lent for this call, and places for the results.
    unsafe {
        let runtime = &*runtime.cast::<OwnRuntime>();
        answer(error, || {
            let options: LoadOptions = read(options.bytes())?;
            let made: OwnSession = runtime.load(path(dir.bytes()), &options)?;
            let (signature, remarks) = (made.signature().clone(), made.remarks().to_vec());
            let (footprint, device, warnings) = (made.footprint(), made.device(), made.warnings());
            described.write(json(&Described { signature, footprint, device, warnings, remarks }));
            *session = Box::into_raw(Box::new(made)).cast();
            Ok(())
        })
    }
}

unsafe extern "C" fn run(
    session: *mut c_void,
    inputs: *const LentTensor,
    input_count: usize,
    call: *const Call,
    outputs: *mut GivenTensor,
    output_count: usize,
    error: *mut Given,
) -> i32 {
    // SAFETY: made by `load` and used by this thread alone; lent for this call; places for so many results.
    let ran = catch_unwind(AssertUnwindSafe(|| unsafe {
        let session = &mut *session.cast::<OwnSession>();
        let inputs: &[LentTensor] = if input_count == 0 { &[] } else { std::slice::from_raw_parts(inputs, input_count) };
        let inputs = inputs.iter().map(|input| tensor(input)).collect::<Result<Vec<Tensor>, RunError>>()?;
        let call = &*call;
        // A time beyond what the clock can tell is none.
        let deadline = Some(call.deadline_ns).filter(|left| *left != u64::MAX);
        let deadline = deadline.and_then(|left| Instant::now().checked_add(Duration::from_nanos(left)));
        let given = session.run(&inputs, &RunContext { deadline, cancelled: call.cancelled.as_ref() })?;
        let outputs_of_run: Vec<Result<GivenTensor, RunError>> =
            given.into_iter().map(|output| give(own(output, &inputs))).collect();
        let (given, failed): (Vec<_>, Vec<_>) = outputs_of_run.into_iter().partition(Result::is_ok);
        let given: Vec<GivenTensor> = given.into_iter().flatten().collect();
        if let Some(Err(error)) = failed.into_iter().next() {
            given.into_iter().for_each(release);
            return Err(error);
        }
        if given.len() != output_count {
            let message = format!("the run gave {} outputs, expected {output_count}", given.len());
            given.into_iter().for_each(release);
            return Err(RunError::Failed { message });
        }
        for (place, tensor) in given.into_iter().enumerate() {
            outputs.add(place).write(tensor);
        }
        Ok(())
    }));
    let (status, message) = match ran {
        Ok(Ok(())) => return OK,
        Ok(Err(RunError::InvalidInput { message })) => (INVALID_INPUT, message),
        Ok(Err(RunError::Interrupted)) => (INTERRUPTED, String::new()),
        Ok(Err(RunError::Failed { message })) => (FAILED, message),
        Err(panic) => (FAILED, format!("the runtime panicked: {}", panicked(&*panic))),
    };
    // SAFETY: a place for the result.
    unsafe { error.write(Given::of(message.into_bytes())) };
    status
}

unsafe extern "C" fn unload(session: *mut c_void) {
    // SAFETY: made by `load`, and not used after this call.
    let session = unsafe { Box::from_raw(session.cast::<OwnSession>()) };
    quietly(|| drop(session));
}

unsafe extern "C" fn interrupter(session: *mut c_void) -> *mut c_void {
    // SAFETY: made by `load`.
    let session = unsafe { &*session.cast::<OwnSession>() };
    let made = catch_unwind(AssertUnwindSafe(|| session.interrupter())).ok().flatten();
    made.map_or(std::ptr::null_mut(), |made| Box::into_raw(Box::<OwnInterrupter>::new(made)).cast())
}

unsafe extern "C" fn interrupt(interrupter: *mut c_void) {
    // SAFETY: made by `interrupter`.
    let interrupter = unsafe { &*interrupter.cast::<OwnInterrupter>() };
    quietly(|| interrupter.interrupt());
}

unsafe extern "C" fn forget(interrupter: *mut c_void) {
    // SAFETY: made by `interrupter`, and not used after this call.
    let interrupter = unsafe { Box::from_raw(interrupter.cast::<OwnInterrupter>()) };
    quietly(|| drop(interrupter));
}

/// Does what may fail or panic, and tells how it went.
///
/// # Safety
/// `error` is a place for the result.
unsafe fn answer(error: *mut Given, work: impl FnOnce() -> Result<(), LoadError>) -> i32 {
    let fault = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return OK,
        Ok(Err(error)) => LoadFault::from(error),
        Err(panic) => LoadFault::Unsupported { message: format!("the runtime panicked: {}", panicked(&*panic)) },
    };
    // SAFETY: the caller says so.
    unsafe { error.write(json(&fault)) };
    FAILED
}

/// Where nothing can be told, a panic ends here.
fn quietly(work: impl FnOnce()) {
    drop(catch_unwind(AssertUnwindSafe(work)));
}

fn panicked(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<&'static str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("it did not say why")
}

fn json(value: &impl Serialize) -> Given {
    // None of these has a map whose keys are not strings, or writes to anything but memory.
    Given::of(serde_json::to_vec(value).unwrap_or_default())
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes)
        .map_err(|error| LoadError::Unsupported { message: format!("the host sent other options: {error}") })
}

fn path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt as _;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// An input as the runtime takes it. The bytes are the caller's for as long as the run lasts; they are not copied where they are aligned.
///
/// # Safety
/// `input` and what it points to are there until the tensor is dropped.
unsafe fn tensor(input: &LentTensor) -> Result<Tensor, RunError> {
    let wrong = |message: String| RunError::InvalidInput { message };
    let datatype = DataType::ALL.get(input.datatype as usize).copied();
    let datatype = datatype.ok_or_else(|| wrong(format!("unknown datatype {}", input.datatype)))?;
    // SAFETY: the caller says so.
    let (shape, bytes): (&[i64], &'static [u8]) =
        unsafe { (if input.rank == 0 { &[] } else { std::slice::from_raw_parts(input.shape, input.rank) }, input.bytes.bytes()) };
    let is_aligned = bytes.as_ptr().addr().is_multiple_of(datatype.alignment());
    let bytes = if is_aligned { bytes::Bytes::from_static(bytes) } else { AlignedBuffer::copy_of(bytes).into_bytes() };
    Tensor::new(datatype, shape, bytes).map_err(|error| wrong(error.to_string()))
}

/// An output that outlives the call: where a session gives back what it was lent, a copy.
fn own(output: Tensor, inputs: &[Tensor]) -> Tensor {
    let lies_in = |outer: &Tensor| outer.bytes().as_ptr_range().contains(&output.bytes().as_ptr());
    if output.bytes().is_empty() || !inputs.iter().any(lies_in) {
        return output;
    }
    let (datatype, shape) = (output.datatype(), output.shape().to_vec());
    let copy = AlignedBuffer::copy_of(output.bytes()).into_bytes();
    Tensor::new(datatype, shape, copy).unwrap_or(output)
}

fn give(tensor: Tensor) -> Result<GivenTensor, RunError> {
    let rank = tensor.shape().len();
    let mut shape = [0; MAX_RANK];
    let Some(filled) = shape.get_mut(..rank) else {
        return Err(RunError::Failed { message: format!("an output has {rank} dimensions, expected at most {MAX_RANK}") });
    };
    filled.copy_from_slice(tensor.shape());
    let datatype = DataType::ALL.iter().position(|datatype| *datatype == tensor.datatype()).unwrap_or_default();
    Ok(GivenTensor { datatype: datatype as u32, rank, shape, bytes: Given::of(tensor.into_bytes()) })
}

fn release(tensor: GivenTensor) {
    if let Some(release) = tensor.bytes.release {
        // SAFETY: given by this side, and to nobody else.
        unsafe { release(tensor.bytes.owner) }
    }
}
