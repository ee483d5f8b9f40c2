//! Callers that send the test set over and over, and note every answer.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use bascule_proto::inference::ModelInferRequest;
use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bascule_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::server::Addresses;

use super::super::gateway::client;
use super::repository::{Sample, TestSet};

const INPUT: &str = "image";
const OUTPUT: &str = "digit";

/// One answer.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    /// When the request was sent.
    pub(super) sent: Instant,
    /// When the answer was there, in microseconds after that.
    pub(super) micros: u64,
    /// Which picture.
    pub(super) sample: usize,
    /// The version that says it computed the answer, and whether it is right.
    pub(super) answer: Result<(u64, bool), String>,
}

/// All answers, in no order.
pub(super) type Tally = Vec<Answered>;

/// Callers that run.
pub(super) struct Load {
    callers: JoinSet<Result<Tally>>,
}

enum Caller {
    Http(reqwest::Client, String),
    Grpc(GrpcInferenceServiceClient<Channel>),
}

impl Load {
    /// Starts callers that go on until the sender of `stop` is dropped.
    pub(super) fn start(clients: u16, addresses: Addresses, tests: Arc<TestSet>, stop: watch::Receiver<()>) -> Load {
        let mut callers = JoinSet::new();
        for number in 0..clients {
            let (tests, stop) = (Arc::clone(&tests), stop.clone());
            callers.spawn(async move {
                let caller = if number % 2 == 0 { Caller::http(addresses, &tests.model)? } else { Caller::grpc(addresses).await? };
                // Everybody begins somewhere else.
                let first = usize::from(number) * tests.samples.len() / usize::from(clients);
                Ok(caller.send_all(&tests, first, &stop).await)
            });
        }
        Load { callers }
    }

    /// Waits for the callers, which end after the answer that they wait for.
    pub(super) async fn finish(mut self) -> Result<Tally> {
        let mut tally = Tally::new();
        while let Some(answers) = self.callers.join_next().await {
            tally.extend(answers.context("a caller broke down")??);
        }
        Ok(tally)
    }
}

impl Caller {
    fn http(addresses: Addresses, model: &str) -> Result<Caller> {
        let client = client().map_err(|failure| anyhow!(failure.summary()))?;
        Ok(Caller::Http(client, format!("http://{}/v2/models/{model}/infer", addresses.http)))
    }

    async fn grpc(addresses: Addresses) -> Result<Caller> {
        let client = GrpcInferenceServiceClient::connect(format!("http://{}", addresses.grpc)).await;
        Ok(Caller::Grpc(client.context("can't connect over gRPC")?))
    }

    async fn send_all(mut self, tests: &TestSet, first: usize, stop: &watch::Receiver<()>) -> Tally {
        let mut tally = Tally::new();
        for (index, sample) in tests.samples.iter().enumerate().cycle().skip(first) {
            // An error means that the sender is gone.
            if stop.has_changed().is_err() {
                break;
            }
            let sent = Instant::now();
            let answer = self.ask(&tests.model, sample).await;
            let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
            let answer = answer.map(|(version, digit)| (version, digit == sample.digit)).map_err(|error| format!("{error:#}"));
            tally.push(Answered { sent, micros, sample: index, answer });
        }
        tally
    }

    /// The version and the digit that it sees.
    async fn ask(&mut self, model: &str, sample: &Sample) -> Result<(u64, i64)> {
        match self {
            Caller::Http(client, url) => {
                let columns = sample.image.len();
                let input = json!({ "name": INPUT, "shape": [1, columns], "datatype": "FP32", "data": sample.image });
                let body = json!({ "inputs": [input], "outputs": [{ "name": OUTPUT }] });
                let answer = client.post(&*url).json(&body).send().await?;
                let status = answer.status();
                let answer: Value = answer.json().await?;
                if !status.is_success() {
                    return Err(anyhow!("{status}: {}", answer["error"]));
                }
                let version = answer["model_version"].as_str().and_then(|version| version.parse().ok());
                version.zip(answer["outputs"][0]["data"][0].as_i64()).ok_or_else(|| anyhow!("can't read the answer {answer}"))
            }
            Caller::Grpc(client) => {
                let answer = client.model_infer(request(model, sample)).await?.into_inner();
                let raw = answer.raw_output_contents.first().and_then(|raw| raw.first_chunk::<8>());
                let version = answer.model_version.parse().ok();
                version.zip(raw.map(|raw| i64::from_le_bytes(*raw))).ok_or_else(|| anyhow!("can't read the answer {answer:?}"))
            }
        }
    }
}

fn request(model: &str, sample: &Sample) -> ModelInferRequest {
    let columns = i64::try_from(sample.image.len()).unwrap_or(i64::MAX);
    let raw: Vec<u8> = sample.image.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
    let input =
        InferInputTensor { name: INPUT.into(), datatype: "FP32".into(), shape: vec![1, columns], ..InferInputTensor::default() };
    let output = InferRequestedOutputTensor { name: OUTPUT.into(), ..InferRequestedOutputTensor::default() };
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![input],
        outputs: vec![output],
        raw_input_contents: vec![raw.into()],
        ..ModelInferRequest::default()
    }
}
