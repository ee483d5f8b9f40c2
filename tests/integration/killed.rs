//! The power goes at the worst moment: during publish, during fetch, during a swap.

use std::process::Stdio;

use bascule_onnx_writer::models::{constant, filled, large};
use serde_json::json;

use crate::http::post;
use crate::lifecycle::ask;
use crate::sandbox::{Gateway, Sandbox};

#[test]
fn a_killed_publish_leaves_nothing_that_is_served_and_a_retry_succeeds() {
    let Some(sandbox) = Sandbox::new() else { return };
    assert!(sandbox.publish("m", 1, &constant(1.0, 2)).status.success());
    let gateway = sandbox.serve().ready();
    let file = sandbox.path("large.onnx");
    std::fs::write(&file, &large(48, None).bytes).unwrap();
    let (file, registry) = (file.display().to_string(), sandbox.registry().display().to_string());
    for _ in 0..10 {
        let mut command = sandbox.command(&["publish", "m", &file, "--version", "2", "--registry", &registry]);
        let mut publish = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Killed as soon as the first trace of it is there, which is a different moment each time.
        let blobs = sandbox.registry().join("m/blobs");
        let before = std::fs::read_dir(&blobs).unwrap().count();
        while publish.try_wait().unwrap().is_none() && std::fs::read_dir(&blobs).unwrap().count() == before {
            std::thread::yield_now();
        }
        publish.kill().unwrap();
        publish.wait().unwrap();
        if sandbox.registry().join("m/versions/2/manifest.json").exists() {
            break;
        }
        assert_eq!(ask(&gateway, "/v2/models/m/versions/2/infer").0, 404);
    }
    if !sandbox.registry().join("m/versions/2/manifest.json").exists() {
        sandbox.succeed(&["publish", "m", &file, "--version", "2", "--registry", &registry]);
    }
    gateway.wait_version("m", 2);
    let again = sandbox.run(&["publish", "m", &file, "--version", "2", "--registry", &registry]);
    assert_eq!(again.status.code(), Some(1), "publishing an existing version is refused");
    assert!(String::from_utf8_lossy(&again.stderr).contains("error:"));
}

#[test]
fn a_gateway_killed_while_it_fetches_and_swaps_serves_what_it_served() {
    let Some(sandbox) = Sandbox::new() else { return };
    assert!(sandbox.publish("m", 1, &constant(1.0, 2)).status.success());
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
    for version in 2..=5u16 {
        assert!(sandbox.publish("m", u64::from(version), &constant(f32::from(version), 2)).status.success());
    }
    post(gateway.admin, "/admin/v1/kick", &json!({}));
    gateway.kill();
    // Without its registry it can only serve what it has: a version that was whole before the kill.
    std::fs::rename(sandbox.registry(), sandbox.path("away")).unwrap();
    let gateway = sandbox.serve().ready();
    let (status, version) = ask(&gateway, "/v2/models/m/infer");
    assert_eq!(status, 200, "{}", gateway.log());
    assert!((1.0..=5.0).contains(&version), "{version}");
    std::fs::rename(sandbox.path("away"), sandbox.registry()).unwrap();
    gateway.wait_version("m", 5);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 5);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 5.0));
    for round in 6..=12u16 {
        assert!(sandbox.publish("m", u64::from(round), &constant(f32::from(round), 2)).status.success());
        post(gateway.admin, "/admin/v1/kick", &json!({}));
    }
    gateway.kill();
    let gateway = sandbox.serve().ready();
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 12);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 12.0));
}

#[test]
fn a_gateway_killed_on_the_way_to_a_new_version_serves_what_it_served() {
    let Some(sandbox) = Sandbox::new() else { return };
    let publish = |version: u64| {
        let published = sandbox.publish("m", version, &filled(32, version as f32));
        assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
    };
    let answer = |gateway: &Gateway| {
        let body = json!({ "inputs": [{ "name": "x", "shape": [1], "datatype": "INT64", "data": [0] }] });
        let answer = post(gateway.http, "/v2/models/m/infer", &body);
        assert_eq!(answer.status, 200, "{}\n{}", answer.text(), gateway.log());
        answer.json()["outputs"][0]["data"][0].as_f64().unwrap()
    };
    publish(1);
    let mut gateway = sandbox.serve().ready();
    let mut caught = Vec::new();
    for version in 2..=7 {
        publish(version);
        post(gateway.admin, "/admin/v1/kick", &json!({}));
        let stage = |status: &serde_json::Value| {
            let versions = status["models"][0]["versions"].as_array().cloned().unwrap_or_default();
            let life = versions.iter().find(|life| life["version"] == version);
            life.and_then(|life| life["stage"].as_str()).unwrap_or("pending").to_owned()
        };
        let found = stage(&gateway.eventually_admin("/admin/v1/status", |_, status| stage(status) != "pending"));
        gateway.kill();
        caught.extend(Some(found).filter(|found| found != "ready"));
        gateway = sandbox.serve().ready();
        let answered = answer(&gateway);
        assert!([version - 1, version].map(|version| version as f64).contains(&answered), "{answered} instead of {version}");
        gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == version);
        assert_eq!(answer(&gateway), version as f64);
    }
    assert!(!caught.is_empty(), "no version was caught on its way");
}
