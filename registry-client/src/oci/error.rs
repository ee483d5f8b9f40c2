//! Why an OCI registry does not do what it is asked.

use std::time::Duration;

use reqwest::StatusCode;

use crate::digest::Digest;
use crate::name::quoted;

/// Why an OCI registry does not do what it is asked. Holds neither URLs with a query nor anything of a credential.
#[derive(Debug, thiserror::Error)]
pub(super) enum OciError {
    /// No answer, or one that broke off.
    #[error("{what} got no answer")]
    Transport {
        what: String,
        // Without its URL, which may be signed.
        source: reqwest::Error,
    },
    #[error("{what} got no answer within {} s", limit.as_secs())]
    Late { what: String, limit: Duration },
    #[error("{what} was answered with {status}{said}")]
    Status { what: String, status: StatusCode, said: String },
    #[error("{what} was refused with {status}{said} ({tried})")]
    Refused { what: String, status: StatusCode, said: String, tried: String },
    #[error("{what} was answered with {status}: asked to wait for {} s", wait.as_secs().max(1))]
    Busy { what: String, status: StatusCode, wait: Duration },
    #[error("{what} was answered with more than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("{what} is not followed to its end: {problem}")]
    TooLong { what: String, problem: String },
    #[error("{what} was answered with bytes whose sha256 is {actual}, not {expected}")]
    Digest { what: String, expected: Digest, actual: Digest },
    #[error("{what} was answered as no OCI registry does: {problem}")]
    Protocol { what: String, problem: String },
    #[error("credentials can't be read: {0}")]
    Credentials(String),
}

impl OciError {
    pub(super) fn protocol(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Protocol { what: what.into(), problem: problem.into() }
    }

    pub(super) fn transport(what: impl Into<String>, source: reqwest::Error) -> Self {
        Self::Transport { what: what.into(), source: source.without_url() }
    }

    /// The registry says that there is no such thing.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::NOT_FOUND, .. })
    }

    /// The registry does not do this at all, or not for this user.
    pub(super) fn is_not_offered(&self) -> bool {
        const OTHERS: [StatusCode; 4] =
            [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED, StatusCode::BAD_REQUEST];
        matches!(self, Self::Refused { .. } | Self::Protocol { .. })
            || matches!(self, Self::Status { status, .. } if OTHERS.contains(status))
    }

    /// There is more than is read, or it takes longer: not all of it is known.
    pub(super) fn is_out_of_bounds(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::TooLong { .. })
    }

    /// The same may go well a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::Late { .. } | Self::Busy { .. } => true,
            Self::Status { status, .. } => status.is_server_error(),
            _ => false,
        }
    }
}

/// What a registry's error body says, as the end of a sentence; empty where it says nothing in the usual form.
pub(super) fn said(body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let first = parsed.as_ref().and_then(|body| body.get("errors")?.get(0));
    let text = |key: &str| first.and_then(|error| error.get(key)?.as_str()).filter(|text| !text.is_empty());
    match (text("code"), text("message")) {
        (Some(code), Some(message)) => format!(": {} {}", quoted(code), quoted(message)),
        (Some(one), None) | (None, Some(one)) => format!(": {}", quoted(one)),
        (None, None) => String::new(),
    }
}
