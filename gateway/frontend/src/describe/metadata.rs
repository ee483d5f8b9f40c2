//! Who the server is, and what a model takes and gives.

use bascule_runtime_api::TensorSpec;
use bascule_serving::{InferError, Route, Servable};
use serde::Serialize;

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

/// What a model takes and gives: by the version that is asked for, else by the stable one.
///
/// # Errors
/// Where that version does not answer.
pub fn model_metadata(route: &Route, version: Option<u64>) -> Result<ModelMetadata, InferError> {
    let servable = super::chosen(route, version)?;
    let versions = match version {
        None => route.versions().iter().map(|servable| servable.version().to_string()).collect(),
        Some(version) => vec![version.to_string()],
    };
    let side = |specs: &[TensorSpec]| specs.iter().map(|spec| tensor(servable, spec)).collect();
    Ok(ModelMetadata {
        name: servable.model().to_owned(),
        versions,
        platform: platform(servable.spec().runtime).to_owned(),
        inputs: side(&servable.signature().inputs),
        outputs: side(&servable.signature().outputs),
    })
}

fn tensor(servable: &Servable, spec: &TensorSpec) -> TensorMetadata {
    let mut shape = spec.shape.clone();
    if let Some(batch) = shape.first_mut().filter(|_| servable.is_batched()) {
        *batch = -1;
    }
    TensorMetadata { name: spec.name.clone(), datatype: spec.datatype.name(), shape }
}

/// What clients know a runtime's models by.
pub(super) fn platform(runtime: &'static str) -> &'static str {
    match runtime {
        "onnxruntime" => "onnxruntime_onnx",
        "torch" => "pytorch_libtorch",
        other => other,
    }
}
