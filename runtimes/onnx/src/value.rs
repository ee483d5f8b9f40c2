//! Our tensors ↔ the library's values.

use std::borrow::Cow;
use std::fmt::Debug;
use std::ptr;
use std::slice;

use bascule_runtime_api::{AlignedBuffer, DataType, Element, RunError, Shape, Tensor, TensorSpec, element_count};
use bytemuck::checked;
use half::{bf16, f16};
use ort::memory::Allocator;
use ort::session::SessionInputValue;
use ort::sys::{OrtMemType, OrtMemoryInfoDeviceType, OrtValue};
use ort::value::{DynTensor, DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef, ValueType};
use ort::{AsPointer, value};

use crate::signature;

/// An input for the library. It lends the tensor's bytes; they are copied where they are misaligned, are BYTES, or are BOOL with a
/// byte other than 0 and 1, which becomes 1.
pub(crate) fn lend(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    match tensor.datatype() {
        DataType::Bool => lend_bools(tensor),
        DataType::Uint8 => lend_elements::<u8>(tensor),
        DataType::Uint16 => lend_elements::<u16>(tensor),
        DataType::Uint32 => lend_elements::<u32>(tensor),
        DataType::Uint64 => lend_elements::<u64>(tensor),
        DataType::Int8 => lend_elements::<i8>(tensor),
        DataType::Int16 => lend_elements::<i16>(tensor),
        DataType::Int32 => lend_elements::<i32>(tensor),
        DataType::Int64 => lend_elements::<i64>(tensor),
        DataType::Fp16 => lend_elements::<f16>(tensor),
        DataType::Fp32 => lend_elements::<f32>(tensor),
        DataType::Fp64 => lend_elements::<f64>(tensor),
        DataType::Bf16 => lend_elements::<bf16>(tensor),
        DataType::Bytes => give_strings(tensor),
    }
}

fn lend_elements<T>(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>>
where
    T: Element + PrimitiveTensorElementType + Clone + Debug + 'static,
{
    lend_slice(tensor.shape(), tensor.elements::<T>().unwrap_or_default())
}

fn lend_bools(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    let bytes: &[u8] = tensor.bytes();
    let bools = match checked::try_cast_slice::<u8, bool>(bytes) {
        Ok(bools) => Cow::Borrowed(bools),
        Err(_) => Cow::Owned(bytes.iter().map(|byte| *byte != 0).collect()),
    };
    lend_slice(tensor.shape(), bools)
}

fn lend_slice<'a, T>(shape: &'a [i64], elements: Cow<'a, [T]>) -> ort::Result<SessionInputValue<'a>>
where
    T: PrimitiveTensorElementType + Clone + Debug + 'static,
{
    match elements {
        Cow::Borrowed(elements) => Ok(TensorRef::from_array_view((shape, elements))?.into()),
        Cow::Owned(elements) => Ok(value::Tensor::from_array((shape, elements))?.into()),
    }
}

/// A string tensor that holds each element's bytes as they are. The library's usual way takes strings that end at a NUL; this one
/// has it make room and copies.
#[expect(unsafe_code, reason = "ort makes strings only of text without NUL")]
fn give_strings(tensor: &Tensor) -> ort::Result<SessionInputValue<'static>> {
    let mut strings = DynTensor::new(&Allocator::default(), TensorElementType::String, tensor.shape())?;
    for (index, element) in tensor.byte_strings().enumerate() {
        let mut room = ptr::null_mut();
        // SAFETY: the value is a string tensor of ours with more than `index` elements, as many as the tensor has. Where the call
        // succeeds, `room` has exactly the length asked for until the element is resized again.
        unsafe {
            let resize = ort::api().GetResizedStringTensorElementBuffer;
            ort::Error::result_from_status(resize(strings.ptr_mut(), index, element.len(), &mut room))?;
            ptr::copy_nonoverlapping(element.as_ptr(), room.cast::<u8>(), element.len());
        }
    }
    Ok(strings.into())
}

/// A copy of an output, in a buffer of ours.
pub(crate) fn take(output: &DynValue, spec: &TensorSpec) -> Result<Tensor, RunError> {
    let failed = |message: String| RunError::Failed { message: format!("output '{}': {message}", spec.name) };
    let ValueType::Tensor { ty, shape, .. } = output.dtype() else {
        return Err(failed(format!("expected a tensor, got {}", output.dtype())));
    };
    if signature::datatype(*ty) != Some(spec.datatype) {
        return Err(failed(format!("expected {}, got elements of type {ty}", spec.datatype)));
    }
    let shape = Shape::from_slice(shape);
    let tensor = match spec.datatype {
        DataType::Bytes => {
            let strings = copy_strings(output, &shape).map_err(|error| failed(error.message().to_owned()))?;
            Tensor::from_byte_strings(&shape, &strings)
        }
        datatype => {
            let elements = copy_elements(output, datatype, &shape).map_err(|error| failed(error.message().to_owned()))?;
            Tensor::new(datatype, &shape, elements.into_bytes())
        }
    };
    tensor.map_err(|error| failed(error.to_string()))
}

