//! Versions that must not reach what serves: what they do, they do in a process of their own.

use std::path::Path;

use bascule_onnx_writer::{Attribute, Graph, OnnxModel, models};
use bascule_runtime_api::DataType;
use serde_json::{Value, json};

use crate::http::{get, post};
use crate::sandbox::{Gateway, Sandbox};

/// A model that never ends a run: what its loop does once it does for ever.
fn for_ever(step: Graph) -> OnnxModel {
    let body = step
        .input("iteration", DataType::Int64, &[])
        .input("go_on", DataType::Bool, &[])
        .input("sum", DataType::Fp32, &[-1])
        .output("still_go_on", DataType::Bool, &[])
        .output("next_sum", DataType::Fp32, &[-1])
        .node("Identity", &["go_on"], &["still_go_on"]);
    Graph::new()
        .input("x", DataType::Fp32, &[-1])
        .output("y", DataType::Fp32, &[-1])
        .weights("iterations", DataType::Int64, &[], i64::MAX.to_le_bytes().to_vec())
        .node_with("Loop", &["iterations", "", "x"], &["y"], vec![("body", Attribute::Graph(body))])
        .build()
}

/// A model whose run never ends.
pub fn looping() -> OnnxModel {
    for_ever(Graph::new().node("Neg", &["sum"], &["next_sum"]))
}

fn growing() -> OnnxModel {
    for_ever(Graph::new().node_with("Concat", &["sum", "sum"], &["next_sum"], vec![("axis", Attribute::Int(0))]))
}

fn good() -> OnnxModel {
    models::linear(&[2.0], &[1.0])
}

/// A gateway that serves version 1 of `m`.
fn serving(sandbox: &Sandbox) -> Gateway {
    sandbox.plain("m", 1, &good());
    let gateway = sandbox.serve().ready();
    gateway.wait_version("m", 1);
    gateway
}

fn version(status: &Value, number: u64) -> Option<&Value> {
    status["models"][0]["versions"].as_array()?.iter().find(|version| version["version"] == number)
}

/// Waits until a version has failed, and tells at which step and why; what served answers all the same.
fn failure(gateway: &Gateway, number: u64) -> (String, String) {
    let failed = |status: &Value| version(status, number).is_some_and(|version| version["cause"].is_string());
    let status = gateway.eventually_admin("/admin/v1/status", |_, status| failed(status));
    let version = version(&status, number).unwrap();
    answers(gateway);
    (version["failed_step"].as_str().unwrap().to_owned(), version["cause"].as_str().unwrap().to_owned())
}

fn answers(gateway: &Gateway) {
    let request = json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3] }] });
    let answer = post(gateway.http, "/v2/models/m/infer", &request);
    assert_eq!((answer.status, &answer.json()["outputs"][0]["data"]), (200, &json!([7.0])), "{}", answer.text());
}

#[test]
fn a_version_that_does_not_end_is_killed_and_reported() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.set("trial.timeout=2s");
    let gateway = serving(&sandbox);
    sandbox.plain("m", 2, &looping());
    assert_eq!(
        failure(&gateway, 2),
        ("trial".into(), "it did not end within 2s and was killed; trial.timeout says how long it may take".into())
    );
}

#[test]
fn a_version_that_takes_ever_more_memory_is_killed_and_reported() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.set("trial.memory_limit=400MiB");
    let gateway = serving(&sandbox);
    let before = gateway.rss();
    sandbox.plain("m", 2, &growing());
    let (step, cause) = failure(&gateway, 2);
    assert!(
        step == "trial" && cause.contains("of memory, more than its limit of 400.0 MiB, and was killed; trial.memory_limit"),
        "{step}: {cause}"
    );
    assert!(gateway.rss() < before + (200 << 20), "the gateway itself has grown");
}

