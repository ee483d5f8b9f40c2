//! The bytes of a `ModelInferRequest` before they are decoded: what they would take in memory.
//!
//! A message of the protobuf format can be small and yet decode into many times its size: an empty input takes two bytes on the wire
//! and hundreds in memory, a small number one byte and eight. [`check`] walks the bytes once, without decoding or allocating, and
//! refuses what would take more than a request may, or has more parts than any request needs. Invariant: what the decoder would read,
//! the walk has seen, unknown groups and what follows them included; where it can't go on, the message is refused.

use bascule_runtime_api::DataType;
use smallvec::{SmallVec, smallvec};

use super::decode::MAX_PARAMETERS;
use crate::codec::{MAX_RANK, MAX_TENSORS};

/// Messages beyond this may take long to read: about a fifth of a millisecond.
pub(crate) const LARGE_BYTES: usize = 64 << 10;

/// How far [`raw_offset`] looks.
const RAW_OFFSET_BYTES: usize = 4 << 10;

/// The wire types that enclose other fields.
const START_GROUP: u64 = 3;
const END_GROUP: u64 = 4;

/// Groups within each other: nothing in the protocol has any.
const MAX_GROUP_DEPTH: usize = 16;

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
    /// The bytes are no message of the format.
    #[error("expected whole fields, got bytes that break off or do not nest")]
    Malformed,
}

/// Memory of an element of `bytes_contents` beside its bytes.
const BYTES_ELEMENT_BYTES: usize = size_of::<bytes::Bytes>();

/// Checks an encoded `ModelInferRequest`; `limit_bytes` is what its typed contents may take. Returns what they take.
pub(crate) fn check(message: &[u8], limit_bytes: usize) -> Result<usize, Excess> {
    let mut counts = Counts::default();
    let mut budget = Budget { used_bytes: 0, limit_bytes };
    for field in Fields(message) {
        let field = field?;
        match field.number {
            4 => counts.parameters.add("parameters")?,
            5 => {
                counts.inputs.add("inputs")?;
                check_input(field.bytes, &mut counts, &mut budget)?;
            }
            6 => {
                counts.outputs.add("outputs")?;
                check_output(field.bytes, &mut counts)?;
            }
            7 => counts.raw.add("entries in raw_input_contents")?,
            _ => {}
        }
    }
    Ok(budget.used_bytes)
}

/// Where the first of the raw contents begins in a message of which this is the beginning; 0 where that does not show.
pub(crate) fn raw_offset(beginning: &[u8]) -> usize {
    // What describes the tensors is short: a walk over more would hold up other calls.
    let beginning = &beginning[..beginning.len().min(RAW_OFFSET_BYTES)];
    let mut fields = Fields(beginning);
    while let Some((number, wire_type)) = fields.tag() {
        if number == 7 && wire_type == 2 {
            return fields.varint().map_or(0, |_| beginning.len() - fields.0.len());
        }
        if wire_type == START_GROUP || fields.value(wire_type).is_none() {
            return 0;
        }
    }
    0
}

fn check_output(output: &[u8], counts: &mut Counts) -> Result<(), Excess> {
    for field in Fields(output) {
        if field?.number == 2 {
            counts.parameters.add("parameters")?;
        }
    }
    Ok(())
}

