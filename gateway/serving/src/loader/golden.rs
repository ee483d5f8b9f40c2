//! Golden samples: inputs whose outputs the publisher recorded. A version that answers otherwise here than where it was trained never
//! takes traffic.
//!
//! The file is JSON: `{"schema": 1, "samples": [{"inputs": {name: {"datatype", "shape", "data"}}, "outputs": {…}, "tolerance": {name:
//! largest absolute difference}}]}`, with `data` in row-major order, nested or flat. Outputs that a sample does not name are not
//! compared; without a tolerance floating-point outputs may differ by the width of a few roundings, everything else not at all.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use bascule_runtime_api::{AlignedBuffer, DataType, RunContext, Session, Tensor, element_count};
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;

use crate::error::with_causes;

const SCHEMA: u64 = 1;
/// The largest file that is read.
const MAX_BYTES: u64 = 64 << 20;

/// A file of samples, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Golden {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    inputs: BTreeMap<String, Tensor>,
    outputs: BTreeMap<String, Tensor>,
    tolerance: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct StoredGolden {
    schema: u64,
    samples: Vec<StoredSample>,
}

#[derive(Deserialize)]
struct StoredSample {
    inputs: BTreeMap<String, StoredTensor>,
    outputs: BTreeMap<String, StoredTensor>,
    #[serde(default)]
    tolerance: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct StoredTensor {
    datatype: DataType,
    shape: Vec<i64>,
    data: Value,
}

impl Golden {
    /// Reads a file. Blocks.
    ///
    /// # Errors
    /// What is wrong with it, by sample and tensor.
    pub(super) fn read(path: &Path) -> Result<Golden, String> {
        let bytes = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
        if bytes > MAX_BYTES {
            return Err(format!("it has {bytes} bytes, at most {MAX_BYTES} are read"));
        }
        let text = std::fs::read(path).map_err(|error| error.to_string())?;
        Golden::parse(&text)
    }

    fn parse(text: &[u8]) -> Result<Golden, String> {
        let stored: StoredGolden = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if stored.schema != SCHEMA {
            return Err(format!("schema {} is not known, expected {SCHEMA}", stored.schema));
        }
        let samples = stored.samples.into_iter().enumerate().map(|(index, sample)| {
            let read = |side: &str, tensors: BTreeMap<String, StoredTensor>| {
                let tensors = tensors.into_iter().map(|(name, stored)| match stored.tensor() {
                    Ok(tensor) => Ok((name, tensor)),
                    Err(error) => Err(format!("sample {index}: {side} '{name}': {error}")),
                });
                tensors.collect::<Result<BTreeMap<_, _>, _>>()
            };
            Ok(Sample {
                inputs: read("input", sample.inputs)?,
                outputs: read("output", sample.outputs)?,
                tolerance: sample.tolerance,
            })
        });
        Ok(Golden { samples: samples.collect::<Result<_, String>>()? })
    }

    /// Runs every sample; none begins once `is_over` is set.
    ///
    /// # Errors
    /// The first answer that differs: the sample, the output, the element, what was expected and what came.
    pub(super) fn compare(&self, session: &mut dyn Session, is_over: &AtomicBool) -> Result<(), String> {
        let context = RunContext { cancelled: Some(is_over), ..RunContext::default() };
        self.samples.iter().enumerate().try_for_each(|(index, sample)| {
            sample.compare(session, &context).map_err(|error| format!("golden sample {index}: {error}"))
        })
    }
}

impl Sample {
    fn compare(&self, session: &mut dyn Session, context: &RunContext<'_>) -> Result<(), String> {
        let signature = session.signature().clone();
        let input = |name: &str| self.inputs.get(name).cloned().ok_or_else(|| format!("it has no input '{name}'"));
        let inputs: Vec<Tensor> = signature.inputs.iter().map(|spec| input(&spec.name)).collect::<Result<_, _>>()?;
        if let Some(unknown) = self.inputs.keys().find(|name| !signature.inputs.iter().any(|spec| spec.name == **name)) {
            return Err(format!("the model has no input '{unknown}'"));
        }
        let outputs = session.run(&inputs, context).map_err(|error| format!("the run failed: {}", with_causes(&error)))?;
        for (name, expected) in &self.outputs {
            let position = signature.outputs.iter().position(|spec| spec.name == *name);
            let got =
                position.and_then(|position| outputs.get(position)).ok_or_else(|| format!("the model has no output '{name}'"))?;
            difference(expected, got, self.tolerance.get(name).copied())
                .map_or(Ok(()), |text| Err(format!("output '{name}': {text}")))?;
        }
        Ok(())
    }
}

/// How two tensors differ, where they do.
fn difference(expected: &Tensor, got: &Tensor, tolerance: Option<f64>) -> Option<String> {
    if expected.datatype() != got.datatype() {
        return Some(format!("expected {}, got {}", expected.datatype(), got.datatype()));
    }
    if expected.shape() != got.shape() {
        return Some(format!("expected shape {:?}, got {:?}", expected.shape(), got.shape()));
    }
    if expected.datatype() == DataType::Bytes {
        let mut pairs = expected.byte_strings().zip(got.byte_strings()).enumerate();
        let (index, (expected, got)) = pairs.find(|(_, (expected, got))| expected != got)?;
        let (expected, got) = (String::from_utf8_lossy(expected), String::from_utf8_lossy(got));
        return Some(format!("element {index}: expected {expected:?}, got {got:?}"));
    }
    if tolerance.is_none() && !is_float(expected.datatype()) {
        return integers_differ(expected, got);
    }
    let pairs = numbers(expected).into_iter().zip(numbers(got)).enumerate();
    let (index, (expected, got)) = pairs.into_iter().find(|(_, (expected, got))| !is_close(*expected, *got, tolerance))?;
    let allowed = tolerance.map_or(String::new(), |tolerance| format!(" (tolerance {tolerance})"));
    Some(format!("element {index}: expected {expected}, got {got}{allowed}"))
}

fn is_float(datatype: DataType) -> bool {
    matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64)
}

