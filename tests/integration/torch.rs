//! TorchScript models in a gateway: the plugin, libtorch beside ONNX Runtime, and what happens where it is missing.
//!
//! silero-vad ships one network for both runtimes. The TorchScript one keeps its state and the end of the last samples to itself; the ONNX
//! one is told both each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

#[path = "../../runtimes/torch/tests/torch/archive.rs"]
mod archive;

use crate::http::{call, get, post};
use crate::real_models::model_or_skip;
use crate::sandbox::{Gateway, Sandbox, skip};

/// Name the folder with libtorch_cpu.so, and the plugin.
const LIBRARY_VARIABLE: &str = "BASCULE_TEST_TORCH";
const PLUGIN_VARIABLE: &str = "BASCULE_TEST_TORCH_PLUGIN";

/// How far the two runtimes may be apart.
const TOLERANCE: f64 = 1e-4;

const RATE: i64 = 16_000;
/// New samples of a part, and those of the part before that the network looks at again.
const PART: usize = 512;
const AGAIN: usize = 64;

/// What a TorchScript file does not say.
const SIGNATURE: &str = r#"
[signature]
inputs = [{ name = "x", datatype = "FP32", shape = [1, 512] }, { name = "sr", datatype = "INT64", shape = [] }]
outputs = [{ name = "speech", datatype = "FP32", shape = [1, 1] }]
"#;

/// A sandbox whose gateways find libtorch; `None`, and the test counted as skipped, where it is not there.
fn sandbox() -> Option<Sandbox> {
    let (Some(library), Some(plugin)) = (std::env::var(LIBRARY_VARIABLE).ok(), std::env::var(PLUGIN_VARIABLE).ok()) else {
        skip("libtorch is not installed; `make torch` installs it");
        return None;
    };
    Some(Sandbox::new()?.set(&format!("torch.library={library}")).set(&format!("torch.plugin={plugin}")))
}

/// A buzz that swells and fades; every sample is exact in binary.
fn samples(part: usize) -> Vec<f64> {
    let sample = |index: usize| {
        let index = i64::try_from(index).unwrap();
        let (saw, triangle, loudness) = (index % 128 - 64, (index % 16 - 8).abs() - 4, (index % 4096 - 2048).abs());
        (saw * triangle * loudness) as f64 / f64::from(1 << 20)
    };
    (part * PART..(part + 1) * PART).map(sample).collect()
}

fn input(name: &str, datatype: &str, shape: &Value, data: &Value) -> Value {
    json!({ "name": name, "datatype": datatype, "shape": shape, "data": data })
}

