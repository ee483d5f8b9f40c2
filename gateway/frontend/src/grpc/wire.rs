//! The bytes of a `ModelInferRequest` before they are decoded: what they would take in memory.
//!
//! A message of the protobuf format can be small and yet decode into many times its size: an empty input takes two bytes on the wire
//! and hundreds in memory, a small number one byte and eight. [`check`] walks the bytes once, without decoding or allocating, and
//! refuses what would take more than a request may, or has more parts than any request needs. What is malformed is left to the decoder,
//! which names it.

use super::decode::MAX_PARAMETERS;
use crate::codec::{MAX_RANK, MAX_TENSORS};

/// Why a message is not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Excess {
    /// Too many of one part.
    #[error("expected at most {limit} {what}, got more")]
    Count {
        /// Which part.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// The typed contents are larger in memory than a request may be.
    #[error("the contents of all inputs take more than {limit_bytes} bytes")]
    Memory {
        /// How much is allowed.
        limit_bytes: usize,
    },
}

/// Memory of an element of `bytes_contents` beside its bytes.
const BYTES_ELEMENT_BYTES: usize = size_of::<bytes::Bytes>();

/// Checks an encoded `ModelInferRequest`; `limit_bytes` is what its typed contents may take.
pub(crate) fn check(message: &[u8], limit_bytes: usize) -> Result<(), Excess> {
    let mut counts = Counts::default();
    let mut budget = Budget { used_bytes: 0, limit_bytes };
    for field in Fields(message) {
        match field.number {
            4 => counts.parameters.add("parameters")?,
            5 => {
                counts.inputs.add("inputs")?;
                check_input(field.bytes, &mut counts, &mut budget)?;
            }
            6 => {
                counts.outputs.add("outputs")?;
                // A requested output's parameters.
                Fields(field.bytes).filter(|field| field.number == 2).try_for_each(|_| counts.parameters.add("parameters"))?;
            }
            7 => counts.raw.add("entries in raw_input_contents")?,
            _ => {}
        }
    }
    Ok(())
}

fn check_input(input: &[u8], counts: &mut Counts, budget: &mut Budget) -> Result<(), Excess> {
    let mut rank = Count::new(MAX_RANK);
    for field in Fields(input) {
        match field.number {
            3 if field.bytes.is_empty() => rank.add("dimensions of an input")?,
            3 => (0..varints(field.bytes)).try_for_each(|_| rank.add("dimensions of an input"))?,
            4 => counts.parameters.add("parameters")?,
            5 => check_contents(field.bytes, budget)?,
            _ => {}
        }
    }
    Ok(())
}

fn check_contents(contents: &[u8], budget: &mut Budget) -> Result<(), Excess> {
    for field in Fields(contents) {
        let bytes = match field.number {
            // Lists of numbers: packed, or one by one, which has no bytes of its own here.
            1 => field.varints(),
            2 | 4 => field.varints().saturating_mul(4),
            3 | 5 => field.varints().saturating_mul(8),
            6 => field.bytes.len().max(4),
            7 => field.bytes.len().max(8),
            8 => field.bytes.len() + BYTES_ELEMENT_BYTES,
            _ => 0,
        };
        budget.take(bytes)?;
    }
    Ok(())
}

struct Budget {
    used_bytes: usize,
    limit_bytes: usize,
}

impl Budget {
    fn take(&mut self, bytes: usize) -> Result<(), Excess> {
        self.used_bytes = self.used_bytes.saturating_add(bytes);
        if self.used_bytes > self.limit_bytes { Err(Excess::Memory { limit_bytes: self.limit_bytes }) } else { Ok(()) }
    }
}

struct Counts {
    inputs: Count,
    outputs: Count,
    raw: Count,
    parameters: Count,
}

impl Default for Counts {
    fn default() -> Self {
        let tensors = || Count::new(MAX_TENSORS);
        Counts { inputs: tensors(), outputs: tensors(), raw: tensors(), parameters: Count::new(MAX_PARAMETERS) }
    }
}

struct Count {
    seen: usize,
    limit: usize,
}

impl Count {
    const fn new(limit: usize) -> Count {
        Count { seen: 0, limit }
    }

    fn add(&mut self, what: &'static str) -> Result<(), Excess> {
        self.seen += 1;
        if self.seen > self.limit { Err(Excess::Count { what, limit: self.limit }) } else { Ok(()) }
    }
}

/// A field of an encoded message.
struct Field<'a> {
    number: u64,
    /// The contents where the field has a length, else empty.
    bytes: &'a [u8],
}

impl Field<'_> {
    /// Numbers in a list of them.
    fn varints(&self) -> usize {
        varints(self.bytes).max(1)
    }
}

fn varints(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte < 0x80).count()
}

