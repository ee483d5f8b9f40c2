use bascule_runtime_api::DataType;
use bascule_runtime_fake::FakeModel;
use bascule_serving::{LoadMode, ModelSettings, RolloutStrategy, VersionPolicy};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::sandbox::{Sandbox, Stocked, constant, identity};

const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    sandbox: Sandbox,
    metrics: Metrics,
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    stop: CancellationToken,
    served: JoinHandle<Result<(), AdminError>>,
}

impl Bench {
    async fn new(stock: impl IntoIterator<Item = Stocked>) -> Bench {
        Bench::over(Sandbox::start(stock).await, AdminSettings::default()).await
    }

    async fn over(sandbox: Sandbox, settings: AdminSettings) -> Bench {
        Bench::with(sandbox, settings, WebhookSecrets::default()).await
    }

    async fn with(sandbox: Sandbox, settings: AdminSettings, webhooks: WebhookSecrets) -> Bench {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let metrics = Metrics::new();
        let config = watch::channel(Arc::new(json!({ "http": { "value": "127.0.0.1:8000", "from": "default" } }))).1;
        let sources = AdminSources { serving: sandbox.serving.clone(), metrics: metrics.clone(), config, webhooks };
        let served = tokio::spawn(serve(listener, sources, settings, stop.clone()));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Bench { sandbox, metrics, address, client, stop, served }
    }

    async fn text(&self, method: Method, path: &str, body: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        let answer = self.client.request(request.body(Full::new(body.to_owned().into())).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.text(Method::GET, path, "").await;
        (status, serde_json::from_str(&text).unwrap())
    }

    async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let (status, text) = self.text(Method::POST, path, body).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    async fn stopped(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.served).await.expect("the port ends").unwrap().unwrap();
    }
}

fn mlp() -> Stocked {
    Stocked("mlp", 1, constant(7.0), ModelSettings::default())
}

fn broken() -> Stocked {
    let fake = FakeModel { fail_load: Some("out of luck".to_owned()), ..identity(DataType::Fp32, &[4]) };
    Stocked("broken", 1, fake, ModelSettings::default())
}

#[tokio::test]
async fn the_driver_of_gpus_is_not_asked_by_the_threads_of_connections() {
    let bench = Bench::new([mlp()]).await;
    for path in ["/admin/v1/status", "/admin/v1/models/mlp", "/metrics"] {
        let before = bench.sandbox.gpus.asked_by().len();
        assert_eq!(bench.text(Method::GET, path, "").await.0, 200, "{path}");
        let asked_by = bench.sandbox.gpus.asked_by().split_off(before);
        // One thread serves all connections of this test.
        assert!(!asked_by.is_empty() && !asked_by.contains(&std::thread::current().id()), "{path}");
    }
    bench.stopped().await;
}

#[tokio::test]
async fn status_config_and_probes_are_told() {
    let bench = Bench::new([mlp()]).await;
    assert_eq!(bench.text(Method::GET, "/livez", "").await, (200, "live\n".to_owned()));
    assert_eq!(bench.get("/readyz").await, (200, json!({ "ready": true, "reason": null })));
    let (status, told) = bench.get("/admin/v1/status").await;
    assert_eq!(
        (status, &told["models"][0]["name"], &told["models"][0]["versions"][0]["state"]),
        (200, &json!("mlp"), &json!("READY"))
    );
    assert_eq!(bench.get("/admin/v1/config").await.1["http"]["from"], "default");
    let (status, model) = bench.get("/admin/v1/models/mlp").await;
    assert_eq!((status, &model["stable"]), (200, &json!(1)));
    bench.stopped().await;
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let bench = Bench::new([mlp()]).await;
    for (method, path, status) in [
        (Method::GET, "/admin/v1/models/nope", 404),
        (Method::GET, "/admin/v1/models/nope/rollout", 404),
        (Method::POST, "/admin/v1/models/nope/load", 404),
        (Method::GET, "/admin/v2", 404),
        (Method::POST, "/admin/v1/status", 405),
        (Method::GET, "/admin/v1/kick", 405),
        (Method::GET, "/admin/v1/models/mlp/versions/x/wait", 400),
        (Method::GET, "/admin/v1/models/mlp/versions/1/wait?timeout=soon", 400),
        (Method::POST, "/admin/v1/models/mlp/unload?wait=maybe", 400),
        (Method::GET, "/admin/v1/models/nope/journal", 404),
        (Method::POST, "/admin/v1/models/mlp/journal", 405),
        (Method::GET, "/admin/v1/models/mlp/journal?limit=0", 400),
        (Method::GET, "/admin/v1/models/mlp/journal?limit=1001", 400),
        (Method::GET, "/admin/v1/models/mlp/journal?limit=all", 400),
        (Method::GET, "/admin/v1/models/mlp/journal?before=-1", 400),
        (Method::GET, "/admin/v1/models/%ff", 400),
        (Method::POST, "/admin/v1/models/mlp/rollout", 400),
    ] {
        let (found, text) = bench.text(method.clone(), path, "").await;
        let told: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method} {path}: {text}"));
        assert_eq!(found, status, "{method} {path}: {told}");
        assert!(told["error"].as_str().is_some_and(|error| !error.is_empty()), "{method} {path}: {told}");
        assert!(told["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{method} {path}: {told}");
    }
    let (status, told) = bench.post("/admin/v1/models/mlp/rollout", &" ".repeat(100_000)).await;
    assert_eq!((status, &told["error"]), (413, &json!("the body can't be read or is larger than 65536 bytes")));
    bench.stopped().await;
}

