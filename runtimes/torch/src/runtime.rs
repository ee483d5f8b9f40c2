//! The runtime: what a process has of it, and what happens on a load.

use std::path::Path;
use std::sync::Once;

use bascule_runtime_api::plugin::guest::Open;
use bascule_runtime_api::{Device, Footprint, LoadError, LoadOptions, Runtime, Session};

use crate::archive;
use crate::module::{Module, first_line};
use crate::session::{OnGone, TorchSession};
use crate::settings::{Freeze, Process, Settings};
use crate::signature;

/// Bytes of main memory that a module takes for each byte of its file, while it is loaded and afterwards: parameters are copied out of
/// the file.
const BYTES_PER_FILE_BYTE: u64 = 1;

/// What a module takes however small it is, in bytes.
const BYTES_PER_SESSION: u64 = 2 << 20;

/// The version that the plugin is made for, and that it was linked with.
const VERSION: &str = "2.13.0";

/// Executes models of the format `torchscript`.
pub(crate) struct TorchRuntime;

impl Open for TorchRuntime {
    fn open(settings: &[u8]) -> Result<Box<dyn Runtime>, LoadError> {
        let process: Process = serde_json::from_slice(settings).map_err(|error| LoadError::Option {
            key: "torch".to_owned(),
            message: format!("the gateway sent settings of another version: {error}"),
        })?;
        // A process has one number of threads, and libtorch takes the second one only once.
        static THREADS: Once = Once::new();
        THREADS.call_once(|| {
            tch::set_num_threads(i32::from(process.threads.max(1)));
            tch::set_num_interop_threads(1);
        });
        Ok(Box::new(TorchRuntime))
    }
}

impl Runtime for TorchRuntime {
    fn name(&self) -> &'static str {
        "torch"
    }

    fn format(&self) -> &'static str {
        "torchscript"
    }

    fn version(&self) -> Result<String, LoadError> {
        Ok(VERSION.to_owned())
    }

    fn check_device(&self, device: Device) -> Result<(), LoadError> {
        check_device(device)
    }

    fn estimate(&self, dir: &Path, options: &LoadOptions) -> Result<Footprint, LoadError> {
        archive::check(dir, &options.entrypoint).map(|found| footprint(found.bytes, options.device))
    }

    fn load(&self, dir: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, LoadError> {
        let settings = Settings::new(options)?;
        let found = archive::check(dir, &options.entrypoint)?;
        let placed = signature::place(options, found.forward.as_deref())?;
        self.check_device(options.device)?;
        let invalid = |said: String| LoadError::InvalidModel {
            entrypoint: options.entrypoint.clone(),
            message: first_line(&said).replace(&format!("{}/", dir.display()), ""),
        };
        let module = Module::load(&dir.join(&options.entrypoint), torch_device(options.device)).map_err(invalid)?;
        let (module, remarks) = match settings.freeze {
            Freeze::Off => (module, Vec::new()),
            Freeze::Auto => freeze(module, false),
            Freeze::Optimize => freeze(module, true),
        };
        let footprint = footprint(found.bytes, options.device);
        let (device, on_gone) = (options.device, OnGone(options.device));
        Ok(Box::new(TorchSession { module, placed, device, footprint, settings, remarks, _on_gone: on_gone }))
    }
}

/// The module frozen, or where that can't be done as it is, and why.
fn freeze(module: Module, optimized: bool) -> (Module, Vec<String>) {
    match module.frozen(optimized) {
        Ok(frozen) => (frozen, Vec::new()),
        Err(said) => (module, vec![format!("the module is served as it is, since it can't be frozen: {}", first_line(&said))]),
    }
}

/// Where libtorch is to compute.
pub(crate) fn torch_device(device: Device) -> tch::Device {
    match device {
        Device::Cpu => tch::Device::Cpu,
        Device::Cuda(ordinal) => tch::Device::Cuda(ordinal as usize),
    }
}

/// Whether the device is there. Nothing else is ever taken instead.
fn check_device(device: Device) -> Result<(), LoadError> {
    let Device::Cuda(ordinal) = device else { return Ok(()) };
    let count = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
    if i64::from(ordinal) < count {
        return Ok(());
    }
    let message = match count {
        0 => "libtorch finds no GPU: its CUDA part, a driver or a device is missing".to_owned(),
        count => format!("libtorch finds {count} of them, counted from 0"),
    };
    Err(LoadError::Device { device, message })
}

fn footprint(file_bytes: u64, device: Device) -> Footprint {
    let bytes = file_bytes.saturating_mul(BYTES_PER_FILE_BYTE).saturating_add(BYTES_PER_SESSION);
    match device {
        Device::Cpu => Footprint { host_bytes: bytes, device_bytes: 0, measured: false },
        Device::Cuda(_) => Footprint { host_bytes: bytes, device_bytes: bytes, measured: false },
    }
}
