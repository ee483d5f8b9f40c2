//! What crosses the border as JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Device, Footprint, LoadError, Signature, SignatureError};

/// What a plugin is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The runtime's name.
    pub name: String,
    /// The format that it loads.
    pub format: String,
}

/// A session as its plugin describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// What it takes and gives.
    pub signature: Signature,
    /// Memory that it takes.
    pub footprint: Footprint,
    /// The device that really runs.
    pub device: Device,
    /// What an operator should know of it.
    pub warnings: Vec<String>,
    /// What the log is to say of the load.
    pub remarks: Vec<String>,
}

/// A [`LoadError`] without what can't cross: an error of the system is what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the variant of LoadError of that name")]
pub enum LoadFault {
    Unavailable { message: String, hint: String },
    InvalidModel { entrypoint: PathBuf, message: String },
    Signature { entrypoint: PathBuf, source: SignatureError },
    Unsupported { message: String },
    Device { device: Device, message: String },
    Option { key: String, message: String },
    Io { path: PathBuf, message: String },
}

impl From<LoadError> for LoadFault {
    fn from(error: LoadError) -> LoadFault {
        match error {
            LoadError::Unavailable { message, hint } => LoadFault::Unavailable { message, hint },
            LoadError::InvalidModel { entrypoint, message } => LoadFault::InvalidModel { entrypoint, message },
            LoadError::Signature { entrypoint, source } => LoadFault::Signature { entrypoint, source },
            LoadError::Unsupported { message } => LoadFault::Unsupported { message },
            LoadError::Device { device, message } => LoadFault::Device { device, message },
            LoadError::Option { key, message } => LoadFault::Option { key, message },
            LoadError::Io { path, source } => LoadFault::Io { path, message: source.to_string() },
        }
    }
}

impl From<LoadFault> for LoadError {
    fn from(fault: LoadFault) -> LoadError {
        match fault {
            LoadFault::Unavailable { message, hint } => LoadError::Unavailable { message, hint },
            LoadFault::InvalidModel { entrypoint, message } => LoadError::InvalidModel { entrypoint, message },
            LoadFault::Signature { entrypoint, source } => LoadError::Signature { entrypoint, source },
            LoadFault::Unsupported { message } => LoadError::Unsupported { message },
            LoadFault::Device { device, message } => LoadError::Device { device, message },
            LoadFault::Option { key, message } => LoadError::Option { key, message },
            LoadFault::Io { path, message } => LoadError::Io { path, source: std::io::Error::other(message) },
        }
    }
}
