//! What only a machine with an NVIDIA GPU can show; `make test-gpu` runs it.
//!
//! `BASCULE_TEST_GPU_LIBRARY` names a libonnxruntime.so that was built with CUDA, its provider libraries beside it; `BASCULE_TEST_TORCH` a
//! libtorch with libtorch_cuda.so. A test whose part is missing is counted as skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed expectation is a failed test")]
#![allow(clippy::disallowed_methods, reason = "a test chooses the environment of what it starts")]
#![allow(unreachable_pub, dead_code, reason = "what is shared with the other test program is not all used here")]

#[path = "../../runtimes/torch/tests/torch/archive.rs"]
mod archive;
#[path = "../integration/http.rs"]
mod http;
#[path = "../integration/sandbox.rs"]
mod sandbox;

use std::path::Path;

use bascule_onnx_writer::{Graph, OnnxModel, models};
use bascule_runtime_api::DataType;
use serde_json::{Value, json};

use crate::http::{get, post};
use crate::sandbox::{Gateway, Sandbox, skip};

/// Names the libonnxruntime.so with CUDA.
const LIBRARY: &str = "BASCULE_TEST_GPU_LIBRARY";

/// A sandbox on a machine with a GPU and a library for it; `None`, and the test counted as skipped, elsewhere.
fn sandbox() -> Option<Sandbox> {
    let sandbox = Sandbox::new()?;
    // What else it finds wrong here is no matter.
    let found: Value = serde_json::from_slice(&sandbox.run(&["doctor", "--json"]).stdout).unwrap();
    let devices = found.as_array().unwrap().iter().find(|finding| finding["what"] == "devices").unwrap();
    if !devices["found"].as_str().unwrap().contains("cuda:0") {
        skip("this machine has no NVIDIA GPU, or no driver for it");
        return None;
    }
    match std::env::var(LIBRARY) {
        Ok(path) if Path::new(&path).is_file() => Some(sandbox.set(&format!("onnxruntime.library={path}"))),
        _ => {
            skip("BASCULE_TEST_GPU_LIBRARY names no libonnxruntime.so with CUDA");
            None
        }
    }
}

fn version(gateway: &Gateway, model: &str) -> Value {
    let status = get(gateway.admin, "/admin/v1/status").json();
    let found = status["models"].as_array().unwrap().iter().find(|found| found["name"] == model).unwrap();
    found["versions"].as_array().unwrap().last().unwrap().clone()
}

fn answer(gateway: &Gateway, model: &str) -> Value {
    let request = json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [2, 1], "data": [3, 4] }] });
    let answer = post(gateway.http, &format!("/v2/models/{model}/infer"), &request);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["outputs"][0]["data"].clone()
}

/// A model with a node that CUDA has no kernel for.
fn partly_on_the_processor() -> OnnxModel {
    Graph::new()
        .input("x", DataType::Fp32, &[-1, 1])
        .output("y", DataType::Fp32, &[-1, 1])
        .node("Det", &["square"], &["determinant"])
        .node("Unsqueeze", &["x", "last"], &["square"])
        .node("Unsqueeze", &["determinant", "last_of_one"], &["y"])
        .weights("last", DataType::Int64, &[1], 2_i64.to_le_bytes().to_vec())
        .weights("last_of_one", DataType::Int64, &[1], 1_i64.to_le_bytes().to_vec())
        .build()
}

#[test]
fn a_gpu_that_is_asked_for_runs_and_is_shown_everywhere() {
    let Some(sandbox) = sandbox() else { return };
    sandbox.plain("m", 1, &models::linear(&[2.0], &[1.0]));
    sandbox.write("m/model.toml", "device = \"cuda:0\"\ninstances = 2\n");
    let gateway = sandbox.serve().ready();
    gateway.wait_version("m", 1);
    assert_eq!(answer(&gateway, "m"), json!([7.0, 9.0]));
    assert_eq!(version(&gateway, "m")["device"], "cuda:0");
    let config = get(gateway.http, "/v2/models/m/config").json();
    assert_eq!((&config["instance_group"][0]["kind"], &config["instance_group"][0]["gpus"]), (&json!("KIND_GPU"), &json!([0])));
    let metrics = get(gateway.admin, "/metrics").text();
    assert!(metrics.contains("bascule_version_device{model=\"m\",version=\"1\",device=\"cuda:0\"} 1"), "{metrics}");
    assert!(metrics.contains("bascule_device_memory_free_bytes{device=\"cuda:0\"}"), "{metrics}");
}

