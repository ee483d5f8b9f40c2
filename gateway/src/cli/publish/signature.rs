//! The signature of a model that is to be published, read by the runtime that will serve it, out of the files that are published.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_runtime_api::{LoadError, LoadOptions, Signature};

use crate::cli::failure::Failure;
use crate::compose;
use crate::config::{Config, declared_signature};

/// Why a model has no signature.
#[derive(Debug)]
pub(super) enum Unread {
    /// It can't be read here; whoever serves it may be able to.
    Reason(String),
    /// The model needs a file that is not published with it: nobody could serve it.
    Lacks(PathBuf),
}

impl From<String> for Unread {
    fn from(reason: String) -> Unread {
        Unread::Reason(reason)
    }
}

/// The signature in a file: JSON, or a `model.toml`.
pub(super) fn declared(file: &Path) -> Result<Signature, Failure> {
    let text = std::fs::read_to_string(file).with_context(|| format!("--signature: can't read {}", file.display()))?;
    if file.extension().is_some_and(|extension| extension == "json") {
        let read = serde_json::from_str(&text);
        return Ok(read.with_context(|| format!("--signature: {} is no signature", file.display()))?);
    }
    let wrong = |problem: String| Failure::new(format!("--signature: {}: {problem}", file.display()));
    declared_signature(&text).map_err(wrong)?.ok_or_else(|| {
        wrong("it has no [signature]".to_owned())
            .hint("[signature] inputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }], and outputs likewise")
    })
}

/// Loads the model at `path`, a file or a folder, under this declaration, and asks for its signature. Has to run before the program starts threads.
///
/// A single file is loaded on its own: what lies beside it is not published.
pub(super) fn read(
    config: &Config,
    path: &Path,
    entrypoint: &str,
    format: &str,
    declared: Option<Signature>,
) -> Result<Signature, Unread> {
    let runtimes = compose::runtimes(config);
    let runtime =
        runtimes.iter().find(|runtime| runtime.format() == format).ok_or(format!("this program has no runtime for {format}"))?;
    let (folder, _alone) = match path.is_dir() {
        true => (path.to_owned(), None),
        false => {
            let alone = super::files::alone(path, &[(entrypoint.to_owned(), path.to_owned())])
                .map_err(|error| format!("can't put {entrypoint} aside: {error}"))?;
            (alone.path().to_owned(), Some(alone))
        }
    };
    let options = LoadOptions { entrypoint: entrypoint.into(), intra_op_threads: 1, declared, ..LoadOptions::default() };
    // Needs no library, and reads which files belong to the model.
    runtime.estimate(&folder, &options).map_err(|error| unread(error, entrypoint))?;
    let session = runtime.load(&folder, &options).map_err(|error| unread(error, entrypoint))?;
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

#[cfg(test)]
mod tests {
    use bascule_onnx_writer::Graph;
    use bascule_runtime_api::DataType;

    use super::*;
    use crate::config::env::Environment;
    use crate::config::{Given, load};

    fn model() -> Vec<u8> {
        let graph = Graph::new().input("x", DataType::Fp32, &[-1, 2]).output("y", DataType::Fp32, &[-1, 2]);
        graph.weights_elsewhere("w", DataType::Fp32, &[2], "model.onnx.data", 8).node("Add", &["x", "w"], &["y"]).build().bytes
    }

    #[test]
    fn weights_that_are_not_published_are_missed_although_they_lie_beside_the_file() {
        let config = load(&Given::default(), &Environment::default()).unwrap().config;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.onnx");
        std::fs::write(&file, model()).unwrap();
        std::fs::write(folder.path().join("model.onnx.data"), [0; 8]).unwrap();
        let lacks = |path: &Path| match read(&config, path, "model.onnx", "onnx", None) {
            Err(Unread::Lacks(missing)) => Some(missing),
            // Where the library is not there the signature stays unread; nothing is missed.
            Ok(_) | Err(Unread::Reason(_)) => None,
        };
        assert_eq!(lacks(&file), Some("model.onnx.data".into()));
        assert_eq!(lacks(folder.path()), None);
        std::fs::remove_file(folder.path().join("model.onnx.data")).unwrap();
        assert_eq!(lacks(folder.path()), Some("model.onnx.data".into()));
    }
}