/// The process in which the gateway tries versions, where there is one.
fn trial_of(gateway: &Gateway) -> Option<u32> {
    let is_it = |process: &Path| {
        let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        let arguments = std::fs::read(process.join("cmdline")).unwrap_or_default();
        parent == Some(gateway.pid()) && String::from_utf8_lossy(&arguments).contains("--inside")
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes.filter(|path| is_it(path)).find_map(|path| path.file_name()?.to_str()?.parse().ok())
}

#[test]
fn a_version_that_crashes_takes_nothing_with_it() {
    let Some(sandbox) = Sandbox::new() else { return };
    let gateway = serving(&sandbox);
    sandbox.plain("m", 2, &looping());
    // What abort() in native code comes to. A process that had tried another version before leaves this one to a fresh one, which is
    // killed as well.
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        let is_over = version(status, 2).is_some_and(|version| version["cause"].is_string());
        if let (false, Some(process)) = (is_over, trial_of(&gateway)) {
            // It may have ended by now.
            drop(std::process::Command::new("kill").args(["-ABRT", &process.to_string()]).status());
        }
        is_over
    });
    let (step, cause) = failure(&gateway, 2);
    assert!(step == "trial" && cause.starts_with("its process was ended by SIGABRT"), "{step}: {cause}");
}

#[test]
fn a_process_that_tries_versions_gets_nothing_of_the_environment_but_what_libraries_need() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.set("trial.timeout=1h");
    let gateway = serving(&sandbox);
    sandbox.plain("m", 2, &looping());
    let names = |process: u32| -> Vec<String> {
        let variables = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let variables = variables.split(|byte| *byte == 0).filter(|variable| !variable.is_empty());
        variables.map(|variable| String::from_utf8_lossy(variable).split('=').next().unwrap().to_owned()).collect()
    };
    let mut passed_on = Vec::new();
    let started = std::time::Instant::now();
    while passed_on.is_empty() {
        passed_on = trial_of(&gateway).map(names).unwrap_or_default();
        assert!(started.elapsed() < crate::sandbox::PATIENCE, "no version is tried\n{}", gateway.log());
    }
    // As it was told to the gateway itself.
    assert!(names(gateway.pid()).contains(&"BASCULE_ONNXRUNTIME_LIBRARY".to_owned()));
    assert!(passed_on.contains(&"PATH".to_owned()), "{passed_on:?}");
    assert!(!passed_on.iter().any(|name| name.starts_with("BASCULE_") || name.starts_with("CARGO_")), "{passed_on:?}");
}

/// How many processes the gateway has started for trials.
fn started(gateway: &Gateway) -> usize {
    gateway.log().matches("started a process for trials").count()
}

#[test]
fn one_process_tries_versions_in_turn_until_one_fails() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.set("log.level=info,bascule::trial=debug");
    let gateway = serving(&sandbox);
    // As large as the weights of a small model, so that what is measured is not lost in what a library takes for itself.
    let table = |seed: f32| models::linear(&vec![seed; 8 << 20], &vec![0.0; 8 << 20]);
    for number in 2..=4 {
        sandbox.plain("weights", number, &table(number as f32));
        gateway.wait_version("weights", number);
    }
    assert_eq!(started(&gateway), 1, "{}", gateway.log());
    let measured: Vec<u64> = gateway
        .log()
        .lines()
        .filter(|line| line.contains("passed its trial") && line.contains("model=weights"))
        .map(memory)
        .collect();
    let (least, most) = (measured.iter().min().unwrap(), measured.iter().max().unwrap());
    assert!(measured.len() == 3 && *least > 60 << 20 && *most < least + (8 << 20), "{measured:?}");
    sandbox.plain("m", 2, &OnnxModel { bytes: b"<html>not found</html>".to_vec(), files: Vec::new() });
    assert_eq!(failure(&gateway, 2).0, "loading");
    sandbox.plain("m", 3, &models::linear(&[2.0], &[1.0]));
    gateway.wait_version("m", 3);
    assert_eq!(started(&gateway), 2, "a process with a failure is not used again: {}", gateway.log());
}