#[test]
fn auto_takes_the_gpu() {
    let Some(sandbox) = sandbox() else { return };
    sandbox.plain("m", 1, &models::linear(&[2.0], &[1.0]));
    sandbox.write("m/model.toml", "device = \"auto\"\n");
    let gateway = sandbox.serve().ready();
    gateway.wait_version("m", 1);
    assert!(version(&gateway, "m")["device"].as_str().unwrap().starts_with("cuda:"), "{}", version(&gateway, "m"));
    assert_eq!(answer(&gateway, "m"), json!([7.0, 9.0]));
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let Some(sandbox) = sandbox() else { return };
    sandbox.plain("m", 1, &models::linear(&[2.0], &[1.0]));
    sandbox.write("m/model.toml", "device = \"cuda:63\"\n");
    let gateway = sandbox.serve();
    let failed = |_, status: &Value| status["models"][0]["versions"][0]["cause"].is_string();
    gateway.eventually_admin("/admin/v1/status", failed);
    let cause = version(&gateway, "m")["cause"].as_str().unwrap().to_owned();
    assert!(cause.contains("cuda:63 can't be used"), "{cause}");
}

#[test]
fn nodes_on_the_processor_are_an_error_or_a_warning() {
    let Some(sandbox) = sandbox() else { return };
    sandbox.plain("m", 1, &partly_on_the_processor());
    sandbox.write("m/model.toml", "device = \"cuda:0\"\n");
    sandbox.plain("lenient", 1, &partly_on_the_processor());
    sandbox.write("lenient/model.toml", "device = \"cuda:0\"\n[runtime]\ncpu_fallback = \"warn\"\n");
    let gateway = sandbox.serve();
    gateway.wait_version("lenient", 1);
    let warnings = version(&gateway, "lenient")["warnings"].to_string();
    assert!(warnings.contains("Det 1") && warnings.contains("run on the processor"), "{warnings}");
    let failed = |_, status: &Value| status["models"][1]["versions"][0]["cause"].is_string();
    gateway.eventually_admin("/admin/v1/status", failed);
    let cause = version(&gateway, "m")["cause"].as_str().unwrap().to_owned();
    assert!(cause.contains("Det 1") && cause.contains("would run on the processor"), "{cause}");
}

#[test]
fn a_torchscript_model_runs_on_the_gpu() {
    let Some(sandbox) = sandbox() else { return };
    let (Ok(library), Ok(plugin)) = (std::env::var("BASCULE_TEST_TORCH"), std::env::var("BASCULE_TEST_TORCH_PLUGIN")) else {
        return skip("libtorch is not installed; `make torch` installs it");
    };
    if !Path::new(&library).join("libtorch_cuda.so").is_file() {
        return skip("BASCULE_TEST_TORCH names a libtorch without libtorch_cuda.so");
    }
    let sandbox = sandbox.set(&format!("torch.library={library}")).set(&format!("torch.plugin={plugin}"));
    let forward = "x: Tensor) -> Tensor:\n    return torch.add(torch.mul(x, 2.), 1.)";
    sandbox.write("m/1/model.pt", archive::write(&archive::Script { forward, weight: &[] }));
    let signature = "[signature]\ninputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 1] }]\n\
                     outputs = [{ name = \"y\", datatype = \"FP32\", shape = [-1, 1] }]\n";
    sandbox.write("m/model.toml", format!("device = \"cuda:0\"\n{signature}"));
    let gateway = sandbox.serve().ready();
    gateway.wait_version("m", 1);
    assert_eq!(version(&gateway, "m")["device"], "cuda:0");
    assert_eq!(answer(&gateway, "m"), json!([7.0, 9.0]));
}

#[test]
fn memory_of_the_gpu_comes_back() {
    let Some(sandbox) = sandbox() else { return };
    // 256 MiB of weights.
    sandbox.plain("m", 1, &models::linear(&vec![0.5; 64 << 20], &vec![0.0; 64 << 20]));
    sandbox.write("m/model.toml", "device = \"cuda:0\"\n");
    let gateway = sandbox.serve().ready();
    gateway.wait_version("m", 1);
    let free = || get(gateway.admin, "/admin/v1/status").json()["memory"]["devices"][0]["free_bytes"].as_u64().unwrap();
    let admin = format!("http://{}", gateway.admin);
    let mut loaded = Vec::new();
    for _ in 0..10 {
        loaded.push(free());
        sandbox.succeed(&["unload", "m", "--wait", "--gateway", &admin]);
        sandbox.succeed(&["load", "m", "--gateway", &admin]);
        gateway.wait_version("m", 1);
    }
    // The first load leaves behind what the library keeps for itself.
    let (least, most) = (loaded[1..].iter().min().unwrap(), loaded[1..].iter().max().unwrap());
    assert!(most - least < 64 << 20, "free after each load: {loaded:?}");
}
