//! `MLmodel`: which flavors a version has, and its signature.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::tensors;
use crate::name::{check_file_path, quoted};

/// The file's name.
pub(super) const FILE: &str = "MLmodel";
/// The largest that is read.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// How to get a TorchScript model into MLflow.
const EXPORT: &str =
    "log the result of torch.jit.script or torch.jit.trace with serialization_format=\"pickle\", which keeps it as TorchScript";

/// What of a version is served.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Served {
    pub(super) flavor: Flavor,
    /// Ours, as a manifest has it.
    pub(super) signature: Option<Value>,
}

/// A flavor that has a runtime here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flavor {
    /// The model file.
    Onnx { file: String },
    /// The folder with the model file, or that file.
    Torch { data: String },
}

#[derive(Deserialize)]
struct Mlmodel {
    #[serde(default)]
    flavors: BTreeMap<String, Parts>,
    #[serde(default)]
    signature: Option<Signature>,
}

/// Of a flavor, as far as it matters here; other flavors may have anything there.
#[derive(Default, Deserialize)]
struct Parts {
    #[serde(default)]
    data: Option<Value>,
    #[serde(default)]
    model_data: Option<Value>,
}

#[derive(Deserialize)]
struct Signature {
    /// JSON.
    #[serde(default)]
    inputs: Option<String>,
    #[serde(default)]
    outputs: Option<String>,
}

/// Reads the file. A problem is the end of a sentence that begins with the version.
pub(super) fn parse(bytes: &[u8]) -> Result<Served, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("has a file {FILE} that is not UTF-8"))?;
    let mlmodel: Mlmodel = serde_saphyr::from_str(text).map_err(|error| {
        // Only the first line: the others quote the file.
        let said = error.to_string();
        format!("has a file {FILE} that can't be read: {}", quoted(said.lines().next().unwrap_or_default()))
    })?;
    let flavor = flavor(&mlmodel.flavors)?;
    let signature = mlmodel.signature.unwrap_or(Signature { inputs: None, outputs: None });
    let read = tensors::signature(signature.inputs.as_deref(), signature.outputs.as_deref());
    let signature = match (read, &flavor) {
        (Ok(signature), Flavor::Onnx { .. }) => signature.filter(tensors::is_named),
        // The file tells.
        (Err(_), Flavor::Onnx { .. }) => None,
        (Ok(Some(signature)), Flavor::Torch { .. }) => Some(tensors::named(signature)),
        (Ok(None), Flavor::Torch { .. }) => {
            return Err(
                "is a TorchScript model without a signature in MLmodel: log it with one of tensors, inputs and outputs both".into(),
            );
        }
        (Err(problem), Flavor::Torch { .. }) => return Err(format!("is a TorchScript model, and {problem}")),
    };
    Ok(Served { flavor, signature })
}

fn flavor(flavors: &BTreeMap<String, Parts>) -> Result<Flavor, String> {
    let path = |field: &str, value: Option<&Value>| {
        let path = value.and_then(Value::as_str).filter(|path| check_file_path(path).is_ok()).map(str::to_owned);
        path.ok_or_else(|| format!("has no path of a file in {FILE} at flavors.{field}"))
    };
    if let Some(onnx) = flavors.get("onnx") {
        return Ok(Flavor::Onnx { file: path("onnx.data", onnx.data.as_ref())? });
    }
    if let Some(torch) = flavors.get("pytorch") {
        return Ok(Flavor::Torch { data: path("pytorch.model_data", torch.model_data.as_ref())? });
    }
    let names: Vec<&str> = flavors.keys().map(String::as_str).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(format!("has no flavor that can be served, which are onnx and pytorch; it has {}", quoted(&names)))
}

/// The model file of a PyTorch flavor, among the version's files.
pub(super) fn torch_file<'a>(data: &str, paths: impl Iterator<Item = &'a str> + Clone) -> Result<&'a str, String> {
    let find = |ending: &str| {
        paths.clone().find(|path| {
            let inside = path.strip_prefix(data).and_then(|rest| rest.strip_prefix('/'));
            (*path == data || inside.is_some_and(|name| !name.contains('/'))) && path.ends_with(ending)
        })
    };
    if let Some(file) = find(".pth").or_else(|| find(".pt")) {
        return Ok(file);
    }
    if find(".pt2").is_some() {
        return Err(format!("is a program of torch.export, which has no runtime here: {EXPORT}"));
    }
    Err(format!("has no file .pth or .pt in {}, where flavors.pytorch.model_data points", quoted(data)))
}

/// How much of a model file's end tells whether it is TorchScript.
pub(super) const TAIL_BYTES: u64 = 64 << 10;

/// Whether the end of a file is that of a TorchScript archive: its directory, which is at the end, names the constants of the program.
/// What torch.save writes has none.
pub(super) fn check_torchscript(tail: &[u8]) -> Result<(), String> {
    let has = |wanted: &[u8]| tail.windows(wanted.len()).any(|window| window == wanted);
    if has(b"constants.pkl") {
        return Ok(());
    }
    Err(format!("has a pickled PyTorch model, which is Python and no program of its own: {EXPORT}"))
}
