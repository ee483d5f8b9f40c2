//! The traits that a runtime implements, and what passes between it and the engine.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::{Signature, Tensor};

/// Where a session's computation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its ordinal.
    Cuda(u32),
}

/// Text that names no device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected \"cpu\" or a GPU such as \"cuda:0\"")]
pub struct UnknownDevice;

impl FromStr for Device {
    type Err = UnknownDevice;

    /// `cpu`, `cuda` for the first GPU, or `cuda:N`.
    fn from_str(text: &str) -> Result<Device, UnknownDevice> {
        match text {
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()).map(Device::Cuda).ok_or(UnknownDevice),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// How a session is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoadOptions {
    /// The model file, relative to the version's folder.
    pub entrypoint: PathBuf,
    /// The device that must be used; a runtime that can't returns [`LoadError::Device`] and never falls back.
    pub device: Device,
    /// Threads of one operator; 0 leaves the choice to the runtime.
    pub intra_op_threads: usize,
    /// Operators that may run side by side; 0 leaves the choice to the runtime.
    pub inter_op_threads: usize,
    /// What manifest or settings say of the model. A contradiction with the file is [`LoadError::Signature`]; where the format
    /// holds no schema, this is the signature.
    pub declared: Option<Signature>,
    /// Settings that only this runtime understands; an unknown key is [`LoadError::Option`].
    pub options: BTreeMap<String, String>,
}

/// Memory that a session takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Footprint {
    /// Main memory.
    pub host_bytes: u64,
    /// Memory of the session's device, where that is not main memory.
    pub device_bytes: u64,
    /// Whether the figures were measured; otherwise they are an estimate.
    pub measured: bool,
}

/// Why a session could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The runtime's own library is missing or too old. `hint` is the command that mends it.
    #[error("{message}")]
    Unavailable {
        /// The file looked for, the version found and the one needed.
        message: String,
        /// What the operator can do.
        hint: String,
    },
    /// The version's files are not a model of this format.
    #[error("{entrypoint}: {message}", entrypoint = entrypoint.display())]
    InvalidModel {
        /// The model file, relative to the version's folder.
        entrypoint: PathBuf,
        /// What the runtime said.
        message: String,
    },
    /// The declaration contradicts the file.
    #[error("the declared signature contradicts {entrypoint}", entrypoint = entrypoint.display())]
    Signature {
        /// The model file, relative to the version's folder.
        entrypoint: PathBuf,
        /// Both sides of the contradiction.
        source: crate::SignatureError,
    },
    /// The model uses something that can't be served, for example a sequence as an input.
    #[error("{message}")]
    Unsupported {
        /// What and where.
        message: String,
    },
    /// The device is absent or can't run this model.
    #[error("device {device} can't be used: {message}")]
    Device {
        /// What was asked for.
        device: Device,
        /// Why not.
        message: String,
    },
    /// A runtime setting is unknown or has a wrong value.
    #[error("setting '{key}': {message}")]
    Option {
        /// The key as given.
        key: String,
        /// What was expected.
        message: String,
    },
    /// A file could not be read.
    #[error("can't read {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

impl LoadError {
    /// A setting that is wrong.
    pub fn option(key: &str, message: impl Into<String>) -> LoadError {
        LoadError::Option { key: key.to_owned(), message: message.into() }
    }

    /// A setting that there is not.
    pub fn unknown_option(key: &str, known: &[&str]) -> LoadError {
        LoadError::option(key, format!("unknown, expected one of {}", known.join(", ")))
    }
}

/// Reads a setting that is on or off.
///
/// # Errors
/// [`LoadError::Option`] for any other word.
pub fn switch(key: &str, value: &str) -> Result<bool, LoadError> {
    match value.trim().to_ascii_lowercase().as_str() {
        "0" | "false" => Ok(false),
        "1" | "true" => Ok(true),
        _ => Err(LoadError::option(key, format!("expected true or false, got '{value}'"))),
    }
}

