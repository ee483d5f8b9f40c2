//! A gateway over a real MLflow server: what its aliases say is served, and what is decided here it hears of.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use bascule_onnx_writer::{OnnxModel, models};
use serde_json::{Value, json};

use crate::http::{call, get, post};
use crate::sandbox::{Gateway, Sandbox};
use crate::servers::{Server, find_or_skip, free_port, listens};

const MLMODEL: &str = "flavors:
  onnx:
    data: model.onnx
signature:
  inputs: '[{\"type\": \"tensor\", \"name\": \"x\", \"tensor-spec\": {\"dtype\": \"float32\", \"shape\": [-1, 2]}}]'
  outputs: '[{\"type\": \"tensor\", \"name\": \"y\", \"tensor-spec\": {\"dtype\": \"float32\", \"shape\": [-1, 2]}}]'
";

const SECRET: &str = "what only MLflow and the gateway know";

/// A tracking server.
struct Mlflow {
    process: Server,
    address: SocketAddr,
}

impl Mlflow {
    fn start() -> Option<Mlflow> {
        let python = find_or_skip("mlflow/bin/python")?;
        let port = free_port();
        let prepare = |folder: &Path| {
            let mut command = Command::new(python);
            let place = |name: &str| folder.join(name).display().to_string();
            let (database, files) = (format!("sqlite:///{}", place("mlflow.db")), format!("file://{}", place("artifacts")));
            command.args(["-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1", "--serve-artifacts"]);
            command.args(["--port", &port.to_string(), "--backend-store-uri", &database, "--artifacts-destination", &files]);
            command.env("MLFLOW_DISABLE_TELEMETRY", "true").env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false");
            command.env("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https").env("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true");
            // It remembers for a minute that there were no webhooks.
            command.env("MLFLOW_WEBHOOK_CACHE_TTL", "0").current_dir(folder);
            command
        };
        let server = Server::start(prepare, || listens(port));
        Some(Mlflow { process: server, address: SocketAddr::from(([127, 0, 0, 1], port)) })
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let json = [("Content-Type", "application/json")];
        let answer = call(self.address, method, &format!("/api/2.0/mlflow/{path}"), &json, body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    fn register(&self, model: &OnnxModel) {
        let run = self.send("POST", "runs/create", &json!({ "experiment_id": "0", "start_time": 1 }));
        let run = run["run"]["info"]["run_id"].as_str().unwrap();
        let folder = format!("0/{run}/artifacts/model");
        for (name, content) in [("MLmodel", MLMODEL.as_bytes()), ("model.onnx", &model.bytes)] {
            let path = format!("/api/2.0/mlflow-artifacts/artifacts/{folder}/{name}");
            assert_eq!(call(self.address, "PUT", &path, &[], content).status, 200);
        }
        let version = json!({ "name": "scale", "source": format!("mlflow-artifacts:/{folder}"), "run_id": run });
        self.send("POST", "model-versions/create", &version);
    }

    fn alias(&self, name: &str, version: u64) {
        let body = json!({ "name": "scale", "alias": name, "version": version.to_string() });
        self.send("POST", "registered-models/alias", &body);
    }

    fn aliases(&self) -> Vec<(String, String)> {
        let answer = get(self.address, "/api/2.0/mlflow/registered-models/get?name=scale").json();
        let aliases = answer["registered_model"]["aliases"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        aliases.iter().map(|alias| (text(&alias["alias"]), text(&alias["version"]))).collect()
    }
}

/// Multiplies both of its inputs by a number, and so tells which version it is.
fn scale(by: f32) -> OnnxModel {
    models::linear(&[by, 0.0, 0.0, by], &[0.0, 0.0])
}

fn answered_by(gateway: &Gateway) -> u64 {
    let request = json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0] }] });
    let answer = post(gateway.http, "/v2/models/scale/infer", &request);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let version: u64 = answer.json()["model_version"].as_str().unwrap().parse().unwrap();
    assert_eq!(answer.json()["outputs"][0]["data"][0], json!(version as f64), "{}", answer.text());
    version
}

