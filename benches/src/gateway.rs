//! The gateway under measurement: a child process on free ports, over a registry of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bascule_proto::inference::{ModelInferRequest, ModelInferResponse};
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;

use crate::Plan;
use crate::calls::HttpCall;
use crate::cores::held_to;
use crate::process::Server;

/// A running gateway.
pub(crate) struct Gateway {
    pub(crate) server: Server,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Holds the state directory for as long as the gateway runs.
    _state: tempfile::TempDir,
}

impl Gateway {
    /// Starts the gateway over `registry`, on the servers' core, with these settings, and waits until it is ready.
    pub(crate) async fn start(plan: &Plan, registry: &Path, settings: &[&str]) -> Result<Gateway> {
        let mut command = held_to(plan.cores.server, &plan.gateway);
        command.arg("serve").arg("--registry").arg(registry);
        for setting in settings {
            command.args(["--set", setting]);
        }
        Gateway::serve(command).await
    }

    /// Starts a command that takes the options of `bascule serve`.
    pub(crate) async fn serve(mut command: Command) -> Result<Gateway> {
        let state = tempfile::tempdir()?;
        command.args(["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.arg("--state-dir").arg(state.path());
        // What is measured is what the gateway itself does; a trial is another process, before all that.
        command.args(["--set", "trial.mode=off"]);
        let server = Server::start(command, |line| line.starts_with("bascule: http "))?;
        let address = |name: &str| -> Result<SocketAddr> {
            let mut words = server.greeting.split_whitespace().skip_while(|word| *word != name);
            words.nth(1).with_context(|| format!("no {name} address in '{}'", server.greeting))?.parse().map_err(Into::into)
        };
        let (http, grpc, admin) = (address("http")?, address("grpc")?, address("admin")?);
        let gateway = Gateway { server, http, grpc, admin, _state: state };
        gateway.wait_ready().await?;
        Ok(gateway)
    }

    async fn wait_ready(&self) -> Result<()> {
        for _ in 0..1200 {
            if let Ok(answer) = get(self.http, "/v2/health/ready").await
                && answer.status == 200
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("the gateway did not become ready within 60 s")
    }

    /// How many requests for a model were answered with success.
    pub(crate) async fn successes(&self, model: &str) -> Result<u64> {
        let statistics = get(self.http, &format!("/v2/models/{model}/stats")).await?.json()?;
        let versions = statistics["model_stats"].as_array().into_iter().flatten();
        Ok(versions.filter_map(|version| version["inference_stats"]["success"]["count"].as_u64()).sum())
    }

    /// Has the gateway load what is published of a model, and waits for that.
    pub(crate) async fn load(&self, model: &str) -> Result<()> {
        let call = HttpCall { path: format!("/v2/repository/models/{model}/load"), body: Bytes::new(), json_bytes: None };
        let answer = post(self.http, &call).await?;
        ensure!(answer.status == 200, "{model} is not loaded: {}", String::from_utf8_lossy(&answer.body));
        Ok(())
    }

    /// Waits until a version is ready.
    pub(crate) async fn wait_for_version(&self, model: &str, version: u64) -> Result<()> {
        let path = format!("/admin/v1/models/{model}/versions/{version}/wait?timeout=60s");
        let answer = get(self.admin, &path).await?;
        let ready = answer.status == 200 && answer.json()?["outcome"] == "ready";
        ensure!(ready, "version {version} did not become ready: {}", String::from_utf8_lossy(&answer.body));
        Ok(())
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// A connection that sends one request after the other.
pub(crate) struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Connection> {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection(sender))
    }

    /// The whole answer of one call.
    pub(crate) async fn post(&mut self, call: &HttpCall) -> Result<Answer> {
        let mut request = Request::post(&call.path);
        for (name, value) in call.headers() {
            request = request.header(name, value);
        }
        self.send(request.body(Full::new(call.body.clone()))?).await
    }

    async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Answer> {
        request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
        self.0.ready().await?;
        let (head, body) = self.0.send_request(request).await?.into_parts();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.collect().await?.to_bytes() })
    }
}

/// The whole answer of one GET.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    Connection::open(address).await?.send(Request::get(path).body(Full::default())?).await
}

/// The whole answer of one call.
pub(crate) async fn post(address: SocketAddr, call: &HttpCall) -> Result<Answer> {
    Connection::open(address).await?.post(call).await
}

/// One answer over gRPC, and its headers.
pub(crate) async fn infer(address: SocketAddr, message: &ModelInferRequest) -> Result<(ModelInferResponse, HeaderMap)> {
    let client = GrpcInferenceServiceClient::connect(format!("http://{address}")).await?;
    let mut client = client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20);
    let (metadata, answer, _) = client.model_infer(message.clone()).await?.into_parts();
    Ok((answer, metadata.into_headers()))
}

/// Publishes a version with the gateway's own command.
pub(crate) async fn publish(plan: &Plan, registry: &Path, model: &str, file: &Path, version: u64) -> Result<()> {
    // It shares a core with clients, whose times it must not change.
    let mut command = held_to(plan.cores.client, "nice");
    command
        .args(["-n", "19"])
        .arg(&plan.gateway)
        .args(["publish", model])
        .arg(file)
        .args(["--version", &version.to_string(), "--registry"])
        .arg(registry);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "publish failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
