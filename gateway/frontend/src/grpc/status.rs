//! Errors as gRPC statuses.

use bascule_serving::{ErrorCode, InferError};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::call::Call;
use crate::errors::grpc_code;

/// The metadata that names the cause by one word, as the metrics do: some causes share a gRPC code.
pub(crate) const CAUSE: &str = "x-bascule-cause";

/// What a retrying client reads before it tries again, in milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Longer texts would not fit the headers that clients accept; what makes them long came from the client.
const MAX_MESSAGE_BYTES: usize = 1024;

/// The status of an error. What happened inside is not told: [`logged`] has it.
pub(crate) fn status(error: &InferError, call: &Call) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(CAUSE, MetadataValue::from_static(error.code().name()));
    if let Some(wait) = error.retry_after() {
        metadata.insert(PUSHBACK, MetadataValue::from(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)));
    }
    Status::with_metadata(grpc_code(error.code()), message(error, call), metadata)
}

/// The status of an error that is logged nowhere else.
pub(crate) fn logged(error: &InferError, call: &Call) -> Status {
    if let InferError::Internal { message } = error {
        tracing::error!(request_id = call.id().as_str(), cause = message, "call failed");
    }
    status(error, call)
}

/// What a caller is told of an error.
pub(crate) fn message(error: &InferError, call: &Call) -> String {
    let mut text = error.to_string();
    if error.code() == ErrorCode::Internal {
        text = format!("{text} (request {})", call.id().as_str());
    }
    if text.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The code of a status that the gRPC library made while it read a request: what can't be read is the caller's fault.
pub(crate) fn reading_code(code: Code) -> Code {
    match code {
        Code::OutOfRange => Code::ResourceExhausted,
        Code::Internal | Code::Unknown => Code::InvalidArgument,
        other => other,
    }
}