/// The fields of an encoded message, up to the first that is malformed.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let tag = self.varint()?;
        let bytes = match tag & 7 {
            0 => {
                self.varint()?;
                &[][..]
            }
            1 => {
                self.take(8)?;
                &[]
            }
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.take(length)?
            }
            5 => {
                self.take(4)?;
                &[]
            }
            _ => return None,
        };
        Some(Field { number: tag >> 3, bytes })
    }
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use bascule_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
    use bascule_proto::inference::{InferParameter, InferTensorContents, ModelInferRequest};
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    const LIMIT: usize = 1000;

    fn found(request: &ModelInferRequest) -> Option<String> {
        check(&request.encode_to_vec(), LIMIT).err().map(|excess| excess.to_string())
    }

    fn with_contents(contents: InferTensorContents) -> ModelInferRequest {
        let input = InferInputTensor { contents: Some(contents), ..InferInputTensor::default() };
        ModelInferRequest { inputs: vec![input], ..ModelInferRequest::default() }
    }

    #[test]
    fn typed_contents_are_counted_as_they_lie_in_memory() {
        let too_much = Some(format!("the contents of all inputs take more than {LIMIT} bytes"));
        let check = |fits: InferTensorContents, over: InferTensorContents| {
            assert_eq!(found(&with_contents(fits)), None);
            assert_eq!(found(&with_contents(over)), too_much);
        };
        let with = InferTensorContents::default;
        check(
            InferTensorContents { uint64_contents: vec![1; 125], ..with() },
            InferTensorContents { uint64_contents: vec![1; 126], ..with() },
        );
        check(
            InferTensorContents { int_contents: vec![-1; 250], ..with() },
            InferTensorContents { int_contents: vec![-1; 251], ..with() },
        );
        check(
            InferTensorContents { fp32_contents: vec![1.0; 250], ..with() },
            InferTensorContents { fp32_contents: vec![1.0; 251], ..with() },
        );
        check(
            InferTensorContents { bytes_contents: vec![Bytes::new(); LIMIT / BYTES_ELEMENT_BYTES], ..with() },
            InferTensorContents { bytes_contents: vec![Bytes::new(); LIMIT / BYTES_ELEMENT_BYTES + 1], ..with() },
        );
    }

    #[test]
    fn numbers_that_are_not_packed_count_too() {
        // Field 3 of the contents, number by number, as an old encoder writes it.
        let contents = [3 << 3, 1].repeat(126);
        let inner = [&[5 << 3 | 2, 0xfc, 0x01][..], &contents].concat();
        let message = [&[5 << 3 | 2, 0xff, 0x01][..], &inner].concat();
        assert!(ModelInferRequest::decode(&message[..]).is_ok());
        assert_eq!(check(&message, LIMIT), Err(Excess::Memory { limit_bytes: LIMIT }));
    }

    #[test]
    fn parts_are_counted() {
        let inputs = |count| ModelInferRequest { inputs: vec![InferInputTensor::default(); count], ..ModelInferRequest::default() };
        assert_eq!(found(&inputs(MAX_TENSORS)), None);
        assert_eq!(found(&inputs(MAX_TENSORS + 1)), Some("expected at most 1024 inputs, got more".to_owned()));
        let raw = ModelInferRequest { raw_input_contents: vec![Bytes::new(); MAX_TENSORS + 1], ..ModelInferRequest::default() };
        assert_eq!(found(&raw), Some("expected at most 1024 entries in raw_input_contents, got more".to_owned()));
        let parameters = (0..=MAX_PARAMETERS).map(|index| (index.to_string(), InferParameter::default())).collect();
        let output = InferRequestedOutputTensor { parameters, ..InferRequestedOutputTensor::default() };
        let outputs = ModelInferRequest { outputs: vec![output], ..ModelInferRequest::default() };
        assert_eq!(found(&outputs), Some(format!("expected at most {MAX_PARAMETERS} parameters, got more")));
        let shape = InferInputTensor { shape: vec![1; MAX_RANK + 1], ..InferInputTensor::default() };
        let shaped = ModelInferRequest { inputs: vec![shape], ..ModelInferRequest::default() };
        assert_eq!(found(&shaped), Some("expected at most 64 dimensions of an input, got more".to_owned()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_without_a_panic(bytes: Vec<u8>) {
            let _ = check(&bytes, LIMIT);
        }

        #[test]
        fn raw_contents_are_free(raw in proptest::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let raw_input_contents = raw.into_iter().map(Bytes::from).collect();
            let request = ModelInferRequest { raw_input_contents, ..ModelInferRequest::default() };
            prop_assert_eq!(check(&request.encode_to_vec(), 0), Ok(()));
        }
    }
}
