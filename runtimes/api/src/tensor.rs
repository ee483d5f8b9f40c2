//! Tensors: a datatype, a shape, and contiguous little-endian bytes.
//!
//! A tensor is checked when it is made and is right from then on: no dimension is negative, the element count does not overflow, and
//! the bytes are exactly as long as datatype and shape say. The bytes may lie at any address; [`Tensor::elements`] copies only where
//! they are misaligned for their type.

use std::borrow::Cow;

use bytemuck::Pod;
use bytes::{Buf as _, Bytes};
use smallvec::SmallVec;

use crate::DataType;

/// Dimensions, outermost first. In a [`Tensor`] none is negative; in a [`crate::TensorSpec`] −1 stands for any size.
pub type Shape = SmallVec<[i64; 6]>;

/// A tensor that holds exactly what its datatype and shape say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    datatype: DataType,
    shape: Shape,
    bytes: Bytes,
}

/// Why bytes, datatype and shape do not make a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// A dimension is negative.
    #[error("shape {shape:?} has a negative dimension, expected every dimension to be 0 or more")]
    NegativeDimension {
        /// The shape as given.
        shape: Shape,
    },
    /// The element or byte count does not fit the address space.
    #[error("shape {shape:?} has more elements than can be addressed")]
    TooManyElements {
        /// The shape as given.
        shape: Shape,
    },
    /// Too few or too many bytes.
    #[error("expected {expected} bytes for {datatype} of shape {shape:?}, got {actual}")]
    WrongLength {
        /// The datatype as given.
        datatype: DataType,
        /// The shape as given.
        shape: Shape,
        /// What datatype and shape need.
        expected: usize,
        /// What was given.
        actual: usize,
    },
    /// A BYTES element is longer than what is left.
    #[error("element {index} says it has {length} bytes but only {left} are left")]
    TruncatedElement {
        /// Position of the element, from 0.
        index: usize,
        /// Length that its prefix gives.
        length: usize,
        /// Bytes left after the prefix (or before it, where the prefix itself is cut).
        left: usize,
    },
    /// BYTES with more or fewer elements than the shape says.
    #[error("expected {expected} BYTES elements for shape {shape:?}, got {actual}")]
    WrongElementCount {
        /// The shape as given.
        shape: Shape,
        /// What the shape needs.
        expected: usize,
        /// What the bytes hold; when more than expected, counting stopped there.
        actual: usize,
    },
}

/// Number of elements of a shape; `None` where a dimension is negative or the product overflows.
pub fn element_count(shape: &[i64]) -> Option<usize> {
    // A zero anywhere makes the product zero, but a negative dimension is wrong all the same and an overflow before a zero is not.
    if shape.iter().any(|dim| *dim < 0) {
        return None;
    }
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |product, dim| product.checked_mul(usize::try_from(*dim).ok()?))
}

impl Tensor {
    /// Checks the shape and the length of `bytes`, and for BYTES every length prefix.
    pub fn new(datatype: DataType, shape: impl AsRef<[i64]>, bytes: Bytes) -> Result<Tensor, TensorError> {
        let shape = Shape::from_slice(shape.as_ref());
        if shape.iter().any(|dim| *dim < 0) {
            return Err(TensorError::NegativeDimension { shape });
        }
        let Some(count) = element_count(&shape) else {
            return Err(TensorError::TooManyElements { shape });
        };
        match datatype.element_bytes() {
            Some(element_bytes) => {
                let Some(expected) = count.checked_mul(element_bytes) else {
                    return Err(TensorError::TooManyElements { shape });
                };
                if bytes.len() != expected {
                    return Err(TensorError::WrongLength { datatype, shape, expected, actual: bytes.len() });
                }
            }
            None => check_elements(&shape, count, &bytes)?,
        }
        Ok(Tensor { datatype, shape, bytes })
    }

    /// A tensor that owns a copy of `elements`.
    pub fn from_elements<T: Element>(shape: impl AsRef<[i64]>, elements: &[T]) -> Result<Tensor, TensorError> {
        let raw: &[u8] = bytemuck::cast_slice(elements);
        Tensor::new(T::DATATYPE, shape, AlignedBuffer::copy_of(raw).into_bytes())
    }

