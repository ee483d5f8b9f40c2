//! Versions come, fail, are replaced and go, and the server stays ready.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bascule_onnx_writer::models::{constant, large, slow};
use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bascule_proto::inference::model_infer_request::InferInputTensor;
use bascule_proto::inference::{ModelInferRequest, ServerLiveRequest};
use serde_json::json;

use crate::http::{Connection, call, get, post};
use crate::sandbox::{Gateway, PATIENCE, Sandbox};

/// Asks model `m` with one row; status, and the value that every element of its answer has.
pub fn ask(gateway: &Gateway, path: &str) -> (u16, f64) {
    let body = json!({ "inputs": [{ "name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5] }] });
    let answer = post(gateway.http, path, &body);
    let values = answer.json_or_null()["outputs"][0]["data"].clone();
    (answer.status, values[0].as_f64().unwrap_or(f64::NAN))
}

#[test]
fn a_new_version_takes_over_and_a_broken_one_is_reported_and_changes_nothing() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &constant(1.0, 2));
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
    sandbox.plain("m", 2, &constant(2.0, 2));
    gateway.wait_version("m", 2);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 2);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 2.0));
    sandbox.write("m/3/model.onnx", b"<html>not a model</html>");
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        let versions = status["models"][0]["versions"].as_array().cloned().unwrap_or_default();
        versions.iter().any(|version| version["version"] == 3 && version["state"] == "UNAVAILABLE" && version["cause"].is_string())
    });
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 2.0));
    assert_eq!(ask(&gateway, "/v2/models/m/versions/3/infer").0, 503);
    assert_eq!(get(gateway.http, "/v2/health/ready").status, 200, "a failed version never makes the server unready");
    // The repaired file is the same version with other content.
    sandbox.plain("m", 3, &constant(3.0, 2));
    gateway.wait_version("m", 3);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 3);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 3.0));
}

#[test]
fn a_deleted_directory_stays_served_and_so_does_everything_while_the_registry_is_away() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &constant(1.0, 2));
    let gateway = sandbox.serve().ready();
    std::fs::remove_dir_all(sandbox.registry().join("m")).unwrap();
    post(gateway.admin, "/admin/v1/kick", &json!({}));
    sandbox.plain("other", 1, &constant(9.0, 2));
    gateway.wait_version("other", 1);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
    std::fs::rename(sandbox.registry(), sandbox.path("away")).unwrap();
    gateway.eventually_admin("/admin/v1/status", |_, status| status["registry"]["last_error"].is_string());
    assert_eq!(ask(&gateway, "/v2/models/other/infer"), (200, 9.0));
    drop(gateway);
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0), "a restart serves from local disk");
    assert_eq!(ask(&gateway, "/v2/models/other/infer"), (200, 9.0));
    std::fs::rename(sandbox.path("away"), sandbox.registry()).unwrap();
    gateway.eventually_admin("/admin/v1/status", |_, status| status["registry"]["last_error"].is_null());
    assert_eq!(ask(&gateway, "/v2/models/other/infer"), (200, 9.0));
}

#[test]
fn an_unloaded_model_stays_off_across_a_restart_until_it_is_loaded() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &constant(1.0, 2));
    let gateway = sandbox.serve().ready();
    assert_eq!(post(gateway.http, "/v2/repository/models/m/unload", &json!({})).status, 200);
    gateway.eventually("/v2/models/m", |status, _| status == 404);
    assert_eq!(ask(&gateway, "/v2/models/m/infer").0, 404);
    sandbox.plain("m", 2, &constant(2.0, 2));
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        status["models"][0]["held"].as_str().is_some_and(|held| held.contains("unloaded by operator"))
    });
    drop(gateway);
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer").0, 404);
    assert_eq!(post(gateway.http, "/v2/repository/models/m/load", &json!({})).status, 200);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 2.0), "load returns once the model is ready");
    assert_eq!(post(gateway.http, "/v2/repository/models/nope/load", &json!({})).status, 404);
    assert_eq!(post(gateway.http, "/v2/repository/models/nope/unload", &json!({})).status, 200);
}

#[test]
fn explicit_mode_loads_what_it_is_told_and_follows_on_load() {
    let Some(sandbox) = Sandbox::new().map(|sandbox| sandbox.set("load.mode=explicit")) else { return };
    sandbox.plain("m", 1, &constant(1.0, 2));
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer").0, 404);
    assert_eq!(post(gateway.http, "/v2/repository/models/m/load", &json!({})).status, 200);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
    sandbox.plain("m", 2, &constant(2.0, 2));
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        status["models"][0]["versions"].as_array().is_some_and(|all| !all.is_empty())
    });
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0), "an explicit model does not follow by itself");
    // Plain files count once they have kept still through two looks, so the first load may be too early to see them.
    gateway.eventually("/v2/models/m/versions/2/ready", |status, _| {
        post(gateway.http, "/v2/repository/models/m/load", &json!({}));
        status == 200
    });
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 2.0));
}