#[tokio::test]
async fn models_are_loaded_and_unloaded() {
    let sandbox = Sandbox::with_mode([mlp(), broken()], LoadMode::Explicit).await;
    let bench = Bench::over(sandbox, AdminSettings::default()).await;
    let (status, model) = bench.post("/admin/v1/models/mlp/load", "").await;
    assert_eq!((status, &model["versions"][0]["state"]), (200, &json!("READY")));
    let (status, told) = bench.post("/admin/v1/models/broken/load", "").await;
    assert_eq!((status, &told["stage"]), (422, &json!("loading")));
    assert!(told["cause"].as_str().unwrap().contains("out of luck"), "{told}");
    let (status, told) = bench.post("/admin/v1/models/mlp/unload?wait=true", "").await;
    assert_eq!((status, &told["receipts"][0]["version"]), (200, &json!(1)));
    assert_eq!(bench.sandbox.runtime.log().counts().live, 0);
    assert_eq!(bench.post("/admin/v1/models/nope/unload", "").await, (200, json!({ "model": "nope", "receipts": [] })));
    bench.stopped().await;
}

#[tokio::test]
async fn a_wait_ends_with_what_became_of_the_version() {
    let settings = ModelSettings { version_policy: VersionPolicy::All, ..ModelSettings::default() };
    let bench = Bench::new([Stocked("mlp", 1, constant(7.0), settings)]).await;
    let (_, told) = bench.get("/admin/v1/models/mlp/versions/1/wait").await;
    assert_eq!(told, json!({ "model": "mlp", "version": 1, "outcome": "ready", "traffic_bp": 10_000, "no_traffic": null }));
    // The wait itself looks at the registry.
    bench.sandbox.shelf.put("mlp", 2, &constant(8.0));
    assert_eq!(bench.get("/admin/v1/models/mlp/versions/2/wait").await.1["outcome"], "ready");
    let Stocked(_, _, fake, _) = broken();
    bench.sandbox.shelf.put("mlp", 3, &FakeModel { inputs: constant(0.0).inputs, outputs: constant(0.0).outputs, ..fake });
    let (_, told) = bench.get("/admin/v1/models/mlp/versions/3/wait").await;
    assert_eq!((&told["outcome"], &told["stage"]), (&json!("failed"), &json!("loading")));
    assert!(told["cause"].as_str().unwrap().contains("out of luck"), "{told}");
    let (_, told) = bench.get("/admin/v1/models/mlp/versions/4/wait?timeout=10ms").await;
    assert_eq!(told, json!({ "model": "mlp", "version": 4, "outcome": "pending", "stage": null }));
    let (_, told) = bench.get("/admin/v1/models/mlp/versions/1/wait?timeout=10ms&digest=other").await;
    assert_eq!(told["outcome"], "pending");
    bench.post("/admin/v1/models/mlp/unload?wait=true", "").await;
    assert_eq!(bench.get("/admin/v1/models/mlp/versions/4/wait").await.1["outcome"], "held");
    bench.stopped().await;
}

