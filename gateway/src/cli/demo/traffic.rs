//! The callers: each sends one picture after the other and notes what came back.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bascule_proto::inference::ModelInferRequest;
use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bascule_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

/// Pixels of a picture.
const PIXELS: usize = 64;

/// The held-out pictures, and the digit that each shows.
#[derive(Deserialize)]
pub(super) struct TestSet {
    samples: Vec<Picture>,
}

#[derive(Deserialize)]
struct Picture {
    digit: i64,
    image: Vec<f32>,
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Grpc,
}

/// When a request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Before,
    During,
    After,
}

/// What came back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) version: u64,
    pub(super) right: bool,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) protocol: Protocol,
    /// When it was sent, since the start of the traffic.
    pub(super) at: Duration,
    pub(super) took: Duration,
    /// `None` where it failed.
    pub(super) answer: Option<Answer>,
}

impl TestSet {
    /// Reads the pictures.
    pub(super) fn read(path: &Path) -> Result<TestSet> {
        let text = std::fs::read(path).with_context(|| format!("can't read the test set {}", path.display()))?;
        let set: TestSet = serde_json::from_slice(&text).with_context(|| format!("{} is no test set", path.display()))?;
        ensure!(!set.samples.is_empty(), "{} has no pictures", path.display());
        for (index, picture) in set.samples.iter().enumerate() {
            let pixels = picture.image.len();
            ensure!(pixels == PIXELS, "{}: picture {index}: expected {PIXELS} pixels, got {pixels}", path.display());
        }
        Ok(set)
    }

    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }
}

enum Client {
    Http { client: reqwest::Client, url: String },
    Grpc(GrpcInferenceServiceClient<Channel>),
}

/// Sends pictures, starting at another one for each client, until told to stop.
pub(super) async fn send(
    protocol: Protocol,
    address: SocketAddr,
    test_set: &TestSet,
    client: usize,
    started: Instant,
    stop: &AtomicBool,
) -> Result<Vec<Sample>> {
    let mut caller = Client::connect(protocol, address).await?;
    let mut samples = Vec::new();
    for picture in test_set.samples.iter().cycle().skip(client * 47 % test_set.len()) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let at = started.elapsed();
        let answered = caller.ask(picture).await;
        let took = started.elapsed() - at;
        let answer = answered.inspect_err(|error| super::say(&format!("a request failed: {error:#}"))).ok();
        samples.push(Sample { protocol, at, took, answer });
    }
    Ok(samples)
}

impl Client {
    async fn connect(protocol: Protocol, address: SocketAddr) -> Result<Client> {
        Ok(match protocol {
            Protocol::Http => {
                let client = reqwest::Client::builder().http1_only().tcp_nodelay(true).build()?;
                Client::Http { client, url: format!("http://{address}/v2/models/digits/infer") }
            }
            Protocol::Grpc => {
                let channel = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?;
                Client::Grpc(GrpcInferenceServiceClient::new(channel))
            }
        })
    }

    async fn ask(&mut self, picture: &Picture) -> Result<Answer> {
        let (version, digit) = match self {
            Client::Http { client, url } => ask_http(client, url, picture).await?,
            Client::Grpc(client) => ask_grpc(client, picture).await?,
        };
        let version = version.parse().with_context(|| format!("'{version}' is no version"))?;
        Ok(Answer { version, right: digit == picture.digit })
    }
}

async fn ask_http(client: &reqwest::Client, url: &str, picture: &Picture) -> Result<(String, i64)> {
    let body = json!({
        "inputs": [{ "name": "image", "shape": [1, PIXELS], "datatype": "FP32", "data": picture.image }],
        "outputs": [{ "name": "digit" }]
    });
    let response = client.post(url).json(&body).send().await?;
    let status = response.status();
    let answer: Value = response.json().await?;
    ensure!(status.is_success(), "{status}: {answer}");
    let version = answer["model_version"].as_str().context("the answer names no version")?.to_owned();
    Ok((version, answer["outputs"][0]["data"][0].as_i64().context("the answer has no digit")?))
}

async fn ask_grpc(client: &mut GrpcInferenceServiceClient<Channel>, picture: &Picture) -> Result<(String, i64)> {
    let input = InferInputTensor {
        name: "image".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, i64::try_from(PIXELS)?],
        ..Default::default()
    };
    let raw: Vec<u8> = picture.image.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
    let request = ModelInferRequest {
        model_name: "digits".to_owned(),
        inputs: vec![input],
        outputs: vec![InferRequestedOutputTensor { name: "digit".to_owned(), ..Default::default() }],
        raw_input_contents: vec![raw.into()],
        ..Default::default()
    };
    let answer = client.model_infer(request).await?.into_inner();
    let digit = answer.raw_output_contents.first().and_then(|raw| raw.first_chunk::<8>()).context("the answer has no digit")?;
    Ok((answer.model_version, i64::from_le_bytes(*digit)))
}