#[test]
fn a_thousand_models_on_demand_load_only_what_is_asked_for_under_the_budget() {
    // Fifty small models take a megabyte each by estimate; four large ones would need more than is left.
    let budget = "load.memory_budget=96MiB";
    let Some(sandbox) = Sandbox::new().map(|sandbox| sandbox.set("load.mode=on_demand").set(budget)) else { return };
    for number in 0..1000 {
        sandbox.plain(&format!("m{number:03}"), 1, &constant(f32::from(number as u16), 2));
    }
    for number in 0..4 {
        sandbox.plain(&format!("large{number}"), 1, &large(16, None));
    }
    let gateway = sandbox.serve().ready();
    for number in (0..1000).step_by(20) {
        assert_eq!(ask(&gateway, &format!("/v2/models/m{number:03}/infer")), (200, f64::from(number)));
    }
    let loaded = |prefix: &str| {
        let status = get(gateway.admin, "/admin/v1/status").json();
        let models = status["models"].as_array().cloned().unwrap_or_default();
        models
            .iter()
            .filter(|model| model["name"].as_str().is_some_and(|name| name.starts_with(prefix)) && model["stable"].is_u64())
            .count()
    };
    assert_eq!(loaded("m"), 50);
    for number in 0..4 {
        let body = json!({ "inputs": [{ "name": "x", "shape": [1], "datatype": "INT64", "data": [7] }] });
        let answer = post(gateway.http, &format!("/v2/models/large{number}/infer"), &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert!(loaded("m") + loaded("large") < 54, "more is loaded than the budget allows");
    let memory = get(gateway.admin, "/admin/v1/status").json()["memory"].clone();
    assert!(memory["reserved_bytes"].as_u64() <= memory["budget_bytes"].as_u64(), "{memory}");
    assert_eq!(ask(&gateway, "/v2/models/m000/infer"), (200, 0.0), "what was evicted is loaded again");
}

/// How often the slow model adds one: for seconds.
const ITERATIONS: i64 = 1_000_000;

#[test]
fn sigterm_finishes_what_is_in_flight_and_idle_connections_hold_nothing_up() {
    // Nothing ends this drain but that all is done: whatever holds it up fails the test.
    let Some(sandbox) = Sandbox::new().map(|sandbox| sandbox.set("server.drain_timeout=1h")) else { return };
    sandbox.plain("slow", 1, &slow());
    let mut gateway = sandbox.serve().ready();
    let mut idle = Connection::open(gateway.http).unwrap();
    assert_eq!(idle.call("GET", "/v2/health/live", &[], &[]).status, 200);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let connect = || runtime.block_on(GrpcInferenceServiceClient::connect(format!("http://{}", gateway.grpc))).unwrap();
    let mut idle_grpc = connect();
    assert!(runtime.block_on(idle_grpc.server_live(ServerLiveRequest {})).unwrap().into_inner().live);
    let http = gateway.http;
    let over_http = std::thread::spawn(move || {
        let iterations = json!({ "name": "iterations", "shape": [], "datatype": "INT64", "data": [ITERATIONS] });
        let x = json!({ "name": "x", "shape": [1], "datatype": "FP32", "data": [0] });
        post(http, "/v2/models/slow/infer", &json!({ "inputs": [iterations, x] }))
    });
    let mut busy_grpc = connect();
    let over_grpc = runtime.spawn(async move { busy_grpc.model_infer(slow_request()).await });
    let in_flight = |status: &serde_json::Value| status["models"][0]["versions"][0]["in_flight"] == 2;
    gateway.eventually_admin("/admin/v1/status", |_, status| in_flight(status));
    gateway.signal("TERM");
    let answer = over_http.join().unwrap();
    assert_eq!((answer.status, &answer.json()["outputs"][0]["data"]), (200, &json!([ITERATIONS as f64])), "{}", gateway.log());
    let answer = runtime.block_on(over_grpc).unwrap().unwrap().into_inner();
    assert_eq!(*answer.raw_output_contents[0], (ITERATIONS as f32).to_le_bytes());
    assert!(gateway.wait().success(), "{}", gateway.log());
    assert_eq!(call(gateway.http, "GET", "/v2/health/live", &[], &[]).status, 0);
}

fn slow_request() -> ModelInferRequest {
    let tensor = |name: &str, datatype: &str, shape| InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape,
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        model_name: "slow".into(),
        inputs: vec![tensor("iterations", "INT64", vec![]), tensor("x", "FP32", vec![1])],
        raw_input_contents: vec![ITERATIONS.to_le_bytes().to_vec().into(), vec![0; 4].into()],
        ..ModelInferRequest::default()
    }
}

#[test]
fn two_gateways_never_share_a_state_directory() {
    let Some(sandbox) = Sandbox::new() else { return };
    let _first = sandbox.serve();
    let Err((status, log)) = sandbox.try_serve(&[]) else { panic!("a second gateway started on the same state directory") };
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("error:") && log.contains("hint:"), "{log}");
}

