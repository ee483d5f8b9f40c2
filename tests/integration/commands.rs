//! The subcommands as a user types them: what they print, and how they end.

use bascule_onnx_writer::models::constant;
use serde_json::Value;

use crate::lifecycle::ask;
use crate::sandbox::{Gateway, Sandbox};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("expected JSON, got {text}: {error}"))
}

fn url(gateway: &Gateway) -> String {
    format!("http://{}", gateway.admin)
}

#[test]
fn every_subcommand_has_help_with_an_example() {
    let Some(sandbox) = Sandbox::new() else { return };
    for name in [
        "serve",
        "check",
        "trial",
        "record-golden",
        "publish",
        "status",
        "models",
        "load",
        "unload",
        "rollout",
        "infer",
        "demo",
        "doctor",
        "where",
        "what",
        "versions",
        "diff",
        "yank",
        "verify",
        "gc",
        "keygen",
        "sign",
    ] {
        let help = sandbox.succeed(&[name, "--help"]);
        assert!(help.contains("xample") && help.contains(&format!("bascule {name}")), "{name}: {help}");
    }
    assert_eq!(sandbox.run(&["serve", "--no-such-flag"]).status.code(), Some(2));
}

#[test]
fn publish_waits_until_the_gateway_serves_and_says_why_it_does_not() {
    let Some(sandbox) = Sandbox::new() else { return };
    let gateway = sandbox.serve();
    let (registry, url) = (sandbox.registry().display().to_string(), url(&gateway));
    let publish = |file: &[u8], extra: &[&str]| {
        std::fs::write(sandbox.path("model.onnx"), file).unwrap();
        let file = sandbox.path("model.onnx").display().to_string();
        let arguments = [&["publish", "m", file.as_str(), "--registry", &registry, "--gateway", &url, "--wait"], extra].concat();
        sandbox.run(&arguments)
    };
    let first = publish(&constant(1.0, 2).bytes, &["--run-id", "run-7", "--metric", "accuracy=0.9", "--tag", "team=a"]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0), "published with --wait is served");
    let broken = publish(b"not a model", &["--format", "onnx"]);
    assert_eq!(broken.status.code(), Some(1));
    let said = String::from_utf8_lossy(&broken.stderr).into_owned();
    for part in
        ["error: m@2 is published, but failed at loading on http://", "\ncaused by: model.onnx: ", "\nhint: what was served before"]
    {
        assert!(said.contains(part), "{said} should say {part}");
    }
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
    let status = json(&sandbox.succeed(&["status", "--json", "--gateway", &url]));
    let versions = status["models"][0]["versions"].as_array().unwrap();
    let version = versions.iter().find(|version| version["version"] == 1).unwrap();
    assert_eq!((&version["run_id"], &version["metrics"]["accuracy"]), (&"run-7".into(), &0.9.into()));
    let table = sandbox.succeed(&["status", "--gateway", &url]);
    assert!(table.contains('m') && table.contains("READY"), "{table}");
}

#[test]
fn a_split_by_hand_is_sticky_and_is_undone_by_hand() {
    let Some(sandbox) = Sandbox::new() else { return };
    assert!(sandbox.publish("m", 1, &constant(1.0, 2)).status.success());
    sandbox.write("m/model.toml", "version_policy = \"all\"\n[rollout]\nstrategy = \"manual\"\n");
    let gateway = sandbox.serve().ready();
    let url = url(&gateway);
    let rollout = |arguments: &[&str]| sandbox.succeed(&[&["rollout"], arguments, &["--gateway", &url]].concat());
    rollout(&["weight", "m", "1", "100%"]);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 1);
    assert!(sandbox.publish("m", 2, &constant(2.0, 2)).status.success());
    gateway.wait_version("m", 2);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0), "a manual model does not follow by itself");
    assert_eq!(ask(&gateway, "/v2/models/m/versions/2/infer"), (200, 2.0), "a number means that version");
    rollout(&["weight", "m", "2", "50%"]);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["candidate"]["weight_bp"] == 5000);
    let keyed = |key: &str| {
        let body = br#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}"#;
        let answer = crate::http::call(gateway.http, "POST", "/v2/models/m/infer", &[("x-bascule-key", key)], body);
        assert_eq!(
            answer.header("x-bascule-model-version").map(str::to_owned),
            answer.json()["model_version"].as_str().map(str::to_owned)
        );
        answer.json()["model_version"].as_str().unwrap().to_owned()
    };
    let sides: Vec<String> = (0..40).map(|caller| keyed(&format!("caller-{caller}"))).collect();
    assert!(sides.contains(&"1".to_owned()) && sides.contains(&"2".to_owned()), "{sides:?}");
    let again: Vec<String> = (0..40).map(|caller| keyed(&format!("caller-{caller}"))).collect();
    assert_eq!(sides, again, "a key stays on its side");
    assert!(rollout(&["status", "m"]).contains("50"), "the split is shown");
    rollout(&["weight", "m", "2", "0%"]);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["candidate"].is_null());
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
    let refused = sandbox.run(&["rollout", "weight", "m", "2", "120%", "--gateway", &url]);
    assert_ne!(refused.status.code(), Some(0));
}

