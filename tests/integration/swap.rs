//! Versions flip under load over both protocols: nothing fails, and every answer is one version's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bascule_onnx_writer::models::{LARGE_COLUMNS, filled};
use bascule_proto::inference::ModelInferRequest;
use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bascule_proto::inference::model_infer_request::InferInputTensor;
use serde_json::json;

use crate::http::{Connection, post};
use crate::sandbox::{Gateway, Sandbox};

#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    /// The highest version that has answered.
    highest: AtomicU64,
}

impl Tally {
    fn note(&self, version: u64, values: &[f32]) {
        assert_eq!(values.len(), LARGE_COLUMNS as usize);
        assert!(values.iter().all(|value| *value == version as f32), "version {version} answered {values:?}");
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.highest.fetch_max(version, Ordering::Relaxed);
    }
}

fn http_client(gateway: &Gateway, stop: &Arc<AtomicBool>, tally: &Arc<Tally>) -> std::thread::JoinHandle<()> {
    let (address, stop, tally) = (gateway.http, Arc::clone(stop), Arc::clone(tally));
    let body = json!({ "inputs": [{ "name": "x", "shape": [1], "datatype": "INT64", "data": [7] }] }).to_string();
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
    let input = InferInputTensor { name: "x".into(), datatype: "INT64".into(), shape: vec![1], ..Default::default() };
    let message = ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![input],
        raw_input_contents: vec![vec![0u8; 8].into()],
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

/// What a version's model takes on disk, and about so much in memory.
const MEGABYTES: usize = 1;

/// What resident memory may grow by, in bytes: allocators keep some, but not a version for each of many swaps.
const MEMORY_SLACK: u64 = 48 << 20;

/// Each flip publishes a version, which is fetched, loaded and warmed up under the load, and drains the one before it.
fn flip_under_load(flips: u64) {
    let Some(sandbox) = Sandbox::new() else { return };
    let publish = |version: u64| {
        let published = sandbox.publish("m", version, &filled(MEGABYTES, version as f32));
        assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
    };
    publish(1);
    let gateway = sandbox.serve().ready();
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let clients: Vec<_> = (0..4).map(|_| http_client(&gateway, &stop, &tally)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let grpc: Vec<_> = (0..4)
        .map(|_| runtime.spawn(grpc_client(format!("http://{}", gateway.grpc), Arc::clone(&stop), Arc::clone(&tally))))
        .collect();
    let mut rss_early = 0;
    for version in 2..=flips + 1 {
        publish(version);
        post(gateway.admin, "/admin/v1/kick", &json!({}));
        gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == version);
        // Every version answers under the load before the next one comes.
        while tally.highest.load(Ordering::Relaxed) < version && clients.iter().all(|client| !client.is_finished()) {
            std::thread::yield_now();
        }
        if version == flips / 5 {
            rss_early = gateway.rss();
        }
    }
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("a client saw a failure"));
    grpc.into_iter().for_each(|client| runtime.block_on(client).expect("a client saw a failure"));
    assert!(tally.answered.load(Ordering::Relaxed) > flips);
    let drained = |status: &serde_json::Value| {
        let versions = status["models"][0]["versions"].as_array().cloned().unwrap_or_default();
        versions.iter().filter(|version| version["state"] == "READY").count() == 1
    };
    gateway.eventually_admin("/admin/v1/status", |_, status| drained(status));
    // What has drained goes back to the system a while after the last drain, in one go.
    gateway.eventually_admin("/admin/v1/status", |_, _| gateway.rss() < rss_early + MEMORY_SLACK);
}

#[test]
fn plain_versions_swap_under_load_and_leave_a_receipt() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.plain("m", 1, &filled(MEGABYTES, 1.0));
    let gateway = sandbox.serve().ready();
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let clients: Vec<_> = (0..2).map(|_| http_client(&gateway, &stop, &tally)).collect();
    for version in 2..=12 {
        sandbox.plain("m", version, &filled(MEGABYTES, version as f32));
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
