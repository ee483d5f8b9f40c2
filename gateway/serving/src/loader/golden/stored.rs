//! A tensor as a file of golden samples has it: datatype, shape, and elements in row-major order, nested or flat.
//!
//! What is written reads as the same bits. JSON has no NaN and no infinities, so these are the strings "NaN", "Infinity" and
//! "-Infinity"; a BYTES element that is not UTF-8 is an object `{"base64": "…"}`. Deliberately absent: which of the many NaN it was.

use std::borrow::Cow;

use bascule_runtime_api::{AlignedBuffer, DataType, Element, Tensor, element_count};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The member that holds a BYTES element which is not UTF-8.
const BASE64: &str = "base64";

/// How numbers are written that JSON does not have.
const NAN: &str = "NaN";
const INFINITY: &str = "Infinity";
const NEGATIVE_INFINITY: &str = "-Infinity";

/// A tensor of a golden sample, as JSON holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldenTensor {
    datatype: DataType,
    shape: Vec<i64>,
    data: Value,
}

impl GoldenTensor {
    /// How a tensor is written.
    pub fn of(tensor: &Tensor) -> GoldenTensor {
        GoldenTensor { datatype: tensor.datatype(), shape: tensor.shape().to_vec(), data: Value::Array(elements(tensor)) }
    }

    /// Reads it.
    ///
    /// # Errors
    /// The elements don't fit the shape, or one is none of this datatype.
    pub fn tensor(&self) -> Result<Tensor, String> {
        let mut leaves = Vec::new();
        collect(&self.data, &mut leaves);
        let expected = element_count(&self.shape).ok_or_else(|| format!("shape {:?} is no shape", self.shape))?;
        if leaves.len() != expected {
            return Err(format!("expected {expected} elements for shape {:?}, got {}", self.shape, leaves.len()));
        }
        if self.datatype == DataType::Bytes {
            let strings: Option<Vec<Cow<'_, [u8]>>> = leaves.iter().map(|leaf| byte_string(leaf)).collect();
            let strings = strings.ok_or(r#"expected strings, or objects such as {"base64": "AP8="}"#)?;
            return Tensor::from_byte_strings(&self.shape, &strings).map_err(|error| error.to_string());
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

fn byte_string(leaf: &Value) -> Option<Cow<'_, [u8]>> {
    match leaf {
        Value::String(text) => Some(Cow::Borrowed(text.as_bytes())),
        Value::Object(members) if members.len() == 1 => Some(Cow::Owned(STANDARD.decode(members.get(BASE64)?.as_str()?).ok()?)),
        _ => None,
    }
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => match text.as_str() {
            NAN => Some(f64::NAN),
            INFINITY => Some(f64::INFINITY),
            NEGATIVE_INFINITY => Some(f64::NEG_INFINITY),
            _ => None,
        },
        number => number.as_f64(),
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
        DataType::Fp16 => bytes.extend(f16::from_f64(float(value)?).to_le_bytes()),
        DataType::Bf16 => bytes.extend(bf16::from_f64(float(value)?).to_le_bytes()),
        DataType::Fp32 => bytes.extend((float(value)? as f32).to_le_bytes()),
        DataType::Fp64 => bytes.extend(float(value)?.to_le_bytes()),
        DataType::Bytes => return None,
    }
    Some(())
}

/// The elements as they are written, in row-major order.
fn elements(tensor: &Tensor) -> Vec<Value> {
    fn all<T: Element>(tensor: &Tensor, written: impl Fn(T) -> Value) -> Vec<Value> {
        tensor.elements::<T>().unwrap_or_default().iter().map(|element| written(*element)).collect()
    }
    match tensor.datatype() {
        DataType::Bool => tensor.bytes().iter().map(|byte| Value::Bool(*byte != 0)).collect(),
        DataType::Uint8 => all::<u8>(tensor, Value::from),
        DataType::Uint16 => all::<u16>(tensor, Value::from),
        DataType::Uint32 => all::<u32>(tensor, Value::from),
        DataType::Uint64 => all::<u64>(tensor, Value::from),
        DataType::Int8 => all::<i8>(tensor, Value::from),
        DataType::Int16 => all::<i16>(tensor, Value::from),
        DataType::Int32 => all::<i32>(tensor, Value::from),
        DataType::Int64 => all::<i64>(tensor, Value::from),
        DataType::Fp16 => all::<f16>(tensor, |number| written_float(short_f16(number))),
        DataType::Bf16 => all::<bf16>(tensor, |number| written_float(short_bf16(number))),
        DataType::Fp32 => all::<f32>(tensor, |number| written_float(short_f32(number))),
        DataType::Fp64 => all::<f64>(tensor, written_float),
        DataType::Bytes => tensor.byte_strings().map(written_string).collect(),
    }
}

fn written_string(string: &[u8]) -> Value {
    match str::from_utf8(string) {
        Ok(text) => Value::from(text),
        Err(_) => json!({ BASE64: STANDARD.encode(string) }),
    }
}

/// As JSON shows it: with the fewest digits that stand for this number.
fn written_float(number: f64) -> Value {
    match serde_json::Number::from_f64(number) {
        Some(number) => Value::Number(number),
        None if number.is_nan() => Value::from(NAN),
        None => Value::from(if number > 0.0 { INFINITY } else { NEGATIVE_INFINITY }),
    }
}

/// The number of the fewest digits that still reads as this one. Where rounding twice, as a reader does, would lead elsewhere, it is the
/// number itself with all its digits.
fn short_f32(number: f32) -> f64 {
    let short: Option<f64> = format!("{number:e}").parse().ok();
    short.filter(|short| (*short as f32).to_bits() == number.to_bits()).unwrap_or(f64::from(number))
}

fn short_f16(number: f16) -> f64 {
    // Some processors convert by way of single precision.
    let is_it =
        |short: f64| [f16::from_f64(short), f16::from_f32(short as f32)].iter().all(|read| read.to_bits() == number.to_bits());
    shortest(number.to_f64(), is_it)
}

fn short_bf16(number: bf16) -> f64 {
    let is_it =
        |short: f64| [bf16::from_f64(short), bf16::from_f32(short as f32)].iter().all(|read| read.to_bits() == number.to_bits());
    shortest(number.to_f64(), is_it)
}

/// Five digits are enough for half precision.
fn shortest(exact: f64, is_it: impl Fn(f64) -> bool) -> f64 {
    let shorter = (0..5).filter_map(|digits| format!("{exact:.digits$e}").parse::<f64>().ok());
    shorter.into_iter().find(|short| is_it(*short)).unwrap_or(exact)
}

#[cfg(test)]
mod tests;