/// The memory that a line of the log tells of a trial.
fn memory(line: &str) -> u64 {
    let (_, told) = line.split_once("memory_bytes=").unwrap();
    told.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_version_that_nobody_wants_any_more_holds_up_no_other() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.set("trial.timeout=1h");
    let gateway = serving(&sandbox);
    sandbox.plain("m", 2, &looping());
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        version(status, 2).is_some_and(|version| version["stage"] == "verifying")
    });
    sandbox.plain("m", 3, &models::linear(&[2.0], &[1.0]));
    gateway.wait_version("m", 3);
    answers(&gateway);
}

#[test]
fn what_passed_is_not_tried_again_after_a_restart() {
    let Some(sandbox) = Sandbox::new() else { return };
    let gateway = serving(&sandbox);
    assert!(gateway.log().contains("passed its trial"), "{}", gateway.log());
    let status = get(gateway.admin, "/admin/v1/status").json();
    assert_eq!(version(&status, 1).unwrap()["memory_measured"], true, "{status}");
    gateway.kill();
    let again = sandbox.serve().ready();
    again.wait_version("m", 1);
    assert!(!again.log().contains("passed its trial"), "{}", again.log());
    answers(&again);
}

#[test]
fn a_format_that_is_not_allowed_is_refused_by_name() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.set("load.formats=torchscript");
    sandbox.plain("m", 1, &good());
    let gateway = sandbox.serve();
    let failed = |_, status: &Value| version(status, 1).is_some_and(|version| version["cause"].is_string());
    let status = gateway.eventually_admin("/admin/v1/status", failed);
    let version = version(&status, 1).unwrap();
    assert_eq!(version["failed_step"], "verifying");
    let expected = "models of the format onnx are not allowed here; load.formats in bascule.toml names the formats that are";
    assert_eq!(version["cause"], expected);
}

#[test]
fn a_library_with_operators_of_ones_own_that_can_not_be_opened_is_named() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.set("onnxruntime.operator_libraries=/nowhere/operators.so");
    sandbox.plain("m", 1, &good());
    let gateway = sandbox.serve();
    let failed = |_, status: &Value| version(status, 1).is_some_and(|version| version["cause"].is_string());
    let status = gateway.eventually_admin("/admin/v1/status", failed);
    let cause = version(&status, 1).unwrap()["cause"].as_str().unwrap().to_owned();
    assert!(cause.starts_with("the operator library /nowhere/operators.so can't be used: "), "{cause}");
}