fn infer(gateway: &Gateway, model: &str, inputs: &Value) -> Value {
    let answer = post(gateway.http, &format!("/v2/models/{model}/infer"), &json!({ "inputs": inputs }));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn by_torch(gateway: &Gateway, part: usize) -> f64 {
    by(gateway, "vad_torch", part)
}

/// The same network, and as it was written: neither frozen nor in inference mode.
fn as_written(gateway: &Gateway, part: usize) -> f64 {
    by(gateway, "vad_as_written", part)
}

fn by(gateway: &Gateway, model: &str, part: usize) -> f64 {
    let inputs =
        json!([input("x", "FP32", &json!([1, PART]), &json!(samples(part))), input("sr", "INT64", &json!([]), &json!([RATE]))]);
    infer(gateway, model, &inputs)["outputs"][0]["data"][0].as_f64().unwrap()
}

/// What ONNX Runtime says, and the state to tell next.
fn by_onnx(gateway: &Gateway, part: usize, state: &Value) -> (f64, Value) {
    let before = if part == 0 { vec![0.0; AGAIN] } else { samples(part - 1)[PART - AGAIN..].to_vec() };
    let heard = [before, samples(part)].concat();
    let inputs = json!([
        input("input", "FP32", &json!([1, AGAIN + PART]), &json!(heard)),
        input("state", "FP32", &json!([2, 1, 128]), state),
        input("sr", "INT64", &json!([]), &json!([RATE])),
    ]);
    let answer = infer(gateway, "vad_onnx", &inputs);
    let output =
        |name: &str| answer["outputs"].as_array().unwrap().iter().find(|output| output["name"] == name).unwrap()["data"].clone();
    (output("output")[0].as_f64().unwrap(), output("stateN"))
}

#[test]
fn one_network_says_the_same_in_both_runtimes_of_one_process() {
    let Some(sandbox) = sandbox() else { return };
    let (Some(script), Some(onnx)) =
        (model_or_skip("silero-vad-5.1.2", "silero_vad.jit"), model_or_skip("silero-vad-5.1.2", "silero_vad.onnx"))
    else {
        return;
    };
    sandbox.write("vad_torch/1/model.pt", &script.bytes);
    sandbox.write("vad_torch/model.toml", SIGNATURE);
    sandbox.write("vad_as_written/1/model.pt", &script.bytes);
    let plain = "[runtime]\nFREEZE = \"off\"\nINFERENCE_MODE = \"false\"\n";
    sandbox.write("vad_as_written/model.toml", format!("{plain}{SIGNATURE}"));
    sandbox.plain("vad_onnx", 1, &onnx);
    let gateway = sandbox.serve().ready();
    gateway.wait_version("vad_torch", 1);
    gateway.wait_version("vad_as_written", 1);
    gateway.wait_version("vad_onnx", 1);
    let metadata = get(gateway.http, "/v2/models/vad_torch").json();
    assert_eq!(
        (metadata["platform"].as_str(), &metadata["inputs"][1]["name"]),
        (Some("pytorch_libtorch"), &json!("sr")),
        "{metadata}"
    );
    let mut state = json!(vec![0.0; 2 * 128]);
    for part in 0..12 {
        let (expected, next) = by_onnx(&gateway, part, &state);
        let found = by_torch(&gateway, part);
        assert!((found - expected).abs() < TOLERANCE, "part {part}: {found} by libtorch, {expected} by onnx runtime");
        let written = as_written(&gateway, part);
        assert!((found - written).abs() < TOLERANCE, "part {part}: {found}, {written} as it was written");
        state = next;
    }
    let status = get(gateway.admin, "/admin/v1/status").json();
    let runtimes: Vec<&str> =
        status["models"].as_array().unwrap().iter().map(|model| model["versions"][0]["runtime"].as_str().unwrap()).collect();
    assert!(runtimes[0].starts_with("torch 2.") && runtimes[1].starts_with("onnxruntime 1."), "{runtimes:?}");
    // Sizes that the network refuses are told as what they are, and the next request is answered.
    let wrong = json!([input("x", "FP32", &json!([1, 3]), &json!([0, 0, 0])), input("sr", "INT64", &json!([]), &json!([RATE]))]);
    let refused = post(gateway.http, "/v2/models/vad_torch/infer", &json!({ "inputs": wrong }));
    assert_eq!(refused.status, 400, "{}", refused.text());
    by_torch(&gateway, 12);
}

#[test]
fn both_runtimes_answer_while_versions_of_both_are_swapped() {
    let Some(sandbox) = sandbox() else { return };
    let files = |name: &str| Some([model_or_skip("silero-vad-5.1.2", name)?, model_or_skip("silero-vad-6.0.0", name)?]);
    let (Some(scripts), Some(onnx)) = (files("silero_vad.jit"), files("silero_vad.onnx")) else { return };
    sandbox.write("vad_torch/model.toml", SIGNATURE);
    sandbox.write("vad_torch/1/model.pt", &scripts[0].bytes);
    sandbox.plain("vad_onnx", 1, &onnx[0]);
    let gateway = sandbox.serve().ready();
    gateway.wait_version("vad_torch", 1);
    gateway.wait_version("vad_onnx", 1);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new([AtomicU64::new(0), AtomicU64::new(0)]));
    std::thread::scope(|scope| {
        let (gateway, stop, answered) = (&gateway, &stop, &answered);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                by_torch(gateway, 1);
                answered[0].fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(move || {
            let state = json!(vec![0.0; 2 * 128]);
            while !stop.load(Ordering::Relaxed) {
                by_onnx(gateway, 1, &state);
                answered[1].fetch_add(1, Ordering::Relaxed);
            }
        });
        for version in 2..8 {
            let content = (version % 2) as usize;
            sandbox.write(&format!("vad_torch/{version}/model.pt"), &scripts[content].bytes);
            sandbox.plain("vad_onnx", version, &onnx[content]);
            gateway.wait_version("vad_torch", version);
            gateway.wait_version("vad_onnx", version);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(answered.iter().all(|count| count.load(Ordering::Relaxed) > 0), "{answered:?}");
}

#[test]
fn a_signature_that_is_published_with_a_model_is_that_of_its_versions() {
    let Some(sandbox) = sandbox() else { return };
    let Some(script) = model_or_skip("silero-vad-5.1.2", "silero_vad.jit") else { return };
    let (file, settings) = (sandbox.path("model.pt"), sandbox.path("model.toml"));
    std::fs::write(&file, &script.bytes).unwrap();
    std::fs::write(&settings, SIGNATURE).unwrap();
    let [file, settings, registry] = [file, settings, sandbox.registry()].map(|path| path.display().to_string());
    sandbox.succeed(&["publish", "vad_torch", &file, "--signature", &settings, "--registry", &registry]);
    let gateway = sandbox.serve().ready();
    gateway.wait_version("vad_torch", 1);
    assert!((0.0..=1.0).contains(&by_torch(&gateway, 0)));
    std::fs::write(&settings, "instances = 2\n").unwrap();
    let refused = sandbox.run(&["publish", "vad_torch", &file, "--signature", &settings, "--registry", &registry]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("it has no [signature]"), "{said}");
}

/// The step and the cause of a model's failed version.
fn failure(gateway: &Gateway, model: &str) -> (String, String) {
    let of = |status: &Value| {
        let models = status["models"].as_array().cloned().unwrap_or_default();
        let found = models.iter().find(|found| found["name"] == model).cloned().unwrap_or_default();
        let version = &found["versions"][0];
        Some((version["failed_step"].as_str()?.to_owned(), version["cause"].as_str()?.to_owned()))
    };
    of(&gateway.eventually_admin("/admin/v1/status", |_, status| of(status).is_some())).unwrap()
}

fn cause(gateway: &Gateway, model: &str) -> String {
    failure(gateway, model).1
}

#[test]
fn a_script_that_crashes_libtorch_fails_its_trial_and_takes_nothing_with_it() {
    let Some(sandbox) = sandbox() else { return };
    sandbox.plain("linear", 1, &bascule_onnx_writer::models::linear(&[2.0], &[1.0]));
    let gateway = sandbox.serve().ready();
    gateway.wait_version("linear", 1);
    // Deeper than the stack of libtorch's parser.
    let (open, close) = ("(".repeat(1_000_000), ")".repeat(1_000_000));
    let forward = format!("x: Tensor,\n    sr: int) -> Tensor:\n    return {open}x{close}");
    sandbox.write("deep/model.toml", SIGNATURE);
    sandbox.write("deep/1/model.pt", archive::write(&archive::Script { forward: &forward, weight: &[] }));
    let (step, cause) = failure(&gateway, "deep");
    // An overflow of the stack is a SIGSEGV, out of which the program's own handler may make an abort.
    let signals = ["SIGSEGV", "SIGABRT"];
    assert_eq!(step, "trial", "{cause}");
    assert!(signals.iter().any(|signal| cause.starts_with(&format!("its process was ended by {signal}"))), "{cause}");
    let request = json!({ "inputs": [input("x", "FP32", &json!([1, 1]), &json!([3]))] });
    let answer = post(gateway.http, "/v2/models/linear/infer", &request);
    assert_eq!((answer.status, &answer.json()["outputs"][0]["data"]), (200, &json!([7.0])), "{}", answer.text());
}

#[test]
fn a_gateway_without_libtorch_serves_the_rest_and_says_how_to_get_it() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.set("torch.library=/nowhere");
    sandbox.write("script/1/model.pt", b"whatever");
    sandbox.write("script/model.toml", SIGNATURE);
    sandbox.plain("linear", 1, &bascule_onnx_writer::models::linear(&[1.0], &[0.0]));
    let gateway = sandbox.serve();
    gateway.wait_version("linear", 1);
    assert_eq!(
        cause(&gateway, "script"),
        "torch is not available: libtorch_cpu.so was not found, looked for /nowhere/libtorch_cpu.so; run `make torch`, or set torch.library \
         and torch.plugin"
    );
    let answer = call(gateway.http, "POST", "/v2/models/script/infer", &[], b"{}");
    assert_eq!(answer.status, 503, "{}", answer.text());
}

#[test]
fn files_that_are_no_torchscript_fail_by_name_and_touch_nothing() {
    let Some(sandbox) = sandbox() else { return };
    sandbox.plain("linear", 1, &bascule_onnx_writer::models::linear(&[1.0], &[0.0]));
    let cases: [(&str, &[u8], &str); 4] = [
        ("page", b"<!DOCTYPE html>", "model.pt: text that begins with '<', such as an error page, and no model"),
        ("pickle", b"\x80\x02}q\x00.", "model.pt: pickled Python objects: reading them may run any code, so they are not served"),
        ("empty", b"", "model.pt: an empty file"),
        ("other", b"\x08\x07\x12\x07pytorch", "model.pt: not a TorchScript file, which is a zip archive"),
    ];
    for (name, content, _) in cases {
        sandbox.write(&format!("{name}/1/model.pt"), content);
        sandbox.write(&format!("{name}/model.toml"), SIGNATURE);
    }
    let gateway = sandbox.serve();
    gateway.wait_version("linear", 1);
    for (name, _, expected) in cases {
        let cause = cause(&gateway, name);
        assert!(cause.starts_with(expected), "{name}: {cause}");
    }
}
