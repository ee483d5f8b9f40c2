//! The signature of a version, read by the runtime that will serve it, out of its files and nothing else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bascule_runtime_api::{LoadError, LoadOptions, Runtime, Signature};
use bascule_serving::TrialJob;
use serde::{Deserialize, Serialize};

/// Why a model has no signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unread {
    /// It can't be read here; whoever serves it may be able to.
    Reason(String),
    /// The model needs a file that is not among the version's: nobody could serve it.
    Lacks(PathBuf),
}

impl From<String> for Unread {
    fn from(reason: String) -> Unread {
        Unread::Reason(reason)
    }
}

/// Loads the version under the signature that its manifest declares, whatever its settings are, and asks for its own.
///
/// # Errors
/// It can't be loaded.
pub fn read(runtimes: &[Arc<dyn Runtime>], job: &TrialJob) -> Result<Signature, Unread> {
    let manifest = &job.generation.manifest;
    let (entrypoint, format) = (manifest.entrypoint.as_str(), &manifest.format);
    let runtime =
        runtimes.iter().find(|runtime| runtime.format() == format).ok_or(format!("this program has no runtime for {format}"))?;
    let declared = manifest.signature.clone().map(serde_json::from_value).transpose();
    let declared = declared.map_err(|error| format!("the declared signature can't be read: {error}"))?;
    let options = LoadOptions { entrypoint: entrypoint.into(), intra_op_threads: 1, declared, ..LoadOptions::default() };
    // Needs no library, and reads which files belong to the model.
    runtime.estimate(&job.dir, &options).map_err(|error| unread(error, entrypoint))?;
    let session = runtime.load(&job.dir, &options).map_err(|error| unread(error, entrypoint))?;
    Ok(session.signature().clone())
}

fn unread(error: LoadError, entrypoint: &str) -> Unread {
    match error {
        LoadError::Io { path, source } if source.kind() == io::ErrorKind::NotFound && path != Path::new(entrypoint) => {
            Unread::Lacks(path)
        }
        other => Unread::Reason(other.to_string()),
    }
}
