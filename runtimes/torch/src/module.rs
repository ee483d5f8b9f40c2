//! A loaded module, through libtorch's C functions as `torch-sys` has them: `tch` itself keeps the arguments of every call that fails.

#![expect(
    unsafe_code,
    reason = "libtorch's functions are C; each gets values that live, and room for as many as it was said to hold"
)]

use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::{self, NonNull};

use tch::{Device, Tensor};
use torch_sys::{
    C_tensor, CIValue, CModule_, ati_bool, ati_double, ati_free, ati_generic_dict, ati_int, ati_length, ati_string, ati_tag,
    ati_tensor, ati_tensor_list, ati_to_generic_dict, ati_to_generic_list, ati_to_string, ati_to_tensor, ati_to_tensor_list,
    ati_to_tuple, ati_tuple_length, atm_eval, atm_free, atm_load_on_device, get_and_reset_last_err,
};

use crate::shim::{bascule_torch_forward, bascule_torch_freeze, text};

/// Levels of tuples, lists and dictionaries in a result. Deeper ones are no outputs of a model.
const MAX_DEPTH: usize = 4;

/// What a module is called with.
#[derive(Debug)]
pub(crate) enum Argument {
    Tensor(Tensor),
    Int(i64),
    Float(f64),
    Bool(bool),
    /// A list.
    Tensors(Vec<Tensor>),
    /// A dictionary.
    Named(Vec<(String, Tensor)>),
}

/// What a module returned.
#[derive(Debug)]
pub(crate) enum Results {
    /// One after the other: a tensor, or a tuple or list of tensors, whatever is nested in them.
    Listed(Vec<Tensor>),
    /// By name.
    Named(Vec<(String, Tensor)>),
}

/// A module on its device, in evaluation mode.
pub(crate) struct Module(NonNull<CModule_>);

// SAFETY: a module is used by one thread at a time, and belongs to none.
unsafe impl Send for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: made by `load` or `frozen`, and used for the last time.
        unsafe {
            atm_free(self.0.as_ptr());
        }
        // What an error left must not be found by the next call.
        drop(last_error());
    }
}

impl Module {
    /// Reads a file. Parameters come to `device`.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn load(path: &Path, device: Device) -> Result<Module, String> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| "the path has a NUL".to_owned())?;
        let device = match device {
            Device::Cuda(ordinal) => c_int::try_from(ordinal).map_err(|_| "no such device".to_owned())?,
            _ => -1,
        };
        // SAFETY: a path that ends, and a module that nobody else has yet.
        let module = unsafe { atm_load_on_device(path.as_ptr(), device) };
        checked()?;
        let module = Module(NonNull::new(module).ok_or("libtorch gave no module")?);
        // SAFETY: the module lives.
        unsafe {
            atm_eval(module.0.as_ptr());
        }
        checked()?;
        Ok(module)
    }

    /// The module with its parameters as constants, and all that follows from them computed. It shares what it can with this one, which
    /// is to be dropped: only then are parameters that were folded into others gone. `optimized`, it also computes in the layouts of
    /// oneDNN, which refuse some inputs that the module itself takes.
    ///
    /// # Errors
    /// What libtorch says. Not every module can be frozen.
    pub(crate) fn frozen(&self, optimized: bool) -> Result<Module, String> {
        let mut frozen = ptr::null_mut();
        // SAFETY: the module lives; what comes is a new one of ours.
        let said = unsafe { text(bascule_torch_freeze(self.0.as_ptr(), optimized, &raw mut frozen)) };
        said.map_or(Ok(()), Err)?;
        NonNull::new(frozen).map(Module).ok_or_else(|| "libtorch gave no module".to_owned())
    }

    /// Calls `forward` without gradients. In inference mode the module can't turn them on either.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn forward(&mut self, arguments: &[Argument], inference_mode: bool) -> Result<Results, String> {
        let arguments = arguments.iter().map(IValue::of).collect::<Result<Vec<IValue>, String>>()?;
        let pointers: Vec<*mut CIValue> = arguments.iter().map(|argument| argument.0.as_ptr()).collect();
        let mut result = ptr::null_mut();
        // SAFETY: the module and so many arguments live; what comes is a new value of ours.
        let said = unsafe {
            text(bascule_torch_forward(self.0.as_ptr(), pointers.as_ptr(), pointers.len(), inference_mode, &raw mut result))
        };
        said.map_or(Ok(()), Err)?;
        let result = IValue::made(result)?;
        if result.tag()? == tag::DICT {
            return result.named().map(Results::Named);
        }
        let mut listed = Vec::new();
        result.list_into(&mut listed, 0)?;
        Ok(Results::Listed(listed))
    }
}

