//! The signature of a model that is to be published, read by the runtime that will serve it.

use std::path::Path;

use bascule_runtime_api::LoadOptions;

use crate::compose;
use crate::config::Config;

/// Loads the model and asks for its signature; why there is none, where there is none. Has to run before the program starts threads.
pub(super) fn read(config: &Config, root: &Path, entrypoint: &str, format: &str) -> Result<serde_json::Value, String> {
    let runtimes = compose::runtimes(config);
    let runtime =
        runtimes.iter().find(|runtime| runtime.format() == format).ok_or(format!("this program has no runtime for {format}"))?;
    let root = if root == Path::new("") { Path::new(".") } else { root };
    let options = LoadOptions { entrypoint: entrypoint.into(), intra_op_threads: 1, ..LoadOptions::default() };
    let session = runtime.load(root, &options).map_err(|error| error.to_string())?;
    serde_json::to_value(session.signature()).map_err(|error| error.to_string())
}
