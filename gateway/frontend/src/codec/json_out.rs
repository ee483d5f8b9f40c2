//! The answer's JSON, and the binary section behind it.
//!
//! Elements are written straight into the body's buffer. Floats are the shortest decimals that read back as the same value; `NaN` and the
//! infinities are bare words as Triton writes them, or `null` by setting. Binary outputs are handed on as they are, not copied.
//! Deliberately absent: JSON for strings that are not UTF-8, which would be another string.

use std::io::Write as _;

use bascule_runtime_api::{DataType, Element, Tensor};
use bascule_serving::InferError;
use bytes::Bytes;
use half::{bf16, f16};
use smallvec::SmallVec;

/// How JSON shows what is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NanStyle {
    /// The bare words `NaN`, `Infinity` and `-Infinity`, as Triton.
    #[default]
    Bare,
    /// `null`, for readers that know only strict JSON.
    Null,
}

/// What precedes the outputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) id: Option<&'a str>,
    pub(crate) model: &'a str,
    pub(crate) version: u64,
}

/// An output, ready to be written.
#[derive(Debug, Clone)]
pub struct Rendered<'a> {
    /// Its name.
    pub name: &'a str,
    /// What to write.
    pub tensor: Tensor,
    /// Whether it goes to the binary section.
    pub binary: bool,
}

/// An encoded answer.
#[derive(Debug, Default)]
pub struct Encoded {
    /// The JSON.
    pub json: Vec<u8>,
    /// What follows it, in order; empty where no output is binary.
    pub binary: SmallVec<[Bytes; 2]>,
    /// Whether any output is binary, even one without bytes.
    pub has_binary: bool,
}

/// Writes an answer. `id` is the caller's own; the model's version is shown as a string.
///
/// # Errors
/// Where an element of a BYTES output is not UTF-8 and the output is not binary.
pub fn encode(id: Option<&str>, model: &str, version: u64, outputs: &[Rendered<'_>], nan: NanStyle) -> Result<Encoded, InferError> {
    let json_bytes: usize = outputs.iter().map(|output| json_bytes(output.name, &output.tensor, output.binary)).sum();
    let mut encoded = Encoded { json: Vec::with_capacity(json_bytes + 128), ..Encoded::default() };
    write_head(&mut encoded.json, Head { id, model, version });
    for (position, output) in outputs.iter().enumerate() {
        if position > 0 {
            encoded.json.push(b',');
        }
        write_output(&mut encoded, output, nan)?;
    }
    encoded.json.extend_from_slice(b"]}");
    Ok(encoded)
}

/// About how many bytes an output takes in the JSON: a hint for the buffer, and for whether writing it takes long.
pub fn json_bytes(name: &str, tensor: &Tensor, binary: bool) -> usize {
    let each = match tensor.datatype() {
        DataType::Bool | DataType::Uint8 | DataType::Int8 => 5,
        DataType::Uint16 | DataType::Int16 | DataType::Fp16 | DataType::Bf16 => 8,
        DataType::Uint32 | DataType::Int32 | DataType::Fp32 => 12,
        DataType::Uint64 | DataType::Int64 | DataType::Fp64 => 20,
        DataType::Bytes => 0,
    };
    // Quotes and comma of a string take less than its length did.
    let strings = if tensor.datatype() == DataType::Bytes { tensor.bytes().len() } else { 0 };
    name.len() + 64 + if binary { 0 } else { strings + tensor.element_count() * each }
}

fn write_head(out: &mut Vec<u8>, head: Head<'_>) {
    out.push(b'{');
    if let Some(id) = head.id {
        out.extend_from_slice(b"\"id\":");
        write_string(out, id);
        out.push(b',');
    }
    out.extend_from_slice(b"\"model_name\":");
    write_string(out, head.model);
    out.extend_from_slice(b",\"model_version\":\"");
    integer(out, head.version);
    out.extend_from_slice(b"\",\"outputs\":[");
}

fn write_output(encoded: &mut Encoded, output: &Rendered<'_>, nan: NanStyle) -> Result<(), InferError> {
    let Rendered { name, tensor, binary } = output;
    let out = &mut encoded.json;
    out.extend_from_slice(b"{\"name\":");
    write_string(out, name);
    out.extend_from_slice(b",\"datatype\":\"");
    out.extend_from_slice(tensor.datatype().name().as_bytes());
    out.extend_from_slice(b"\",\"shape\":[");
    separated(out, tensor.shape(), integer);
    out.push(b']');
    if *binary {
        out.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
        integer(out, tensor.bytes().len());
        out.extend_from_slice(b"}}");
        encoded.has_binary = true;
        if !tensor.bytes().is_empty() {
            encoded.binary.push(tensor.bytes().clone());
        }
        return Ok(());
    }
    out.extend_from_slice(b",\"data\":[");
    write_elements(out, name, tensor, nan)?;
    out.extend_from_slice(b"]}");
    Ok(())
}

fn separated<T: Copy>(out: &mut Vec<u8>, elements: &[T], mut write: impl FnMut(&mut Vec<u8>, T)) {
    for (index, element) in elements.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, *element);
    }
}