/// What `ati_tag` answers.
mod tag {
    pub(super) const TENSOR: i32 = 1;
    pub(super) const TUPLE: i32 = 5;
    pub(super) const STRING: i32 = 9;
    pub(super) const TENSORS: i32 = 10;
    pub(super) const LIST: i32 = 12;
    pub(super) const DICT: i32 = 13;

    pub(super) fn name(tag: i32) -> &'static str {
        match tag {
            0 => "None",
            2 => "a float",
            3 => "an int",
            4 => "a bool",
            6..=8 => "a list of numbers",
            STRING => "a string",
            14 => "an object",
            _ => "a value of an unknown type",
        }
    }
}

/// Any value of libtorch's interpreter.
struct IValue(NonNull<CIValue>);

impl Drop for IValue {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe {
            ati_free(self.0.as_ptr());
        }
        drop(last_error());
    }
}

impl IValue {
    fn of(argument: &Argument) -> Result<IValue, String> {
        let pointer = |tensor: &Tensor| tensor.as_ptr().cast_mut();
        match argument {
            // SAFETY: it counts one more user of the tensor and writes nothing to it.
            Argument::Tensor(tensor) => IValue::made(unsafe { ati_tensor(pointer(tensor)) }),
            // SAFETY: a number.
            Argument::Int(value) => IValue::made(unsafe { ati_int(*value) }),
            // SAFETY: a number.
            Argument::Float(value) => IValue::made(unsafe { ati_double(*value) }),
            // SAFETY: a number.
            Argument::Bool(value) => IValue::made(unsafe { ati_bool(c_int::from(*value)) }),
            Argument::Tensors(tensors) => {
                let pointers: Vec<*mut C_tensor> = tensors.iter().map(pointer).collect();
                let count = c_int::try_from(pointers.len()).map_err(|_| "too many inputs".to_owned())?;
                // SAFETY: so many tensors; see above.
                IValue::made(unsafe { ati_tensor_list(pointers.as_ptr(), count) })
            }
            Argument::Named(named) => {
                let mut values = Vec::new();
                for (name, tensor) in named {
                    let name = CString::new(name.as_str()).map_err(|_| "an input's name has a NUL".to_owned())?;
                    // SAFETY: a text that ends, which is copied; and a tensor, see above.
                    values.push(IValue::made(unsafe { ati_string(name.as_ptr()) })?);
                    values.push(IValue::made(unsafe { ati_tensor(pointer(tensor)) })?);
                }
                let pointers: Vec<*mut CIValue> = values.iter().map(|value| value.0.as_ptr()).collect();
                let count = c_int::try_from(named.len()).map_err(|_| "too many inputs".to_owned())?;
                // SAFETY: so many keys and values, one after the other.
                IValue::made(unsafe { ati_generic_dict(pointers.as_ptr(), count) })
            }
        }
    }

    fn made(pointer: *mut CIValue) -> Result<IValue, String> {
        let value = NonNull::new(pointer).map(IValue);
        checked()?;
        value.ok_or_else(|| "libtorch gave no value".to_owned())
    }

    fn tag(&self) -> Result<c_int, String> {
        // SAFETY: see above.
        let tag = unsafe { ati_tag(self.0.as_ptr()) };
        checked().map(|()| tag)
    }

    fn tensor(&self) -> Result<Tensor, String> {
        // SAFETY: see above; the tensor that comes is a new one of ours.
        let tensor = unsafe { ati_to_tensor(self.0.as_ptr()) };
        checked()?;
        owned(tensor)
    }

