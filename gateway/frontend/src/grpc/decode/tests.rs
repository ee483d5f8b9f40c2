use bascule_proto::inference::InferParameter;
use bascule_serving::ErrorCode;
use half::f16;

use super::*;

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

fn parameters<const N: usize>(pairs: [(&str, ParameterChoice); N]) -> HashMap<String, InferParameter> {
    pairs.map(|(name, choice)| (name.to_owned(), parameter(choice))).into()
}

fn request(pairs: [(&str, ParameterChoice); 1]) -> Result<RequestParameters, String> {
    request_parameters(parameters(pairs)).map_err(|error| error.to_string())
}

fn described(datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor {
        name: "x".to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        parameters: HashMap::new(),
        contents,
    }
}

fn read(input: InferInputTensor, raw: &[&'static [u8]]) -> Result<Tensor, String> {
    let raw = raw.iter().map(|raw| Bytes::from_static(raw)).collect();
    inputs(vec![input], raw).map(|mut named| named.remove(0).tensor).map_err(|error| error.to_string())
}

#[test]
fn raw_contents_are_the_received_bytes() {
    let raw = Bytes::from(vec![1u8; 16]);
    let read = inputs(vec![described("FP32", &[2, 2], None)], vec![raw.clone()]).unwrap();
    assert_eq!(read[0].name, "x");
    assert_eq!(read[0].tensor.shape(), [2, 2]);
    assert_eq!(read[0].tensor.bytes().as_ptr(), raw.as_ptr());
    for datatype in DataType::ALL {
        assert_eq!(
            inputs(vec![described(datatype.name(), &[0], None)], vec![Bytes::new()]).unwrap()[0].tensor.datatype(),
            datatype
        );
    }
}

#[test]
fn typed_contents_of_every_datatype_are_read() {
    let contents = InferTensorContents::default;
    let check = |expected: Tensor, contents: InferTensorContents| {
        let input = described(expected.datatype().name(), &[2], Some(contents));
        assert_eq!(read(input, &[]), Ok(expected));
    };
    fn of<T: Element>(elements: [T; 2]) -> Tensor {
        Tensor::from_elements([2], &elements).unwrap()
    }
    check(
        Tensor::new(DataType::Bool, [2], Bytes::from_static(&[1, 0])).unwrap(),
        InferTensorContents { bool_contents: vec![true, false], ..contents() },
    );
    check(of([0u8, 255]), InferTensorContents { uint_contents: vec![0, 255], ..contents() });
    check(of([0u16, 65535]), InferTensorContents { uint_contents: vec![0, 65535], ..contents() });
    check(of([0u32, u32::MAX]), InferTensorContents { uint_contents: vec![0, u32::MAX], ..contents() });
    check(of([0u64, u64::MAX]), InferTensorContents { uint64_contents: vec![0, u64::MAX], ..contents() });
    check(of([-128i8, 127]), InferTensorContents { int_contents: vec![-128, 127], ..contents() });
    check(of([-32768i16, 32767]), InferTensorContents { int_contents: vec![-32768, 32767], ..contents() });
    check(of([i32::MIN, i32::MAX]), InferTensorContents { int_contents: vec![i32::MIN, i32::MAX], ..contents() });
    check(of([i64::MIN, i64::MAX]), InferTensorContents { int64_contents: vec![i64::MIN, i64::MAX], ..contents() });
    check(of([-0.5f32, f32::INFINITY]), InferTensorContents { fp32_contents: vec![-0.5, f32::INFINITY], ..contents() });
    check(of([-0.5f64, f64::MAX]), InferTensorContents { fp64_contents: vec![-0.5, f64::MAX], ..contents() });
    let strings = vec![Bytes::from_static(b"a\xff"), Bytes::new()];
    check(
        Tensor::from_byte_strings([2], &[&b"a\xff"[..], b""]).unwrap(),
        InferTensorContents { bytes_contents: strings, ..contents() },
    );
    assert_eq!(read(described("INT8", &[0, 4], None), &[]).map(|tensor| tensor.element_count()), Ok(0));
}

#[test]
fn inputs_that_make_no_sense_are_named() {
    let with = InferTensorContents::default;
    let ints = |elements: &[i32]| Some(InferTensorContents { int_contents: elements.to_vec(), ..with() });
    let half: &'static [u8] = bytemuck::bytes_of(&f16::ONE).to_vec().leak();
    let cases: [(InferInputTensor, &[&'static [u8]], &str); 15] = [
        (
            described("INT8", &[2], ints(&[1, 300])),
            &[],
            "input 'x': element 1: expected a value from -128 to 127 for INT8, got 300",
        ),
        (
            described("UINT16", &[1], Some(InferTensorContents { uint_contents: vec![65536], ..with() })),
            &[],
            "input 'x': element 0: expected a value from 0 to 65535 for UINT16, got 65536",
        ),
        (
            described("INT32", &[1], Some(InferTensorContents { int64_contents: vec![5], ..with() })),
            &[],
            "input 'x': expected int_contents for datatype INT32, got int64_contents",
        ),
        (
            described("FP16", &[1], Some(InferTensorContents { fp32_contents: vec![1.5], ..with() })),
            &[],
            "input 'x': FP16 has no typed contents, expected raw_input_contents",
        ),
        (described("FP32", &[1, 4], None), &[], "input 'x': expected 4 elements in fp32_contents for shape [1, 4], got 0"),
        (described("INT32", &[3], ints(&[1, 2])), &[], "input 'x': expected 3 elements in int_contents for shape [3], got 2"),
        (
            described("INT32", &[-1], ints(&[1])),
            &[],
            "input 'x': expected dimensions of 0 or more whose product can be addressed, got shape [-1]",
        ),
        (
            described("INT32", &[i64::MAX, 3], None),
            &[],
            "input 'x': expected dimensions of 0 or more whose product can be addressed, got shape [9223372036854775807, 3]",
        ),
        (described("FP16", &[2], None), &[half], "input 'x': expected 4 bytes for FP16 of shape [2], got 2"),
        (
            described("FP32", &[i64::MAX], None),
            &[b""],
            "input 'x': shape [9223372036854775807] has more elements than can be addressed",
        ),
        (described("BYTES", &[1], None), &[b"\x0a\0\0\0abc"], "input 'x': element 0 says it has 10 bytes but only 3 are left"),
        (described("INT32", &[1], ints(&[1])), &[b"\0\0\0\0"], "input 'x': expected no contents beside raw_input_contents"),
        (
            described("INT32", &[1], None),
            &[b"\0\0\0\0", b""],
            "request: expected one entry in raw_input_contents for each of 1 inputs, got 2",
        ),
        (
            described("", &[1], None),
            &[b"\0\0\0\0"],
            "input 'x': unknown datatype '', expected one of BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, FP32, \
             FP64, BF16, BYTES",
        ),
        (described("INT8", &[1; MAX_RANK + 1], None), &[b"\0"], "request: expected at most 64 dimensions of input 'x', got 65"),
    ];
    for (input, raw, expected) in cases {
        assert_eq!(read(input, raw), Err(expected.to_owned()));
    }
}

#[test]
fn shared_memory_is_refused_wherever_it_is_named() {
    let shared = || parameters([("shared_memory_region", ParameterChoice::StringParam("r".to_owned()))]);
    let input = InferInputTensor { parameters: shared(), ..described("FP32", &[1], None) };
    let error = inputs(vec![input], Vec::new()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unsupported);
    assert_eq!(error.to_string(), "shared memory (parameter 'shared_memory_region' of input 'x') is not supported");
    let output = InferRequestedOutputTensor { name: "y".to_owned(), parameters: shared() };
    assert_eq!(outputs(vec![output]).unwrap_err().code(), ErrorCode::Unsupported);
}

#[test]
fn parameters_with_a_meaning_are_read_strictly() {
    use ParameterChoice::{BoolParam, DoubleParam, Int64Param, StringParam, Uint64Param};
    let none = RequestParameters::default;
    let id = |id: &[u8]| RequestParameters { sequence_id: Some(id.into()), ..none() };
    let version = |version| RequestParameters { version: Some(version), ..none() };
    for (name, choice, expected) in [
        ("timeout", Int64Param(1_000), RequestParameters { timeout: Some(Duration::from_millis(1)), ..none() }),
        ("timeout", Uint64Param(0), none()),
        ("priority", Uint64Param(2), RequestParameters { priority: 2, ..none() }),
        ("sequence_id", Uint64Param(7), id(b"7")),
        ("sequence_id", StringParam("abc".into()), id(b"abc")),
        ("sequence_id", Int64Param(0), none()),
        ("sequence_id", StringParam(String::new()), none()),
        ("sequence_start", BoolParam(true), none()),
        ("version", StringParam("stable".into()), version(VersionChoice::Alias("stable".into()))),
        ("version", Int64Param(3), version(VersionChoice::Number(3))),
        ("binary_data_output", BoolParam(true), none()),
        ("triton_enable_empty_final_response", BoolParam(true), none()),
        ("k", DoubleParam(1.5), none()),
    ] {
        assert_eq!(request([(name, choice.clone())]), Ok(expected), "{name} {choice:?}");
    }
    for (name, choice, expected) in [
        ("timeout", Int64Param(-1), "request: parameter 'timeout': expected 0 or more, got -1"),
        (
            "timeout",
            StringParam("1".into()),
            "request: parameter 'timeout': expected int64_param or uint64_param, got string_param",
        ),
        ("priority", BoolParam(true), "request: parameter 'priority': expected int64_param or uint64_param, got bool_param"),
        ("sequence_id", Int64Param(-1), "request: parameter 'sequence_id': expected 0 or more, got -1"),
        (
            "sequence_id",
            DoubleParam(1.0),
            "request: parameter 'sequence_id': expected int64_param, uint64_param or string_param, got double_param",
        ),
        ("sequence_end", Int64Param(1), "request: parameter 'sequence_end': expected bool_param, got int64_param"),
        ("version", BoolParam(true), "request: parameter 'version': expected a version number or an alias"),
    ] {
        assert_eq!(request([(name, choice.clone())]), Err(expected.to_owned()), "{name} {choice:?}");
    }
    let unset = request_parameters([("k".to_owned(), InferParameter::default())].into()).unwrap_err();
    assert_eq!(
        unset.to_string(),
        "request: parameter 'k': expected a value in bool_param, int64_param, uint64_param, string_param or double_param, got none"
    );
}

#[test]
fn classes_are_a_number() {
    let read = |choice| {
        let output = InferRequestedOutputTensor { name: "y".to_owned(), parameters: parameters([("classification", choice)]) };
        outputs(vec![output]).map(|outputs| outputs[0].classes).map_err(|error| error.to_string())
    };
    assert_eq!(read(ParameterChoice::Int64Param(2)), Ok(2));
    assert_eq!(
        read(ParameterChoice::StringParam("2".into())),
        Err("output 'y': parameter 'classification': expected int64_param or uint64_param, got string_param".to_owned())
    );
    assert_eq!(
        read(ParameterChoice::Int64Param(-2)),
        Err("output 'y': parameter 'classification': expected 0 or more, got -2".to_owned())
    );
}
