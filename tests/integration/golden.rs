//! Golden samples from one end to the other: recorded, tried, published, served; and a version that answers otherwise is stopped. One that
//! answers NaN is not, but is seen.

use std::path::PathBuf;

use bascule_onnx_writer::{Graph, models};
use bascule_runtime_api::DataType;
use serde_json::{Value, json};

use crate::http::{call, get, post};
use crate::sandbox::{Gateway, Sandbox, repository};
use crate::trial::looping;

/// The sample model's second version, as a file of the test's own.
fn digits(sandbox: &Sandbox) -> String {
    let model = repository().join("models/digits");
    let manifest: Value = serde_json::from_slice(&std::fs::read(model.join("versions/2/manifest.json")).unwrap()).unwrap();
    let files = manifest["files"].as_array().unwrap();
    let file = files.iter().find(|file| file["path"] == manifest["entrypoint"]).unwrap();
    let path = sandbox.path("model.onnx");
    std::fs::copy(model.join("blobs").join(file["sha256"].as_str().unwrap()), &path).unwrap();
    path.display().to_string()
}

fn request() -> PathBuf {
    repository().join("models/testset/request.json")
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn read(sandbox: &Sandbox, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(sandbox.path(name)).unwrap()).unwrap()
}

/// Waits until a version has failed; the step and the cause.
fn failure(gateway: &Gateway, number: u64) -> (String, String) {
    let find = |status: &Value| {
        let versions = status["models"][0]["versions"].as_array().cloned().unwrap_or_default();
        versions.into_iter().find(|version| version["version"] == number && version["cause"].is_string())
    };
    let version = find(&gateway.eventually_admin("/admin/v1/status", |_, status| find(status).is_some())).unwrap();
    (version["failed_step"].as_str().unwrap().to_owned(), version["cause"].as_str().unwrap().to_owned())
}

#[test]
fn what_was_recorded_is_published_and_a_version_that_answers_otherwise_is_stopped() {
    let Some(sandbox) = Sandbox::new() else { return };
    // The load itself is to compare, not only the trial before it.
    let sandbox = sandbox.set("trial.mode=off");
    let (model, request) = (digits(&sandbox), request().display().to_string());
    let record = ["record-golden", &model, "--from", &request, "--tolerance", "probabilities=0.001"];
    let printed = sandbox.succeed(&record);
    let golden = sandbox.path("golden.json").display().to_string();
    for part in ["RECORDED", "probabilities FP32 [-1, 10], tolerance 0.001", "digit INT64 [-1], exactly"] {
        assert!(printed.contains(part), "{printed} should say {part}");
    }
    assert!(printed.contains(&format!("next: bascule publish NAME {model} --golden {golden}")), "{printed}");
    let again = sandbox.run(&record);
    assert!(again.status.code() == Some(1) && said(&again).contains("hint: --force"), "{}", said(&again));
    let report: Value = serde_json::from_str(&sandbox.succeed(&["trial", &model, "--golden", &golden, "--json"])).unwrap();
    assert_eq!(report["golden"], true, "{report}");

    let registry = sandbox.registry().display().to_string();
    let publish = |golden: &str, more: &[&str]| {
        sandbox.succeed(&[&["publish", "digits", &model, "--golden", golden, "--registry", &registry], more].concat())
    };
    publish(&golden, &["--verify"]);
    let gateway = sandbox.serve().ready();
    gateway.wait_version("digits", 1);
    let mut recorded = read(&sandbox, "golden.json");
    let answer = post(gateway.http, "/v2/models/digits/infer", &serde_json::from_slice(&std::fs::read(&request).unwrap()).unwrap());
    assert_eq!(answer.json()["outputs"][1]["data"], recorded["samples"][0]["outputs"]["digit"]["data"], "{}", answer.text());

    recorded["samples"][0]["outputs"]["probabilities"]["data"][3] = json!(0.75);
    std::fs::write(sandbox.path("changed.json"), recorded.to_string()).unwrap();
    let changed = sandbox.path("changed.json").display().to_string();
    let differs = "golden sample 0: output 'probabilities': element 3: expected 0.75, got ";
    let tried = sandbox.run(&["trial", &model, "--golden", &changed]);
    let expected = format!("error: {model} fails its trial at golden: {differs}");
    assert!(tried.status.code() == Some(1) && said(&tried).starts_with(&expected), "{}", said(&tried));
    publish(&changed, &[]);
    let (step, cause) = failure(&gateway, 2);
    assert!(step == "golden" && cause.starts_with(differs) && cause.ends_with("(tolerance 0.001)"), "{step}: {cause}");
    gateway.wait_version("digits", 1);
}