    /// A BYTES tensor that owns a copy of `elements`.
    ///
    /// # Errors
    /// Where the count differs from the shape's, or an element is longer than `u32::MAX`.
    pub fn from_byte_strings<E: AsRef<[u8]>>(shape: impl AsRef<[i64]>, elements: &[E]) -> Result<Tensor, TensorError> {
        let mut bytes = Vec::with_capacity(elements.iter().map(|element| 4 + element.as_ref().len()).sum());
        let shape = Shape::from_slice(shape.as_ref());
        for element in elements {
            let element = element.as_ref();
            let Ok(length) = u32::try_from(element.len()) else {
                return Err(TensorError::TooManyElements { shape });
            };
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(element);
        }
        Tensor::new(DataType::Bytes, shape, bytes.into())
    }

    /// The element type.
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// The dimensions, none negative.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The contents: little-endian elements, or length-prefixed ones for BYTES.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Gives the contents away.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Number of elements.
    pub fn element_count(&self) -> usize {
        element_count(&self.shape).unwrap_or_default()
    }

    /// The elements as `T`, borrowed where the bytes are aligned for it and copied where they are not; `None` where `T` is not
    /// this tensor's datatype.
    pub fn elements<T: Element>(&self) -> Option<Cow<'_, [T]>> {
        if T::DATATYPE != self.datatype {
            return None;
        }
        Some(match bytemuck::try_cast_slice(&self.bytes) {
            Ok(elements) => Cow::Borrowed(elements),
            Err(_) => Cow::Owned(bytemuck::allocation::pod_collect_to_vec(&self.bytes)),
        })
    }

    /// The elements of a BYTES tensor; empty for every other datatype.
    pub fn byte_strings(&self) -> BytesElements<'_> {
        let bytes: &[u8] = if self.datatype == DataType::Bytes { &self.bytes } else { &[] };
        BytesElements { rest: bytes }
    }

    /// Whether the bytes lie at an address that a typed view can use.
    pub fn is_aligned(&self) -> bool {
        self.bytes.as_ptr().addr().is_multiple_of(self.datatype.alignment())
    }

    /// Rows `start..start + rows` of the outermost axis, sharing the bytes; `None` where the tensor is a scalar or has fewer rows.
    pub fn slice_rows(&self, start: usize, rows: usize) -> Option<Tensor> {
        let total = usize::try_from(*self.shape.first()?).ok()?;
        let end = start.checked_add(rows).filter(|end| *end <= total)?;
        let range = match self.datatype.element_bytes() {
            Some(_) if total == 0 => 0..0,
            Some(_) => {
                let row_bytes = self.bytes.len() / total;
                start * row_bytes..end * row_bytes
            }
            None => {
                let per_row = element_count(&self.shape[1..])?;
                let first = self.byte_offset_of(start * per_row);
                first..first + BytesElements { rest: &self.bytes[first..] }.span(rows * per_row)
            }
        };
        let mut shape = self.shape.clone();
        shape[0] = i64::try_from(rows).ok()?;
        Some(Tensor { datatype: self.datatype, shape, bytes: self.bytes.slice(range) })
    }

    /// Joins tensors of one datatype along the outermost axis; `None` where there is none, one is a scalar, or they differ in
    /// datatype or inner shape. One tensor is returned as it is.
    pub fn concat_rows(parts: &[&Tensor]) -> Option<Tensor> {
        let (first, rest) = parts.split_first()?;
        let inner = first.shape.get(1..)?;
        if rest.is_empty() {
            return Some((*first).clone());
        }
        if rest.iter().any(|part| part.datatype != first.datatype || part.shape.get(1..) != Some(inner)) {
            return None;
        }
        let rows = parts.iter().try_fold(0i64, |sum, part| sum.checked_add(part.shape[0]))?;
        let mut joined = AlignedBuffer::with_capacity(parts.iter().map(|part| part.bytes.len()).sum());
        parts.iter().for_each(|part| joined.extend_from_slice(&part.bytes));
        let mut shape = first.shape.clone();
        shape[0] = rows;
        Some(Tensor { datatype: first.datatype, shape, bytes: joined.into_bytes() })
    }

    fn byte_offset_of(&self, element: usize) -> usize {
        self.byte_strings().span(element)
    }
}

fn check_elements(shape: &Shape, expected: usize, bytes: &[u8]) -> Result<(), TensorError> {
    let mut rest = bytes;
    let mut actual = 0;
    while !rest.is_empty() {
        if actual == expected {
            return Err(TensorError::WrongElementCount { shape: shape.clone(), expected, actual: actual + 1 });
        }
        let Some((prefix, tail)) = rest.split_first_chunk::<4>() else {
            return Err(TensorError::TruncatedElement { index: actual, length: 4, left: rest.len() });
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        let Some(tail_after) = tail.get(length..) else {
            return Err(TensorError::TruncatedElement { index: actual, length, left: tail.len() });
        };
        rest = tail_after;
        actual += 1;
    }
    if actual != expected {
        return Err(TensorError::WrongElementCount { shape: shape.clone(), expected, actual });
    }
    Ok(())
}

/// Iterates over the elements of a BYTES tensor, without their prefixes.
#[derive(Debug, Clone)]
pub struct BytesElements<'a> {
    rest: &'a [u8],
}

