//! Why a request has no answer, by what its caller can do about it.

use std::time::Duration;

use bascule_registry::VersionNumber;

/// What a caller can do about an error. One table in the frontend turns these into HTTP and gRPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is the usual name of itself")]
pub enum ErrorCode {
    NotFound,
    InvalidArgument,
    Overloaded,
    NotReady,
    DeadlineExceeded,
    Cancelled,
    TooLarge,
    Unsupported,
    Internal,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [ErrorCode; 9] = [
        ErrorCode::NotFound,
        ErrorCode::InvalidArgument,
        ErrorCode::Overloaded,
        ErrorCode::NotReady,
        ErrorCode::DeadlineExceeded,
        ErrorCode::Cancelled,
        ErrorCode::TooLarge,
        ErrorCode::Unsupported,
        ErrorCode::Internal,
    ];

    /// The name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorCode::NotFound => "not_found",
            ErrorCode::InvalidArgument => "invalid_argument",
            ErrorCode::Overloaded => "overloaded",
            ErrorCode::NotReady => "not_ready",
            ErrorCode::DeadlineExceeded => "deadline_exceeded",
            ErrorCode::Cancelled => "cancelled",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::Unsupported => "unsupported",
            ErrorCode::Internal => "internal",
        }
    }
}

/// Why a request has no answer. The text goes to the caller, so it names what the caller sent and never what lies inside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// No such model, or not for this caller to see.
    #[error("model '{model}' is not known")]
    UnknownModel {
        /// As asked for.
        model: String,
    },
    /// The model is there, the version is not, or is excluded by the version policy.
    #[error("model '{model}' has no version {version} that is served; served: {served}")]
    UnknownVersion {
        /// The model.
        model: String,
        /// As asked for.
        version: VersionNumber,
        /// The versions that are, for people.
        served: String,
    },
    /// No such alias.
    #[error("model '{model}' has no alias '{alias}'")]
    UnknownAlias {
        /// The model.
        model: String,
        /// As asked for.
        alias: String,
    },
    /// The operator has unloaded the model.
    #[error("model '{model}' is unloaded")]
    Unloaded {
        /// The model.
        model: String,
    },
    /// Nothing is ready yet, or any more.
    #[error("model '{model}' is not ready: {reason}")]
    NotReady {
        /// The model.
        model: String,
        /// The stage, for people.
        reason: String,
        /// When another try makes sense.
        retry_after: Duration,
    },
    /// The request contradicts itself or the model's signature.
    #[error("{message}")]
    InvalidArgument {
        /// Names the field and what was expected.
        message: String,
    },
    /// A bounded queue or limit is full.
    #[error("{what} is full")]
    Overloaded {
        /// Which one.
        what: String,
        /// When another try makes sense.
        retry_after: Duration,
    },
    /// The caller's deadline passed, waiting or running.
    #[error("the deadline of the request has passed")]
    DeadlineExceeded,
    /// The caller went away.
    #[error("the request was cancelled")]
    Cancelled,
    /// A body or tensor over its cap.
    #[error("{what} is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The limit.
        limit_bytes: usize,
    },
    /// A part of the protocol that is not served.
    #[error("{what} is not supported")]
    Unsupported {
        /// Which part.
        what: String,
    },
    /// The model or the gateway failed. `message` is for the log only.
    #[error("internal error")]
    Internal {
        /// What happened, for the log.
        message: String,
    },
}

impl InferError {
    /// A malformed or contradicting request.
    pub fn invalid(message: impl Into<String>) -> InferError {
        InferError::InvalidArgument { message: message.into() }
    }

    /// What the caller can do.
    pub fn code(&self) -> ErrorCode {
        match self {
            InferError::UnknownModel { .. }
            | InferError::UnknownVersion { .. }
            | InferError::UnknownAlias { .. }
            | InferError::Unloaded { .. } => ErrorCode::NotFound,
            InferError::NotReady { .. } => ErrorCode::NotReady,
            InferError::InvalidArgument { .. } => ErrorCode::InvalidArgument,
            InferError::Overloaded { .. } => ErrorCode::Overloaded,
            InferError::DeadlineExceeded => ErrorCode::DeadlineExceeded,
            InferError::Cancelled => ErrorCode::Cancelled,
            InferError::TooLarge { .. } => ErrorCode::TooLarge,
            InferError::Unsupported { .. } => ErrorCode::Unsupported,
            InferError::Internal { .. } => ErrorCode::Internal,
        }
    }

    /// When another try makes sense, where one does.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            InferError::NotReady { retry_after, .. } | InferError::Overloaded { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

/// An error and every cause behind it, as one line for people. For whoever keeps a text and not the error.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What a panic said.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", message.unwrap_or("no message"))
}
