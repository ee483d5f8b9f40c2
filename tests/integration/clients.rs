//! Clients written by others: their scripts lie in `tests/clients/`, each runs against a gateway of its own.

use std::path::PathBuf;
use std::process::Command;

use bascule_onnx_writer::OnnxModel;
use bascule_onnx_writer::models::{add_sub, constant, identity, linear, slow};
use bascule_runtime_api::DataType;

use crate::sandbox::{Gateway, Sandbox, repository, skip};

/// Names the interpreter with the packages of `tests/requirements.txt`.
const PYTHON_VARIABLE: &str = "BASCULE_TEST_PYTHON";

const INPUTS: usize = 64;
const OUTPUTS: usize = 10;
const LABELS: &str = "zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n";

const DIGITS: &str = r#"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 64 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "labels.txt" } ]
version_policy: { all { } }
dynamic_batching { max_queue_delay_microseconds: 100 }
"#;

const SIMPLE: &str = r#"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] }, { name: "INPUT1" data_type: TYPE_INT32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] }, { name: "OUTPUT1" data_type: TYPE_INT32 dims: [ 16 ] } ]
"#;

/// One axis of any size that is no batch.
fn one_axis(datatype: &str) -> String {
    let tensor = |side: &str, name: &str| format!("{side} [ {{ name: \"{name}\" data_type: TYPE_{datatype} dims: [ -1 ] }} ]\n");
    format!("backend: \"onnxruntime\"\nmax_batch_size: 0\n{}{}", tensor("input", "x"), tensor("output", "y"))
}

/// The first ten of 64 numbers, each times `factor`.
fn first_ten(factor: f32) -> OnnxModel {
    let mut weights = vec![0.0; INPUTS * OUTPUTS];
    for index in 0..OUTPUTS {
        weights[index * OUTPUTS + index] = factor;
    }
    linear(&weights, &[0.0; OUTPUTS])
}

/// The models that `tests/clients/checks.py` describes, served.
fn serve(sandbox: &Sandbox) -> Gateway {
    sandbox.write("digits/config.pbtxt", DIGITS);
    sandbox.write("digits/labels.txt", LABELS);
    sandbox.plain("digits", 1, &first_ten(1.0));
    sandbox.plain("digits", 2, &first_ten(2.0));
    sandbox.write("simple/config.pbtxt", SIMPLE);
    sandbox.plain("simple", 1, &add_sub());
    for (model, datatype, name) in
        [("text", DataType::Bytes, "STRING"), ("half", DataType::Fp16, "FP16"), ("brain", DataType::Bf16, "BF16")]
    {
        sandbox.write(&format!("{model}/config.pbtxt"), one_axis(name));
        sandbox.plain(model, 1, &identity(datatype, &[-1]));
    }
    sandbox.plain("slow", 1, &slow());
    sandbox.plain("spare", 1, &constant(1.0, 2));
    let gateway = sandbox.serve().ready();
    for model in ["digits", "simple", "text", "half", "brain", "slow", "spare"] {
        gateway.wait_version(model, 1);
    }
    gateway.wait_version("digits", 2);
    gateway
}

/// The interpreter; where there is none, the test is counted as skipped.
fn python_or_skip() -> Option<PathBuf> {
    if let Some(python) = std::env::var_os(PYTHON_VARIABLE).filter(|python| !python.is_empty()).map(PathBuf::from) {
        assert!(python.is_file(), "{PYTHON_VARIABLE} is {}, which is not a file", python.display());
        return Some(python);
    }
    let python = repository().join(".deps/venv/bin/python");
    if python.is_file() {
        return Some(python);
    }
    skip("the Python clients are not installed; `make test-deps` installs them");
    None
}

/// Runs a script of `tests/clients/`, which says itself what is wrong and how long it may take.
#[expect(clippy::print_stdout, reason = "one line for each check, for those who run this with --nocapture")]
fn run(script: &str) {
    let Some(python) = python_or_skip() else { return };
    let Some(sandbox) = Sandbox::new() else { return };
    let gateway = serve(&sandbox);
    let mut command = Command::new(python);
    command.arg(repository().join("tests/clients").join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
    command.args(["--http", &gateway.http.to_string(), "--grpc", &gateway.grpc.to_string()]);
    // A proxy of the machine's is none of the gateway's.
    command.env("NO_PROXY", "*").env("no_proxy", "*");
    let output = command.output().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}: {}\n{said}{complained}\n{}", output.status, gateway.log());
    println!("{script}\n{said}");
}

#[test]
fn tritonclient_http_works_unchanged() {
    run("triton_http.py");
}

#[test]
fn tritonclient_http_aio_works_unchanged() {
    run("triton_http_aio.py");
}

#[test]
fn tritonclient_grpc_works_unchanged() {
    run("triton_grpc.py");
}

#[test]
fn tritonclient_grpc_aio_works_unchanged() {
    run("triton_grpc_aio.py");
}

#[test]
fn the_rest_client_of_kserve_works_unchanged() {
    run("kserve_rest.py");
}

#[test]
fn the_grpc_client_of_kserve_works_unchanged() {
    run("kserve_grpc.py");
}

#[test]
fn curl_works_as_people_type_it() {
    if Command::new("curl").arg("--version").output().is_err() {
        return skip("curl is not installed");
    }
    run("curl.py");
}
