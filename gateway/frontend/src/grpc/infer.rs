//! One inference request, from its message to its answer.
//!
//! What takes long on a processor (unpacking, typed contents, BYTES, classes, packing) runs beside the threads that serve connections
//! where there is much of it.

use std::sync::Arc;
use std::time::Instant;

use bascule_proto::inference::infer_parameter::ParameterChoice;
use bascule_proto::inference::{InferParameter, ModelInferRequest};
use bascule_serving::{ErrorCode, InferError, InferRequest, InferResponse, RequestedOutput, Servable, VersionChoice};
use bytes::Bytes;
use smallvec::SmallVec;

use super::budget::Share;
use super::call::Call;
use super::decode::{OutputChoice, RequestParameters};
use super::packing::{self, Coding};
use super::receive::Received;
use super::reply::{self, Encoded, Parts};
use super::service::Service;
use super::wire::{self, LARGE_BYTES};
use super::{codec, decode, encode};
use crate::answered_by::MODEL_DIGEST;
use crate::describe::parse_version;

/// The parameter that says that no further answer to a request comes.
const FINAL: &str = "triton_final_response";

/// Names come from callers: what of them is logged.
const MAX_LOGGED_NAME: usize = 128;

/// An answer, and what computed it.
pub(crate) struct Answer {
    pub(crate) encoded: Encoded,
    pub(crate) servable: Arc<Servable>,
}

/// Reads an encoded `ModelInferRequest` as a call does, up to the engine's door: what fuzzing and benchmarks of the codec need.
///
/// # Errors
/// What is wrong with it, by name.
pub fn read_request(message: Bytes, limit_bytes: usize) -> Result<InferRequest, InferError> {
    let message = codec::decode(message, limit_bytes, |_| Ok(()))?;
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

fn requested(choices: &[OutputChoice]) -> SmallVec<[RequestedOutput; 1]> {
    choices.iter().map(|choice| RequestedOutput { name: choice.name.clone() }).collect()
}

/// A request that was read, and what counts its memory.
pub(crate) struct Request {
    pub(crate) message: ModelInferRequest,
    share: Arc<Share>,
    /// Whether its tensors take long to read.
    is_heavy: bool,
}

/// Unpacks and decodes what was received.
///
/// # Errors
/// As [`codec::decode`] and [`packing::unpack`].
pub(crate) async fn read(service: &Service, received: Received) -> Result<Request, InferError> {
    let Received { bytes, coding, share } = received;
    let (share, limit_bytes) = (Arc::new(share), service.settings.max_request_bytes);
    let is_heavy = coding.is_none() && wire::is_heavy(&bytes);
    let reading = {
        let share = Arc::clone(&share);
        move || {
            let (bytes, is_heavy) = match coding {
                None => (bytes, is_heavy),
                Some(coding) => {
                    let unpacked = packing::unpack(coding, &bytes, limit_bytes, &share)?;
                    let is_heavy = wire::is_heavy(&unpacked);
                    (unpacked, is_heavy)
                }
            };
            let message = codec::decode(bytes, limit_bytes, |typed_bytes| share.take(typed_bytes))?;
            Ok((message, is_heavy))
        }
    };
    // How much is packed in a message is not known before.
    let (message, is_heavy) = service.workers.run(is_heavy || coding.is_some(), reading).await?;
    Ok(Request { message, share, is_heavy })
}

/// How an answer goes out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    /// As one of the answers of a stream, with what a single call has in its headers.
    pub(crate) is_streamed: bool,
    pub(crate) coding: Option<Coding>,
}

/// Answers one request that arrived at `arrived`, and logs it.
pub(crate) async fn infer(
    service: &Service,
    call: &Call,
    request: Request,
    form: Form,
    arrived: Instant,
) -> Result<Answer, InferError> {
    let model = request.message.model_name.chars().take(MAX_LOGGED_NAME).collect();
    let mut record = Record { call, model, arrived, open: true };
    let answered = answer(service, call, request, form, arrived).await;
    record.close(&answered);
    answered
}

async fn answer(service: &Service, call: &Call, request: Request, form: Form, arrived: Instant) -> Result<Answer, InferError> {
    let Request { message, share, is_heavy } = request;
    let parameters = decode::request_parameters(message.parameters)?;
    let version = version(&message.model_version, call.version(), &parameters)?;
    let (deadline, key) = call.terms(&parameters, arrived);
    let routed = service.serving.route(&message.model_name, deadline).await?;
    if routed.route().servables().next().is_none() {
        // That no version answers wins over what is wrong with the tensors.
        routed.servable(&version)?;
    }
    let choices = decode::outputs(message.outputs)?;
    let (inputs, raw, held) = (message.inputs, message.raw_input_contents, Arc::clone(&share));
    let reading = move || {
        let _held = held;
        decode::inputs(inputs, raw)
    };
    let inputs = service.workers.run(is_heavy, reading).await?;
    let priority = parameters.priority;
    let request = InferRequest { version, key, inputs, outputs: requested(&choices), priority, deadline };
    let response = service.serving.infer(routed, &request).await?;
    // An answer may share the bytes of the inputs all the same.
    drop(request);
    let servable = Arc::clone(&response.servable);
    let parts = write(service, message.id, response, choices, form, Arc::clone(&share)).await?;
    share.count(parts.iter().map(Bytes::len).sum());
    Ok(Answer { encoded: Encoded { parts, share }, servable })
}

async fn write(
    service: &Service,
    id: String,
    response: InferResponse,
    choices: SmallVec<[OutputChoice; 1]>,
    form: Form,
    share: Arc<Share>,
) -> Result<Parts, InferError> {
    let bytes = response.outputs.iter().map(|(_, tensor)| tensor.bytes().len()).sum::<usize>();
    let is_heavy = encode::is_heavy(&response, &choices) || form.coding.is_some() && bytes > LARGE_BYTES;
    let writing = move || {
        let _held = share;
        let digest = form.is_streamed.then(|| response.servable.digest().to_string());
        let mut message = encode::encode(id, response, &choices)?;
        let Some(digest) = digest else { return reply::single(message, form.coding) };
        let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
        message.parameters.insert(FINAL.to_owned(), parameter(ParameterChoice::BoolParam(true)));
        message.parameters.insert(MODEL_DIGEST.to_owned(), parameter(ParameterChoice::StringParam(digest)));
        reply::streamed(message, form.coding)
    };
    service.workers.run(is_heavy, writing).await
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
        // Made only where the level is on.
        let took_us = || u64::try_from(self.arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
        let code = || error.map_or("ok", |error| error.code().name());
        let cause = || match error {
            Some(InferError::Internal { message }) => Some(message.clone()),
            error => error.map(ToString::to_string),
        };
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    request_id = self.call.id().as_str(),
                    model = self.model,
                    version,
                    code = code(),
                    took_us = took_us(),
                    cause = cause(),
                    "inference"
                )
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
