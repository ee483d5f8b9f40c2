//! A repository that was made for Triton: what its `config.pbtxt` says is what clients see.

use bascule_onnx_writer::models::{constant, identity};
use bascule_runtime_api::DataType;
use serde_json::json;

use crate::http::{call, post};
use crate::lifecycle::ask;
use crate::sandbox::Sandbox;

#[test]
fn the_model_file_is_the_one_that_the_configuration_names() {
    let Some(sandbox) = Sandbox::new() else { return };
    for (name, value) in [("encoder.onnx", 1.0), ("decoder.onnx", 2.0)] {
        sandbox.write(&format!("m/1/{name}"), constant(value, 2).bytes);
    }
    sandbox.write("m/config.pbtxt", "backend: \"onnxruntime\"\ndefault_model_filename: \"encoder.onnx\"\n");
    // As it would be if one could: the file lies inside the repository, but not inside the version.
    sandbox.plain("out", 1, &constant(1.0, 2));
    sandbox.write("out/config.pbtxt", "default_model_filename: \"../../m/1/decoder.onnx\"\n");
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
    assert_eq!(ask(&gateway, "/v2/models/out/infer").0, 503);
}

#[test]
fn a_reshape_is_what_clients_see_and_the_model_does_not() {
    let Some(sandbox) = Sandbox::new() else { return };
    let tensor = |side: &str, name: &str| {
        format!("{side} [ {{ name: \"{name}\" data_type: TYPE_FP32 dims: [ 1 ] reshape {{ shape: [ ] }} }} ]\n")
    };
    sandbox.write("m/config.pbtxt", format!("max_batch_size: 4\n{}{}", tensor("input", "x"), tensor("output", "y")));
    sandbox.plain("m", 1, &identity(DataType::Fp32, &[-1]));
    let gateway = sandbox.serve().ready();
    let metadata = call(gateway.http, "GET", "/v2/models/m", &[], b"").json();
    assert_eq!((&metadata["inputs"][0]["shape"], &metadata["outputs"][0]["shape"]), (&json!([-1, 1]), &json!([-1, 1])));
    let body = json!({ "inputs": [{ "name": "x", "shape": [3, 1], "datatype": "FP32", "data": [7, 8, 9] }] });
    let answer = post(gateway.http, "/v2/models/m/infer", &body);
    let output = &answer.json()["outputs"][0];
    assert_eq!((answer.status, &output["shape"], &output["data"]), (200, &json!([3, 1]), &json!([7.0, 8.0, 9.0])));
}
