//! The signature of a model that is to be published, read by the runtime that will serve it, out of the files that are published.

use std::path::Path;

use anyhow::Context as _;
use bascule_runtime_api::Signature;

use super::files::Chosen;
use crate::cli::failure::Failure;
use crate::cli::trial::{Subject, bare};
use crate::compose::{self, Libraries};
use crate::config::{Config, TrialMode, declared_signature};
use crate::trial::{self, Unread};

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

/// Has the model at `path`, a file or a folder, loaded under its declaration, and asks for its signature. That happens in a process of its
/// own: whatever the model does, it does not take this one with it.
///
/// A single file is loaded on its own: what lies beside it is not published.
pub(super) fn read(config: &Config, path: &Path, chosen: &Chosen, subject: &Subject<'_>) -> Result<Signature, Unread> {
    // Opens no library. Without a runtime no process is needed to say so.
    let runtimes = compose::runtimes(config);
    if !runtimes.iter().any(|runtime| runtime.format() == chosen.format) {
        return Err(format!("this program has no runtime for {}", chosen.format).into());
    }
    let bare = bare(config, path, chosen, subject).map_err(|failure| failure.summary())?;
    match config.trial.mode {
        TrialMode::Off => trial::signature_here(&runtimes, &bare.job),
        TrialMode::Process => trial::signature_once(&bare.job, &Libraries::of(config), bare.limits),
    }
}

#[cfg(test)]
mod tests {
    use bascule_onnx_writer::Graph;
    use bascule_runtime_api::DataType;

    use super::super::files::choose;
    use super::*;
    use crate::config::env::Environment;
    use crate::config::{Given, load};

    fn model() -> Vec<u8> {
        let graph = Graph::new().input("x", DataType::Fp32, &[-1, 2]).output("y", DataType::Fp32, &[-1, 2]);
        graph.weights_elsewhere("w", DataType::Fp32, &[2], "model.onnx.data", 8).node("Add", &["x", "w"], &["y"]).build().bytes
    }

    #[test]
    fn weights_that_are_not_published_are_missed_although_they_lie_beside_the_file() {
        // The program that a process of its own would run is this test.
        let given = Given { sets: vec!["trial.mode=off".to_owned()], ..Given::default() };
        let config = load(&given, &Environment::default()).unwrap().config;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.onnx");
        std::fs::write(&file, model()).unwrap();
        std::fs::write(folder.path().join("model.onnx.data"), [0; 8]).unwrap();
        let read = |path: &Path| {
            let chosen = choose(path, Some("model.onnx"), None, None).unwrap();
            read(&config, path, &chosen, &Subject::at(path, None))
        };
        let lacks = |path: &Path| match read(path) {
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
