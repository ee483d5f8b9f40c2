//! The binary tensor extension: tensors as bytes behind the JSON, or as the whole body.
//!
//! Tensors share the bytes of the body; one that lies at an address that its type can't be read from is copied, and counted.
//! Deliberately absent: sizes that are guessed. What the JSON says must be there, and nothing else.

use bascule_runtime_api::{AlignedBuffer, DataType, Shape, Signature, Tensor};
use bascule_serving::{InferError, InferRequest, NamedTensor, RequestedOutput, RouteKey};
use bytes::Bytes;
use smallvec::SmallVec;

use super::json_in::{Contents, Described};
use super::parameters::shown;
use super::{DecodedRequest, OutputChoices};

/// How errors name the header that tells where the JSON ends.
const HEADER: &str = "header 'Inference-Header-Content-Length'";

/// How a body is divided, by its `Inference-Header-Content-Length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No header: all of it is JSON.
    Json,
    /// 0: all of it is the one input of the model.
    Raw,
    /// So many bytes of JSON, then the binary section.
    Split {
        /// At least 1.
        json_bytes: usize,
    },
}

impl Framing {
    /// Reads the header's value.
    ///
    /// # Errors
    /// Where it is no number of bytes.
    pub fn from_header(value: Option<&[u8]>) -> Result<Framing, InferError> {
        let Some(value) = value else { return Ok(Framing::Json) };
        let text = str::from_utf8(value).ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(text) = text else {
            let got = shown(&String::from_utf8_lossy(value));
            return Err(InferError::invalid(format!("{HEADER}: expected a number of bytes, got '{got}'")));
        };
        // More digits than fit are more bytes than any body has.
        Ok(match text.parse().unwrap_or(usize::MAX) {
            0 => Framing::Raw,
            json_bytes => Framing::Split { json_bytes },
        })
    }

    /// Where the JSON of a body ends.
    pub(super) fn json_bytes(self, body_bytes: usize) -> Result<usize, InferError> {
        match self {
            Framing::Json => Ok(body_bytes),
            Framing::Raw => Ok(0),
            Framing::Split { json_bytes } if json_bytes <= body_bytes => Ok(json_bytes),
            Framing::Split { json_bytes } => {
                let got = if json_bytes == usize::MAX { "more than can be counted".to_owned() } else { json_bytes.to_string() };
                Err(InferError::invalid(format!("{HEADER}: expected at most the {body_bytes} bytes of the body, got {got}")))
            }
        }
    }
}

/// Gives each binary input its part of the section behind the JSON, in the order of the inputs.
pub(super) fn attach(described: Described, section: Bytes) -> Result<DecodedRequest, InferError> {
    let Described { id, parameters, inputs, outputs, ignored } = described;
    let mut copied = 0;
    let mut at = 0usize;
    let mut tensors = SmallVec::with_capacity(inputs.len());
    for input in inputs {
        let tensor = match input.contents {
            Contents::Read(tensor) => tensor,
            Contents::Binary { datatype, shape, size_bytes } => {
                let end = at.checked_add(size_bytes).filter(|end| *end <= section.len());
                let Some(end) = end else {
                    let (name, left) = (shown(&input.name), section.len() - at);
                    return Err(InferError::invalid(format!(
                        "input '{name}': expected {size_bytes} bytes of binary data behind the JSON, {left} are left"
                    )));
                };
                let bytes = section.slice(at..end);
                at = end;
                tensor_of(&input.name, datatype, &shape, bytes, &mut copied)?
            }
        };
        tensors.push(NamedTensor { name: input.name, tensor });
    }
    if at != section.len() {
        let got = section.len();
        return Err(InferError::invalid(format!("binary data: expected {at} bytes behind the JSON as the inputs say, got {got}")));
    }
    let infer = InferRequest {
        version: parameters.version.unwrap_or_default(),
        key: parameters.sequence_id.map_or(RouteKey::Request, RouteKey::Caller),
        inputs: tensors,
        outputs: outputs.iter().map(|output| RequestedOutput { name: output.name.clone() }).collect(),
        priority: parameters.priority,
        deadline: None,
    };
    let outputs = OutputChoices { listed: outputs, binary_by_default: parameters.binary_data_output };
    Ok(DecodedRequest { id, infer, timeout: parameters.timeout, outputs, ignored, copied })
}