fn write_elements(out: &mut Vec<u8>, name: &str, tensor: &Tensor, nan: NanStyle) -> Result<(), InferError> {
    match tensor.datatype() {
        DataType::Bool => separated(out, tensor.bytes(), |out, byte| {
            out.extend_from_slice(if byte == 0 { b"false".as_slice() } else { b"true" });
        }),
        DataType::Uint8 => integers::<u8>(out, tensor),
        DataType::Uint16 => integers::<u16>(out, tensor),
        DataType::Uint32 => integers::<u32>(out, tensor),
        DataType::Uint64 => integers::<u64>(out, tensor),
        DataType::Int8 => integers::<i8>(out, tensor),
        DataType::Int16 => integers::<i16>(out, tensor),
        DataType::Int32 => integers::<i32>(out, tensor),
        DataType::Int64 => integers::<i64>(out, tensor),
        DataType::Fp16 => floats::<f16, f32>(out, tensor, nan, f16::to_f32),
        DataType::Bf16 => floats::<bf16, f32>(out, tensor, nan, bf16::to_f32),
        DataType::Fp32 => floats::<f32, f32>(out, tensor, nan, |value| value),
        DataType::Fp64 => floats::<f64, f64>(out, tensor, nan, |value| value),
        DataType::Bytes => return strings(out, name, tensor),
    }
    Ok(())
}

fn integers<T: Element + itoa::Integer>(out: &mut Vec<u8>, tensor: &Tensor) {
    separated(out, &tensor.elements::<T>().unwrap_or_default(), integer);
}

fn integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn floats<T: Element, F: zmij::Float + Copy + Into<f64>>(
    out: &mut Vec<u8>,
    tensor: &Tensor,
    nan: NanStyle,
    widen: impl Fn(T) -> F,
) {
    let mut buffer = zmij::Buffer::new();
    separated(out, &tensor.elements::<T>().unwrap_or_default(), |out, value| {
        let value = widen(value);
        let wide: f64 = value.into();
        out.extend_from_slice(if wide.is_finite() {
            buffer.format_finite(value).as_bytes()
        } else if nan == NanStyle::Null {
            b"null"
        } else if wide.is_nan() {
            b"NaN"
        } else if wide > 0.0 {
            b"Infinity"
        } else {
            b"-Infinity"
        });
    });
}

