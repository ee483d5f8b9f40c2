//! The runtime: configuration, and what happens on a load.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once, OnceLock};

use bascule_runtime_api::{Device, Footprint, LoadError, LoadOptions, Runtime, Session};
use ort::ErrorCode;
use ort::session::Session as OrtSession;
use ort::session::builder::SessionBuilder;

use crate::library::{self, Library};
use crate::providers::Assigned;
use crate::session::{About, OnnxSession};
use crate::settings::{self, Settings};
use crate::{files, message, providers, signature};

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
    /// Libraries with custom operators, which every session may use. Their code runs in this process.
    pub operator_libraries: Vec<PathBuf>,
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

    /// Has the library read the file.
    fn commit(&self, library: &Library, settings: &Settings, dir: &Path, options: &LoadOptions) -> Result<OrtSession, LoadError> {
        let entrypoint = &options.entrypoint;
        let device_fault = |said: String| LoadError::Device { device: options.device, message: message::without_paths(&said, dir) };
        let made = catch_unwind(AssertUnwindSafe(|| {
            let said = |error: ort::Error| invalid(entrypoint, dir, error.message());
            let builder = OrtSession::builder(&library.environment).map_err(said)?;
            let builder = settings.apply(builder, library.has_shared_threads).map_err(said)?;
            let builder = self.with_operators(builder)?;
            let mut builder = match options.device {
                Device::Cpu => builder,
                Device::Cuda(ordinal) => settings.providers.apply(builder, ordinal).map_err(device_fault)?,
            };
            Ok::<_, LoadError>(builder.commit_from_file(dir.join(entrypoint)))
        }));
        match made {
            Ok(Err(error)) => Err(error),
            Ok(Ok(Ok(session))) => Ok(session),
            Ok(Ok(Err(error))) if error.code() == ErrorCode::NotImplemented => {
                Err(LoadError::Unsupported { message: message::without_paths(error.message(), dir) })
            }
            Ok(Ok(Err(error))) => Err(invalid(entrypoint, dir, error.message())),
            // `ort` panics where the library tells a type that it has no name for.
            Err(_) => Err(LoadError::Unsupported {
                message: "an input or output of the model has a type that can't be served, expected tensors".to_owned(),
            }),
        }
    }

    /// Adds the custom operators.
    fn with_operators(&self, mut builder: SessionBuilder) -> Result<SessionBuilder, LoadError> {
        for path in &self.config.operator_libraries {
            builder = builder.with_operator_library(path).map_err(|error| LoadError::Unavailable {
                message: format!("the operator library {} can't be used: {}", path.display(), error.message()),
                hint: "onnxruntime.operator_libraries names it".to_owned(),
            })?;
        }
        Ok(builder)
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

    fn check_device(&self, device: Device) -> Result<(), LoadError> {
        let library = self.library()?;
        if device == Device::Cpu || providers::has_cuda() {
            return Ok(());
        }
        let message = format!(
            "onnx runtime {} at {} was built without CUDA; onnxruntime.library sets another one",
            library.version,
            library.path.display()
        );
        Err(LoadError::Device { device, message })
    }

    fn is_for_gpus(&self, key: &str, value: &str) -> bool {
        providers::is_for_gpus(key) || settings::is_for_gpus(key, value)
    }

    /// What loading takes at its peak: twice the files that the model reads, its external weights among them, and 1 MiB. A loaded
    /// session's own footprint counts them once.
    fn estimate(&self, dir: &Path, options: &LoadOptions) -> Result<Footprint, LoadError> {
        let file_bytes = files::total_bytes(dir, &options.entrypoint)?;
        Ok(footprint(file_bytes, LOADING_BYTES_PER_FILE_BYTE, options.device))
    }

    fn load(&self, dir: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, LoadError> {
        let settings = Settings::new(options)?;
        self.check_device(options.device)?;
        let file_bytes = files::total_bytes(dir, &options.entrypoint)?;
        let library = self.library()?;
        let session = self.commit(library, &settings, dir, options)?;
        let warning = judged(&session, &settings, options.device)?;
        let model = signature::read(&session, options.declared.as_ref())?;
        let signature = match &options.declared {
            None => model,
            Some(declared) => model
                .narrowed_by(declared)
                .map_err(|source| LoadError::Signature { entrypoint: options.entrypoint.clone(), source })?,
        };
        let footprint = footprint(file_bytes, LOADED_BYTES_PER_FILE_BYTE, options.device);
        let about = About { signature, footprint, device: options.device, warning };
        let session =
            OnnxSession::new(session, about, &settings).map_err(|error| invalid(&options.entrypoint, dir, error.message()))?;
        Ok(Box::new(session))
    }
}

/// What is to be said of the nodes that did not go to the device, where that is allowed.
fn judged(session: &OrtSession, settings: &Settings, device: Device) -> Result<Option<String>, LoadError> {
    if device == Device::Cpu {
        return Ok(None);
    }
    let assigned = Assigned::of(session).map_err(|error| error.message().to_owned());
    let judged = assigned.and_then(|assigned| settings.providers.judge(&assigned));
    judged.map_err(|message| LoadError::Device { device, message })
}

fn footprint(file_bytes: u64, factor: u64, device: Device) -> Footprint {
    let host_bytes = file_bytes.saturating_mul(factor).saturating_add(BYTES_PER_SESSION);
    let device_bytes = match device {
        Device::Cpu => 0,
        // The weights go there from main memory.
        Device::Cuda(_) => file_bytes.saturating_add(BYTES_PER_SESSION),
    };
    Footprint { host_bytes, device_bytes, measured: false }
}

fn invalid(entrypoint: &Path, dir: &Path, said: &str) -> LoadError {
    LoadError::InvalidModel { entrypoint: entrypoint.to_owned(), message: message::without_paths(said, dir) }
}