#[test]
fn infer_sends_npy_and_json_over_both_protocols() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &constant(4.5, 2));
    let gateway = sandbox.serve().ready();
    // Version 1.0 of the format: magic, length of the header, header, two floats.
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    let header = format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }");
    npy.extend_from_slice(&(header.len() as u16).to_le_bytes());
    npy.extend_from_slice(header.as_bytes());
    npy.extend_from_slice(&[0; 8]);
    std::fs::write(sandbox.path("x.npy"), npy).unwrap();
    std::fs::write(sandbox.path("x.json"), "[[1.0, 2.0]]").unwrap();
    let (http, grpc) = (format!("http://{}", gateway.http), gateway.grpc.to_string());
    for input in ["x=@x.npy", "x=@x.json"] {
        for target in [vec!["--url", http.as_str()], vec!["--grpc", "--url", grpc.as_str()]] {
            let arguments = [&["infer", "m", "--input", input, "--output", "y=@y.npy", "--json"], &target[..]].concat();
            let answer = json(&sandbox.succeed(&arguments));
            assert_eq!(answer["outputs"][0]["name"], "y", "{answer}");
            let written = std::fs::read(sandbox.path("y.npy")).unwrap();
            assert_eq!(&written[written.len() - 4..], 4.5f32.to_le_bytes());
        }
    }
}

#[test]
fn an_unreachable_gateway_is_exit_code_three_with_a_hint() {
    let Some(sandbox) = Sandbox::new() else { return };
    let output = sandbox.run(&["status", "--gateway", "http://127.0.0.1:9"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("error:") && said.contains("hint:"), "{said}");
}

#[test]
fn check_and_doctor_name_what_is_wrong() {
    let Some(sandbox) = Sandbox::new() else { return };
    std::fs::write(sandbox.path("bad.toml"), "[server]\nhttp_addres = \"x\"\n\n[registry]\npoll_interval = \"soon\"\n").unwrap();
    let output = sandbox.run(&["check", "--config", "bad.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("bad.toml:2") && said.contains("bad.toml:5"), "both problems with their lines: {said}");
    assert!(said.contains("registry.settle_interval"), "every value all the same: {said}");
    sandbox.plain("m", 1, &constant(1.0, 2));
    let registry = sandbox.registry().display().to_string();
    let printed = sandbox.succeed(&["check", "--registry", &registry]);
    assert!(printed.contains("poll_interval"), "every effective value: {printed}");
    let found = |arguments: &[&str]| {
        let doctor = sandbox.run(&[&["doctor", "--json", "--registry", &registry], arguments].concat());
        json(&String::from_utf8_lossy(&doctor.stdout)).as_array().unwrap().clone()
    };
    let of = |findings: &[Value], what: &str| {
        let finding = findings.iter().find(|finding| finding["what"] == what).unwrap_or_else(|| panic!("{what}: {findings:?}"));
        (finding["health"].as_str().unwrap().to_owned(), finding["found"].as_str().unwrap().to_owned(), finding["hint"].clone())
    };
    let findings = found(&[]);
    assert_eq!(of(&findings, "program").0, "ok");
    let (health, registry_found, _) = of(&findings, "registry");
    assert!(health == "ok" && registry_found.ends_with("1 models, 1 versions"), "{registry_found}");
    assert_eq!(of(&findings, "onnxruntime").0, "ok");
    let (_, isolation, _) = of(&findings, "trials");
    assert!(isolation.contains("network"), "{isolation}");
    let broken = found(&["--set", "onnxruntime.library=nowhere/libonnxruntime.so"]);
    let (health, said, hint) = of(&broken, "onnxruntime");
    assert!(health == "broken" && said.contains("nowhere/libonnxruntime.so") && hint.is_string(), "{broken:?}");
}

#[test]
fn a_missing_library_is_an_error_that_names_it() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &constant(1.0, 2));
    std::fs::write(sandbox.path("libfalse.so"), "<html>").unwrap();
    for library in ["nowhere/libonnxruntime.so", "libfalse.so"] {
        let gateway = sandbox.serve_with(&["--set", &format!("onnxruntime.library={library}")]);
        gateway.eventually_admin("/admin/v1/status", |_, status| {
            status["models"][0]["versions"][0]["cause"].as_str().is_some_and(|cause| cause.contains(library))
        });
        assert_eq!(ask(&gateway, "/v2/models/m/infer").0, 503);
    }
}
