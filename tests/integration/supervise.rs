//! A gateway under supervision: what crashes it is found out, kept apart, and everything else serves on.

use std::time::Instant;

use bascule_onnx_writer::{Attribute, Graph, OnnxModel, models};
use bascule_runtime_api::DataType;
use serde_json::{Value, json};

use crate::http::{Connection, get, post};
use crate::sandbox::{Gateway, PATIENCE, Sandbox};

/// A model that runs for as many rounds as it is asked to: none in a trial, and for ever where somebody wants that.
fn patient() -> OnnxModel {
    let body = Graph::new()
        .input("iteration", DataType::Int64, &[])
        .input("go_on", DataType::Bool, &[])
        .input("sum", DataType::Fp32, &[1])
        .output("still_go_on", DataType::Bool, &[])
        .output("next_sum", DataType::Fp32, &[1])
        .node("Identity", &["go_on"], &["still_go_on"])
        .node("Neg", &["sum"], &["next_sum"]);
    Graph::new()
        .input("rounds", DataType::Int64, &[])
        .input("x", DataType::Fp32, &[1])
        .output("y", DataType::Fp32, &[1])
        .node_with("Loop", &["rounds", "", "x"], &["y"], vec![("body", Attribute::Graph(body))])
        .build()
}

/// The gateway that is supervised: not the process that was started, but its child.
fn gateway_process(supervisor: &Gateway) -> Option<u32> {
    let is_it = |process: &std::path::Path| {
        let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parent == Some(supervisor.pid())
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes.filter(|path| is_it(path)).find_map(|path| path.file_name()?.to_str()?.parse().ok())
}

fn signal(process: u32, name: &str) {
    let status = std::process::Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Asks the patient model for ever, and ends the gateway in the middle of it as native code does.
fn crash_while_it_runs(gateway: &mut Gateway) {
    let request = json!({ "inputs": [
        { "name": "rounds", "datatype": "INT64", "shape": [], "data": [i64::MAX] },
        { "name": "x", "datatype": "FP32", "shape": [1], "data": [1] },
    ] });
    let body = request.to_string();
    let mut connection = Connection::open(gateway.http).unwrap();
    let head = format!("POST /v2/models/patient/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.send(head.as_bytes()).unwrap();
    connection.send(body.as_bytes()).unwrap();
    let runs = |_, status: &Value| model(status, "patient")["versions"][0]["in_flight"] == 1;
    gateway.eventually_admin("/admin/v1/status", runs);
    signal(gateway_process(gateway).unwrap(), "ABRT");
    gateway.follow();
}

fn model<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["models"].as_array().unwrap().iter().find(|model| model["name"] == name).unwrap_or(&Value::Null)
}

fn answers(gateway: &Gateway) {
    let request = json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3] }] });
    let answer = post(gateway.http, "/v2/models/m/infer", &request);
    assert_eq!((answer.status, &answer.json()["outputs"][0]["data"]), (200, &json!([7.0])), "{}", answer.text());
}

#[test]
fn what_ran_in_a_crash_is_tried_again_and_kept_out_after_the_second() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &models::linear(&[2.0], &[1.0]));
    sandbox.plain("patient", 1, &patient());
    let mut gateway = sandbox.serve_with(&["--supervise"]).ready();
    gateway.wait_version("m", 1);
    gateway.wait_version("patient", 1);
    let tried = |gateway: &Gateway, model: &str| {
        let is_it = |line: &&str| line.contains("passed its trial") && line.contains(&format!("model={model} "));
        gateway.log().lines().filter(is_it).count()
    };
    assert_eq!((tried(&gateway, "m"), tried(&gateway, "patient")), (1, 1));

    crash_while_it_runs(&mut gateway);
    gateway.wait_version("m", 1);
    answers(&gateway);
    gateway.wait_version("patient", 1);
    let log = gateway.log();
    assert!(log.contains("the gateway is down and is started again") && log.contains("SIGABRT"), "{log}");
    assert_eq!((tried(&gateway, "m"), tried(&gateway, "patient")), (1, 2), "only who ran is suspected\n{log}");

    crash_while_it_runs(&mut gateway);
    gateway.wait_version("m", 1);
    answers(&gateway);
    let kept_out = |_, status: &Value| model(status, "patient")["versions"][0]["failed_step"] == "quarantine";
    let status = gateway.eventually_admin("/admin/v1/status", kept_out);
    let cause = model(&status, "patient")["versions"][0]["cause"].as_str().unwrap().to_owned();
    let expected = "it ran in 2 crashes of the gateway within a day and is kept out; `bascule load patient` lets it in again";
    assert_eq!(cause, expected);
    assert_eq!(tried(&gateway, "patient"), 2, "it is not even tried");

    sandbox.succeed(&["load", "patient", "--gateway", &format!("http://{}", gateway.admin)]);
    gateway.wait_version("patient", 1);
    answers(&gateway);
}

#[test]
fn a_gateway_that_was_killed_is_started_again_and_nobody_is_suspected() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &models::linear(&[2.0], &[1.0]));
    let mut gateway = sandbox.serve_with(&["--supervise"]).ready();
    gateway.wait_version("m", 1);
    signal(gateway_process(&gateway).unwrap(), "KILL");
    gateway.follow();
    gateway.wait_version("m", 1);
    answers(&gateway);
    assert!(!gateway.log().contains("it ran when the gateway crashed"), "{}", gateway.log());
    // It obeys as an unsupervised one does: once told, it stops in order and tells how that went.
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0), "{}", gateway.log());
    assert!(gateway.log().contains("bascule: stopped"), "{}", gateway.log());
}

#[test]
fn a_restart_that_fails_is_not_the_last_one() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &models::linear(&[2.0], &[1.0]));
    let mut gateway = sandbox.serve_with(&["--supervise"]).ready();
    gateway.wait_version("m", 1);
    let configuration = sandbox.path("bascule.toml");
    std::fs::write(&configuration, "this is no configuration").unwrap();
    signal(gateway_process(&gateway).unwrap(), "ABRT");
    let started = Instant::now();
    // Once after the crash, and once because what was started then could not read its configuration.
    while gateway.log().matches("the gateway is down and is started again").count() < 2 {
        assert!(started.elapsed() < PATIENCE, "it is not started again\n{}", gateway.log());
        std::thread::yield_now();
    }
    std::fs::remove_file(configuration).unwrap();
    gateway.follow();
    gateway.wait_version("m", 1);
    answers(&gateway);
}

#[test]
fn a_gateway_does_not_outlive_its_supervisor() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &models::linear(&[2.0], &[1.0]));
    let gateway = sandbox.serve_with(&["--supervise"]).ready();
    let process = gateway_process(&gateway).unwrap();
    assert_eq!(get(gateway.http, "/v2/health/live").status, 200);
    gateway.kill();
    let started = Instant::now();
    // Nobody of this program waits for it: that the state directory is free says that it has ended.
    while sandbox.try_serve(&[]).is_err() {
        assert!(started.elapsed() < PATIENCE, "process {process} goes on");
    }
}