#[tokio::test]
async fn a_journal_is_told_newest_first_and_in_parts() {
    let bench = Bench::new([mlp()]).await;
    let (status, told) = bench.get("/admin/v1/models/mlp/journal").await;
    assert_eq!((status, &told["model"], &told["seq"]), (200, &json!("mlp"), &json!(0)));
    assert_eq!((&told["entries"], &told["before"]), (&json!([]), &json!(null)));
    assert_eq!(told["home"]["keeper"], "state directory");
    assert!(told["home"]["place"].as_str().is_some_and(|place| place.starts_with("directory /")), "{told}");
    for body in [r#"{"op":"pin","version":1,"by":"ann","reason":"slow"}"#, r#"{"op":"unpin","by":"ben"}"#, r#"{"op":"disable"}"#] {
        assert_eq!(bench.post("/admin/v1/models/mlp/rollout", body).await.0, 200);
    }
    let (_, told) = bench.get("/admin/v1/models/mlp/journal?limit=2").await;
    let ops = |told: &Value| told["entries"].as_array().unwrap().iter().map(|entry| entry["op"].clone()).collect::<Vec<_>>();
    assert_eq!((ops(&told), &told["seq"], &told["before"]), (vec![json!("disable"), json!("unpin")], &json!(3), &json!(2)));
    let (_, told) = bench.get("/admin/v1/models/mlp/journal?limit=1000&before=2").await;
    assert_eq!((ops(&told), &told["before"]), (vec![json!("pin")], &json!(null)));
    let pin = &told["entries"][0];
    assert_eq!((&pin["schema"], &pin["seq"], &pin["version"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!((&pin["by"], &pin["reason"]), (&json!("ann"), &json!("slow")));
    assert!(pin["at"].is_string() && pin["id"].is_string(), "{pin}");
    let (_, model) = bench.get("/admin/v1/models/mlp").await;
    assert_eq!((&model["journal_seq"], &model["layout"]), (&json!(3), &json!("plain")));
    bench.stopped().await;
}

/// What waiting for a version says: its outcome, and why.
async fn waited(bench: &Bench, version: u64) -> (String, String) {
    let (_, told) = bench.get(&format!("/admin/v1/models/mlp/versions/{version}/wait")).await;
    let text = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
    (text("outcome"), text("reason") + &text("no_traffic"))
}

#[tokio::test]
async fn a_wait_for_what_will_not_be_loaded_ends_with_the_reason() {
    let bench = Bench::new([mlp()]).await;
    bench.sandbox.shelf.put("mlp", 2, &constant(8.0));
    assert_eq!(waited(&bench, 2).await, ("ready".to_owned(), String::new()));
    // Only the highest is loaded.
    let (outcome, reason) = waited(&bench, 1).await;
    assert!(outcome == "held" && reason.contains("latest 1"), "{outcome}: {reason}");
    assert_eq!(bench.post("/admin/v1/models/mlp/rollout", r#"{"op":"pin","version":2}"#).await.0, 200);
    bench.sandbox.shelf.put("mlp", 3, &constant(9.0));
    assert_eq!(waited(&bench, 3).await, ("ready".to_owned(), "version 2 is pinned".to_owned()));
    assert_eq!(bench.post("/admin/v1/models/mlp/rollout", r#"{"op":"unpin"}"#).await.0, 200);
    assert_eq!(bench.post("/admin/v1/models/mlp/rollout", r#"{"op":"weight","version":4,"weight_bp":0}"#).await.0, 200);
    bench.sandbox.shelf.put("mlp", 4, &constant(10.0));
    assert_eq!(waited(&bench, 4).await, ("held".to_owned(), "the version was rejected".to_owned()));
    bench.stopped().await;
}

#[tokio::test]
async fn a_wait_on_demand_and_in_explicit_mode_says_what_is_true() {
    let sandbox = Sandbox::with_mode([mlp()], LoadMode::OnDemand).await;
    let bench = Bench::over(sandbox, AdminSettings::default()).await;
    bench.sandbox.shelf.put("mlp", 2, &constant(8.0));
    assert_eq!(waited(&bench, 2).await.0, "on_demand");
    bench.stopped().await;
    let sandbox = Sandbox::with_mode([mlp()], LoadMode::Explicit).await;
    let bench = Bench::over(sandbox, AdminSettings::default()).await;
    assert_eq!(bench.post("/admin/v1/models/mlp/load", "").await.0, 200);
    bench.sandbox.shelf.put("mlp", 2, &constant(8.0));
    let (outcome, reason) = waited(&bench, 2).await;
    assert!(outcome == "held" && reason.contains("explicit"), "{outcome}: {reason}");
    assert_eq!(bench.post("/admin/v1/models/mlp/load", "").await.0, 200);
    assert_eq!(waited(&bench, 2).await.0, "ready");
    bench.stopped().await;
}

#[tokio::test]
async fn rollouts_are_decided_and_told() {
    let settings =
        ModelSettings { rollout: RolloutStrategy::Manual, version_policy: VersionPolicy::All, ..ModelSettings::default() };
    let bench = Bench::new([Stocked("mlp", 1, constant(7.0), settings)]).await;
    bench.sandbox.shelf.put("mlp", 2, &constant(8.0));
    assert_eq!(bench.get("/admin/v1/models/mlp/versions/2/wait").await.1["outcome"], "ready");
    let decision =
        r#"{"op":"weight","version":2,"weight_bp":1000,"by":"ann","reason":"try","id":"7f0c3b1e-0000-4000-8000-000000000001"}"#;
    let (status, told) = bench.post("/admin/v1/models/mlp/rollout", decision).await;
    assert_eq!((status, &told["seq"]), (200, &json!(1)), "{told}");
    assert_eq!(told["rollout"]["candidate"]["weight_bp"], 1000);
    // The same id again is the same decision.
    assert_eq!(bench.post("/admin/v1/models/mlp/rollout", decision).await.1["seq"], 1);
    let (_, told) = bench.get("/admin/v1/models/mlp/rollout").await;
    assert_eq!((&told["stable"], &told["candidate"]["version"], &told["strategy"]), (&json!(1), &json!(2), &json!("manual")));
    let (status, told) = bench.post("/admin/v1/models/mlp/rollout", r#"{"op":"weight","version":9,"weight_bp":1000}"#).await;
    assert_eq!(status, 409, "{told}");
    bench.stopped().await;
}

#[tokio::test]
async fn a_kick_makes_the_engine_look() {
    let bench = Bench::new([mlp()]).await;
    for (version, path) in [(2, "/admin/v1/kick"), (3, "/admin/v1/registry/kick")] {
        bench.sandbox.shelf.put("mlp", version, &constant(8.0));
        assert_eq!(bench.post(path, "{\"a\":\"webhook\"}").await, (202, json!({ "kicked": true })));
        let seen = async {
            while bench
                .sandbox
                .serving
                .router()
                .table()
                .route("mlp")
                .unwrap()
                .stable
                .as_ref()
                .is_none_or(|stable| stable.version() != version)
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.unwrap();
    }
    bench.stopped().await;
}

#[tokio::test]
async fn metrics_are_recorded_and_computed() {
    let bench = Bench::new([mlp()]).await;
    metrics::with_local_recorder(&bench.metrics, || metrics::counter!("things_total").increment(3));
    let (status, text) = bench.text(Method::GET, "/metrics", "").await;
    assert_eq!(status, 200);
    for line in ["things_total 3", "bascule_ready 1", "bascule_version_state{model=\"mlp\",version=\"1\",state=\"READY\"} 1"] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    bench.stopped().await;
}

/// Sends a head as it is and returns the status line.
async fn raw(bench: &Bench, head: &str) -> String {
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap().lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn pages_of_other_sites_are_kept_out() {
    let bench = Bench::new([mlp()]).await;
    let head = |host: &str, more: &str| {
        format!("POST /admin/v1/kick HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}content-length: 0\r\n\r\n")
    };
    assert_eq!(raw(&bench, &head("localhost:8002", "")).await, "HTTP/1.1 202 Accepted");
    assert_eq!(raw(&bench, &head("rebound.example:8002", "")).await, "HTTP/1.1 421 Misdirected Request");
    assert_eq!(raw(&bench, &head("localhost:8002", "origin: http://evil.example\r\n")).await, "HTTP/1.1 403 Forbidden");
    bench.stopped().await;
}

#[tokio::test]
async fn an_open_address_is_refused_unless_allowed() {
    let sandbox = Sandbox::start([mlp()]).await;
    let sources = || AdminSources {
        serving: sandbox.serving.clone(),
        metrics: Metrics::new(),
        config: watch::channel(Arc::new(json!({}))).1,
        webhooks: WebhookSecrets::default(),
    };
    let listener = TcpListener::bind(("0.0.0.0", 0)).await.unwrap();
    let refused = serve(listener, sources(), AdminSettings::default(), CancellationToken::new()).await;
    assert!(matches!(refused, Err(AdminError::Remote { .. })), "{refused:?}");
    let listener = TcpListener::bind(("0.0.0.0", 0)).await.unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    serve(listener, sources(), AdminSettings { allow_remote: true, ..AdminSettings::default() }, stop).await.unwrap();
}

#[tokio::test]
async fn waiting_and_resting_clients_do_not_hold_the_shutdown() {
    let settings = AdminSettings { drain_timeout: Duration::from_secs(86_400), ..AdminSettings::default() };
    let bench = Bench::over(Sandbox::start([mlp()]).await, settings).await;
    // Rests in the client's pool.
    bench.get("/readyz").await;
    let silent = TcpStream::connect(bench.address).await.unwrap();
    let mut waiting = TcpStream::connect(bench.address).await.unwrap();
    waiting.write_all(b"GET /admin/v1/models/mlp/versions/9/wait HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    // Answered only once the port stops: it was read before that, or the connection ends without an answer.
    let answered = tokio::spawn(async move {
        let mut answer = Vec::new();
        drop(waiting.read_to_end(&mut answer).await);
        String::from_utf8(answer).unwrap()
    });
    bench.stopped().await;
    let answer = answered.await.unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(silent);
}

#[tokio::test]
async fn waits_leave_connections_to_the_probes() {
    let settings = AdminSettings { max_waits: 1, ..AdminSettings::default() };
    let bench = Bench::over(Sandbox::start([mlp()]).await, settings).await;
    bench.sandbox.shelf.put("mlp", 2, &constant(8.0));
    let mut waiting = TcpStream::connect(bench.address).await.unwrap();
    waiting.write_all(b"GET /admin/v1/models/mlp/versions/9/wait HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    // A wait begins with a look: once what it saw is there, it waits.
    let seen = async {
        while bench.sandbox.serving.status().model("mlp").is_none_or(|model| model.stable != Some(2)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
    for (method, path) in [
        (Method::GET, "/admin/v1/models/mlp/versions/9/wait"),
        (Method::POST, "/admin/v1/models/mlp/load"),
        (Method::POST, "/admin/v1/models/mlp/unload?wait=true"),
    ] {
        let (status, text) = bench.text(method, path, "").await;
        assert!(status == 429 && text.contains("the limit of 1 waiting requests"), "{path}: {status} {text}");
    }
    assert_eq!(bench.text(Method::GET, "/livez", "").await.0, 200);
    drop(waiting);
    // The place is free again once the connection is seen to be gone.
    let freed = async { while bench.post("/admin/v1/models/mlp/load", "").await.0 != 200 {} };
    tokio::time::timeout(PATIENCE, freed).await.unwrap();
    bench.stopped().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    let settings = AdminSettings { write_timeout: Duration::from_millis(50), ..AdminSettings::default() };
    let bench = Bench::over(Sandbox::start([mlp()]).await, settings).await;
    let mut deaf = TcpStream::connect(bench.address).await.unwrap();
    // Until the answers fill every buffer, and then the requests do.
    let asking = async { while deaf.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await.is_ok() {} };
    tokio::time::timeout(PATIENCE, asking).await.expect("the connection is cut");
    bench.stopped().await;
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let settings = AdminSettings { read_timeout: Duration::from_millis(50), ..AdminSettings::default() };
    let bench = Bench::over(Sandbox::start([mlp()]).await, settings).await;
    assert_eq!(raw(&bench, "GET /readyz HTTP/1.1\r\nho").await, "");
    bench.stopped().await;
}

#[tokio::test]
async fn a_webhook_of_mlflow_needs_its_secret() {
    let secrets = WebhookSecrets { mlflow: Some(Arc::from(&b"s3cret"[..])) };
    assert_eq!(format!("{secrets:?}"), "WebhookSecrets { mlflow: true }");
    let bench = Bench::with(Sandbox::start([mlp()]).await, AdminSettings::default(), secrets).await;
    let send = async |secret: &str, body: &str| {
        let now = chrono::Utc::now().timestamp();
        let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap().chain_update(format!("id-1.{now}.{body}"));
        let signature = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
        let request = Request::builder().method(Method::POST).uri(format!("http://{}/admin/webhooks/mlflow", bench.address));
        let request = request.header("X-MLflow-Delivery-Id", "id-1").header("X-MLflow-Timestamp", now.to_string());
        let request = request.header("X-MLflow-Signature", signature).body(Full::new(body.to_owned().into())).unwrap();
        bench.client.request(request).await.unwrap().status().as_u16()
    };
    assert_eq!(send("s3cret", "{}").await, 202);
    assert_eq!(send("another", "{}").await, 401);
    assert_eq!(send("s3cret", &"x".repeat(100_000)).await, 413);
    assert_eq!(bench.post("/admin/webhooks/mlflow", "{}").await.0, 401);
    bench.stopped().await;
    let without = Bench::new([mlp()]).await;
    let (status, answer) = without.post("/admin/webhooks/mlflow", "{}").await;
    assert!(status == 404 && answer["hint"].as_str().unwrap().contains("mlflow.webhook_secret"), "{status} {answer}");
    without.stopped().await;
}