fn strings(out: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<(), InferError> {
    for (index, element) in tensor.byte_strings().enumerate() {
        let Ok(text) = str::from_utf8(element) else {
            return Err(InferError::invalid(format!(
                "output '{name}', element {index} is not UTF-8 and has no JSON form: ask for the output with the parameter 'binary_data'"
            )));
        };
        if index > 0 {
            out.push(b',');
        }
        write_string(out, text);
    }
    Ok(())
}

/// Writes a JSON string, in quotes and escaped where it must be.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        match special[0] {
            quoted @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', quoted]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                let _ = write!(out, "\\u{control:04x}");
            }
        }
        rest = &special[1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tensor: Tensor, nan: NanStyle) -> String {
        let outputs = [Rendered { name: "y", tensor, binary: false }];
        let text = String::from_utf8(encode(None, "m", 1, &outputs, nan).unwrap().json).unwrap();
        let data = text.split_once("\"data\":").unwrap().1;
        data.strip_suffix("}]}").unwrap().to_owned()
    }

    #[test]
    fn elements_of_every_datatype_are_written() {
        let bare = NanStyle::Bare;
        assert_eq!(check(Tensor::from_elements([4], &[i8::MIN, 0, 1, i8::MAX]).unwrap(), bare), "[-128,0,1,127]");
        assert_eq!(check(Tensor::from_elements([1], &[u64::MAX]).unwrap(), bare), "[18446744073709551615]");
        assert_eq!(
            check(Tensor::from_elements([2], &[i64::MIN, i64::MAX]).unwrap(), bare),
            "[-9223372036854775808,9223372036854775807]"
        );
        assert_eq!(check(Tensor::from_elements([3], &[3f32, -0.777_785_3, 0.1]).unwrap(), bare), "[3.0,-0.7777853,0.1]");
        assert_eq!(check(Tensor::from_elements([1], &[0.1f64]).unwrap(), bare), "[0.1]");
        assert_eq!(check(Tensor::from_elements([2], &[f16::from_f32(1.5), f16::from_f32(-2.0)]).unwrap(), bare), "[1.5,-2.0]");
        assert_eq!(check(Tensor::from_elements([1], &[bf16::from_f32(1.5)]).unwrap(), bare), "[1.5]");
        assert_eq!(check(Tensor::new(DataType::Bool, [3], vec![1, 0, 2].into()).unwrap(), bare), "[true,false,true]");
        assert_eq!(
            check(Tensor::from_byte_strings([3], &["a\"\\\n\u{1}é", "", "b"]).unwrap(), bare),
            r#"["a\"\\\n\u0001é","","b"]"#
        );
        assert_eq!(check(Tensor::from_elements([0, 4], &[] as &[f32]).unwrap(), bare), "[]");
    }

    #[test]
    fn what_is_no_number_is_bare_or_null() {
        let odd = Tensor::from_elements([3], &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]).unwrap();
        assert_eq!(check(odd.clone(), NanStyle::Bare), "[NaN,Infinity,-Infinity]");
        assert_eq!(check(odd, NanStyle::Null), "[null,null,null]");
        let odd = Tensor::from_elements([2], &[f16::NAN, f16::NEG_INFINITY]).unwrap();
        assert_eq!(check(odd, NanStyle::Bare), "[NaN,-Infinity]");
    }

    #[test]
    fn members_come_in_the_order_of_triton() {
        let y = Tensor::from_elements([1, 2], &[1i32, 2]).unwrap();
        let outputs = [
            Rendered { name: "y", tensor: y.clone(), binary: true },
            Rendered { name: "z\"", tensor: y.clone(), binary: false },
            Rendered { name: "e", tensor: Tensor::from_elements([0], &[] as &[f32]).unwrap(), binary: true },
        ];
        let encoded = encode(Some("i\\d"), "m", 7, &outputs, NanStyle::Bare).unwrap();
        assert_eq!(
            String::from_utf8(encoded.json).unwrap(),
            concat!(
                r#"{"id":"i\\d","model_name":"m","model_version":"7","outputs":["#,
                r#"{"name":"y","datatype":"INT32","shape":[1,2],"parameters":{"binary_data_size":8}},"#,
                r#"{"name":"z\"","datatype":"INT32","shape":[1,2],"data":[1,2]},"#,
                r#"{"name":"e","datatype":"FP32","shape":[0],"parameters":{"binary_data_size":0}}]}"#
            )
        );
        assert_eq!(encoded.binary.as_slice(), std::slice::from_ref(y.bytes()));
        assert!(encoded.has_binary);
        assert!(!encode(None, "m", 7, &[], NanStyle::Bare).unwrap().has_binary);
    }

    #[test]
    fn strings_that_are_not_utf8_are_binary_only() {
        let tensor = Tensor::from_byte_strings([2], &[b"a".as_slice(), b"\xff"]).unwrap();
        let outputs = [Rendered { name: "y", tensor, binary: false }];
        assert_eq!(
            encode(None, "m", 1, &outputs, NanStyle::Bare).unwrap_err().to_string(),
            "output 'y', element 1 is not UTF-8 and has no JSON form: ask for the output with the parameter 'binary_data'"
        );
    }
}
