//! Versions flip under load over both protocols: nothing fails, and every answer is one version's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bascule_onnx_writer::models::constant;
use bascule_proto::inference::ModelInferRequest;
use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bascule_proto::inference::model_infer_request::InferInputTensor;
use serde_json::json;

use crate::http::{Connection, post};
use crate::sandbox::{Gateway, Sandbox};

const FEATURES: usize = 64;

#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    /// Bit `n` for version `n + 1`.
    versions: AtomicU64,
}

impl Tally {
    fn note(&self, version: u64, values: &[f32]) {
        assert_eq!(values.len(), FEATURES);
        assert!(values.iter().all(|value| *value == version as f32), "version {version} answered {values:?}");
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.versions.fetch_or(1 << (version - 1), Ordering::Relaxed);
    }
}

fn http_client(gateway: &Gateway, stop: &Arc<AtomicBool>, tally: &Arc<Tally>) -> std::thread::JoinHandle<()> {
    let (address, stop, tally) = (gateway.http, Arc::clone(stop), Arc::clone(tally));
    let body =
        json!({ "inputs": [{ "name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": vec![0; FEATURES] }] }).to_string();
    std::thread::spawn(move || {
        let mut connection = Connection::open(address).unwrap();
        while !stop.load(Ordering::Relaxed) {
            let answer = connection.call("POST", "/v2/models/m/infer", &[], body.as_bytes());
            assert_eq!(answer.status, 200, "{}", answer.text());
            let answer = answer.json();
            let version = answer["model_version"].as_str().unwrap().parse().unwrap();
            let values: Vec<f32> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
            tally.note(version, &values);
        }
    })
}

async fn grpc_client(address: String, stop: Arc<AtomicBool>, tally: Arc<Tally>) {
    let mut client = GrpcInferenceServiceClient::connect(address).await.unwrap();
    let input =
        InferInputTensor { name: "x".into(), datatype: "FP32".into(), shape: vec![1, FEATURES as i64], ..Default::default() };
    let message = ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![input],
        raw_input_contents: vec![vec![0u8; FEATURES * 4].into()],
        ..Default::default()
    };
    while !stop.load(Ordering::Relaxed) {
        let answer = client.model_infer(message.clone()).await.unwrap().into_inner();
        let values: Vec<f32> =
            answer.raw_output_contents[0].chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        tally.note(answer.model_version.parse().unwrap(), &values);
    }
}

#[test]
fn versions_flip_100_times_under_load_and_no_request_fails() {
    flip_under_load(100);
}

#[test]
#[ignore = "long: 1,000 swaps"]
fn versions_flip_1000_times_under_load_and_no_request_fails() {
    flip_under_load(1_000);
}

fn flip_under_load(flips: u64) {
    let Some(sandbox) = Sandbox::new() else { return };
    for version in 1..=2 {
        assert!(sandbox.publish("m", version, &constant(version as f32, FEATURES as i64)).status.success());
    }
    sandbox.write("m/model.toml", "version_policy = \"all\"\n");
    let gateway = sandbox.serve().ready();
    gateway.wait_version("m", 1);
    gateway.wait_version("m", 2);
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let clients: Vec<_> = (0..4).map(|_| http_client(&gateway, &stop, &tally)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let grpc: Vec<_> = (0..4)
        .map(|_| runtime.spawn(grpc_client(format!("http://{}", gateway.grpc), Arc::clone(&stop), Arc::clone(&tally))))
        .collect();
    for flip in 0..flips {
        // Full weight makes a version stable; both stay loaded, so that each flip is one publish of the table.
        let version = 1 + flip % 2;
        let answer =
            post(gateway.admin, "/admin/v1/models/m/rollout", &json!({ "op": "weight", "version": version, "weight_bp": 10_000 }));
        assert_eq!(answer.status, 200, "{}", answer.text());
        gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == version);
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("a client saw a failure"));
    grpc.into_iter().for_each(|client| runtime.block_on(client).expect("a client saw a failure"));
    assert_eq!(tally.versions.load(Ordering::Relaxed), 0b11, "both versions answered");
    assert!(tally.answered.load(Ordering::Relaxed) > flips);
}

#[test]
fn reloaded_content_swaps_under_load_and_memory_comes_back() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &constant(1.0, FEATURES as i64));
    let gateway = sandbox.serve().ready();
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let clients: Vec<_> = (0..2).map(|_| http_client(&gateway, &stop, &tally)).collect();
    for version in 2..=12 {
        sandbox.plain("m", version, &constant(version as f32, FEATURES as i64));
        gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == version);
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("a client saw a failure"));
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        let versions = status["models"][0]["versions"].as_array().cloned().unwrap_or_default();
        versions.iter().filter(|version| version["state"] == "READY").count() == 1
    });
    let status = crate::http::get(gateway.admin, "/admin/v1/status").json();
    assert!(status["receipts"].as_array().is_some_and(|receipts| !receipts.is_empty()), "{status}");
}