#[expect(unsafe_code, reason = "ort lends elements only by their Rust type; as bytes, one way does for all")]
fn copy_elements(output: &DynValue, datatype: DataType, shape: &Shape) -> ort::Result<AlignedBuffer> {
    let length = element_count(shape).unwrap_or_default() * datatype.element_bytes().unwrap_or_default();
    let mut start = ptr::null_mut();
    // SAFETY: the value is a tensor and lives. The call only tells where its elements lie, in spite of its pointer to mutable.
    unsafe { ort::Error::result_from_status((ort::api().GetTensorMutableData)(output.ptr().cast_mut(), &mut start))? };
    if length == 0 || start.is_null() {
        return Ok(AlignedBuffer::default());
    }
    // SAFETY: the value is a tensor and lives.
    if !unsafe { is_readable(output.ptr()) }? {
        return Err(ort::Error::new("it lies in memory of a device, where the processor can't read it"));
    }
    // SAFETY: the tensor lies where the processor can read, and is of this datatype and shape: it holds so many bytes, and nothing writes
    // to them while it is borrowed.
    let bytes = unsafe { slice::from_raw_parts(start.cast::<u8>(), length) };
    Ok(AlignedBuffer::copy_of(bytes))
}

/// Whether a tensor's elements lie in main memory. The library brings outputs there that a GPU computed; what lies elsewhere all the same
/// must not be read through a pointer.
///
/// # Safety
/// It is a tensor, and lives.
#[expect(unsafe_code, reason = "ort tells it of a tensor only by its Rust type")]
unsafe fn is_readable(tensor: *const OrtValue) -> ort::Result<bool> {
    let api = ort::api();
    let mut place = ptr::null();
    let mut device = OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU;
    let mut kind = OrtMemType::OrtMemTypeDefault;
    // SAFETY: the caller says so; what the tensor tells of its place lives as long.
    unsafe {
        ort::Error::result_from_status((api.GetTensorMemoryInfo)(tensor, &mut place))?;
        (api.MemoryInfoGetDeviceType)(place, &mut device);
        ort::Error::result_from_status((api.MemoryInfoGetMemType)(place, &mut kind))?;
    }
    // Main memory that is pinned for a GPU counts as the GPU's, but is for the processor.
    Ok(device == OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU || kind != OrtMemType::OrtMemTypeDefault)
}

#[expect(unsafe_code, reason = "ort makes strings only of UTF-8")]
fn copy_strings(output: &DynValue, shape: &Shape) -> ort::Result<Vec<Vec<u8>>> {
    let count = element_count(shape).unwrap_or_default();
    if count == 0 {
        return Ok(Vec::new());
    }
    let api = ort::api();
    let mut length = 0;
    let mut offsets = vec![0usize; count];
    // SAFETY: the value is a string tensor of `count` elements; it tells how long they are together, and writes no more than that
    // and one offset for each.
    let content = unsafe {
        ort::Error::result_from_status((api.GetStringTensorDataLength)(output.ptr(), &mut length))?;
        let mut content = vec![0u8; length];
        let into = content.as_mut_ptr().cast();
        ort::Error::result_from_status((api.GetStringTensorContent)(output.ptr(), into, length, offsets.as_mut_ptr(), count))?;
        content
    };
    let ends = offsets.iter().skip(1).copied().chain([length]);
    Ok(offsets.iter().zip(ends).map(|(start, end)| content[*start..end].to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
    use ort::value::{Shape as OrtShape, TensorRefMut};

    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "a tensor that lies elsewhere is made of its parts")]
    fn what_lies_on_a_device_is_not_read() {
        let Some(path) = bascule_onnx_writer::library::find_or_skip() else { return };
        let _library = crate::library::open(&[path], 0).unwrap();
        let readable = |device: AllocationDevice, kind: MemoryType| {
            let mut elements = [1.0_f32, 2.0];
            let place = MemoryInfo::new(device, 0, AllocatorType::Device, kind).unwrap();
            // SAFETY: nobody reads where the elements are said to lie, and they live longer; the value is a tensor.
            unsafe {
                let value = TensorRefMut::<f32>::from_raw(place, elements.as_mut_ptr().cast(), OrtShape::new([2])).unwrap();
                is_readable(value.ptr()).unwrap()
            }
        };
        assert!(readable(AllocationDevice::CPU, MemoryType::Default));
        assert!(!readable(AllocationDevice::CUDA, MemoryType::Default));
        assert!(readable(AllocationDevice::CUDA_PINNED, MemoryType::CPUOutput));
    }
}