#[test]
fn a_folder_gets_its_samples_from_many_requests() {
    let Some(sandbox) = Sandbox::new() else { return };
    std::fs::create_dir(sandbox.path("net")).unwrap();
    std::fs::write(sandbox.path("net/model.onnx"), models::linear(&[2.0], &[1.0]).bytes).unwrap();
    // Those that are there count for nothing.
    std::fs::write(sandbox.path("net/golden.json"), "none").unwrap();
    let request = |data: &str| format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,1],"data":[{data}]}}]}}"#);
    std::fs::write(sandbox.path("two.jsonl"), format!("{}\n{}\n", request("3"), request("NaN"))).unwrap();
    std::fs::write(sandbox.path("one.json"), format!("[{}]", request("Infinity"))).unwrap();
    let from = ["--from", "two.jsonl", "--from", "one.json", "--force", "--json"];
    let report: Value = serde_json::from_str(&sandbox.succeed(&[&["record-golden", "net"], &from[..]].concat())).unwrap();
    assert_eq!((&report["samples"], &report["file"]), (&json!(3), &json!("net/golden.json")), "{report}");
    assert_eq!(report["warnings"], json!(["output 'y' has NaN in 1 of 3 samples"]));
    let samples = read(&sandbox, "net/golden.json")["samples"].clone();
    let answers: Vec<&Value> = samples.as_array().unwrap().iter().map(|sample| &sample["outputs"]["y"]["data"][0]).collect();
    assert_eq!(answers, [&json!(7.0), &json!("NaN"), &json!("Infinity")]);
    assert!(sandbox.succeed(&["trial", "net"]).contains("all answered as they should be"));
}

#[test]
fn what_can_not_be_recorded_leaves_no_file() {
    let Some(sandbox) = Sandbox::new() else { return };
    let graph = Graph::new().input("x", DataType::Fp32, &[-1]).output("y", DataType::Fp32, &[-1]);
    let graph = graph.output("noise", DataType::Fp32, &[-1]).node("Identity", &["x"], &["y"]);
    std::fs::write(sandbox.path("noisy.onnx"), graph.node("RandomUniformLike", &["x"], &["noise"]).build().bytes).unwrap();
    let request = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[1,2]}]}"#;
    std::fs::write(sandbox.path("r.json"), request).unwrap();
    std::fs::write(sandbox.path("other.json"), request.replace("\"x\"", "\"z\"")).unwrap();
    let refused = |arguments: &[&str]| {
        let output = sandbox.run(&[&["record-golden", "noisy.onnx"], arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(!sandbox.path("golden.json").exists());
        said(&output)
    };
    let noise = refused(&["--from", "r.json"]);
    let start = "error: nothing was recorded: sample 0 (r.json): output 'noise' differs between two runs: element 0: first 0.";
    assert!(noise.starts_with(start) && noise.contains("\nhint: --only OUTPUT"), "{noise}");
    let other = refused(&["--from", "r.json", "--from", "other.json", "--only", "y"]);
    assert!(other.starts_with("error: nothing was recorded: sample 1 (other.json): it has no input 'x'"), "{other}");
    std::fs::write(sandbox.path("endless.onnx"), looping().bytes).unwrap();
    let endless = sandbox.run(&["record-golden", "endless.onnx", "--from", "r.json", "--set", "trial.timeout=1s"]);
    let expected = "error: endless.onnx fails its trial at trial: it did not end within 1s and was killed";
    assert!(endless.status.code() == Some(1) && said(&endless).starts_with(expected), "{}", said(&endless));
    sandbox.succeed(&["record-golden", "noisy.onnx", "--from", "r.json", "--only", "y"]);
    assert!(read(&sandbox, "golden.json")["samples"][0]["outputs"]["noise"].is_null());
    sandbox.succeed(&["record-golden", "noisy.onnx", "--from", "r.json", "--tolerance", "noise=1", "--output", "all.json"]);
    assert_eq!(read(&sandbox, "all.json")["samples"][0]["tolerance"], json!({ "noise": 1.0 }));
}

#[test]
fn nan_is_an_answer_and_is_counted() {
    let Some(sandbox) = Sandbox::new() else { return };
    // Of zeros, as the warm-up has them, it makes NaN.
    let graph = Graph::new().input("x", DataType::Fp32, &[-1]).output("y", DataType::Fp32, &[-1]);
    sandbox.plain("m", 1, &graph.node("Div", &["x", "x"], &["y"]).build());
    let gateway = sandbox.serve().ready();
    gateway.wait_version("m", 1);
    for data in ["0", "3", "0"] {
        let body = format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":[{data}]}}]}}"#);
        let answer = call(gateway.http, "POST", "/v2/models/m/infer", &[], body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let metrics = get(gateway.admin, "/metrics").text();
    assert!(metrics.contains("bascule_nan_outputs_total{model=\"m\",version=\"1\"} 2\n"), "{metrics}");
    let status = get(gateway.admin, "/admin/v1/status").json();
    let version = &status["models"][0]["versions"][0];
    assert_eq!(version["nan_outputs"], 2, "{version}");
    assert_eq!(version["warnings"], json!(["output 'y' had NaN in warm-up runs or golden samples"]));
    let shown = sandbox.succeed(&["status", "--gateway", &format!("http://{}", gateway.admin)]);
    assert!(shown.contains("m version 1: NaN in outputs of requests: 2"), "{shown}");
}
