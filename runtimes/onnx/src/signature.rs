//! The signature that a model file holds.

use std::ptr;

use bascule_runtime_api::{DataType, LoadError, Signature, TensorSpec};
use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};
use ort::{AsPointer, sys};

/// The protocol's name of an element type; `None` where it has none.
pub(crate) fn datatype(element: TensorElementType) -> Option<DataType> {
    match element {
        TensorElementType::Bool => Some(DataType::Bool),
        TensorElementType::Uint8 => Some(DataType::Uint8),
        TensorElementType::Uint16 => Some(DataType::Uint16),
        TensorElementType::Uint32 => Some(DataType::Uint32),
        TensorElementType::Uint64 => Some(DataType::Uint64),
        TensorElementType::Int8 => Some(DataType::Int8),
        TensorElementType::Int16 => Some(DataType::Int16),
        TensorElementType::Int32 => Some(DataType::Int32),
        TensorElementType::Int64 => Some(DataType::Int64),
        TensorElementType::Float16 => Some(DataType::Fp16),
        TensorElementType::Float32 => Some(DataType::Fp32),
        TensorElementType::Float64 => Some(DataType::Fp64),
        TensorElementType::Bfloat16 => Some(DataType::Bf16),
        TensorElementType::String => Some(DataType::Bytes),
        _ => None,
    }
}

/// What the file says of its inputs and outputs. Where it does not tell a tensor's number of dimensions, the declaration does; an
/// output that neither tells has the shape `[]`, and can't be batched.
///
/// # Errors
/// [`LoadError::Unsupported`] names the tensor that can't be served.
pub(crate) fn read(session: &Session, declared: Option<&Signature>) -> Result<Signature, LoadError> {
    let shape_of = |side: Side, index: usize, outlet: &Outlet| spec(session, side, index, outlet, declared);
    let inputs = session.inputs().iter().enumerate().map(|(index, outlet)| shape_of(Side::Input, index, outlet));
    let inputs = inputs.collect::<Result<_, _>>()?;
    let outputs = session.outputs().iter().enumerate().map(|(index, outlet)| shape_of(Side::Output, index, outlet));
    let outputs = outputs.collect::<Result<_, _>>()?;
    let signature = Signature { inputs, outputs, batch_axis: None };
    let batch_axis = signature.has_dynamic_leading_axis().then_some(0);
    Ok(Signature { batch_axis, ..signature })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Input => "input",
            Side::Output => "output",
        }
    }
}

fn spec(
    session: &Session,
    side: Side,
    index: usize,
    outlet: &Outlet,
    declared: Option<&Signature>,
) -> Result<TensorSpec, LoadError> {
    let (what, name) = (side.name(), outlet.name());
    let unsupported = |why: String| LoadError::Unsupported { message: format!("{what} '{name}' {why}") };
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Err(unsupported(format!("has type {}, expected a tensor", outlet.dtype())));
    };
    if name.is_empty() {
        return Err(unsupported("has no name".to_owned()));
    }
    let Some(datatype) = datatype(*ty) else {
        return Err(unsupported(format!("has elements of type {ty}, for which the protocol has no datatype")));
    };
    let spec = TensorSpec::new(name, datatype, shape.to_vec());
    match layout(session, side, index).map_err(|error| unsupported(format!("has no type: {error}")))? {
        Layout::Dense { has_rank: true } => Ok(spec),
        Layout::Sparse => Err(unsupported("is a sparse tensor, expected a dense one".to_owned())),
        Layout::Dense { has_rank: false } => {
            let specs = declared.map(|declared| if side == Side::Input { &declared.inputs } else { &declared.outputs });
            let shape = specs.into_iter().flatten().find(|spec| spec.name == name).map(|spec| spec.shape.clone());
            match (shape, side) {
                (Some(shape), _) => Ok(TensorSpec { shape, ..spec }),
                (None, Side::Output) => Ok(spec),
                (None, Side::Input) => Err(unsupported("has no number of dimensions in the model: declare its shape".to_owned())),
            }
        }
    }
}

enum Layout {
    Dense { has_rank: bool },
    Sparse,
}

/// What `ort` leaves out of a tensor's type: for it a scalar, a tensor of unknown rank, and a sparse tensor look alike.
#[expect(unsafe_code, reason = "ort has no call for it")]
fn layout(session: &Session, side: Side, index: usize) -> ort::Result<Layout> {
    let api = ort::api();
    let get = if side == Side::Input { api.SessionGetInputTypeInfo } else { api.SessionGetOutputTypeInfo };
    let mut info = ptr::null_mut();
    // SAFETY: the session is alive, and `index` counts what it listed itself. A type that comes back is ours until it is released.
    unsafe { ort::Error::result_from_status(get(session.ptr(), index, &mut info))? };
    let info = TypeInfo(info);
    let mut kind = sys::ONNXType::ONNX_TYPE_UNKNOWN;
    let mut tensor = ptr::null();
    // SAFETY: the type is alive; the view of it as a tensor lives as long, and is null where it is none.
    unsafe {
        ort::Error::result_from_status((api.GetOnnxTypeFromTypeInfo)(info.0, &mut kind))?;
        ort::Error::result_from_status((api.CastTypeInfoToTensorInfo)(info.0, &mut tensor))?;
    }
    if kind == sys::ONNXType::ONNX_TYPE_SPARSETENSOR {
        return Ok(Layout::Sparse);
    }
    // SAFETY: as above, and it is not null.
    let has_rank = !tensor.is_null() && unsafe { (api.TensorTypeAndShape_HasShape)(tensor) };
    Ok(Layout::Dense { has_rank })
}

struct TypeInfo(*mut sys::OrtTypeInfo);

impl Drop for TypeInfo {
    #[expect(unsafe_code, reason = "what the library gave must be given back to it")]
    fn drop(&mut self) {
        // SAFETY: the pointer came from the library, is released only here, and may be null.
        unsafe { (ort::api().ReleaseTypeInfo)(self.0) }
    }
}