/// Bit for bit: the largest integers have no exact form as floating-point numbers.
fn integers_differ(expected: &Tensor, got: &Tensor) -> Option<String> {
    let width = expected.datatype().element_bytes()?;
    let mut pairs = expected.bytes().chunks(width).zip(got.bytes().chunks(width));
    let index = pairs.position(|(expected, got)| expected != got)?;
    let shown = |tensor: &Tensor| numbers(tensor).get(index).map(ToString::to_string).unwrap_or_default();
    Some(format!("element {index}: expected {}, got {}", shown(expected), shown(got)))
}

fn is_close(expected: f64, got: f64, tolerance: Option<f64>) -> bool {
    if expected == got || (expected.is_nan() && got.is_nan()) {
        return true;
    }
    // Where nothing is said: what summing in another order does to single precision.
    let allowed = tolerance.unwrap_or_else(|| 1e-5 + 1e-4 * expected.abs());
    (expected - got).abs() <= allowed
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

impl StoredTensor {
    fn tensor(&self) -> Result<Tensor, String> {
        let mut leaves = Vec::new();
        collect(&self.data, &mut leaves);
        let expected = element_count(&self.shape).ok_or_else(|| format!("shape {:?} is no shape", self.shape))?;
        if leaves.len() != expected {
            return Err(format!("expected {expected} elements for shape {:?}, got {}", self.shape, leaves.len()));
        }
        if self.datatype == DataType::Bytes {
            let texts: Option<Vec<&str>> = leaves.iter().map(|leaf| leaf.as_str()).collect();
            let texts = texts.ok_or("expected strings")?;
            return Tensor::from_byte_strings(&self.shape, &texts).map_err(|error| error.to_string());
        }
        let mut bytes = Vec::new();
        for (index, leaf) in leaves.iter().enumerate() {
            let wrote = write(self.datatype, leaf, &mut bytes);
            wrote.ok_or_else(|| format!("element {index}: expected {}, got {leaf}", self.datatype))?;
        }
        let bytes = AlignedBuffer::copy_of(&bytes).into_bytes();
        Tensor::new(self.datatype, &self.shape, bytes).map_err(|error| error.to_string())
    }
}

/// The leaves of nested arrays, in order.
fn collect<'a>(value: &'a Value, leaves: &mut Vec<&'a Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, leaves)),
        leaf => leaves.push(leaf),
    }
}

/// Appends an element's bytes; `None` where the value is none of this datatype.
fn write(datatype: DataType, value: &Value, bytes: &mut Vec<u8>) -> Option<()> {
    macro_rules! integer {
        ($rust:ty, $read:ident) => {
            bytes.extend(<$rust>::try_from(value.$read()?).ok()?.to_le_bytes())
        };
    }
    match datatype {
        DataType::Bool => bytes.push(u8::from(value.as_bool()?)),
        DataType::Uint8 => integer!(u8, as_u64),
        DataType::Uint16 => integer!(u16, as_u64),
        DataType::Uint32 => integer!(u32, as_u64),
        DataType::Uint64 => integer!(u64, as_u64),
        DataType::Int8 => integer!(i8, as_i64),
        DataType::Int16 => integer!(i16, as_i64),
        DataType::Int32 => integer!(i32, as_i64),
        DataType::Int64 => integer!(i64, as_i64),
        DataType::Fp16 => bytes.extend(f16::from_f64(value.as_f64()?).to_le_bytes()),
        DataType::Bf16 => bytes.extend(bf16::from_f64(value.as_f64()?).to_le_bytes()),
        DataType::Fp32 => bytes.extend((value.as_f64()? as f32).to_le_bytes()),
        DataType::Fp64 => bytes.extend(value.as_f64()?.to_le_bytes()),
        DataType::Bytes => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests;
