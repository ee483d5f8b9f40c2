use super::*;

fn read(text: &str) -> Result<Described, String> {
    describe(text.as_bytes(), 1 << 20).map_err(|error| error.to_string())
}

fn refused(text: &str) -> String {
    read(text).map(|described| format!("{described:?}")).unwrap_err()
}

fn only_input(described: &Described) -> &Tensor {
    assert_eq!(described.inputs.len(), 1);
    match &described.inputs[0].contents {
        Contents::Read(tensor) => tensor,
        Contents::Binary { .. } => panic!("binary"),
    }
}

const X: &str = r#"{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}"#;

#[test]
fn members_may_come_in_any_order() {
    for input in [
        X,
        r#"{"data":[[1,2,3,4]],"shape":[1,4],"datatype":"FP32","name":"x"}"#,
        r#"{"name":"x","datatype":"FP32","data":[1,2,3,4],"shape":[1,4]}"#,
        r#"{"shape":[1,4],"parameters":{},"data":[1.0,2e0,[3],4],"foo":{"a":[1]},"datatype":"FP32","name":"x"}"#,
        " { \"name\" : \"\\u0078\" ,\n\"shape\":[ 1 , 4 ],\t\"datatype\":\"FP32\",\r\"data\":[ 1, 2 ,3,4 ] } ",
    ] {
        let described = read(&format!("{{\"inputs\":[{input}]}}")).unwrap();
        assert_eq!(described.inputs[0].name, "x", "{input}");
        let tensor = only_input(&described);
        assert_eq!((tensor.datatype(), tensor.shape()), (DataType::Fp32, &[1, 4][..]), "{input}");
        assert_eq!(tensor.elements::<f32>().unwrap().as_ref(), [1.0, 2.0, 3.0, 4.0], "{input}");
    }
}