/// How much of the section is to be walked or copied: the elements of BYTES tensors, and what lies misaligned.
pub(super) fn work_bytes(described: &Described, section: &Bytes) -> usize {
    let mut at = 0usize;
    let mut work = 0usize;
    for input in &described.inputs {
        let Contents::Binary { datatype, size_bytes, .. } = &input.contents else { continue };
        if *datatype == DataType::Bytes || !section.as_ptr().addr().wrapping_add(at).is_multiple_of(datatype.alignment()) {
            work = work.saturating_add((*size_bytes).min(section.len()));
        }
        at = at.saturating_add(*size_bytes);
    }
    work
}

fn tensor_of(name: &str, datatype: DataType, shape: &Shape, bytes: Bytes, copied: &mut u32) -> Result<Tensor, InferError> {
    let misaligned = !bytes.is_empty() && !bytes.as_ptr().addr().is_multiple_of(datatype.alignment());
    let bytes = if misaligned {
        *copied += 1;
        AlignedBuffer::copy_of(&bytes).into_bytes()
    } else {
        bytes
    };
    Tensor::new(datatype, shape, bytes).map_err(|error| InferError::invalid(format!("input '{}': {error}", shown(name))))
}

/// Reads a body that is nothing but the bytes of a model's one input. Its shape is the signature's, with a batch of one where there is a
/// batch axis (`batched`); one other open dimension is counted from the size. A BYTES input is one element, without a length.
///
/// # Errors
/// Where the model has several inputs, its shape can't be counted, or the size doesn't fit it.
pub fn decode_raw(body: Bytes, signature: &Signature, batched: bool) -> Result<DecodedRequest, InferError> {
    let [spec] = signature.inputs.as_slice() else {
        let count = signature.inputs.len();
        return Err(InferError::invalid(format!("raw body: expected a model with one input, this one has {count}")));
    };
    let name = &spec.name;
    let mut shape = Shape::from_slice(&spec.shape);
    if batched && let Some(batch) = shape.first_mut() {
        *batch = 1;
    }
    let mut copied = 0;
    let (bytes, unit) = match spec.datatype.element_bytes() {
        Some(unit) => (body, unit),
        None => {
            let length = u32::try_from(body.len()).map_err(|_| InferError::TooLarge {
                what: format!("the one element of input '{name}'"),
                limit_bytes: u32::MAX as usize,
            })?;
            ([&length.to_le_bytes()[..], &body].concat().into(), 1)
        }
    };
    let open: SmallVec<[usize; 2]> = (0..shape.len()).filter(|axis| shape[*axis] < 0).collect();
    match open.as_slice() {
        [] => {}
        [axis] if spec.datatype == DataType::Bytes => shape[*axis] = 1,
        [axis] => {
            let known = shape
                .iter()
                .filter(|dim| **dim >= 0)
                .try_fold(unit, |product, dim| product.checked_mul(usize::try_from(*dim).ok()?));
            let known = known.filter(|known| *known > 0 && bytes.len().is_multiple_of(*known));
            let Some(size) = known.and_then(|known| i64::try_from(bytes.len() / known).ok()) else {
                let (shape, got) = (&spec.shape, bytes.len());
                return Err(InferError::invalid(format!(
                    "raw body: input '{name}' is {} of shape {shape:?}, expected a multiple of its known dimensions, got {got} bytes",
                    spec.datatype
                )));
            };
            shape[*axis] = size;
        }
        _ => {
            let shape = &spec.shape;
            return Err(InferError::invalid(format!(
                "raw body: input '{name}' has shape {shape:?}, expected at most one open dimension"
            )));
        }
    }
    let tensor = tensor_of(name, spec.datatype, &shape, bytes, &mut copied)?;
    let infer =
        InferRequest { inputs: [NamedTensor { name: name.clone(), tensor }].into_iter().collect(), ..InferRequest::default() };
    let outputs = OutputChoices { binary_by_default: true, ..OutputChoices::default() };
    Ok(DecodedRequest { id: None, infer, timeout: None, outputs, ignored: 0, copied })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::decode;
    use bascule_runtime_api::TensorSpec;

    fn request(json: &str, header: Option<&str>, tail: &[u8]) -> Result<DecodedRequest, String> {
        let mut body = AlignedBuffer::zeroed_aligned_at(json.len() + tail.len(), json.len());
        body.as_mut()[..json.len()].copy_from_slice(json.as_bytes());
        body.as_mut()[json.len()..].copy_from_slice(tail);
        let length = json.len().to_string();
        let header = header.map(|text| if text == "right" { length.as_bytes() } else { text.as_bytes() });
        let framing = Framing::from_header(header).map_err(|error| error.to_string())?;
        decode(&body.into_bytes(), framing, 1000).map_err(|error| error.to_string())
    }

    fn input(size: usize) -> String {
        format!(r#"{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}]}}"#)
    }

    #[test]
    fn what_is_walked_or_copied_is_known_before() {
        let mut body = AlignedBuffer::zeroed_aligned_at(1000, 0);
        body.as_mut().fill(b' ');
        let body = body.into_bytes();
        let work = |inputs: &[(&str, usize)]| {
            let inputs: Vec<String> = inputs
                .iter()
                .map(|(datatype, size)| {
                    format!(r#"{{"name":"x","shape":[1],"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}"#)
                })
                .collect();
            let described = super::super::json_in::describe(format!(r#"{{"inputs":[{}]}}"#, inputs.join(",")).as_bytes(), 1000);
            work_bytes(&described.unwrap(), &body)
        };
        assert_eq!(work(&[("FP32", 400), ("INT64", 200)]), 0);
        assert_eq!(work(&[("BYTES", 401), ("FP32", 100)]), 501);
        assert_eq!(work(&[("UINT8", 1), ("UINT8", 3), ("INT64", 80), ("INT32", 4)]), 80);
        assert_eq!(work(&[("BYTES", usize::MAX), ("BYTES", usize::MAX)]), 2000);
    }

    #[test]
    fn tensors_share_the_body() {
        let decoded = request(&input(16), Some("right"), bytemuck::cast_slice(&[1f32, 2.0, 3.0, 4.0])).unwrap();
        let tensor = &decoded.infer.inputs[0].tensor;
        assert_eq!(tensor.elements::<f32>().unwrap().as_ref(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(decoded.copied, 0);
    }

    #[test]
    fn misaligned_tensors_are_copied_and_counted() {
        let json = r#"{"inputs":[{"name":"a","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}},
            {"name":"b","shape":[1],"datatype":"INT64","parameters":{"binary_data_size":8}},
            {"name":"c","shape":[2],"datatype":"BOOL","data":[true,false]}]}"#;
        let decoded = request(json, Some("right"), &[7, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(decoded.copied, 1);
        assert!(decoded.infer.inputs[1].tensor.is_aligned());
        assert_eq!(decoded.infer.inputs[1].tensor.elements::<i64>().unwrap().as_ref(), [1]);
    }

    #[test]
    fn sizes_must_fit() {
        let zeros = [0u8; 32];
        let check = |json: &str, header: Option<&str>, tail: usize| request(json, header, &zeros[..tail]).unwrap_err();
        assert_eq!(
            check(&input(16), Some("right"), 12),
            "input 'x': expected 16 bytes of binary data behind the JSON, 12 are left"
        );
        assert_eq!(
            check(&input(16), Some("right"), 20),
            "binary data: expected 16 bytes behind the JSON as the inputs say, got 20"
        );
        assert_eq!(check(&input(12), Some("right"), 12), "input 'x': expected 16 bytes for FP32 of shape [1, 4], got 12");
        assert_eq!(check(&input(0), Some("right"), 0), "input 'x': expected 16 bytes for FP32 of shape [1, 4], got 0");
        assert_eq!(check(&input(16), None, 0), "input 'x': expected 16 bytes of binary data behind the JSON, 0 are left");
        assert_eq!(
            check(&input(16), None, 16),
            "request: expected nothing after the JSON value, found the byte 0x00 at byte 94; before binary data, the header 'Inference-Header-Content-Length' tells where the JSON ends"
        );
        assert_eq!(
            check(&input(usize::MAX), Some("right"), 8),
            format!("input 'x': expected {} bytes of binary data behind the JSON, 8 are left", usize::MAX)
        );
        assert_eq!(check(&input(16), Some("93"), 16), "request: expected ',' or '}', found the end at byte 93");
        assert_eq!(
            check(&input(16), Some("1094"), 16),
            "header 'Inference-Header-Content-Length': expected at most the 110 bytes of the body, got 1094"
        );
        let header = "header 'Inference-Header-Content-Length'";
        for wrong in ["10.5", "-1", "+3", "", "0x10", "ten", " 5"] {
            assert_eq!(check(&input(16), Some(wrong), 16), format!("{header}: expected a number of bytes, got '{wrong}'"));
        }
        let huge = "99999999999999999999999";
        assert_eq!(
            check(&input(16), Some(huge), 16),
            format!("{header}: expected at most the 110 bytes of the body, got more than can be counted")
        );
    }

    #[test]
    fn lengths_within_bytes_are_checked() {
        let json = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":7}}]}"#;
        assert_eq!(
            request(json, Some("right"), b"\n\0\0\0abc").unwrap_err(),
            "input 'x': element 0 says it has 10 bytes but only 3 are left"
        );
        assert!(request(json, Some("right"), b"\x03\0\0\0abc").is_ok());
    }

    #[test]
    fn a_raw_body_takes_the_shape_of_the_one_input() {
        let check = |datatype: DataType, shape: &[i64], batched: bool, body: &'static [u8]| {
            let signature = Signature { inputs: vec![TensorSpec::new("x", datatype, shape)], ..Signature::default() };
            decode_raw(Bytes::from_static(body), &signature, batched)
                .map(|decoded| decoded.infer.inputs[0].tensor.shape().to_vec())
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(DataType::Fp32, &[-1, 4], true, &[0; 16]), Ok(vec![1, 4]));
        assert_eq!(check(DataType::Int8, &[-1, -1], true, &[0; 5]), Ok(vec![1, 5]));
        assert_eq!(check(DataType::Int16, &[2, -1], false, &[0; 12]), Ok(vec![2, 3]));
        assert_eq!(check(DataType::Int16, &[-1], false, &[]), Ok(vec![0]));
        assert_eq!(check(DataType::Bytes, &[-1], false, b"hello"), Ok(vec![1]));
        assert_eq!(check(DataType::Bytes, &[1], false, b""), Ok(vec![1]));
        assert!(check(DataType::Fp32, &[-1, 4], true, &[0; 10]).unwrap_err().starts_with("input 'x': expected 16 bytes"));
        assert!(
            check(DataType::Int16, &[2, -1], false, &[0; 10])
                .unwrap_err()
                .contains("multiple of its known dimensions, got 10 bytes")
        );
        assert!(check(DataType::Int16, &[0, -1], false, &[0; 10]).unwrap_err().contains("multiple"));
        assert!(check(DataType::Int16, &[-1, -1], false, &[0; 10]).unwrap_err().ends_with("expected at most one open dimension"));
        assert!(check(DataType::Bytes, &[2], false, b"a").unwrap_err().starts_with("input 'x': expected 2 BYTES elements"));
        let two = Signature {
            inputs: vec![TensorSpec::new("a", DataType::Bool, [1]), TensorSpec::new("b", DataType::Bool, [1])],
            ..Signature::default()
        };
        assert_eq!(
            decode_raw(Bytes::new(), &two, false).unwrap_err().to_string(),
            "raw body: expected a model with one input, this one has 2"
        );
        assert!(
            decode_raw(
                Bytes::new(),
                &Signature { inputs: vec![TensorSpec::new("a", DataType::Int8, [0])], ..Signature::default() },
                false
            )
            .unwrap()
            .outputs
            .of("y")
            .binary
        );
    }
}