impl BytesElements<'_> {
    /// Bytes that the next `count` elements take, prefixes included.
    fn span(&self, count: usize) -> usize {
        let mut walk = self.clone();
        walk.by_ref().take(count).for_each(drop);
        self.rest.len() - walk.rest.len()
    }
}

impl<'a> Iterator for BytesElements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        // The prefixes were checked when the tensor was made.
        let (prefix, tail) = self.rest.split_first_chunk::<4>()?;
        let (element, rest) = tail.split_at_checked(u32::from_le_bytes(*prefix) as usize)?;
        self.rest = rest;
        Some(element)
    }
}

/// A Rust type whose values are a datatype's elements, bit for bit.
pub trait Element: Pod {
    /// The datatype that it stands for.
    const DATATYPE: DataType;
}

macro_rules! element {
    ($($rust:ty => $datatype:ident),+ $(,)?) => {
        $(impl Element for $rust { const DATATYPE: DataType = DataType::$datatype; })+
    };
}

element! {
    u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64,
    i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64,
    half::f16 => Fp16, f32 => Fp32, f64 => Fp64, half::bf16 => Bf16,
}

/// What every datatype is aligned to.
const ALIGNMENT: usize = 8;

/// Bytes at an address that is aligned for every datatype, optionally shifted so that a given offset is. Nothing is written to the buffer
/// before its contents are.
#[derive(Debug, Default)]
pub struct AlignedBuffer {
    /// Begins with `skip` bytes that only shift the rest.
    bytes: Vec<u8>,
    skip: usize,
    offset: usize,
}

impl AlignedBuffer {
    /// An empty buffer for `capacity` bytes, of which the first is to be aligned.
    pub fn with_capacity(capacity: usize) -> AlignedBuffer {
        AlignedBuffer::with_capacity_aligned_at(capacity, 0)
    }

    /// An empty buffer for `capacity` bytes, of which the one at `offset` is to be aligned.
    pub fn with_capacity_aligned_at(capacity: usize, offset: usize) -> AlignedBuffer {
        let mut bytes = Vec::<u8>::with_capacity(capacity.saturating_add(ALIGNMENT - 1));
        let misaligned = bytes.as_ptr().addr().wrapping_add(offset) % ALIGNMENT;
        let skip = (ALIGNMENT - misaligned) % ALIGNMENT;
        bytes.resize(skip, 0);
        AlignedBuffer { bytes, skip, offset }
    }

    /// `len` zero bytes; the first is aligned.
    pub fn zeroed(len: usize) -> AlignedBuffer {
        AlignedBuffer::zeroed_aligned_at(len, 0)
    }

    /// `len` zero bytes placed so that the byte at `offset` is aligned.
    pub fn zeroed_aligned_at(len: usize, offset: usize) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::with_capacity_aligned_at(len, offset);
        buffer.resize(len);
        buffer
    }

    /// An aligned copy.
    pub fn copy_of(bytes: &[u8]) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::with_capacity(bytes.len());
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.skip
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes it can hold without being moved.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() - self.skip
    }

    /// Makes room for `capacity` bytes in all. What is there is moved where there is too little.
    pub fn reserve_total(&mut self, capacity: usize) {
        if capacity > self.capacity() {
            let mut larger = AlignedBuffer::with_capacity_aligned_at(capacity, self.offset);
            larger.bytes.extend_from_slice(self.as_ref());
            *self = larger;
        }
    }

    /// Appends.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let needed = self.len() + bytes.len();
        if needed > self.capacity() {
            self.reserve_total(needed.max(self.capacity().saturating_mul(2)));
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Cuts off, or appends zeros.
    pub fn resize(&mut self, len: usize) {
        self.reserve_total(len);
        self.bytes.resize(self.skip + len, 0);
    }

    /// Hands the buffer over without copying.
    pub fn into_bytes(self) -> Bytes {
        let skip = self.skip;
        let mut bytes = Bytes::from(self.bytes);
        bytes.advance(skip);
        bytes
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.skip..]
    }
}

