//! The runtime: configuration, and what happens on a load.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once, OnceLock};

use bascule_runtime_api::{Device, Footprint, LoadError, LoadOptions, Runtime, Session};
use ort::ErrorCode;
use ort::session::Session as OrtSession;

use crate::library::{self, Library};
use crate::session::OnnxSession;
use crate::settings::Settings;
use crate::{files, message, signature};

/// Turns the library's own telemetry off, in the versions that have it. Without it they open a database below the user's cache folder
/// when the environment is made, before any call could forbid it.
const TELEMETRY_VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Bytes of main memory that loading takes for each byte of the model's files: the weights as the file has them, and their copy.
/// Measured with 64 MiB of weights: 2.0 for lookup tables and matrix products; convolutions reach 5 for a moment.
const LOADING_BYTES_PER_FILE_BYTE: u64 = 2;

/// The same for a session once it is loaded. Measured: 1.0, and less where weights lie in a file of their own that is mapped.
const LOADED_BYTES_PER_FILE_BYTE: u64 = 1;

/// What a session takes however small its model is, in bytes.
const BYTES_PER_SESSION: u64 = 1 << 20;

/// How the library is found, and what its sessions share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OnnxConfig {
    /// The library's file. Where it is set, nothing else is looked for.
    pub library: Option<PathBuf>,
    /// Folders that are searched in order for `libonnxruntime.so` and `libonnxruntime.so.<version>`; the newest of a folder wins.
    pub search: Vec<PathBuf>,
    /// Threads that all sessions share which do not ask for threads of their own; 0 for none: such a session then has one thread,
    /// the caller's. The first runtime of a process settles it.
    pub shared_threads: usize,
}

/// Executes models of the format `onnx`.
pub struct OnnxRuntime {
    config: OnnxConfig,
    library: OnceLock<Arc<Library>>,
}

impl OnnxRuntime {
    /// A runtime that opens its library when it is first needed; [`Runtime::version`] opens it at once.
    ///
    /// The first call of a process sets `ORT_DISABLE_TELEMETRY=1` in its environment unless the variable exists, so that the library
    /// gathers no telemetry. Make the runtime before the program starts other threads where that is possible.
    pub fn new(config: OnnxConfig) -> OnnxRuntime {
        static TELEMETRY: Once = Once::new();
        TELEMETRY.call_once(disable_telemetry);
        OnnxRuntime { config, library: OnceLock::new() }
    }

    /// The library's file with links resolved; it is opened where it is not yet.
    ///
    /// # Errors
    /// [`LoadError::Unavailable`] names every file looked for.
    pub fn library_path(&self) -> Result<PathBuf, LoadError> {
        Ok(self.library()?.path.clone())
    }

    fn library(&self) -> Result<&Arc<Library>, LoadError> {
        if let Some(library) = self.library.get() {
            return Ok(library);
        }
        let candidates = match &self.config.library {
            Some(path) => vec![path.clone()],
            None => library::search(&self.config.search),
        };
        // A failure is not kept: the file may be there at the next load.
        let library = library::open(&candidates, self.config.shared_threads)?;
        Ok(self.library.get_or_init(|| library))
    }
}

#[expect(unsafe_code, reason = "the library has no other switch that works before it is loaded")]
#[expect(clippy::disallowed_methods, reason = "this is no setting of ours: the library reads it from the environment alone")]
fn disable_telemetry() {
    if env::var_os(TELEMETRY_VARIABLE).is_none() {
        // SAFETY: `set_var` must not run beside code that reads the environment without Rust's lock. It runs once, when the program
        // makes its first runtime, for which `OnnxRuntime::new` asks before other threads start; and since nothing else of the
        // program sets a variable, the C library makes a new table here and leaves the first one to whoever still reads it.
        unsafe { env::set_var(TELEMETRY_VARIABLE, "1") }
    }
}

impl Runtime for OnnxRuntime {
    fn name(&self) -> &'static str {
        "onnxruntime"
    }

    fn format(&self) -> &'static str {
        "onnx"
    }

    fn version(&self) -> Result<String, LoadError> {
        Ok(self.library()?.version.clone())
    }

    /// What loading takes at its peak: twice the files that the model reads, its external weights among them, and 1 MiB. A loaded
    /// session's own footprint counts them once.
    fn estimate(&self, dir: &Path, options: &LoadOptions) -> Result<Footprint, LoadError> {
        let file_bytes = files::total_bytes(dir, &options.entrypoint)?;
        Ok(footprint(file_bytes, LOADING_BYTES_PER_FILE_BYTE))
    }

    fn load(&self, dir: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, LoadError> {
        let settings = Settings::new(options)?;
        if let Device::Cuda(_) = options.device {
            let message = "this build of bascule has no CUDA provider for onnx runtime".to_owned();
            return Err(LoadError::Device { device: options.device, message });
        }
        let file_bytes = files::total_bytes(dir, &options.entrypoint)?;
        let library = self.library()?;
        let session = commit(library, &settings, dir, &options.entrypoint)?;
        let model = signature::read(&session, options.declared.as_ref())?;
        let signature = match &options.declared {
            None => model,
            Some(declared) => model
                .narrowed_by(declared)
                .map_err(|source| LoadError::Signature { entrypoint: options.entrypoint.clone(), source })?,
        };
        let footprint = footprint(file_bytes, LOADED_BYTES_PER_FILE_BYTE);
        let session = OnnxSession::new(session, signature, footprint, &settings)
            .map_err(|error| invalid(&options.entrypoint, dir, error.message()))?;
        Ok(Box::new(session))
    }
}

/// Has the library read the file.
fn commit(library: &Library, settings: &Settings, dir: &Path, entrypoint: &Path) -> Result<OrtSession, LoadError> {
    let made = catch_unwind(AssertUnwindSafe(|| {
        let builder = OrtSession::builder(&library.environment)?;
        settings.apply(builder, library.has_shared_threads)?.commit_from_file(dir.join(entrypoint))
    }));
    match made {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(error)) if error.code() == ErrorCode::NotImplemented => {
            Err(LoadError::Unsupported { message: message::without_paths(error.message(), dir) })
        }
        Ok(Err(error)) => Err(invalid(entrypoint, dir, error.message())),
        // `ort` panics where the library tells a type that it has no name for.
        Err(_) => Err(LoadError::Unsupported {
            message: "an input or output of the model has a type that can't be served, expected tensors".to_owned(),
        }),
    }
}

fn footprint(file_bytes: u64, factor: u64) -> Footprint {
    let host_bytes = file_bytes.saturating_mul(factor).saturating_add(BYTES_PER_SESSION);
    Footprint { host_bytes, device_bytes: 0, measured: false }
}

fn invalid(entrypoint: &Path, dir: &Path, said: &str) -> LoadError {
    LoadError::InvalidModel { entrypoint: entrypoint.to_owned(), message: message::without_paths(said, dir) }
}
