//! One inference request, from its message to its answer.

use std::sync::Arc;
use std::time::Instant;

use bascule_proto::inference::{ModelInferRequest, ModelInferResponse};
use bascule_serving::{ErrorCode, InferError, InferRequest, RequestedOutput, Servable, Serving, VersionChoice};
use bytes::Bytes;
use smallvec::SmallVec;

use super::call::Call;
use super::decode::{OutputChoice, RequestParameters};
use super::{codec, decode, encode};
use crate::describe::parse_version;

/// Names come from callers: what of them is logged.
const MAX_LOGGED_NAME: usize = 128;

/// An answer, and what computed it.
pub(crate) struct Answer {
    pub(crate) message: ModelInferResponse,
    pub(crate) servable: Arc<Servable>,
}

/// Reads an encoded `ModelInferRequest` as a call does, up to the engine's door: what fuzzing and benchmarks of the codec need.
///
/// # Errors
/// What is wrong with it, by name.
pub fn read_request(message: Bytes, limit_bytes: usize) -> Result<InferRequest, InferError> {
    let message = codec::decode(message, limit_bytes)?;
    let parameters = decode::request_parameters(message.parameters)?;
    let version = version(&message.model_version, None, &parameters)?;
    let choices = decode::outputs(message.outputs)?;
    let inputs = decode::inputs(message.inputs, message.raw_input_contents)?;
    Ok(InferRequest { version, inputs, outputs: requested(&choices), priority: parameters.priority, ..InferRequest::default() })
}

/// As over HTTP: the request's own field wins over a header, and a header over a parameter.
fn version(own: &str, header: Option<&VersionChoice>, parameters: &RequestParameters) -> Result<VersionChoice, InferError> {
    Ok(match parse_version(own)? {
        Some(number) => VersionChoice::Number(number),
        None => header.or(parameters.version.as_ref()).cloned().unwrap_or_default(),
    })
}

fn requested(choices: &[OutputChoice]) -> SmallVec<[RequestedOutput; 2]> {
    choices.iter().map(|choice| RequestedOutput { name: choice.name.clone() }).collect()
}

/// Answers one request that arrived at `arrived`, and logs it.
pub(crate) async fn infer(
    serving: &Serving,
    call: &Call,
    message: ModelInferRequest,
    arrived: Instant,
) -> Result<Answer, InferError> {
    let model = message.model_name.chars().take(MAX_LOGGED_NAME).collect();
    let mut record = Record { call, model, arrived, open: true };
    let answered = answer(serving, call, message, arrived).await;
    record.close(&answered);
    answered
}

async fn answer(serving: &Serving, call: &Call, message: ModelInferRequest, arrived: Instant) -> Result<Answer, InferError> {
    let parameters = decode::request_parameters(message.parameters)?;
    let version = version(&message.model_version, call.version(), &parameters)?;
    let (deadline, key) = call.terms(&parameters, arrived);
    let routed = serving.route(&message.model_name, deadline).await?;
    if routed.route().servables().next().is_none() {
        // That no version answers wins over what is wrong with the tensors.
        routed.servable(&version)?;
    }
    let choices = decode::outputs(message.outputs)?;
    let request = InferRequest {
        version,
        key,
        inputs: decode::inputs(message.inputs, message.raw_input_contents)?,
        outputs: requested(&choices),
        priority: parameters.priority,
        deadline,
    };
    let response = serving.infer(routed, &request).await?;
    let servable = Arc::clone(&response.servable);
    let message = encode::encode(message.id, response, &choices)?;
    Ok(Answer { message, servable })
}

/// Sees to it that every request is logged once, also one that is dropped because its caller went away.
struct Record<'a> {
    call: &'a Call,
    model: String,
    arrived: Instant,
    open: bool,
}

impl Record<'_> {
    fn close(&mut self, answered: &Result<Answer, InferError>) {
        self.open = false;
        let version = answered.as_ref().ok().map(|answer| answer.servable.version());
        self.log(version, answered.as_ref().err());
    }

    fn log(&self, version: Option<u64>, error: Option<&InferError>) {
        let took_us = u64::try_from(self.arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
        let code = error.map_or("ok", |error| error.code().name());
        let cause = match error {
            Some(InferError::Internal { message }) => Some(message.clone()),
            error => error.map(ToString::to_string),
        };
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(request_id = self.call.id(), model = self.model, version, code, took_us, cause, "inference")
            };
        }
        if error.is_some_and(|error| error.code() == ErrorCode::Internal) {
            event!(warn);
        } else {
            event!(debug);
        }
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if self.open {
            self.log(None, Some(&InferError::Cancelled));
        }
    }
}
