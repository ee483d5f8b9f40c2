//! Who the server is, and what a model takes and gives.

use std::time::Instant;

use bascule_registry::ListedModel;
use bascule_runtime_api::{Signature, TensorSpec};
use bascule_serving::{InferError, Route, Serving};
use serde::Serialize;

/// Triton's settings beside a model.
const TRITON_CONFIG: &str = "config.pbtxt";

/// The parts of the protocol that are served beyond its core.
const EXTENSIONS: [&str; 6] =
    ["classification", "model_repository", "schedule_policy", "model_configuration", "binary_tensor_data", "statistics"];

/// The answer to "who are you".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerMetadata {
    /// `bascule`.
    pub name: &'static str,
    /// The program's version.
    pub version: &'static str,
    /// Names of the protocol's extensions.
    pub extensions: &'static [&'static str],
}

/// Who the server is.
pub const fn server_metadata() -> ServerMetadata {
    ServerMetadata { name: "bascule", version: env!("CARGO_PKG_VERSION"), extensions: &EXTENSIONS }
}

/// What a model takes and gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelMetadata {
    /// The model.
    pub name: String,
    /// The versions that answer, ascending; only the one that was asked for where one was.
    pub versions: Vec<String>,
    /// The model's format and what runs it.
    pub platform: String,
    /// In the model's order.
    pub inputs: Vec<TensorMetadata>,
    /// In the model's order.
    pub outputs: Vec<TensorMetadata>,
}

/// One input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorMetadata {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub datatype: &'static str,
    /// The whole shape; −1 stands for any size, and for the batch.
    pub shape: Vec<i64>,
}

/// What a model takes and gives: by the version that is asked for, else by the stable one. Of a model that sleeps the manifests tell it;
/// where they don't it is loaded.
///
/// # Errors
/// Where that version does not answer.
pub async fn metadata(
    serving: &Serving,
    model: &str,
    version: Option<u64>,
    deadline: Option<Instant>,
) -> Result<ModelMetadata, InferError> {
    let sleeps = serving.router().table().route(model).is_some_and(|route| route.standing.loads_on_request());
    let declared = serving.listed(model).filter(|_| sleeps).and_then(|listed| declared(&listed, version));
    if let Some(declared) = declared {
        return Ok(declared);
    }
    let route = super::described(serving, model, deadline).await?;
    model_metadata(&route, version)
}

/// What the manifests of a model say; `None` where they say nothing. Which version would answer is not known before one is loaded, so
/// where none is asked for, all must say the same.
fn declared(listed: &ListedModel, version: Option<u64>) -> Option<ModelMetadata> {
    // It may reshape what the manifests say: only a loaded version tells.
    if listed.settings.contains_key(TRITON_CONFIG) {
        return None;
    }
    let there = listed.versions.values().filter(|generation| !generation.tombstoned);
    let asked = there.filter(|generation| version.is_none_or(|version| generation.key.version == version));
    let mut manifests = asked.map(|generation| &generation.manifest);
    let first = manifests.next()?;
    if manifests.any(|other| other.signature != first.signature || other.format != first.format) {
        return None;
    }
    let signature: Signature = serde_json::from_value(first.signature.clone()?).ok()?;
    let batched = signature.batch_axis.is_some();
    let side = |specs: &[TensorSpec]| specs.iter().map(|spec| tensor(batched, spec)).collect();
    Some(ModelMetadata {
        name: listed.name.to_string(),
        // None answers before it is loaded.
        versions: version.iter().map(u64::to_string).collect(),
        platform: platform(runtime_of(&first.format)).to_owned(),
        inputs: side(&signature.inputs),
        outputs: side(&signature.outputs),
    })
}

pub(super) fn model_metadata(route: &Route, version: Option<u64>) -> Result<ModelMetadata, InferError> {
    let servable = super::chosen(route, version)?;
    let versions = match version {
        None => route.versions().iter().map(|servable| servable.version().to_string()).collect(),
        Some(version) => vec![version.to_string()],
    };
    let side = |specs: &[TensorSpec]| specs.iter().map(|spec| tensor(servable.is_batched(), spec)).collect();
    Ok(ModelMetadata {
        name: servable.model().to_owned(),
        versions,
        platform: platform(servable.spec().runtime).to_owned(),
        inputs: side(&servable.signature().inputs),
        outputs: side(&servable.signature().outputs),
    })
}

fn tensor(batched: bool, spec: &TensorSpec) -> TensorMetadata {
    let mut shape = spec.shape.clone();
    if let Some(batch) = shape.first_mut().filter(|_| batched) {
        *batch = -1;
    }
    TensorMetadata { name: spec.name.clone(), datatype: spec.datatype.name(), shape }
}

/// The runtime of a format, as versions that are loaded name it.
fn runtime_of(format: &str) -> &str {
    match format {
        "onnx" => "onnxruntime",
        "torchscript" => "torch",
        other => other,
    }
}

/// What clients know a runtime's models by.
pub(super) fn platform(runtime: &str) -> &str {
    match runtime {
        "onnxruntime" => "onnxruntime_onnx",
        "torch" => "pytorch_libtorch",
        other => other,
    }
}