#[test]
fn a_hangup_applies_what_may_change_and_refuses_the_rest_by_name() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("large", 1, &large(8, None));
    sandbox.plain("second", 1, &large(8, None));
    let file = sandbox.path("bascule.toml");
    std::fs::write(&file, "[load]\nmemory_budget = \"20MiB\"\n").unwrap();
    let gateway = sandbox.serve_with(&["--config", &file.display().to_string()]).ready();
    let ready = |status: &serde_json::Value| {
        let models = status["models"].as_array().cloned().unwrap_or_default();
        models.iter().filter(|model| model["stable"].is_u64()).count()
    };
    assert_eq!(ready(&get(gateway.admin, "/admin/v1/status").json()), 1, "there is memory for one");
    std::fs::write(&file, "[load]\nmemory_budget = \"1GiB\"\n[server]\nmax_connections = 7\n").unwrap();
    gateway.signal("HUP");
    gateway.eventually_admin("/admin/v1/status", |_, status| ready(status) == 2);
    let setting = |name: &str| {
        let config = get(gateway.admin, "/admin/v1/config").json();
        let settings = config["settings"].as_array().cloned().unwrap_or_default();
        settings.iter().find(|setting| setting["name"] == name).map(|setting| setting["value"].clone())
    };
    gateway.eventually_admin("/admin/v1/config", |_, _| setting("load.memory_budget") == Some(json!("1GiB")));
    assert_eq!(setting("server.max_connections"), Some(json!("4096")), "what needs a restart keeps its value");
    assert!(gateway.log().contains("needs a restart") && gateway.log().contains("server.max_connections"), "{}", gateway.log());
    std::fs::write(&file, "[load]\nmemory_budgget = 1\n").unwrap();
    gateway.signal("HUP");
    gateway.eventually_admin("/admin/v1/config", |_, _| {
        gateway.log().contains("memory_budget") && gateway.log().contains("nothing changes")
    });
    assert_eq!(setting("load.memory_budget"), Some(json!("1GiB")));
}

#[test]
fn a_gateway_that_stops_says_so_first_and_is_seen_until_the_end() {
    let Some(sandbox) = Sandbox::new() else { return };
    let hours = ["server.drain_timeout=1h", "server.body_stall_timeout=1h", "server.body_timeout=1h"];
    let sandbox = hours.into_iter().fold(sandbox, Sandbox::set);
    sandbox.plain("m", 1, &constant(1.0, 2));
    let mut gateway = sandbox.serve().ready();
    let body = json!({ "inputs": [{ "name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5] }] }).to_string();
    let mut slow = TcpStream::connect(gateway.http).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!("POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n");
    slow.write_all(head.as_bytes()).unwrap();
    let mut asked = [0; 25];
    slow.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n", "the request is in flight");
    gateway.signal("TERM");
    gateway.eventually_admin("/readyz", |status, body| status == 503 && body["reason"] == "stopping");
    while TcpStream::connect(gateway.http).is_ok() {}
    assert!(get(gateway.admin, "/metrics").text().contains("\nbascule_ready 0\n"));
    slow.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(gateway.wait().success());
}

#[test]
fn a_shutdown_delay_lets_callers_look_away() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.set("server.shutdown_delay=1h");
    sandbox.plain("m", 1, &constant(1.0, 2));
    let mut gateway = sandbox.serve().ready();
    gateway.signal("TERM");
    gateway.eventually("/v2/health/ready", |status, _| status == 503);
    assert_eq!(get(gateway.admin, "/readyz").status, 503);
    assert_eq!(get(gateway.admin, "/livez").status, 200);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0), "it serves on");
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(1), "a second signal ends it at once");
}
