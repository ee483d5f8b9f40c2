use bascule_runtime_api::{DataType, LoadOptions, Runtime, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};

use super::*;
use crate::testing::{ENTRYPOINT, folder};

fn parse(text: &str) -> Result<Golden, String> {
    Golden::parse(text.as_bytes())
}

/// One sample of one input and output of this datatype.
fn sample(datatype: &str, shape: &str, input: &str, output: &str, more: &str) -> String {
    format!(
        r#"{{"schema": 1, "samples": [{{"inputs": {{"x": {{"datatype": "{datatype}", "shape": {shape}, "data": {input}}}}},
            "outputs": {{"y": {{"datatype": "{datatype}", "shape": {shape}, "data": {output}}}}}{more}}}]}}"#
    )
}

/// Compares a sample with an identity.
fn check(datatype: &str, shape: &str, input: &str, output: &str, more: &str) -> String {
    let parsed: DataType = datatype.parse().unwrap();
    let dims: Vec<i64> = serde_json::from_str(shape).unwrap();
    let (x, y) = (TensorSpec::new("x", parsed, dims.clone()), TensorSpec::new("y", parsed, dims));
    let dir = folder(&FakeModel::new(FakeOp::Identity, vec![x], vec![y]));
    let options = LoadOptions { entrypoint: ENTRYPOINT.into(), ..LoadOptions::default() };
    let mut session = FakeRuntime::new().load(dir.path(), &options).unwrap();
    let golden = parse(&sample(datatype, shape, input, output, more)).unwrap();
    golden
        .compare(session.as_mut(), &AtomicBool::new(false), &mut NanOutputs::default())
        .err()
        .unwrap_or_else(|| "equal".to_owned())
}

#[test]
fn answers_are_compared_as_their_datatype_has_it() {
    let cases = [
        ("FP32", "[2]", "[1.5, 2]", "[1.5, 2]", "", "equal"),
        ("FP32", "[2, 1]", "[[1.5], [2]]", "[1.5, 2]", "", "equal"),
        ("FP32", "[]", "1", "1", "", "equal"),
        ("FP32", "[0]", "[]", "[]", "", "equal"),
        ("FP32", "[1]", "[1.00005]", "[1]", "", "equal"),
        ("FP32", "[1]", "[1.5]", "[1]", "", "golden sample 0: output 'y': element 0: expected 1, got 1.5"),
        ("FP64", "[1]", "[1.5]", "[1]", r#", "tolerance": {"y": 0.5}"#, "equal"),
        (
            "FP64",
            "[1]",
            "[1.5]",
            "[1]",
            r#", "tolerance": {"y": 0.25}"#,
            "golden sample 0: output 'y': element 0: expected 1, got 1.5 (tolerance 0.25)",
        ),
        ("FP16", "[1]", "[0.5]", "[0.5]", "", "equal"),
        ("BF16", "[1]", "[2]", "[4]", "", "golden sample 0: output 'y': element 0: expected 4, got 2"),
        ("INT64", "[2]", "[7, 9007199254740993]", "[7, 9007199254740993]", "", "equal"),
        ("INT64", "[2]", "[7, -9]", "[7, 9]", "", "golden sample 0: output 'y': element 1: expected 9, got -9"),
        ("INT32", "[1]", "[4]", "[5]", r#", "tolerance": {"y": 1}"#, "equal"),
        ("UINT8", "[1]", "[255]", "[254]", "", "golden sample 0: output 'y': element 0: expected 254, got 255"),
        ("BOOL", "[2]", "[true, false]", "[true, false]", "", "equal"),
        ("BYTES", "[2]", r#"["a", ""]"#, r#"["a", ""]"#, "", "equal"),
        ("BYTES", "[1]", r#"["a"]"#, r#"["b"]"#, "", r#"golden sample 0: output 'y': element 0: expected "b", got "a""#),
    ];
    for (datatype, shape, input, output, more, expected) in cases {
        assert_eq!(check(datatype, shape, input, output, more), expected, "{datatype} {input} {output}");
    }
    // Two integers that are one number in floating point.
    assert_ne!(check("INT64", "[1]", "[9007199254740993]", "[9007199254740992]", ""), "equal");
}

#[test]
fn what_does_not_belong_to_the_model_is_named() {
    let dir = folder(&FakeModel::new(
        FakeOp::Identity,
        vec![TensorSpec::new("a", DataType::Fp32, [1])],
        vec![TensorSpec::new("y", DataType::Fp32, [1])],
    ));
    let options = LoadOptions { entrypoint: ENTRYPOINT.into(), ..LoadOptions::default() };
    let mut session = FakeRuntime::new().load(dir.path(), &options).unwrap();
    let mut compare = |text: &str| {
        parse(text).unwrap().compare(session.as_mut(), &AtomicBool::new(false), &mut NanOutputs::default()).unwrap_err()
    };
    assert_eq!(compare(&sample("FP32", "[1]", "[1]", "[1]", "")), "golden sample 0: it has no input 'a'");
    let tensor = r#"{"datatype": "FP32", "shape": [1], "data": [1]}"#;
    let with =
        |inputs: &str, outputs: &str| format!(r#"{{"schema": 1, "samples": [{{"inputs": {inputs}, "outputs": {outputs}}}]}}"#);
    let extra = with(&format!(r#"{{"a": {tensor}, "b": {tensor}}}"#), "{}");
    assert_eq!(compare(&extra), "golden sample 0: the model has no input 'b'");
    let output = with(&format!(r#"{{"a": {tensor}}}"#), &format!(r#"{{"z": {tensor}}}"#));
    assert_eq!(compare(&output), "golden sample 0: the model has no output 'z'");
    let wrong = r#"{"datatype": "INT32", "shape": [1], "data": [1]}"#;
    let datatype = with(&format!(r#"{{"a": {tensor}}}"#), &format!(r#"{{"y": {wrong}}}"#));
    assert_eq!(compare(&datatype), "golden sample 0: output 'y': expected INT32, got FP32");
    let refused = with(&format!(r#"{{"a": {wrong}}}"#), "{}");
    assert_eq!(compare(&refused), "golden sample 0: the run failed: input 'a': expected FP32, got INT32");
}

#[test]
fn files_that_are_no_samples_are_refused_by_name() {
    let cases = [
        ("{}", "missing field `schema` at line 1 column 2"),
        (r#"{"schema": 2, "samples": []}"#, "schema 2 is not known, expected 1"),
        (&sample("FP32", "[2]", "[1]", "[1, 2]", ""), "sample 0: input 'x': expected 2 elements for shape [2], got 1"),
        (&sample("FP32", "[-1]", "[1]", "[1]", ""), "sample 0: input 'x': shape [-1] is no shape"),
        (
            &sample("FP32", "[9223372036854775807, 3]", "[1]", "[1]", ""),
            "sample 0: input 'x': shape [9223372036854775807, 3] is no shape",
        ),
        (&sample("INT8", "[1]", "[1]", "[128]", ""), "sample 0: output 'y': element 0: expected INT8, got 128"),
        (&sample("UINT8", "[1]", "[-1]", "[1]", ""), "sample 0: input 'x': element 0: expected UINT8, got -1"),
        (&sample("BOOL", "[1]", "[1]", "[true]", ""), "sample 0: input 'x': element 0: expected BOOL, got 1"),
        (
            &sample("BYTES", "[1]", "[1]", r#"["a"]"#, ""),
            r#"sample 0: input 'x': expected strings, or objects such as {"base64": "AP8="}"#,
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(text).unwrap_err(), expected);
    }
}