    /// The tensors in a tensor, a tuple or a list, whatever is nested in them.
    fn list_into(&self, listed: &mut Vec<Tensor>, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("the model returned more than {MAX_DEPTH} levels of tuples and lists"));
        }
        match self.tag()? {
            tag::TENSOR => listed.push(self.tensor()?),
            tag::TUPLE => {
                // SAFETY: see above.
                let count = unsafe { ati_tuple_length(self.0.as_ptr()) };
                for value in self.values(count, 1, ati_to_tuple)? {
                    value.list_into(listed, depth + 1)?;
                }
            }
            tag::TENSORS => {
                let count = self.length()?;
                let mut tensors: Vec<*mut C_tensor> = vec![ptr::null_mut(); count];
                // SAFETY: see above.
                unsafe { ati_to_tensor_list(self.0.as_ptr(), tensors.as_mut_ptr(), count as c_int) };
                checked()?;
                for tensor in tensors {
                    listed.push(owned(tensor)?);
                }
            }
            tag::LIST => {
                // SAFETY: see above.
                let count = unsafe { ati_length(self.0.as_ptr()) };
                for value in self.values(count, 1, ati_to_generic_list)? {
                    value.list_into(listed, depth + 1)?;
                }
            }
            other => {
                return Err(format!(
                    "the model returned {}, expected tensors, tuples and lists of them, or a dictionary",
                    tag::name(other)
                ));
            }
        }
        Ok(())
    }

    /// The tensors of a dictionary with their names.
    fn named(&self) -> Result<Vec<(String, Tensor)>, String> {
        // SAFETY: see above.
        let count = unsafe { ati_length(self.0.as_ptr()) };
        let mut values = self.values(count, 2, ati_to_generic_dict)?.into_iter();
        let mut named = Vec::new();
        while let (Some(key), Some(value)) = (values.next(), values.next()) {
            let (key_tag, value_tag) = (key.tag()?, value.tag()?);
            if key_tag != tag::STRING || value_tag != tag::TENSOR {
                return Err("the model returned a dictionary, expected strings as its keys and tensors as its values".to_owned());
            }
            // SAFETY: see above; the text is ours.
            let name = unsafe { text(ati_to_string(key.0.as_ptr())) };
            checked()?;
            named.push((name.unwrap_or_default(), value.tensor()?));
        }
        Ok(named)
    }

    fn length(&self) -> Result<usize, String> {
        // SAFETY: see above.
        let count = unsafe { ati_length(self.0.as_ptr()) };
        checked()?;
        usize::try_from(count).map_err(|_| "libtorch gave a list of unknown length".to_owned())
    }

    /// What a container of `count` entries holds, `each` values an entry.
    fn values(
        &self,
        count: c_int,
        each: usize,
        read: unsafe extern "C" fn(*mut CIValue, *mut *mut CIValue, c_int),
    ) -> Result<Vec<IValue>, String> {
        checked()?;
        let entries = usize::try_from(count).map_err(|_| "libtorch gave a list of unknown length".to_owned())?;
        let mut pointers: Vec<*mut CIValue> = vec![ptr::null_mut(); entries * each];
        // SAFETY: see above.
        unsafe { read(self.0.as_ptr(), pointers.as_mut_ptr(), count) };
        let values = pointers.into_iter().filter_map(NonNull::new).map(IValue).collect();
        checked().map(|()| values)
    }
}

fn owned(tensor: *mut C_tensor) -> Result<Tensor, String> {
    if tensor.is_null() {
        return Err("libtorch gave no tensor".to_owned());
    }
    // SAFETY: a new tensor that nobody else has.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

/// Whether the last call of this thread failed, and how.
fn checked() -> Result<(), String> {
    last_error().map_or(Ok(()), Err)
}

fn last_error() -> Option<String> {
    // SAFETY: the text of this thread's last error is ours from then on.
    unsafe { text(get_and_reset_last_err()) }
}

/// What libtorch says, without where in its source it says so.
pub(crate) fn first_line(said: &str) -> &str {
    // An error of the interpreter tells first where in the model's code it happened, and at its end what.
    let last = said.lines().rev().find(|line| line.starts_with("RuntimeError: ") || line.contains("Error: "));
    let first = || said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason was given");
    last.unwrap_or_else(first).trim_start_matches("RuntimeError: ").trim().trim_end_matches(':')
}
