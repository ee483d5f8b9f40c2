//! A request against a signature: names, datatypes, shapes and batch size. What passes can be queued.

use bascule_runtime_api::{Tensor, TensorSpec};
use smallvec::SmallVec;

use crate::batch::Inputs;
use crate::servable::find;
use crate::{InferError, InferRequest, Servable};

/// What the sizes of a tensor without elements may multiply to, those that are 0 left out.
const MAX_EMPTY_SIZES: i64 = 1 << 20;

/// A request that fits.
#[derive(Debug)]
pub(crate) struct Checked {
    /// In the order of the signature.
    pub(crate) inputs: Inputs,
    /// Rows of the batch axis; 1 where there is none.
    pub(crate) rows: u32,
    /// Places in the signature, in the order asked for, each once.
    pub(crate) outputs: SmallVec<[usize; 4]>,
}

/// Checks a request and puts its inputs in order. The request keeps its tensors, which share their bytes: another version may have to
/// be asked.
pub(crate) fn check(servable: &Servable, request: &InferRequest) -> Result<Checked, InferError> {
    let inputs = order_inputs(servable, request)?;
    let rows = rows_of(servable, &inputs)?;
    let outputs = find_outputs(servable, request)?;
    Ok(Checked { inputs, rows, outputs })
}

fn order_inputs(servable: &Servable, request: &InferRequest) -> Result<Inputs, InferError> {
    let specs = &servable.signature().inputs;
    let model = servable.model();
    for (index, named) in request.inputs.iter().enumerate() {
        let Some((_, spec)) = find(specs, &named.name) else {
            let name = &named.name;
            return Err(InferError::invalid(format!("unexpected input '{name}' for model '{model}'; expected {}", names(specs))));
        };
        if request.inputs[..index].iter().any(|before| before.name == named.name) {
            return Err(InferError::invalid(format!("input '{}' is given twice", named.name)));
        }
        check_tensor(servable, spec, &named.tensor)?;
    }
    specs
        .iter()
        .map(|spec| {
            let named = request.inputs.iter().find(|named| named.name == spec.name);
            named.map(|named| without_units(servable, spec, &named.tensor)).ok_or_else(|| {
                InferError::invalid(format!("input '{}' of model '{model}' is missing; expected {}", spec.name, names(specs)))
            })
        })
        .collect()
}

fn names(specs: &[TensorSpec]) -> String {
    specs.iter().map(|spec| format!("'{}'", spec.name)).collect::<Vec<_>>().join(", ")
}

fn check_tensor(servable: &Servable, spec: &TensorSpec, tensor: &Tensor) -> Result<(), InferError> {
    let name = &spec.name;
    if tensor.datatype() != spec.datatype {
        let (expected, got) = (spec.datatype, tensor.datatype());
        return Err(InferError::invalid(format!("input '{name}': expected datatype {expected}, got {got}")));
    }
    let fits = if is_scalar_batch(servable, spec, tensor) {
        true
    } else if servable.is_batched() {
        // The leading axis is the batch: its size is looked at by `rows_of`.
        let mut inner = spec.shape.iter().zip(tensor.shape()).skip(1);
        tensor.shape().len() == spec.shape.len() && inner.all(|(want, got)| *want < 0 || want == got)
    } else {
        spec.accepts(tensor.shape())
    };
    if fits {
        return check_empty(name, tensor);
    }
    let note = if servable.is_batched() { ", where the first dimension is the batch" } else { "" };
    let expected = show_shape(&spec.shape, servable.is_batched());
    let got = show_shape(tensor.shape(), false);
    Err(InferError::invalid(format!("input '{name}': expected shape {expected}{note}, got {got}")))
}

/// A tensor without elements may have any sizes beside its 0, at no cost to its sender. A model may answer with as many elements.
fn check_empty(name: &str, tensor: &Tensor) -> Result<(), InferError> {
    if !tensor.shape().contains(&0) {
        return Ok(());
    }
    let sizes = tensor.shape().iter().filter(|dim| **dim != 0).fold(1i64, |product, dim| product.saturating_mul(*dim));
    if sizes <= MAX_EMPTY_SIZES {
        return Ok(());
    }
    let got = show_shape(tensor.shape(), false);
    Err(InferError::invalid(format!(
        "input '{name}': expected sizes of a product of at most {MAX_EMPTY_SIZES} beside the 0 of an empty tensor, got shape {got}"
    )))
}

/// Whether rows of one number each came as `[N, 1]`. Triton completes such a model's configuration so that its clients send it thus;
/// the metadata here says `[N]`, which is the model's own shape, and both are taken.
fn is_scalar_batch(servable: &Servable, spec: &TensorSpec, tensor: &Tensor) -> bool {
    servable.is_batched() && spec.shape.len() == 1 && matches!(tensor.shape(), [_, 1])
}

/// The tensor in the rank of its spec.
fn without_units(servable: &Servable, spec: &TensorSpec, tensor: &Tensor) -> Tensor {
    if is_scalar_batch(servable, spec, tensor)
        && let Ok(flat) = Tensor::new(tensor.datatype(), &tensor.shape()[..1], tensor.bytes().clone())
    {
        return flat;
    }
    tensor.clone()
}

fn show_shape(shape: &[i64], batched: bool) -> String {
    let dims = shape.iter().enumerate().map(|(axis, dim)| if batched && axis == 0 { "-1".to_owned() } else { dim.to_string() });
    format!("[{}]", dims.collect::<Vec<_>>().join(","))
}

fn rows_of(servable: &Servable, inputs: &Inputs) -> Result<u32, InferError> {
    if !servable.is_batched() {
        return Ok(1);
    }
    let specs = &servable.signature().inputs;
    let mut found: Option<(usize, i64)> = None;
    for (index, tensor) in inputs.iter().enumerate() {
        let rows = tensor.shape().first().copied().unwrap_or(1);
        match found {
            Some((first, expected)) if expected != rows => {
                let (first, name) = (&specs[first].name, &specs[index].name);
                return Err(InferError::invalid(format!(
                    "input '{name}': expected a batch of {expected} as in input '{first}', got {rows}"
                )));
            }
            Some(_) => {}
            None => found = Some((index, rows)),
        }
    }
    let rows = found.map_or(1, |(_, rows)| rows);
    let rows = u32::try_from(rows).map_err(|_| InferError::invalid(format!("a batch of {rows} is too large")))?;
    match servable.max_request_rows() {
        Some(limit) if rows > limit => {
            Err(InferError::invalid(format!("expected a batch of at most {limit} for model '{}', got {rows}", servable.model())))
        }
        Some(_) if rows == 0 => {
            Err(InferError::invalid(format!("expected a batch of at least 1 for model '{}', got 0", servable.model())))
        }
        _ => Ok(rows),
    }
}

fn find_outputs(servable: &Servable, request: &InferRequest) -> Result<SmallVec<[usize; 4]>, InferError> {
    let specs = &servable.signature().outputs;
    if request.outputs.is_empty() {
        return Ok((0..specs.len()).collect());
    }
    let mut outputs = SmallVec::new();
    for requested in &request.outputs {
        let Some((index, _)) = find(specs, &requested.name) else {
            let (name, model) = (&requested.name, servable.model());
            return Err(InferError::invalid(format!("unexpected output '{name}' for model '{model}'; expected {}", names(specs))));
        };
        if !outputs.contains(&index) {
            outputs.push(index);
        }
    }
    Ok(outputs)
}