#[test]
fn the_command_says_what_a_gateway_would_find() {
    let Some(sandbox) = Sandbox::new() else { return };
    let file = |name: &str, model: &OnnxModel| {
        let path = sandbox.path(name);
        std::fs::write(&path, &model.bytes).unwrap();
        path.display().to_string()
    };
    let (fine, endless) = (file("fine.onnx", &good()), file("endless.onnx", &looping()));
    let report: Value = serde_json::from_str(&sandbox.succeed(&["trial", &fine, "--json"])).unwrap();
    assert_eq!(report["signature"]["inputs"][0]["name"], "x", "{report}");
    assert!(report["load_ms"].as_f64().unwrap() > 0.0 && report["latency"][0]["rows"] == 1, "{report}");
    assert!(sandbox.succeed(&["trial", &fine]).contains("PASSED"));
    let failed = sandbox.run(&["trial", &endless, "--set", "trial.timeout=1s"]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(failed.status.code() == Some(1) && said.contains("fails its trial at trial: it did not end within 1s"), "{said}");
    // Ten gigabytes that take no room on the disk.
    let huge = file("huge.onnx", &good());
    std::fs::File::options().write(true).open(&huge).unwrap().set_len(10 << 30).unwrap();
    let failed = sandbox.run(&["trial", &huge, "--set", "trial.memory_limit=400MiB"]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(
        failed.status.code() == Some(1) && said.contains("huge.onnx: has 10737418240 bytes, expected at most 2147483647"),
        "{said}"
    );
    // A training job learns of it before anything is uploaded.
    let registry = sandbox.registry().display().to_string();
    let publish =
        |file: &str| sandbox.run(&["publish", "m", file, "--verify", "--registry", &registry, "--set", "trial.timeout=1s"]);
    let refused = publish(&endless);
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(std::fs::read_dir(sandbox.registry()).unwrap().next().is_none(), "something was published");
    let published = publish(&fine);
    assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
}

/// A model that needs half a GiB before it can run: what does not depend on its input is computed while it is loaded.
fn swelling() -> OnnxModel {
    Graph::new()
        .input("x", DataType::Fp32, &[-1])
        .output("y", DataType::Fp32, &[-1])
        .weights("shape", DataType::Int64, &[1], (1_i64 << 27).to_le_bytes().to_vec())
        .node("ConstantOfShape", &["shape"], &["many"])
        .node("Add", &["x", "many"], &["y"])
        .build()
}

#[test]
fn check_and_publish_outlive_what_a_version_does() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (registry, said) = (sandbox.registry().display().to_string(), |text: &[u8]| String::from_utf8_lossy(text).into_owned());
    sandbox.plain("m", 1, &good());
    sandbox.plain("m", 2, &looping());
    let check = |setting: &str| sandbox.run(&["check", "--registry", &registry, "--set", setting]);
    let found = check("trial.timeout=1s");
    let cause = "it did not end within 1s and was killed; trial.timeout says how long it may take";
    assert_eq!((found.status.code(), said(&found.stderr)), (Some(1), format!("error: m@2: trial: {cause}\n")));
    assert!(said(&found.stdout).ends_with("model m: version 1, 2\n"), "{}", said(&found.stdout));
    // Without trials it is loaded, which does not run it.
    assert!(check("trial.mode=off").status.success());

    std::fs::write(sandbox.path("swelling.onnx"), swelling().bytes).unwrap();
    let limit = "trial.memory_limit=300MiB";
    let published = sandbox.run(&["publish", "swelling", "swelling.onnx", "--registry", &registry, "--set", limit]);
    let (noted, start) = (said(&published.stderr), "note: the manifest gets no signature: it had ");
    assert!(published.status.success() && noted.starts_with(start), "{noted}");
    assert!(noted.contains("of memory, more than its limit of 300.0 MiB, and was killed"), "{noted}");
}

#[test]
fn a_manifest_has_the_signature_of_the_files_whatever_settings_lie_beside_them() {
    let Some(sandbox) = Sandbox::new() else { return };
    std::fs::create_dir(sandbox.path("net")).unwrap();
    std::fs::write(sandbox.path("net/model.onnx"), models::identity(DataType::Fp32, &[-1, 4]).bytes).unwrap();
    let settings = r#"max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [2, 2] reshape: { shape: [4] } }]
output [{ name: "y" data_type: TYPE_FP32 dims: [4] }]
"#;
    std::fs::write(sandbox.path("net/config.pbtxt"), settings).unwrap();
    let report: Value = serde_json::from_str(&sandbox.succeed(&["trial", "net", "--json"])).unwrap();
    let shapes = |signature: &str| report[signature]["inputs"][0]["shape"].clone();
    assert_eq!((shapes("signature"), shapes("file_signature")), (json!([-1, 2, 2]), json!([-1, 4])), "{report}");
    let registry = sandbox.registry().display().to_string();
    for (version, more) in [(1, &[][..]), (2, &["--verify"])] {
        sandbox.succeed(&[&["publish", "net", "net", "--registry", &registry], more].concat());
        let manifest = std::fs::read(sandbox.registry().join(format!("net/versions/{version}/manifest.json"))).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["signature"]["inputs"][0]["shape"], json!([-1, 4]), "{manifest}");
    }
}
