//! Signatures of MLflow as ours.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::name::quoted;

/// Tensors of one side. More is no signature that somebody wrote.
const MAX_TENSORS: usize = 1_000;

#[derive(Deserialize)]
struct Column {
    #[serde(rename = "type")]
    kind: Value,
    name: Option<String>,
    #[serde(rename = "tensor-spec")]
    tensor: Option<Tensor>,
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<i64>,
}

/// Our signature; `None` where there is none, or none of the outputs. Tensors without a name have an empty one.
pub(super) fn signature(inputs: Option<&str>, outputs: Option<&str>) -> Result<Option<Value>, String> {
    let side = |name: &str, text: Option<&str>| text.map(|text| side(name, text)).transpose();
    let (inputs, outputs) = (side("inputs", inputs)?, side("outputs", outputs)?);
    let (Some(inputs), Some(outputs)) = (inputs, outputs) else { return Ok(None) };
    let is_open = |spec: &Value| spec["shape"][0].as_i64().is_some_and(|size| size < 0);
    // What is open at the front everywhere is the batch.
    let batch_axis = (!inputs.is_empty() && inputs.iter().chain(&outputs).all(is_open)).then_some(0);
    Ok(Some(json!({ "inputs": inputs, "outputs": outputs, "batch_axis": batch_axis })))
}

fn side(name: &str, text: &str) -> Result<Vec<Value>, String> {
    let columns: Vec<Column> =
        serde_json::from_str(text).map_err(|error| format!("its signature.{name} in MLmodel can't be read: {error}"))?;
    if columns.is_empty() || columns.len() > MAX_TENSORS {
        return Err(format!("its signature.{name} in MLmodel has {} tensors, expected 1 to {MAX_TENSORS}", columns.len()));
    }
    columns.into_iter().map(|column| spec(name, column)).collect()
}

fn spec(side: &str, column: Column) -> Result<Value, String> {
    let name = column.name.unwrap_or_default();
    let wrong = |problem: String| format!("its signature.{side} in MLmodel has {} {problem}", quoted(&name));
    let Some(tensor) = column.tensor.filter(|_| column.kind == "tensor") else {
        return Err(wrong("as a column of a table, expected a tensor with dtype and shape".into()));
    };
    let datatype =
        datatype(&tensor.dtype).ok_or_else(|| wrong(format!("with dtype {}, which is not known", quoted(&tensor.dtype))))?;
    if tensor.shape.iter().any(|size| *size < -1) {
        return Err(wrong(format!("with shape {:?}", tensor.shape)));
    }
    Ok(json!({ "name": name, "datatype": datatype, "shape": tensor.shape }))
}

/// The protocol's name for a type of NumPy's.
fn datatype(dtype: &str) -> Option<&'static str> {
    Some(match dtype {
        "bool" => "BOOL",
        "int8" => "INT8",
        "int16" => "INT16",
        "int32" => "INT32",
        "int64" => "INT64",
        "uint8" => "UINT8",
        "uint16" => "UINT16",
        "uint32" => "UINT32",
        "uint64" => "UINT64",
        "float16" => "FP16",
        "float32" => "FP32",
        "float64" => "FP64",
        "str" | "bytes" | "object" => "BYTES",
        _ => return None,
    })
}

fn sides(signature: &mut Value) -> impl Iterator<Item = (&'static str, usize, &mut Value)> {
    let sides = signature.as_object_mut().into_iter().flat_map(|signature| signature.iter_mut());
    let sides = sides.filter_map(|(side, specs)| match side.as_str() {
        "inputs" => Some(("input", specs)),
        "outputs" => Some(("output", specs)),
        _ => None,
    });
    sides.flat_map(|(side, specs)| specs.as_array_mut().into_iter().flatten().enumerate().map(move |(at, spec)| (side, at, spec)))
}

/// Whether every tensor has a name, as it has to where the model file has names of its own.
pub(super) fn is_named(signature: &Value) -> bool {
    sides(&mut signature.clone()).all(|(_, _, spec)| spec["name"] != "")
}

/// The same with a name for each tensor: where MLmodel has none, that which says its place, as Triton has it for PyTorch.
pub(super) fn named(mut signature: Value) -> Value {
    for (side, at, spec) in sides(&mut signature) {
        if spec["name"] == "" {
            spec["name"] = json!(format!("{}__{at}", side.to_uppercase()));
        }
    }
    signature
}