fn stable_is(gateway: &Gateway, version: u64) {
    gateway.eventually_admin("/admin/v1/models/scale/rollout", |_, rollout| rollout["stable"] == version);
    assert_eq!(answered_by(gateway), version);
}

#[test]
#[ignore = "long: needs MLflow, which takes long to start"]
fn aliases_are_served_and_decisions_come_back() {
    let Some(server) = Mlflow::start() else { return };
    let Some(sandbox) = Sandbox::new() else { return };
    let secret = sandbox.path("secret");
    std::fs::write(&secret, SECRET).unwrap();
    // After the first look, nothing but a webhook or a command makes the gateway look.
    let sandbox = sandbox
        .at(Some(&format!("mlflow+http://{}", server.address)))
        .set("registry.poll_interval=1h")
        .set("mlflow.write_back=true")
        .set(&format!("mlflow.webhook_secret=file:{}", secret.display()));
    server.send("POST", "registered-models/create", &json!({ "name": "scale" }));
    for version in 1..=3 {
        server.register(&scale(version as f32));
    }
    server.alias("champion", 1);
    let gateway = sandbox.serve().ready();
    stable_is(&gateway, 1);

    let events =
        json!([{ "entity": "MODEL_VERSION_ALIAS", "action": "CREATED" }, { "entity": "MODEL_VERSION_ALIAS", "action": "DELETED" }]);
    let hook = format!("http://{}/admin/webhooks/mlflow", gateway.admin);
    let webhook = json!({ "name": "gateway", "url": hook, "events": events, "secret": SECRET });
    server.send("POST", "webhooks", &webhook);
    server.alias("champion", 2);
    stable_is(&gateway, 2);
    server.alias("challenger", 3);
    gateway.eventually_admin("/admin/v1/models/scale/rollout", |_, rollout| {
        rollout["candidate"]["version"] == 3 && rollout["candidate"]["weight_bp"] == 1_000
    });
    assert_eq!(
        call(gateway.admin, "POST", "/admin/webhooks/mlflow", &[], b"{}").status,
        401,
        "whoever lacks the secret is refused"
    );

    let decision = json!({ "op": "promote", "by": "ann", "reason": "it is better" });
    assert_eq!(post(gateway.admin, "/admin/v1/models/scale/rollout", &decision).status, 200);
    stable_is(&gateway, 3);
    let asked = "/api/2.0/mlflow/model-versions/get?name=scale&version=3";
    let told = |answer: &Value| answer["model_version"]["tags"].as_array().is_some_and(|tags| tags.len() == 4);
    gateway.eventually_of(server.address, asked, |_, answer| told(answer));
    gateway.eventually_of(server.address, "/api/2.0/mlflow/registered-models/get?name=scale", |_, _| {
        server.aliases() == [("champion".to_owned(), "3".to_owned())]
    });

    let place = format!("mlflow+http://{}", server.address);
    let versions = sandbox.succeed(&["versions", "scale", "--registry", &place]);
    let champion = versions.lines().find(|line| line.contains("alias champion"));
    assert!(versions.lines().count() == 4 && champion.is_some_and(|line| line.starts_with('3')), "{versions}");
    let verified = sandbox.run(&["verify", "--registry", &place]);
    let note = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && note.contains("scale was not verified"), "{note}");

    // Who decided, and which run of MLflow's made it.
    let admin = format!("http://{}", gateway.admin);
    let found: Value = serde_json::from_str(&sandbox.succeed(&["where", "scale@3", "--gateway", &admin, "--json"])).unwrap();
    let (replica, run) = (&found["replicas"][0], get(server.address, asked).json()["model_version"]["run_id"].clone());
    assert!(run.is_string() && replica["run_id"] == run && replica["publisher"].is_string(), "{run}: {found}");
    let entry = &replica["decision"]["entry"];
    assert_eq!((&entry["op"], &entry["by"], &entry["reason"]), (&json!("promote"), &json!("ann"), &json!("it is better")));
    assert_eq!((&found["journals"][0]["keeper"], &found["differences"]), (&json!("state directory"), &json!([])));

    // Without its server, a restart serves what was served.
    drop(server.process);
    gateway.kill();
    let gateway = sandbox.serve().ready();
    stable_is(&gateway, 3);
}
