//! The gateway under measurement: a child process on free ports, over a registry of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use bascule_proto::inference::ModelInferRequest;
use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bytes::Bytes;
use serde_json::Value;

use crate::load::HttpCall;
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
    /// Starts `program serve` over `registry` and waits until it is ready.
    pub(crate) async fn start(program: &Path, registry: &Path) -> Result<Gateway> {
        let state = tempfile::tempdir()?;
        let mut command = Command::new(program);
        command.args(["serve", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--registry"]);
        command.arg(registry).arg("--state-dir").arg(state.path());
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
        for _ in 0..600 {
            if let Ok((200, _)) = get(self.http, "/v2/health/ready").await {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        anyhow::bail!("the gateway did not become ready within 30 s")
    }
}

/// The whole answer of one GET.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(u16, Bytes)> {
    let request =
        hyper::Request::get(path).header(http::header::HOST, "localhost").body(http_body_util::Full::new(Bytes::new()))?;
    send(address, request).await.map(|(status, _, body)| (status, body))
}

/// The whole answer of one call, and its content type.
pub(crate) async fn post(address: SocketAddr, call: &HttpCall) -> Result<(u16, String, Bytes)> {
    let mut request = hyper::Request::post(&call.path).header(http::header::HOST, "localhost");
    if let Some(json_bytes) = call.json_bytes {
        request = request.header("inference-header-content-length", json_bytes);
    }
    send(address, request.body(http_body_util::Full::new(call.body.clone()))?).await
}

async fn send(address: SocketAddr, request: hyper::Request<http_body_util::Full<Bytes>>) -> Result<(u16, String, Bytes)> {
    use http_body_util::BodyExt;
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let content_type =
        response.headers().get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    Ok((status, content_type, response.into_body().collect().await?.to_bytes()))
}

/// A JSON request for one row of `columns` zeros.
pub(crate) fn json_call(model: &str, input: &str, columns: usize) -> HttpCall {
    let body = serde_json::json!({
        "inputs": [{ "name": input, "shape": [1, columns], "datatype": "FP32", "data": vec![0.5; columns] }]
    });
    HttpCall { path: format!("/v2/models/{model}/infer"), body: body.to_string().into(), json_bytes: None }
}

/// The same with binary tensors both ways.
pub(crate) fn binary_call(model: &str, input: &str, columns: usize) -> HttpCall {
    let head = serde_json::json!({
        "inputs": [{ "name": input, "shape": [1, columns], "datatype": "FP32", "parameters": { "binary_data_size": columns * 4 } }],
        "parameters": { "binary_data_output": true }
    })
    .to_string();
    let json_bytes = Some(head.len());
    let mut body = head.into_bytes();
    (0..columns).for_each(|_| body.extend_from_slice(&0.5f32.to_le_bytes()));
    HttpCall { path: format!("/v2/models/{model}/infer"), body: body.into(), json_bytes }
}

/// The same over gRPC.
pub(crate) fn grpc_call(model: &str, input: &str, columns: usize) -> ModelInferRequest {
    use bascule_proto::inference::model_infer_request::InferInputTensor;
    let tensor = InferInputTensor {
        name: input.to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, i64::try_from(columns).unwrap_or(i64::MAX)],
        ..Default::default()
    };
    let raw: Vec<u8> = (0..columns).flat_map(|_| 0.5f32.to_le_bytes()).collect();
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![tensor],
        raw_input_contents: vec![raw.into()],
        ..Default::default()
    }
}

/// One answer over gRPC.
pub(crate) async fn infer(
    address: SocketAddr,
    message: &ModelInferRequest,
) -> Result<bascule_proto::inference::ModelInferResponse> {
    let mut client = GrpcInferenceServiceClient::connect(format!("http://{address}")).await?;
    Ok(client.model_infer(message.clone()).await?.into_inner())
}

/// What the sample model takes: its only input's name and number of columns.
pub(crate) async fn sample_input(gateway: &Gateway, model: &str) -> Result<(String, usize)> {
    let (_, body) = get(gateway.http, &format!("/v2/models/{model}")).await?;
    let metadata: Value = serde_json::from_slice(&body)?;
    let input = &metadata["inputs"][0];
    let name = input["name"].as_str().with_context(|| format!("model '{model}' has no input: {metadata}"))?;
    let columns = input["shape"][1].as_u64().with_context(|| format!("expected an input of two dimensions: {metadata}"))?;
    Ok((name.to_owned(), usize::try_from(columns)?))
}

/// Copies a folder, files and folders alike.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("can't read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
