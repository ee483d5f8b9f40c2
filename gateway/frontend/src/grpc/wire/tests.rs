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