/// Why a run gave no outputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The model refused these inputs, for example two inputs whose sizes don't go together: the caller's fault.
    #[error("{message}")]
    InvalidInput {
        /// What the runtime said.
        message: String,
    },
    /// [`Interrupt::interrupt`] stopped the run.
    #[error("the run was interrupted")]
    Interrupted,
    /// The model or the runtime failed: nobody's fault that sent the request.
    #[error("{message}")]
    Failed {
        /// What the runtime said.
        message: String,
    },
}

/// What a run may need beside its inputs.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunContext<'a> {
    /// When nobody waits for the outputs any more.
    pub deadline: Option<Instant>,
    /// True once the run is not wanted any more. Who wants to stop this run and no other sets it and then calls
    /// [`Interrupt::interrupt`]: a run that has not begun by then ends where it begins.
    pub cancelled: Option<&'a AtomicBool>,
}

impl RunContext<'_> {
    /// Whether the run is not wanted any more. A session that can be interrupted asks once interrupts reach the run, so that none is
    /// lost between the two.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(|cancelled| cancelled.load(Ordering::SeqCst))
    }
}

/// Stops a run from another thread.
pub trait Interrupt: Send + Sync {
    /// Makes the run that is under way, if any, end soon with [`RunError::Interrupted`]. A later run is not affected.
    fn interrupt(&self);
}

/// One loaded model, used by one thread at a time. Calls block.
pub trait Session: Send {
    /// What the model takes and gives; constant for the session's life.
    fn signature(&self) -> &Signature;

    /// Runs once. `inputs[i]` belongs to `signature().inputs[i]`, with its datatype; the result's order is that of
    /// `signature().outputs`. Outputs own their bytes: they outlive the session. A run that is cancelled before it begins gives
    /// [`RunError::Interrupted`] where the session has an interrupter.
    fn run(&mut self, inputs: &[Tensor], context: &RunContext<'_>) -> Result<Vec<Tensor>, RunError>;

    /// A handle that stops a run, where the runtime has one.
    fn interrupter(&self) -> Option<Arc<dyn Interrupt>>;

    /// Memory that this session takes.
    fn footprint(&self) -> Footprint;

    /// The device that really runs.
    fn device(&self) -> Device;

    /// What an operator should know of this session although it works, for example that a part of it runs elsewhere.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// What was found while loading and is no error, for the log: a runtime that is a plugin has none of its own.
    fn remarks(&self) -> &[String] {
        &[]
    }
}

/// A library that executes models of one format. Calls block.
pub trait Runtime: Send + Sync {
    /// The runtime's name, for example `onnxruntime`.
    fn name(&self) -> &'static str;

    /// The format that it loads, as manifests name it: `onnx`, `torchscript`.
    fn format(&self) -> &'static str;

    /// The library's version, or why there is none.
    fn version(&self) -> Result<String, LoadError>;

    /// Whether a gateway is complete without the library: what it lacks is then told when a model needs it, and not before.
    fn is_optional(&self) -> bool {
        false
    }

    /// Whether this runtime can compute on a device: its library has the part for it, and the device is there. Whether it can run a certain
    /// model there is found when that is loaded.
    ///
    /// # Errors
    /// [`LoadError::Device`] says what is missing, [`LoadError::Unavailable`] that the library itself is.
    fn check_device(&self, device: Device) -> Result<(), LoadError> {
        match device {
            Device::Cpu => Ok(()),
            Device::Cuda(_) => {
                Err(LoadError::Device { device, message: format!("the runtime {} has only the processor", self.name()) })
            }
        }
    }

    /// Whether one of [`LoadOptions::options`] says something of GPUs alone: a session on the processor goes without it.
    fn is_for_gpus(&self, _key: &str, _value: &str) -> bool {
        false
    }

    /// Memory that [`Runtime::load`] will take, without loading.
    fn estimate(&self, dir: &Path, options: &LoadOptions) -> Result<Footprint, LoadError>;

    /// Loads the model in `dir`.
    fn load(&self, dir: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, LoadError>;
}
