//! A runtime for tests: it computes almost nothing, takes as long as its model says, fails when it says so, and records what was
//! done to it and by which thread.
//!
//! The model file is JSON, described by [`FakeModel`]. Time is spent waiting, never computing, and every wait ends at once when the
//! run is interrupted. What happened is read from [`FakeLog`], which also opens the gate that models with `block` wait at.
//!
//! Deliberately absent: anything that a server would want in earnest.

#![warn(missing_docs)]

mod log;
mod model;
mod ops;
mod session;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bascule_runtime_api::{Device, Footprint, LoadError, LoadOptions, Runtime, Session};

pub use self::log::{FakeCounts, FakeLog, SessionEvent};
pub use self::model::{FakeModel, FakeOp};
use self::session::FakeSession;

/// Settings that begin with this are for sessions on GPUs, and refused on the processor.
const OF_GPUS: &str = "gpu.";

/// Loads models of the format `fake`. Clones share one log.
#[derive(Debug, Clone, Default)]
pub struct FakeRuntime {
    log: Arc<FakeLog>,
    gpus: u32,
}

impl FakeRuntime {
    /// A runtime with a log of its own.
    pub fn new() -> FakeRuntime {
        FakeRuntime::default()
    }

    /// The same with so many GPUs, which are as real as everything else here: a session on one takes its memory there, and says so.
    pub fn with_gpus(gpus: u32) -> FakeRuntime {
        FakeRuntime { gpus, ..FakeRuntime::default() }
    }

    /// What was done to this runtime, and the gate of its blocking models.
    pub fn log(&self) -> Arc<FakeLog> {
        Arc::clone(&self.log)
    }
}

impl Runtime for FakeRuntime {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn format(&self) -> &'static str {
        "fake"
    }

    fn version(&self) -> Result<String, LoadError> {
        Ok(env!("CARGO_PKG_VERSION").to_owned())
    }

    fn check_device(&self, device: Device) -> Result<(), LoadError> {
        match device {
            Device::Cuda(ordinal) if ordinal >= self.gpus => {
                Err(LoadError::Device { device, message: format!("the fake runtime has {} of them", self.gpus) })
            }
            Device::Cpu | Device::Cuda(_) => Ok(()),
        }
    }

    fn is_for_gpus(&self, key: &str, _value: &str) -> bool {
        self.gpus > 0 && key.starts_with(OF_GPUS)
    }

    fn estimate(&self, dir: &Path, options: &LoadOptions) -> Result<Footprint, LoadError> {
        let (model, file_bytes) = read(dir, options)?;
        let footprint = model.footprint(options.device);
        Ok(Footprint { host_bytes: footprint.host_bytes.saturating_add(file_bytes), measured: false, ..footprint })
    }

    fn load(&self, dir: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, LoadError> {
        self.check_device(options.device)?;
        let is_known = |key: &str, value: &str| self.is_for_gpus(key, value) && options.device != Device::Cpu;
        if let Some((key, _)) = options.options.iter().find(|(key, value)| !is_known(key, value)) {
            let message = if key.starts_with(OF_GPUS) { "it needs a GPU" } else { "the fake runtime has no settings" };
            return Err(LoadError::option(key, message));
        }
        let (model, _) = read(dir, options)?;
        let invalid = |message| LoadError::InvalidModel { entrypoint: options.entrypoint.clone(), message };
        if let Some(message) = &model.fail_load {
            return Err(invalid(message.clone()));
        }
        let own = model.signature().map_err(invalid)?;
        let signature = match &options.declared {
            None => own,
            Some(declared) => own
                .narrowed_by(declared)
                .map_err(|source| LoadError::Signature { entrypoint: options.entrypoint.clone(), source })?,
        };
        let session = FakeSession::new(model, signature, options.device, Arc::clone(&self.log)).map_err(invalid)?;
        Ok(Box::new(session))
    }
}

/// The model, and its file's size in bytes.
fn read(dir: &Path, options: &LoadOptions) -> Result<(FakeModel, u64), LoadError> {
    let text =
        fs::read(dir.join(&options.entrypoint)).map_err(|source| LoadError::Io { path: options.entrypoint.clone(), source })?;
    let model = serde_json::from_slice(&text)
        .map_err(|error| LoadError::InvalidModel { entrypoint: options.entrypoint.clone(), message: error.to_string() })?;
    Ok((model, text.len() as u64))
}