#[test]
fn the_first_of_two_members_counts() {
    assert!(read(&format!(r#"{{"inputs":[],"inputs":[{X}]}}"#)).unwrap().inputs.is_empty());
    let twice = r#"{"inputs":[{"name":"x","name":"y","shape":[1],"shape":[9],"datatype":"INT8","datatype":"FP64","data":[1],"data":[2,3]}]}"#;
    let described = read(twice).unwrap();
    assert_eq!(described.inputs[0].name, "x");
    assert_eq!(only_input(&described).bytes()[..], [1]);
    assert_eq!(described.ignored, 4);
    // What is left aside is still JSON.
    assert!(refused(r#"{"inputs":[],"inputs":[1,}"#).starts_with("'inputs': expected a value"));
}

#[test]
fn parameters_have_their_meaning() {
    let described = read(&format!(
        r#"{{"id":"a","parameters":{{"timeout":1500,"priority":2,"sequence_id":5,"sequence_start":true,"sequence_end":false,
        "version":"canary","binary_data_output":true,"headers":"x","k":1.5,"timeout":1}},"inputs":[{X}],
        "outputs":[{{"name":"y","parameters":{{"binary_data":false,"classification":3,"k":true}}}},{{"name":"z"}}],"more":null}}"#
    ))
    .unwrap();
    assert_eq!(described.id.as_deref(), Some("a"));
    let parameters = &described.parameters;
    assert_eq!(parameters.timeout, Some(std::time::Duration::from_micros(1500)));
    assert_eq!(parameters.priority, 2);
    assert_eq!(parameters.sequence_id.as_deref(), Some(b"5".as_slice()));
    assert_eq!(parameters.version, Some(bascule_serving::VersionChoice::Alias("canary".into())));
    assert!(parameters.binary_data_output);
    assert_eq!(described.ignored, 4);
    let outputs: Vec<_> = described.outputs.iter().map(|output| (output.name.as_str(), output.parameters)).collect();
    let first = OutputParameters { binary_data: Some(false), classification: 3 };
    assert_eq!(outputs, [("y", first), ("z", OutputParameters::default())]);

    let of = |parameters: &str| read(&format!(r#"{{"inputs":[],"parameters":{parameters}}}"#)).unwrap().parameters;
    assert_eq!(of(r#"{"timeout":0,"sequence_id":0}"#), RequestParameters::default());
    assert_eq!(of(r#"{"sequence_id":"","priority":0}"#), RequestParameters::default());
    assert_eq!(of(r#"{"version":7}"#).version, Some(bascule_serving::VersionChoice::Number(7)));
    assert_eq!(of(r#"{"version":"7"}"#).version, Some(bascule_serving::VersionChoice::Number(7)));
    assert_eq!(of(r#"{"sequence_id":"abc"}"#).sequence_id.as_deref(), Some(b"abc".as_slice()));
}

#[test]
fn wrong_parameters_are_named() {
    for (parameters, expected) in [
        (r#"{"k":null}"#, "request: parameter 'k': expected a string, a number, true or false, found null at byte 31"),
        (r#"{"k":[1]}"#, "request: parameter 'k': expected a string, a number, true or false, found an array at byte 31"),
        (r#"{"k":{}}"#, "request: parameter 'k': expected a string, a number, true or false, found an object at byte 31"),
        (r#"{"timeout":"100"}"#, "request: parameter 'timeout': expected an integer of 0 or more, found a string at byte 37"),
        (r#"{"timeout":-1}"#, "request: parameter 'timeout': expected an integer of 0 or more, found -1 at byte 37"),
        (r#"{"timeout":1.5}"#, "request: parameter 'timeout': expected an integer of 0 or more, found 1.5 at byte 37"),
        (r#"{"sequence_start":1}"#, "request: parameter 'sequence_start': expected true or false, found 1 at byte 44"),
        (
            r#"{"sequence_id":true}"#,
            "request: parameter 'sequence_id': expected an integer of 0 or more, or a string, found true at byte 41",
        ),
        (r#"{"version":0}"#, "request: parameter 'version': expected a version number or an alias, found 0 at byte 37"),
        (
            r#"{"binary_data_output":"yes"}"#,
            "request: parameter 'binary_data_output': expected true or false, found a string at byte 48",
        ),
        (r#"{"triton_x":true}"#, "request: parameter 'triton_x': names that begin with 'triton_' are reserved"),
        ("[1]", "request: 'parameters': expected an object, found an array at byte 26"),
    ] {
        assert_eq!(refused(&format!(r#"{{"inputs":[],"parameters":{parameters}}}"#)), expected, "{parameters}");
    }
    assert!(refused(r#"{"inputs":[],"parameters":{"version":"00"}}"#).starts_with("version \"00\" is not a whole number"));
}

#[test]
fn wrong_requests_are_refused_by_name() {
    for (text, expected) in [
        ("", "request: expected an object, found the end at byte 0"),
        ("hello", "request: expected an object, found hello at byte 0"),
        ("\"x\"", "request: expected an object, found a string at byte 0"),
        ("[]", "request: expected an object, found an array at byte 0"),
        ("{}", "request: 'inputs' is missing, expected an array of objects"),
        (r#"{"inputs":"#, "'inputs': expected an array of objects, found the end at byte 10"),
        (r#"{"inputs":[],}"#, "request: expected a member name in double quotes, found '}' at byte 13"),
        (
            r#"{"inputs":[]} x"#,
            "request: expected nothing after the JSON value, found x at byte 14; before binary data, the header 'Inference-Header-Content-Length' tells where the JSON ends",
        ),
        (r#"{"inputs":{}}"#, "'inputs': expected an array of objects, found an object at byte 10"),
        (r#"{"inputs":[7]}"#, "inputs[0]: expected an object, found 7 at byte 11"),
        (r#"{"inputs":[],"id":7}"#, "'id': expected a string, found 7 at byte 18"),
        (r#"{"inputs":[],"outputs":{"name":"y"}}"#, "'outputs': expected an array of objects, found an object at byte 23"),
        (r#"{"inputs":[],"outputs":["y"]}"#, "outputs[0]: expected an object, found a string at byte 24"),
        (r#"{"inputs":[],"outputs":[{}]}"#, "outputs[0]: 'name' is missing, expected a string"),
        (
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"binary_data":"yes"}}]}"#,
            "output 'y': parameter 'binary_data': expected true or false, found a string at byte 64",
        ),
        (
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":"1"}}]}"#,
            "output 'y': parameter 'classification': expected an integer of 0 or more, found a string at byte 67",
        ),
    ] {
        assert_eq!(refused(text), expected, "{text}");
    }
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    for (input, expected) in [
        (r#"{"shape":[1],"datatype":"INT8","data":[1]}"#, "inputs[0]: 'name' is missing, expected a string"),
        (r#"{"name":"x","datatype":"INT8","data":[1]}"#, "input 'x': 'shape' is missing, expected an array of integers"),
        (r#"{"name":"x","shape":[1],"data":[1]}"#, "input 'x': 'datatype' is missing, expected a string such as FP32"),
        (
            r#"{"name":"x","shape":[1],"datatype":"INT8"}"#,
            "input 'x': 'data' is missing, expected it or the parameter 'binary_data_size'",
        ),
        (r#"{"name":7}"#, "inputs[0], 'name': expected a string, found 7 at byte 19"),
        (r#"{"name":"x","shape":4}"#, "input 'x', 'shape': expected an array of integers, found 4 at byte 31"),
        (
            r#"{"name":"x","shape":[-1]}"#,
            "input 'x', 'shape': expected an integer from 0 to 9223372036854775807, found -1 at byte 32",
        ),
        (
            r#"{"name":"x","shape":[9223372036854775808]}"#,
            "input 'x', 'shape': expected an integer from 0 to 9223372036854775807, found 9223372036854775808 at byte 32",
        ),
        (
            r#"{"name":"x","shape":[1.0]}"#,
            "input 'x', 'shape': expected an integer from 0 to 9223372036854775807, found 1.0 at byte 32",
        ),
        (
            r#"{"name":"x","shape":[1],"datatype":"INT8","data":[128]}"#,
            "input 'x', element 0: expected an integer from -128 to 127, found 128 at byte 61",
        ),
        (
            r#"{"name":"x","data":[1,400],"shape":[2],"datatype":"UINT8"}"#,
            "input 'x', element 1: expected an integer from 0 to 255, found 400 at byte 33",
        ),
        (
            r#"{"name":"x","shape":[1],"datatype":"INT8","data":[1],"parameters":{"binary_data_size":1}}"#,
            "input 'x': expected either 'data' or the parameter 'binary_data_size', got both",
        ),
        (
            r#"{"name":"x","shape":[1],"datatype":"INT8","parameters":{"binary_data_size":"1"}}"#,
            "input 'x': parameter 'binary_data_size': expected an integer of 0 or more, found a string at byte 86",
        ),
        (r#"{"name":"x","data":{"a":1}}"#, "input 'x': 'datatype' is missing, expected a string such as FP32"),
        (r#"{"name":"x","data":[1,}"#, "input 'x', 'data': expected a value, found '}' at byte 33"),
    ] {
        assert_eq!(refused(&format!("{{\"inputs\":[{input}]}}")), expected, "{input}");
    }
    let error = refused(r#"{"inputs":[{"name":"x","shape":[1],"datatype":"TYPE_FP32","data":[1]}]}"#);
    assert!(error.starts_with("input 'x': unknown datatype 'TYPE_FP32', expected one of BOOL, "), "{error}");
}

#[test]
fn shared_memory_is_not_supported() {
    let input = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","parameters":{"shared_memory_region":"r"}}]}"#;
    let output = r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"shared_memory_region":"r"}}]}"#;
    for (text, of) in [(input, "input 'x'"), (output, "output 'y'")] {
        let error = describe(text.as_bytes(), 100).unwrap_err();
        assert_eq!(error.code(), bascule_serving::ErrorCode::Unsupported);
        assert_eq!(error.to_string(), format!("shared memory (parameter 'shared_memory_region' of {of}) is not supported"));
    }
}

#[test]
fn counts_are_bounded() {
    let dims = vec!["1"; MAX_RANK + 1].join(",");
    let error = refused(&format!(r#"{{"inputs":[{{"name":"x","shape":[{dims}]}}]}}"#));
    assert_eq!(error, "input 'x', 'shape': expected at most 64 dimensions");
    let outputs = vec![r#"{"name":"y"}"#; MAX_TENSORS + 1].join(",");
    assert_eq!(refused(&format!(r#"{{"inputs":[],"outputs":[{outputs}]}}"#)), "'outputs': expected at most 1024 of them");
    // The budget is of the request, not of an input.
    let inputs = [r#"{"name":"x","shape":[8],"datatype":"INT64","data":[1,2,3,4,5,6,7,8]}"#; 5].join(",");
    let text = format!("{{\"inputs\":[{inputs}]}}");
    assert_eq!(describe(text.as_bytes(), 256).unwrap_err().code(), bascule_serving::ErrorCode::TooLarge);
    assert!(describe(text.as_bytes(), 320).is_ok());
}

#[test]
fn shapes_that_lie_cost_nothing() {
    for shape in ["9223372036854775807", "4611686018427387904,2", "1000000000000"] {
        let text = format!(r#"{{"inputs":[{{"name":"x","shape":[{shape}],"datatype":"INT64","data":[1]}}]}}"#);
        let error = refused(&text);
        assert!(error.starts_with("input 'x': expected "), "{error}");
    }
}

#[test]
fn hostile_nesting_is_refused_without_recursion() {
    for text in [
        format!(r#"{{"a":{}"#, "[".repeat(20_000)),
        format!(r#"{{"inputs":[{{"data":{}"#, "[".repeat(20_000)),
        format!(r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"INT8","data":{}"#, "[".repeat(20_000)),
        format!(r#"{{"parameters":{{"k":{}"#, "{\"a\":".repeat(20_000)),
    ] {
        let error = refused(&text);
        assert!(error.contains("at most 64 levels of nesting") || error.contains("a string, a number"), "{error}");
    }
}

#[test]
fn names_are_cut_in_errors() {
    let name = "n".repeat(10_000);
    let error = refused(&format!(r#"{{"inputs":[{{"name":"{name}","shape":[1],"datatype":"INT8","data":[]}}]}}"#));
    assert!(error.len() < 200, "{}", error.len());
}