impl AsMut<[u8]> for AlignedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(datatype: DataType, shape: &[i64], bytes: &'static [u8]) -> String {
        match Tensor::new(datatype, shape, Bytes::from_static(bytes)) {
            Ok(tensor) => format!("{} elements", tensor.element_count()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_made_is_right() {
        use DataType::{Bytes as B, Fp32, Int8};
        let cases: [(DataType, &[i64], &'static [u8], &str); 11] = [
            (Fp32, &[1, 2], &[0; 8], "2 elements"),
            (Fp32, &[], &[0; 4], "1 elements"),
            (Fp32, &[0, 4], &[], "0 elements"),
            (Fp32, &[2], &[0; 7], "expected 8 bytes for FP32 of shape [2], got 7"),
            (Int8, &[-1], &[], "shape [-1] has a negative dimension, expected every dimension to be 0 or more"),
            (Int8, &[i64::MAX, 3], &[], "shape [9223372036854775807, 3] has more elements than can be addressed"),
            (Fp32, &[i64::MAX], &[], "shape [9223372036854775807] has more elements than can be addressed"),
            (B, &[2], &[1, 0, 0, 0, 65, 0, 0, 0, 0], "2 elements"),
            (B, &[1], &[9, 0, 0, 0, 65], "element 0 says it has 9 bytes but only 1 are left"),
            (B, &[1], &[9, 0], "element 0 says it has 4 bytes but only 2 are left"),
            (B, &[i64::MAX], &[], "expected 9223372036854775807 BYTES elements for shape [9223372036854775807], got 0"),
        ];
        for (datatype, shape, bytes, expected) in cases {
            assert_eq!(check(datatype, shape, bytes), expected, "{datatype} {shape:?}");
        }
    }

    #[test]
    fn a_shifted_buffer_is_aligned_where_asked() {
        for offset in 0..40 {
            let bytes = AlignedBuffer::zeroed_aligned_at(64, offset).into_bytes();
            assert_eq!(bytes.len(), 64);
            assert!(bytes[offset..].as_ptr().addr().is_multiple_of(8), "{offset}");
        }
    }

    #[test]
    fn a_buffer_that_grows_stays_aligned() {
        for offset in 0..9 {
            let mut buffer = AlignedBuffer::with_capacity_aligned_at(3, offset);
            for byte in 0..100 {
                buffer.extend_from_slice(&[byte]);
            }
            assert_eq!((buffer.len(), buffer.as_ref()[99]), (100, 99));
            buffer.resize(20);
            buffer.resize(200);
            let bytes = buffer.into_bytes();
            assert_eq!((bytes.len(), bytes[19], bytes[20]), (200, 19, 0));
            assert!(bytes[offset..].as_ptr().addr().is_multiple_of(ALIGNMENT), "{offset}");
        }
        assert!(AlignedBuffer::default().into_bytes().is_empty());
    }

    #[test]
    fn misaligned_elements_are_copied_and_equal() {
        let padded = AlignedBuffer::copy_of(&[0, 0, 0, 0, 128, 63, 0, 0, 0, 64]).into_bytes();
        let tensor = Tensor::new(DataType::Fp32, [2], padded.slice(2..)).unwrap();
        assert!(!tensor.is_aligned());
        assert_eq!(tensor.elements::<f32>().unwrap().as_ref(), [1.0, 2.0]);
        assert!(tensor.elements::<i32>().is_none());
    }

    proptest! {
        #[test]
        fn joining_rows_and_slicing_them_again_is_identity(
            parts in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 0..4), 1..5)
        ) {
            let tensors: Vec<Tensor> = parts
                .iter()
                .map(|rows| Tensor::from_byte_strings([rows.len() as i64, 1], rows).unwrap())
                .collect();
            let numbers: Vec<Tensor> = parts
                .iter()
                .map(|rows| {
                    let lengths: Vec<i32> = rows.iter().flat_map(|row| [row.len() as i32, 7]).collect();
                    Tensor::from_elements([rows.len() as i64, 2], &lengths).unwrap()
                })
                .collect();
            for parts in [tensors, numbers] {
                let joined = Tensor::concat_rows(&parts.iter().collect::<Vec<_>>()).unwrap();
                let mut at = 0;
                for part in &parts {
                    let rows = part.shape()[0] as usize;
                    prop_assert_eq!(&joined.slice_rows(at, rows).unwrap(), part);
                    at += rows;
                }
                prop_assert!(joined.slice_rows(at, 1).is_none());
            }
        }
    }
}
