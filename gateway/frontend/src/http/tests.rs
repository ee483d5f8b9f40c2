//! The port as its callers see it: a real socket, real clients, fake models.

mod disconnect;
mod infer;
mod limits;
mod log;
mod protocol;
mod shutdown;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::Op;
use bascule_runtime_api::{DataType, TensorSpec};
use bascule_runtime_fake::{FakeLog, FakeModel, FakeOp};
use bascule_serving::{Inline, ModelSettings, Servable, Serving, VersionPolicy};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, HeaderMap};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{HttpSettings, serve};
use crate::sandbox::{Sandbox, Stocked, identity};

/// What a test that would hang ends with.
const PATIENCE: Duration = Duration::from_secs(60);

/// A port that is being served.
struct Port {
    addr: SocketAddr,
    serving: Serving,
    log: Arc<FakeLog>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    /// Keeps the engine's folders.
    _sandbox: Sandbox,
}

/// Settings under which every version is served, and whose runs are queued.
fn settings() -> ModelSettings {
    ModelSettings { version_policy: VersionPolicy::All, inline: Inline::Never, ..ModelSettings::default() }
}

fn model(name: &'static str, version: u64, fake: FakeModel) -> Stocked {
    Stocked(name, version, fake, settings())
}

/// A model whose runs wait at the gate of the log.
fn blocking() -> FakeModel {
    FakeModel { block: true, ..identity(DataType::Int32, &[-1, 1]) }
}

impl Port {
    async fn start(settings: HttpSettings, models: Vec<Stocked>) -> Port {
        let sandbox = Sandbox::start(models).await;
        let serving = sandbox.serving.clone();
        let log = sandbox.runtime.log();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, serving.clone(), settings, shutdown.clone()));
        Port { addr, serving, log, shutdown, task, _sandbox: sandbox }
    }

    async fn alias(&self, model: &str, alias: &str, version: u64) {
        let op = Op::Alias { name: alias.to_owned(), version: Some(version) };
        self.serving.apply(model, op, "test", "test", None).await.unwrap();
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// One request on a connection of its own.
    async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.unwrap();
        let reply = Reply::read(response).await;
        drop(sender);
        connection.await.unwrap().unwrap();
        reply
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(request(Method::GET, path, &[], "")).await
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        self.send(request(Method::POST, path, headers, body)).await
    }

    async fn http2(&self) -> http2::SendRequest<Full<Bytes>> {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    fn servable(&self, model: &str) -> Arc<Servable> {
        Arc::clone(self.serving.router().table().route(model).unwrap().stable.as_ref().unwrap())
    }

    /// Ends the port, and fails where it does not end.
    async fn stop(self) {
        self.shutdown.cancel();
        self.ended().await;
    }

    async fn ended(self) {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the port ends").unwrap();
    }
}

fn request(method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).unwrap()
}

/// What each of the two outputs of [`two_outputs`] takes.
const OUTPUT_BYTES: usize = 4 << 20;

/// A model that answers its two inputs.
fn two_outputs() -> Vec<Stocked> {
    let specs = |prefix: &str| (0..2).map(|index| TensorSpec::new(format!("{prefix}{index}"), DataType::Uint8, [-1])).collect();
    vec![model("m", 1, FakeModel::new(FakeOp::Identity, specs("x"), specs("y")))]
}

/// A request over HTTP/2 for two large binary outputs.
fn two_inputs() -> Request<Full<Bytes>> {
    let input = |name: &str| {
        format!(
            r#"{{"name":"{name}","shape":[{OUTPUT_BYTES}],"datatype":"UINT8","parameters":{{"binary_data_size":{OUTPUT_BYTES}}}}}"#
        )
    };
    let json = format!(r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{},{}]}}"#, input("x0"), input("x1"));
    let length = json.len().to_string();
    let body = [json.as_bytes(), &vec![7; 2 * OUTPUT_BYTES]].concat();
    request(Method::POST, "http://localhost/v2/models/m/infer", &[("inference-header-content-length", &length)], body)
}

/// Reads both outputs over HTTP/2 with the smallest usual window, each for longer than two seconds, and ends the port in between where
/// `stops`.
async fn slow_reader(port: Port, stops: bool) {
    const WINDOW_BYTES: u32 = 65_535;
    let mut client = http2::Builder::new(TokioExecutor::new());
    client.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let request = two_inputs();
    let (mut sender, connection) = client.handshake(TokioIo::new(port.connect().await)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let (mut read, mut pause_at) = (0, 0);
    while let Some(frame) = body.frame().await {
        read += frame.expect("the answer is sent whole").data_ref().map_or(0, Bytes::len);
        if read >= pause_at {
            // The pace of the reader; nothing is waited for.
            tokio::time::sleep(Duration::from_millis(35)).await;
            pause_at = read + WINDOW_BYTES as usize;
        }
        if stops {
            port.shutdown.cancel();
        }
    }
    assert!(read > 2 * OUTPUT_BYTES, "{read}");
    drop((body, sender));
    port.stop().await;
}

/// An answer, read to its end.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    async fn read(response: Response<hyper::body::Incoming>) -> Reply {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: head.status, headers: head.headers, body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn error(&self) -> (u16, String) {
        (self.status.as_u16(), self.json()["error"].as_str().unwrap().to_owned())
    }
}

/// Waits for something that other tasks bring about.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
