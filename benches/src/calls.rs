//! Requests of the protocol, to be sent again and again.

use bascule_proto::inference::ModelInferRequest;
use bascule_proto::inference::model_infer_request::InferInputTensor;
use bytes::Bytes;

/// One request over HTTP.
#[derive(Debug, Clone)]
pub(crate) struct HttpCall {
    /// Path of the request.
    pub(crate) path: String,
    /// Its body.
    pub(crate) body: Bytes,
    /// Length of the JSON part, where binary tensors follow it.
    pub(crate) json_bytes: Option<usize>,
}

impl HttpCall {
    /// The headers beside those of every request.
    pub(crate) fn headers(&self) -> Vec<(&'static str, String)> {
        match self.json_bytes {
            None => vec![("content-type", "application/json".to_owned())],
            Some(bytes) => vec![
                ("content-type", "application/octet-stream".to_owned()),
                ("inference-header-content-length", bytes.to_string()),
            ],
        }
    }
}

/// What a model is asked: one FP32 tensor.
#[derive(Debug, Clone)]
pub(crate) struct Input<'a> {
    pub(crate) model: &'a str,
    pub(crate) name: &'a str,
    pub(crate) shape: &'a [i64],
}

impl Input<'_> {
    /// Its values, all of which have digits behind the point.
    pub(crate) fn values(&self) -> impl Iterator<Item = f32> {
        let count = self.shape.iter().product::<i64>();
        (0..count).map(|place| (place * 37 % 101) as f32 / 64.0 - 0.75)
    }

    fn bytes(&self) -> Vec<u8> {
        self.values().flat_map(f32::to_le_bytes).collect()
    }

    fn path(&self) -> String {
        format!("/v2/models/{}/infer", self.model)
    }

    /// In JSON, and answered in JSON. Members come in the order in which clients write them: what describes the elements first.
    pub(crate) fn json(&self) -> HttpCall {
        let (name, shape, data) = (serde_json::json!(self.name), serde_json::json!(self.shape), self.values().collect::<Vec<_>>());
        let data = serde_json::json!(data);
        let body = format!(r#"{{"inputs":[{{"name":{name},"shape":{shape},"datatype":"FP32","data":{data}}}]}}"#);
        HttpCall { path: self.path(), body: body.into(), json_bytes: None }
    }

    /// With binary tensors both ways.
    pub(crate) fn binary(&self) -> HttpCall {
        let bytes = self.bytes();
        let input = serde_json::json!({
            "name": self.name, "shape": self.shape, "datatype": "FP32", "parameters": { "binary_data_size": bytes.len() }
        });
        let head = serde_json::json!({ "inputs": [input], "parameters": { "binary_data_output": true } }).to_string();
        HttpCall { path: self.path(), json_bytes: Some(head.len()), body: [head.into_bytes(), bytes].concat().into() }
    }

    /// Over gRPC.
    pub(crate) fn grpc(&self) -> ModelInferRequest {
        let tensor = InferInputTensor {
            name: self.name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: self.shape.to_vec(),
            ..InferInputTensor::default()
        };
        ModelInferRequest {
            model_name: self.model.to_owned(),
            inputs: vec![tensor],
            raw_input_contents: vec![self.bytes().into()],
            ..ModelInferRequest::default()
        }
    }
}
