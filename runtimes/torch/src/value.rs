//! Our tensors ↔ libtorch's.

use bascule_runtime_api::{AlignedBuffer, DataType, RunError, Tensor, TensorSpec};
use tch::{Device, Kind};

use crate::forward;
use crate::module::{Argument, first_line};

/// libtorch's name of a datatype; `None` where it has none that computes.
pub(crate) fn kind(datatype: DataType) -> Option<Kind> {
    Some(match datatype {
        DataType::Bool => Kind::Bool,
        DataType::Uint8 => Kind::Uint8,
        DataType::Int8 => Kind::Int8,
        DataType::Int16 => Kind::Int16,
        DataType::Int32 => Kind::Int,
        DataType::Int64 => Kind::Int64,
        DataType::Fp16 => Kind::Half,
        DataType::Fp32 => Kind::Float,
        DataType::Fp64 => Kind::Double,
        DataType::Bf16 => Kind::BFloat16,
        DataType::Uint16 | DataType::Uint32 | DataType::Uint64 | DataType::Bytes => return None,
    })
}

/// A copy for the module, which may keep what it is given. A BOOL byte other than 0 becomes 1.
pub(crate) fn give(tensor: &Tensor, spec: &TensorSpec, device: Device) -> Result<tch::Tensor, RunError> {
    let failed =
        |error: tch::TchError| RunError::Failed { message: format!("input '{}': {}", spec.name, first_line(&error.to_string())) };
    let Some(kind) = kind(tensor.datatype()) else {
        return Err(RunError::Failed { message: format!("input '{}': libtorch has no {}", spec.name, tensor.datatype()) });
    };
    let bytes: &[u8] = tensor.bytes();
    let made = if kind == Kind::Bool && bytes.iter().any(|byte| *byte > 1) {
        let truths: Vec<u8> = bytes.iter().map(|byte| u8::from(*byte != 0)).collect();
        tch::Tensor::f_from_data_size(&truths, tensor.shape(), kind)
    } else {
        tch::Tensor::f_from_data_size(bytes, tensor.shape(), kind)
    };
    let made = made.map_err(failed)?;
    if device == Device::Cpu { Ok(made) } else { made.f_to_device(device).map_err(failed) }
}

/// An argument of this kind: a tensor, or its only element.
pub(crate) fn argument(tensor: &Tensor, spec: &TensorSpec, kind: &forward::Kind, device: Device) -> Result<Argument, RunError> {
    let here = if *kind == forward::Kind::Tensor { device } else { Device::Cpu };
    let given = give(tensor, spec, here)?;
    if *kind == forward::Kind::Tensor {
        return Ok(Argument::Tensor(given));
    }
    if tensor.element_count() != 1 {
        let message = format!(
            "input '{}': expected one element, since forward takes it as {kind}, got shape {:?}",
            spec.name,
            tensor.shape()
        );
        return Err(RunError::InvalidInput { message });
    }
    // One element has one place, in every shape.
    let at = vec![0; tensor.shape().len()];
    let read = match kind {
        forward::Kind::Int => given.f_int64_value(&at).map(Argument::Int),
        forward::Kind::Bool => given.f_int64_value(&at).map(|value| Argument::Bool(value != 0)),
        _ => given.f_double_value(&at).map(Argument::Float),
    };
    read.map_err(|error| RunError::Failed { message: format!("input '{}': {}", spec.name, first_line(&error.to_string())) })
}

/// A copy of what the module gave: it may give the same memory again and write to it in the next run.
pub(crate) fn take(tensor: &tch::Tensor, spec: &TensorSpec) -> Result<Tensor, RunError> {
    let failed = |message: String| RunError::Failed { message: format!("output '{}': {message}", spec.name) };
    let torch = |error: tch::TchError| failed(first_line(&error.to_string()).to_owned());
    let found = tensor.f_kind().map_err(torch)?;
    if kind(spec.datatype) != Some(found) {
        return Err(failed(format!("expected {}, the model gave elements of type {found:?}", spec.datatype)));
    }
    let whole = tensor.f_to_device(Device::Cpu).and_then(|here| here.f_contiguous()).map_err(torch)?;
    let (shape, count) = (whole.size(), whole.numel());
    let mut bytes = AlignedBuffer::zeroed(count * spec.datatype.element_bytes().unwrap_or_default());
    if count > 0 {
        whole.f_copy_data_u8(bytes.as_mut(), count).map_err(torch)?;
    }
    Tensor::new(spec.datatype, shape, bytes.into_bytes()).map_err(|error| failed(error.to_string()))
}
