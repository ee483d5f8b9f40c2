//! Runs made before a version takes traffic, so that no caller pays for a runtime's first run.
//!
//! What the settings name has to succeed. Without any, one run with made-up inputs is tried: a model may refuse zeros with good
//! reason, so its failure is only a warning.

mod content;

use std::sync::atomic::AtomicBool;

use bascule_runtime_api::{AlignedBuffer, DataType, RunContext, Session, Tensor, TensorSpec, element_count};

use super::LoadFailure;
use crate::WarmupSample;
use crate::error::with_causes;
use crate::nan::NanOutputs;
use crate::state::FailedStep;

/// Made-up inputs are not larger than this together.
const MAX_GENERATED_BYTES: usize = 256 << 20;

/// Runs the samples, or one of our own; what comes back is worth a warning. No run begins once `is_over` is set. What has NaN is noted.
///
/// # Errors
/// A configured sample failed, or does not fit the signature.
pub(super) fn warm_up(
    session: &mut dyn Session,
    samples: &[WarmupSample],
    is_over: &AtomicBool,
    nan: &mut NanOutputs,
) -> Result<Option<String>, LoadFailure> {
    let context = RunContext { cancelled: Some(is_over), ..RunContext::default() };
    if samples.is_empty() {
        return Ok(generated(session, &context, nan).err().map(|cause| format!("no warm-up: {cause}")));
    }
    for sample in samples {
        let failure = |cause: String| LoadFailure::new(FailedStep::Warming, format!("warm-up '{}': {cause}", sample.name));
        let inputs = ordered(session, sample).map_err(failure)?;
        for _ in 0..sample.count {
            let outputs = session.run(&inputs, &context).map_err(|error| failure(with_causes(&error)))?;
            nan.look(session.signature(), &outputs);
        }
    }
    Ok(None)
}

/// A sample's tensors in the signature's order.
fn ordered(session: &dyn Session, sample: &WarmupSample) -> Result<Vec<Tensor>, String> {
    let specs = &session.signature().inputs;
    if let Some(unknown) = sample.inputs.iter().find(|input| !specs.iter().any(|spec| spec.name == input.name)) {
        let known: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        return Err(format!("the model has no input '{}'; expected {}", unknown.name, known.join(", ")));
    }
    let find = |spec: &TensorSpec| sample.inputs.iter().find(|input| input.name == spec.name);
    let tensors = specs.iter().map(|spec| {
        let input = find(spec).ok_or_else(|| format!("input '{}' of the model is missing", spec.name))?;
        content::tensor(input).map_err(|problem| format!("input '{}': {problem}", spec.name))
    });
    tensors.collect()
}

/// One run of zeros and empty strings.
fn generated(session: &mut dyn Session, context: &RunContext<'_>, nan: &mut NanOutputs) -> Result<(), String> {
    let inputs = made_up(session, 1)?;
    let outputs = session.run(&inputs, context).map_err(|error| format!("a run with zeros failed: {}", with_causes(&error)))?;
    nan.look(session.signature(), &outputs);
    Ok(())
}

/// Zeros and empty strings for so many rows; every other open dimension is 1.
pub(crate) fn made_up(session: &dyn Session, rows: usize) -> Result<Vec<Tensor>, String> {
    let mut budget = MAX_GENERATED_BYTES;
    let rows = session.signature().batch_axis.map(|_| i64::try_from(rows).unwrap_or(i64::MAX));
    session.signature().inputs.iter().map(|spec| zeros(spec, rows, &mut budget)).collect()
}

fn zeros(spec: &TensorSpec, rows: Option<i64>, budget: &mut usize) -> Result<Tensor, String> {
    let mut shape: Vec<i64> = spec.shape.iter().map(|dim| if *dim < 0 { 1 } else { *dim }).collect();
    if let (Some(first), Some(rows)) = (shape.first_mut(), rows) {
        *first = rows;
    }
    let too_large = || format!("input '{}' of shape {shape:?} is too large to make up", spec.name);
    let count = element_count(&shape).ok_or_else(too_large)?;
    // An empty string is its length alone.
    let bytes =
        spec.datatype.element_bytes().unwrap_or(4).checked_mul(count).filter(|bytes| *bytes <= *budget).ok_or_else(too_large)?;
    *budget -= bytes;
    let tensor = match spec.datatype {
        DataType::Bytes => Tensor::from_byte_strings(&shape, &vec![[0_u8; 0]; count]),
        datatype => Tensor::new(datatype, &shape, AlignedBuffer::zeroed(bytes).into_bytes()),
    };
    tensor.map_err(|error| error.to_string())
}
