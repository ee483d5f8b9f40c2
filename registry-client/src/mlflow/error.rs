//! What can go wrong with a tracking server.

use std::sync::Arc;

use crate::name::quoted;
use crate::source::FetchError;

/// Why a request brought nothing that can be used. No text of it holds a secret.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum MlflowError {
    /// No answer, or one that broke off.
    #[error("{what} can't be reached")]
    Unreachable {
        /// What was asked.
        what: String,
        source: Arc<reqwest::Error>,
    },
    /// The server does not let us in.
    #[error("{what} was refused with status {status}: tried {tried}")]
    Denied { what: String, status: u16, tried: &'static str },
    /// What was asked for is not there.
    #[error("{what} does not exist")]
    NotFound { what: String },
    /// Another status than success.
    #[error("{what} was answered with status {status}{said}")]
    Status { what: String, status: u16, said: String },
    /// An answer that breaks the protocol.
    #[error("{what}: the answer {problem}")]
    Malformed { what: String, problem: String },
    /// A store behind the server.
    #[error("{what} can't be read from the store behind the server")]
    Store { what: String, source: Arc<object_store::Error> },
}

impl MlflowError {
    pub(super) fn unreachable(what: &str, error: reqwest::Error) -> Self {
        // The address may hold what only the server should see.
        Self::Unreachable { what: what.to_owned(), source: Arc::new(error.without_url()) }
    }

    pub(super) fn malformed(what: &str, problem: impl Into<String>) -> Self {
        Self::Malformed { what: what.to_owned(), problem: problem.into() }
    }

    pub(super) fn store(what: &str, error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::NotFound { what: what.to_owned() },
            error => Self::Store { what: what.to_owned(), source: Arc::new(error) },
        }
    }

    /// A status that is no success, and what the server says about it.
    pub(super) fn status(what: &str, status: u16, tried: &'static str, body: &[u8]) -> Self {
        let what = what.to_owned();
        match status {
            401 | 403 => Self::Denied { what, status, tried },
            404 => Self::NotFound { what },
            300..=399 => {
                Self::Status { what, status, said: ": it sends callers elsewhere, most likely to a page for signing in".into() }
            }
            _ => Self::Status { what, status, said: said(body) },
        }
    }

    pub(super) fn into_fetch(self) -> FetchError {
        match self {
            Self::NotFound { what } => FetchError::NotFound { what },
            error => FetchError::unavailable("the MLflow server", error),
        }
    }

    /// With all causes, for people.
    pub(super) fn told(&self) -> String {
        crate::registry::versions::with_causes(self)
    }
}

/// The server's own words, where its answer has any.
fn said(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Said {
        message: String,
    }
    serde_json::from_slice::<Said>(body).map(|said| format!(": {}", quoted(&said.message))).unwrap_or_default()
}
