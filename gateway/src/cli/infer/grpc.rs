//! Over gRPC, with raw contents.

use anyhow::{Context as _, anyhow};
use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bascule_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use bascule_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataRequest};
use bascule_registry::VersionNumber;
use bascule_runtime_api::{DataType, Tensor, TensorSpec};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::super::failure::Failure;
use super::answer::Answer;
use super::{Question, spec, unreachable};

/// What one answer may weigh here: what a gateway may send.
const MAX_ANSWER_BYTES: usize = 2 << 30;

async fn connect(url: &str) -> Result<GrpcInferenceServiceClient<Channel>, Failure> {
    let client = GrpcInferenceServiceClient::connect(url.to_owned()).await.map_err(|error| unreachable(url, error))?;
    Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
}

fn version_text(version: Option<VersionNumber>) -> String {
    version.map(|version| version.to_string()).unwrap_or_default()
}

/// The model's inputs.
pub(super) async fn specs(url: &str, model: &str, version: Option<VersionNumber>) -> Result<Vec<TensorSpec>, Failure> {
    let request = ModelMetadataRequest { name: model.to_owned(), version: version_text(version) };
    let metadata = connect(url).await?.model_metadata(request).await.map_err(|status| refused(url, status))?.into_inner();
    metadata.inputs.iter().map(|input| spec(&input.name, &input.datatype, &input.shape)).collect()
}

/// Sends a request.
pub(super) async fn ask(url: &str, question: Question) -> Result<Answer, Failure> {
    let mut client = connect(url).await?;
    let key = question.key.clone();
    let mut request = Request::new(encode(question));
    if let Some(key) = key {
        let key = MetadataValue::try_from(key).map_err(|_| Failure::usage("--key: expected printable ASCII characters"))?;
        request.metadata_mut().insert("x-bascule-key", key);
    }
    let answer = client.model_infer(request).await.map_err(|status| refused(url, status))?;
    Ok(decode(answer.into_inner())?)
}

fn encode(question: Question) -> ModelInferRequest {
    let (inputs, raw_input_contents) = question
        .inputs
        .into_iter()
        .map(|(name, tensor)| {
            let input = InferInputTensor {
                name,
                datatype: tensor.datatype().name().to_owned(),
                shape: tensor.shape().to_vec(),
                ..InferInputTensor::default()
            };
            (input, tensor.into_bytes())
        })
        .unzip();
    let outputs =
        question.outputs.into_iter().map(|name| InferRequestedOutputTensor { name, ..InferRequestedOutputTensor::default() });
    ModelInferRequest {
        model_name: question.model,
        model_version: version_text(question.version),
        inputs,
        outputs: outputs.collect(),
        raw_input_contents,
        ..ModelInferRequest::default()
    }
}

fn decode(answer: ModelInferResponse) -> anyhow::Result<Answer> {
    if answer.outputs.len() != answer.raw_output_contents.len() {
        return Err(anyhow!(
            "the answer has {} outputs and contents of {}",
            answer.outputs.len(),
            answer.raw_output_contents.len()
        ));
    }
    let mut outputs = Vec::new();
    for (output, contents) in answer.outputs.into_iter().zip(answer.raw_output_contents) {
        let datatype: DataType = output.datatype.parse().context("the answer can't be read")?;
        outputs.push((output.name, Tensor::new(datatype, &output.shape, contents).context("the answer can't be read")?));
    }
    Ok(Answer { model: answer.model_name, version: answer.model_version, outputs })
}

fn refused(url: &str, status: Status) -> Failure {
    match status.code() {
        // Both a model that is not ready and a connection that broke; only the latter has a source.
        Code::Unavailable if std::error::Error::source(&status).is_some() => unreachable(url, anyhow!(status)),
        _ => Failure::new(status.message()),
    }
}
