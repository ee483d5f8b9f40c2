//! What a caller is told when there is no answer.
//!
//! Causes of the engine get their status from the one table; HTTP's own, which have no meaning in gRPC, get theirs here. Deliberately
//! absent: anything inward. An internal error's text goes to the log.

use std::time::Duration;

use bascule_serving::{ErrorCode, InferError};
use hyper::StatusCode;

use crate::errors::http_status;

/// A text for a caller ends here: what makes it longer came from the caller.
const MAX_MESSAGE_BYTES: usize = 1024;

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// By the engine or a codec.
    Engine(InferError),
    /// No such path.
    NoPath,
    /// The path takes other methods.
    Method { allowed: &'static str },
    /// The body came too slowly.
    Slow { what: &'static str },
    /// The command is obeyed from this machine only.
    Remote,
    /// The body is compressed in a way that is not served.
    Encoding { encoding: String },
}

impl From<InferError> for Failure {
    fn from(error: InferError) -> Failure {
        Failure::Engine(error)
    }
}

impl Failure {
    pub(crate) fn invalid(message: impl Into<String>) -> Failure {
        Failure::Engine(InferError::invalid(message))
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Failure::Engine(error) => http_status(error.code()),
            Failure::NoPath => StatusCode::NOT_FOUND,
            Failure::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Failure::Slow { .. } => StatusCode::REQUEST_TIMEOUT,
            Failure::Remote => StatusCode::FORBIDDEN,
            Failure::Encoding { .. } => http_status(ErrorCode::Unsupported),
        }
    }

    /// The text for the caller. An internal error shows nothing but the request's id.
    pub(crate) fn message(&self, request_id: &str) -> String {
        let mut text = self.text(request_id);
        let end = cut(&text, MAX_MESSAGE_BYTES).len();
        if end < text.len() {
            text.truncate(end);
            text.push('…');
        }
        text
    }

    fn text(&self, request_id: &str) -> String {
        match self {
            Failure::Engine(error @ InferError::Internal { .. }) => format!("{error}; request id {request_id}"),
            Failure::Engine(error) => error.to_string(),
            Failure::NoPath => "there is nothing at this path".to_owned(),
            Failure::Method { allowed } => format!("expected the method {}", allowed.replace(", ", " or ")),
            Failure::Slow { what } => format!("{what} took too long"),
            Failure::Remote => "load and unload are obeyed from a loopback address only".to_owned(),
            Failure::Encoding { encoding } => {
                format!("header 'Content-Encoding': expected gzip, deflate or identity, got '{encoding}'")
            }
        }
    }

    /// The text for the log, where it says more than the caller is told.
    pub(crate) fn inward(&self) -> Option<&str> {
        match self {
            Failure::Engine(InferError::Internal { message }) => Some(message),
            _ => None,
        }
    }

    /// When another try makes sense.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Engine(error) => error.retry_after(),
            _ => None,
        }
    }

    /// A header that goes with the status.
    pub(crate) fn header(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Failure::Method { allowed } => Some(("allow", allowed)),
            Failure::Encoding { .. } => Some(("accept-encoding", "gzip, deflate")),
            _ => None,
        }
    }
}

/// The beginning of a text, of so many bytes at the most.
pub(crate) fn cut(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_end_where_a_caller_s_name_would_make_them_long() {
        let failure = Failure::Engine(InferError::UnknownModel { model: "ä".repeat(1 << 20) });
        let message = failure.message("r-1");
        assert!(message.starts_with("model 'ää") && message.ends_with("ä…"), "{message}");
        assert!(message.len() <= MAX_MESSAGE_BYTES + '…'.len_utf8());
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("aä", 3), "aä");
    }
}
