//! What the operations compute.

use bascule_runtime_api::{AlignedBuffer, DataType, RunError, Shape, Signature, Tensor, TensorError, TensorSpec, element_count};
use bytes::Bytes;
use half::{bf16, f16};

use crate::{FakeModel, FakeOp};

/// Outputs of a model's operation, in the order of `signature.outputs`.
pub(crate) fn compute(model: &FakeModel, signature: &Signature, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
    let answer = |spec: &TensorSpec| match model.op {
        FakeOp::Identity => {
            // A declaration may reorder and drop outputs: the model's own order says which input belongs to an output.
            let position = model.outputs.iter().position(|output| output.name == spec.name);
            let input = position.and_then(|position| input_named(&model.inputs[position].name, signature, inputs));
            input.map_or_else(|| Err(failed(format!("output '{}' has no input", spec.name))), identity)
        }
        FakeOp::Add => sum(spec.datatype, inputs),
        FakeOp::Constant => constant(spec, model.value, inputs),
    };
    signature.outputs.iter().map(answer).collect()
}

fn input_named<'a>(name: &str, signature: &Signature, inputs: &'a [Tensor]) -> Option<&'a Tensor> {
    let position = signature.inputs.iter().position(|spec| spec.name == name)?;
    inputs.get(position)
}

fn failed(message: String) -> RunError {
    RunError::Failed { message }
}

fn made(tensor: Result<Tensor, TensorError>) -> Result<Tensor, RunError> {
    tensor.map_err(|error| failed(error.to_string()))
}

fn identity(input: &Tensor) -> Result<Tensor, RunError> {
    let bytes = match input.datatype() {
        DataType::Bool => input.bytes().iter().map(|byte| u8::from(*byte != 0)).collect(),
        _ if input.is_aligned() => input.bytes().clone(),
        _ => AlignedBuffer::copy_of(input.bytes()).into_bytes(),
    };
    made(Tensor::new(input.datatype(), input.shape(), bytes))
}

fn sum(datatype: DataType, inputs: &[Tensor]) -> Result<Tensor, RunError> {
    macro_rules! sum_as {
        ($rust:ty, $add:expr) => {{
            let mut total: Vec<$rust> = Vec::new();
            for (index, input) in inputs.iter().enumerate() {
                let elements = input.elements::<$rust>().unwrap_or_default();
                if index == 0 {
                    total = elements.into_owned();
                } else {
                    total.iter_mut().zip(elements.iter()).for_each(|(sum, element)| *sum = $add(*sum, *element));
                }
            }
            made(Tensor::from_elements(inputs[0].shape(), &total))
        }};
    }
    if let Some(other) = inputs.iter().find(|input| input.shape() != inputs[0].shape()) {
        let message = format!("inputs of one shape can be added, got {:?} and {:?}", inputs[0].shape(), other.shape());
        return Err(RunError::InvalidInput { message });
    }
    match datatype {
        DataType::Uint8 => sum_as!(u8, u8::wrapping_add),
        DataType::Uint16 => sum_as!(u16, u16::wrapping_add),
        DataType::Uint32 => sum_as!(u32, u32::wrapping_add),
        DataType::Uint64 => sum_as!(u64, u64::wrapping_add),
        DataType::Int8 => sum_as!(i8, i8::wrapping_add),
        DataType::Int16 => sum_as!(i16, i16::wrapping_add),
        DataType::Int32 => sum_as!(i32, i32::wrapping_add),
        DataType::Int64 => sum_as!(i64, i64::wrapping_add),
        DataType::Fp16 => sum_as!(f16, |a: f16, b: f16| a + b),
        DataType::Fp32 => sum_as!(f32, |a: f32, b: f32| a + b),
        DataType::Fp64 => sum_as!(f64, |a: f64, b: f64| a + b),
        DataType::Bf16 => sum_as!(bf16, |a: bf16, b: bf16| a + b),
        DataType::Bool | DataType::Bytes => Err(failed(format!("add can't sum {datatype}"))),
    }
}

fn constant(spec: &TensorSpec, value: f64, inputs: &[Tensor]) -> Result<Tensor, RunError> {
    let mut shape = Shape::from_slice(&spec.shape);
    if let Some(first) = shape.first_mut().filter(|first| **first < 0) {
        *first = inputs.first().and_then(|input| input.shape().first()).copied().unwrap_or_default();
    }
    let Some(count) = element_count(&shape) else {
        return Err(failed(format!("output '{}' of shape {shape:?} is too large", spec.name)));
    };
    if spec.datatype == DataType::Bytes {
        return made(Tensor::from_byte_strings(&shape, &vec![value.to_string(); count]));
    }
    made(Tensor::new(spec.datatype, &shape, repeated(&element(spec.datatype, value), count)))
}

/// One element's bytes.
fn element(datatype: DataType, value: f64) -> Vec<u8> {
    match datatype {
        DataType::Bool => vec![u8::from(value != 0.0)],
        DataType::Uint8 => (value as u8).to_le_bytes().to_vec(),
        DataType::Uint16 => (value as u16).to_le_bytes().to_vec(),
        DataType::Uint32 => (value as u32).to_le_bytes().to_vec(),
        DataType::Uint64 => (value as u64).to_le_bytes().to_vec(),
        DataType::Int8 => (value as i8).to_le_bytes().to_vec(),
        DataType::Int16 => (value as i16).to_le_bytes().to_vec(),
        DataType::Int32 => (value as i32).to_le_bytes().to_vec(),
        DataType::Int64 => (value as i64).to_le_bytes().to_vec(),
        DataType::Fp16 => f16::from_f64(value).to_le_bytes().to_vec(),
        DataType::Fp32 => (value as f32).to_le_bytes().to_vec(),
        DataType::Fp64 => value.to_le_bytes().to_vec(),
        DataType::Bf16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        DataType::Bytes => Vec::new(),
    }
}

fn repeated(element: &[u8], count: usize) -> Bytes {
    let mut buffer = AlignedBuffer::zeroed(element.len() * count);
    buffer.as_mut().chunks_exact_mut(element.len().max(1)).for_each(|slot| slot.copy_from_slice(element));
    buffer.into_bytes()
}