fn check_input(input: &[u8], counts: &mut Counts, budget: &mut Budget) -> Result<(), Excess> {
    let mut rank = Count::new(MAX_RANK);
    for field in Fields(input) {
        let field = field?;
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
        let field = field?;
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

/// The fields of an encoded message. A group has no contents here: what is unknown is skipped, and nothing known is a group.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Excess>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Excess::Malformed))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<Field<'a>> {
        let (number, wire_type) = self.tag()?;
        let bytes = if wire_type == START_GROUP {
            self.skip_group(number)?;
            &[][..]
        } else {
            self.value(wire_type)?
        };
        Some(Field { number, bytes })
    }

    fn tag(&mut self) -> Option<(u64, u64)> {
        let tag = self.varint()?;
        Some((tag >> 3, tag & 7))
    }

    /// The contents of a value that has a length; the others are passed over.
    fn value(&mut self, wire_type: u64) -> Option<&'a [u8]> {
        match wire_type {
            0 => self.varint().map(|_| &[][..]),
            1 => self.take(8).map(|_| &[][..]),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.take(length)
            }
            5 => self.take(4).map(|_| &[][..]),
            _ => None,
        }
    }

    /// Passes over a group that has begun, up to its own end.
    fn skip_group(&mut self, number: u64) -> Option<()> {
        let mut open: SmallVec<[u64; MAX_GROUP_DEPTH]> = smallvec![number];
        while let Some(innermost) = open.last() {
            match self.tag()? {
                (number, START_GROUP) if open.len() < MAX_GROUP_DEPTH => open.push(number),
                (number, END_GROUP) if number == *innermost => drop(open.pop()),
                (_, START_GROUP | END_GROUP) => return None,
                (_, wire_type) => drop(self.value(wire_type)?),
            }
        }
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
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

/// Whether to read a message takes so long that it must not hold up the other calls of a thread. Raw contents are only passed over, but
/// for BYTES, whose elements are checked one by one.
pub(crate) fn is_heavy(message: &[u8]) -> bool {
    if message.len() <= LARGE_BYTES {
        return false;
    }
    let mut fields = Fields(message);
    let (mut walked_bytes, mut raw) = (0, 0);
    while !fields.0.is_empty() {
        let before = fields.0.len();
        let (number, bytes) = match fields.tag() {
            Some((number, wire_type)) if wire_type != START_GROUP => match fields.value(wire_type) {
                Some(bytes) => (number, bytes),
                None => return false,
            },
            // What a group has to be walked for is not known before.
            Some(_) => return true,
            None => return false,
        };
        if number == 7 {
            raw += 1;
        } else {
            walked_bytes += before - fields.0.len();
        }
        if walked_bytes > LARGE_BYTES || raw > MAX_TENSORS || number == 5 && is_bytes(bytes) {
            return true;
        }
    }
    false
}

/// Whether an input is of BYTES. What is malformed is found later.
fn is_bytes(input: &[u8]) -> bool {
    Fields(input).filter_map(Result::ok).any(|field| field.number == 2 && field.bytes == DataType::Bytes.name().as_bytes())
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
    fn the_first_raw_contents_are_found() {
        let raw = Bytes::from_static(b"contents");
        let request = ModelInferRequest {
            model_name: "m".to_owned(),
            inputs: vec![InferInputTensor { name: "x".to_owned(), shape: vec![1, 300], ..InferInputTensor::default() }],
            raw_input_contents: vec![raw.clone(), raw.clone()],
            ..ModelInferRequest::default()
        };
        let message = request.encode_to_vec();
        let offset = raw_offset(&message);
        assert_eq!(&message[offset..offset + raw.len()], raw);
        assert_eq!(raw_offset(&message[..offset]), offset, "what comes later is not needed");
        for beginning in [&message[..offset - 1], &message[..3], &[], &[0xff; 100], &[3 << 3 | 3, 7 << 3 | 2, 1]] {
            assert_eq!(raw_offset(beginning), 0);
        }
        let none = ModelInferRequest { raw_input_contents: Vec::new(), ..request };
        assert_eq!(raw_offset(&none.encode_to_vec()), 0);
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

    const GROUP_START: &[u8] = b"\xa3\x06";
    const GROUP_END: &[u8] = b"\xa4\x06";

    /// A group of a field that no message has, with fields and groups in it.
    fn group() -> impl Strategy<Value = Vec<u8>> {
        const FIELDS: &[&[u8]] = &[b"", b"\x08\x80\x01", b"\x2a\x00", b"\x2a\x02\xa3\x06", b"\x2d\xa4\x06\xa4\x06"];
        let enclosed = |inside: Vec<Vec<u8>>| [GROUP_START, &inside.concat(), GROUP_END].concat();
        let field = prop::sample::select(FIELDS).prop_map(<[u8]>::to_vec).boxed();
        let field = field.prop_recursive(4, 16, 3, move |field| prop::collection::vec(field, 0..3).prop_map(enclosed));
        prop::collection::vec(field, 0..3).prop_map(enclosed)
    }

    /// The messages that a request is made of.
    #[derive(Debug, Clone, Copy)]
    enum Level {
        Request,
        Input,
        Contents,
        Output,
    }

    const LEVELS: [Level; 4] = [Level::Request, Level::Input, Level::Contents, Level::Output];

    impl Level {
        fn message(self, fields: &[u8]) -> Vec<u8> {
            let within = |number: u8, bytes: &[u8]| {
                let mut field = vec![number << 3 | 2];
                prost::encode_length_delimiter(bytes.len(), &mut field).unwrap();
                [&field[..], bytes].concat()
            };
            match self {
                Level::Request => fields.to_vec(),
                Level::Input => within(5, fields),
                Level::Contents => within(5, &within(5, fields)),
                Level::Output => within(6, fields),
            }
        }

        /// More fields than this level may have.
        fn crowd(self) -> Vec<u8> {
            match self {
                Level::Request => b"\x2a\x00".repeat(MAX_TENSORS + 1),
                Level::Input => b"\x18\x01".repeat(MAX_RANK + 1),
                Level::Contents => b"\x42\x00".repeat(LIMIT / BYTES_ELEMENT_BYTES + 1),
                Level::Output => b"\x12\x00".repeat(MAX_PARAMETERS + 1),
            }
        }
    }

    #[test]
    fn inputs_after_an_empty_group_are_counted() {
        let message = [GROUP_START, GROUP_END, &b"\x2a\x00".repeat(32 << 20)].concat();
        assert_eq!(check(&message, 64 << 20), Err(Excess::Count { what: "inputs", limit: MAX_TENSORS }));
    }

    #[test]
    fn what_can_not_be_walked_is_refused() {
        let deep = [GROUP_START.repeat(MAX_GROUP_DEPTH), GROUP_END.repeat(MAX_GROUP_DEPTH)].concat();
        assert_eq!(check(&deep, LIMIT), Ok(0));
        let deeper = [GROUP_START, &deep[..], GROUP_END].concat();
        let other_end = [GROUP_START, b"\xac\x06"].concat();
        for (what, message) in [
            ("groups that are too deep", &deeper[..]),
            ("the end of another group", &other_end),
            ("the end of no group", GROUP_END),
            ("a wire type that is none", b"\xa6\x06"),
            ("a length beyond the end", b"\x2a\x05"),
            ("a number without an end", b"\x08\x80"),
        ] {
            assert_eq!(check(message, LIMIT), Err(Excess::Malformed), "{what}");
        }
    }

    #[test]
    fn raw_contents_are_light_and_what_has_to_be_walked_is_heavy() {
        let raw = |datatype: &str| ModelInferRequest {
            inputs: vec![InferInputTensor { datatype: datatype.to_owned(), ..InferInputTensor::default() }],
            raw_input_contents: vec![vec![0; 2 * LARGE_BYTES].into()],
            ..ModelInferRequest::default()
        };
        let numbers = |count| with_contents(InferTensorContents { int64_contents: vec![1; count], ..Default::default() });
        for (what, request, expected) in [
            ("numbers as they lie in memory", raw("FP32"), false),
            ("byte strings", raw("BYTES"), true),
            ("a few numbers", numbers(100), false),
            ("many numbers", numbers(2 * LARGE_BYTES), true),
        ] {
            assert_eq!(is_heavy(&request.encode_to_vec()), expected, "{what}");
        }
        assert!(is_heavy(&[GROUP_START, &vec![8; 2 * LARGE_BYTES]].concat()));
        assert!(is_heavy(&b"\x3a\x00".repeat(LARGE_BYTES)));
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
            prop_assert_eq!(check(&request.encode_to_vec(), 0), Ok(0));
        }

        #[test]
        fn groups_hide_nothing(group in group()) {
            for level in LEVELS {
                let with_group = |crowd: &[u8]| check(&level.message(&[&group[..], crowd].concat()), LIMIT);
                prop_assert_eq!(with_group(&[]).map(|_| ()), Ok(()));
                let crowd = level.crowd();
                let alone = check(&level.message(&crowd), LIMIT);
                prop_assert!(alone.is_err());
                prop_assert_eq!(with_group(&crowd), alone);
                let open = [&group[..group.len() - GROUP_END.len()], &crowd].concat();
                prop_assert!(check(&level.message(&open), LIMIT).is_err());
            }
        }
    }
}
