//! Over HTTP, with the binary tensor extension both ways: no digit is lost.

use anyhow::{Context as _, anyhow};
use bascule_registry::VersionNumber;
use bascule_runtime_api::{DataType, Tensor, TensorSpec};
use bytes::Bytes;
use reqwest::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::failure::Failure;
use super::super::gateway::client;
use super::answer::Answer;
use super::{Question, spec, unreachable};

const JSON_BYTES: &str = "inference-header-content-length";

#[derive(Deserialize)]
struct Metadata {
    inputs: Vec<Described>,
}

#[derive(Deserialize)]
struct Described {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: Value,
}

#[derive(Deserialize)]
struct Head {
    model_name: String,
    model_version: String,
    outputs: Vec<Described>,
}

/// The model's inputs.
pub(super) async fn specs(url: &str, model: &str, version: Option<VersionNumber>) -> Result<Vec<TensorSpec>, Failure> {
    let answer = client()?
        .get(format!("{url}/{}", path(model, version)))
        .send()
        .await
        .map_err(|error| unreachable(url, error.without_url()))?;
    let body = accepted(url, answer).await?;
    let metadata: Metadata = serde_json::from_slice(&body).context("the model's metadata can't be read")?;
    metadata.inputs.iter().map(|input| spec(&input.name, &input.datatype, &input.shape)).collect()
}

/// Sends a request.
pub(super) async fn ask(url: &str, question: &Question) -> Result<Answer, Failure> {
    let (head, body) = encode(question);
    let mut request = client()?.post(format!("{url}/{}/infer", path(&question.model, question.version)));
    request = request.header(JSON_BYTES, head).header("content-type", "application/octet-stream").body(body);
    if let Some(key) = &question.key {
        request = request.header("x-bascule-key", key);
    }
    let answer = request.send().await.map_err(|error| unreachable(url, error.without_url()))?;
    let head = answer.headers().get(JSON_BYTES).and_then(|length| length.to_str().ok()).and_then(|length| length.parse().ok());
    let body = accepted(url, answer).await?;
    Ok(decode(head.unwrap_or(body.len()), body)?)
}

fn path(model: &str, version: Option<VersionNumber>) -> String {
    match version {
        Some(version) => format!("v2/models/{model}/versions/{version}"),
        None => format!("v2/models/{model}"),
    }
}

/// The body of a good answer; the error of a bad one.
async fn accepted(url: &str, answer: Response) -> Result<Bytes, Failure> {
    let status = answer.status();
    let body = answer.bytes().await.map_err(|error| unreachable(url, error.without_url()))?;
    if status.is_success() {
        return Ok(body);
    }
    let error = serde_json::from_slice::<Value>(&body).ok().and_then(|body| Some(body.get("error")?.as_str()?.to_owned()));
    Err(Failure::new(error.unwrap_or_else(|| format!("the gateway answers {status}"))))
}

/// The length of the JSON, and the whole body.
fn encode(question: &Question) -> (usize, Vec<u8>) {
    let inputs: Vec<Value> = question
        .inputs
        .iter()
        .map(|(name, tensor)| {
            let size = tensor.bytes().len();
            json!({ "name": name, "datatype": tensor.datatype().name(), "shape": tensor.shape(), "parameters": { "binary_data_size": size } })
        })
        .collect();
    let outputs: Vec<Value> =
        question.outputs.iter().map(|name| json!({ "name": name, "parameters": { "binary_data": true } })).collect();
    let mut head = json!({ "inputs": inputs, "parameters": { "binary_data_output": true } });
    if !outputs.is_empty() {
        head["outputs"] = json!(outputs);
    }
    let mut body = head.to_string().into_bytes();
    let length = body.len();
    question.inputs.iter().for_each(|(_, tensor)| body.extend_from_slice(tensor.bytes()));
    (length, body)
}

fn decode(head_bytes: usize, body: Bytes) -> anyhow::Result<Answer> {
    let broken = "the answer can't be read";
    let head: Head = serde_json::from_slice(body.get(..head_bytes).context(broken)?).context(broken)?;
    let mut at = head_bytes;
    let mut outputs = Vec::new();
    for output in head.outputs {
        let size = output.parameters.get("binary_data_size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        let size = size.ok_or_else(|| anyhow!("output '{}' is not binary", output.name)).context(broken)?;
        let end = at.checked_add(size).filter(|end| *end <= body.len()).context(broken)?;
        let datatype: DataType = output.datatype.parse().context(broken)?;
        outputs.push((output.name, Tensor::new(datatype, &output.shape, body.slice(at..end)).context(broken)?));
        at = end;
    }
    Ok(Answer { model: head.model_name, version: head.model_version, outputs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_its_head_and_the_bytes_of_its_inputs() {
        let tensor = Tensor::from_elements([1, 2], &[1u8, 2]).unwrap();
        let question = Question {
            model: "m".into(),
            version: Some(3),
            key: None,
            inputs: vec![("x".into(), tensor)],
            outputs: vec!["y".into()],
        };
        let (head, body) = encode(&question);
        let json: Value = serde_json::from_slice(&body[..head]).unwrap();
        assert_eq!(json["inputs"][0]["parameters"]["binary_data_size"], 2);
        assert_eq!(json["outputs"][0]["name"], "y");
        assert_eq!(&body[head..], [1, 2]);
        assert_eq!(path("m", question.version), "v2/models/m/versions/3");
    }

    #[test]
    fn an_answer_is_read_or_refused() {
        let head = r#"{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}}]}"#;
        let whole = [head.as_bytes(), &[7, 8]].concat();
        let answer = decode(head.len(), whole.clone().into()).unwrap();
        assert_eq!((answer.version.as_str(), answer.outputs[0].1.bytes().as_ref()), ("1", &[7u8, 8][..]));
        for length in 0..whole.len() {
            assert!(decode(head.len(), whole[..length].to_vec().into()).is_err(), "cut at {length}");
        }
        assert!(decode(usize::MAX, whole.into()).is_err());
    }
}
