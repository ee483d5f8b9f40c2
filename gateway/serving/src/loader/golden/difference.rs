//! How two answers differ, and by how much.

use std::fmt;

use bascule_runtime_api::{DataType, Tensor};
use half::{bf16, f16};

/// The first thing in which two tensors differ.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Difference {
    /// Where a datatype or shape differs there is none.
    element: Option<usize>,
    expected: String,
    got: String,
    /// How far numbers lie apart, where that is a number too.
    apart: Option<f64>,
    tolerance: Option<f64>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place(f)?;
        write!(f, "expected {}, got {}", self.expected, self.got)?;
        self.tolerance.map_or(Ok(()), |tolerance| write!(f, " (tolerance {tolerance})"))
    }
}

/// The same of two runs, neither of which is right.
pub(super) struct BetweenRuns<'a>(pub(super) &'a Difference);

impl fmt::Display for BetweenRuns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { expected, got, apart, tolerance, .. } = self.0;
        self.0.place(f)?;
        write!(f, "first {expected}, then {got}")?;
        apart.map_or(Ok(()), |apart| write!(f, ", {apart} apart"))?;
        tolerance.map_or(Ok(()), |tolerance| write!(f, " (tolerance {tolerance})"))
    }
}

impl Difference {
    fn place(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.element.map_or(Ok(()), |index| write!(f, "element {index}: "))
    }

    fn whole(expected: impl Into<String>, got: impl Into<String>) -> Difference {
        Difference { element: None, expected: expected.into(), got: got.into(), apart: None, tolerance: None }
    }
}

/// How two tensors differ, where they do.
pub(super) fn difference(expected: &Tensor, got: &Tensor, tolerance: Option<f64>) -> Option<Difference> {
    if expected.datatype() != got.datatype() {
        return Some(Difference::whole(expected.datatype().to_string(), got.datatype().to_string()));
    }
    if expected.shape() != got.shape() {
        return Some(Difference::whole(format!("shape {:?}", expected.shape()), format!("{:?}", got.shape())));
    }
    if expected.datatype() == DataType::Bytes {
        let mut pairs = expected.byte_strings().zip(got.byte_strings()).enumerate();
        let (index, (expected, got)) = pairs.find(|(_, (expected, got))| expected != got)?;
        let shown = |string: &[u8]| format!("{:?}", String::from_utf8_lossy(string));
        return Some(Difference { element: Some(index), ..Difference::whole(shown(expected), shown(got)) });
    }
    let index = if tolerance.is_none() && !expected.datatype().is_float() {
        first_unequal(expected, got)?
    } else {
        let mut pairs = numbers(expected).into_iter().zip(numbers(got));
        pairs.position(|(expected, got)| !is_close(expected, got, tolerance))?
    };
    let (expected, got) = (number(expected, index)?, number(got, index)?);
    let apart = Some((expected.value - got.value).abs()).filter(|apart| apart.is_finite());
    Some(Difference { element: Some(index), expected: expected.text, got: got.text, apart, tolerance })
}

/// Bit for bit: the largest integers have no exact form as floating-point numbers. Every byte but 0 means true.
fn first_unequal(expected: &Tensor, got: &Tensor) -> Option<usize> {
    if expected.datatype() == DataType::Bool {
        return expected.bytes().iter().zip(got.bytes()).position(|(expected, got)| (*expected != 0) != (*got != 0));
    }
    let width = expected.datatype().element_bytes()?;
    expected.bytes().chunks(width).zip(got.bytes().chunks(width)).position(|(expected, got)| expected != got)
}

fn is_close(expected: f64, got: f64, tolerance: Option<f64>) -> bool {
    if expected == got || (expected.is_nan() && got.is_nan()) {
        return true;
    }
    // An infinity is close to nothing else, whatever a share of it comes to.
    if expected.is_infinite() || got.is_infinite() {
        return false;
    }
    // Where nothing is said: what summing in another order does to single precision.
    let allowed = tolerance.unwrap_or_else(|| 1e-5 + 1e-4 * expected.abs());
    (expected - got).abs() <= allowed
}

/// One element.
struct Number {
    value: f64,
    /// With all digits of an integer, which its value may lack.
    text: String,
}

fn number(tensor: &Tensor, index: usize) -> Option<Number> {
    let value = *numbers(tensor).get(index)?;
    let text = match tensor.datatype() {
        DataType::Uint64 => tensor.elements::<u64>()?.get(index)?.to_string(),
        DataType::Int64 => tensor.elements::<i64>()?.get(index)?.to_string(),
        DataType::Bool => (value != 0.0).to_string(),
        _ => value.to_string(),
    };
    Some(Number { value, text })
}

/// The elements as numbers; empty for BYTES.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    macro_rules! read {
        ($rust:ty, $convert:expr) => {
            tensor.elements::<$rust>().unwrap_or_default().iter().map($convert).collect()
        };
    }
    match tensor.datatype() {
        DataType::Bool => tensor.bytes().iter().map(|byte| f64::from(*byte)).collect(),
        DataType::Uint8 => read!(u8, |n| f64::from(*n)),
        DataType::Uint16 => read!(u16, |n| f64::from(*n)),
        DataType::Uint32 => read!(u32, |n| f64::from(*n)),
        DataType::Uint64 => read!(u64, |n| *n as f64),
        DataType::Int8 => read!(i8, |n| f64::from(*n)),
        DataType::Int16 => read!(i16, |n| f64::from(*n)),
        DataType::Int32 => read!(i32, |n| f64::from(*n)),
        DataType::Int64 => read!(i64, |n| *n as f64),
        DataType::Fp16 => read!(f16, |n| n.to_f64()),
        DataType::Bf16 => read!(bf16, |n| n.to_f64()),
        DataType::Fp32 => read!(f32, |n| f64::from(*n)),
        DataType::Fp64 => read!(f64, |n| *n),
        DataType::Bytes => Vec::new(),
    }
}
