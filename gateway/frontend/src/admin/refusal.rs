//! Errors of the admin port: a status, a text and what to do.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bascule_serving::CommandError;
use serde::Serialize;

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Refusal {
    #[serde(skip)]
    pub(crate) status: StatusCode,
    /// What is wrong.
    pub(crate) error: String,
    /// What to do about it.
    pub(crate) hint: String,
    /// The step of a load that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stage: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal { status, error: error.into(), hint: hint.into(), stage: None, cause: None }
    }

    pub(crate) fn unknown_model(model: &str) -> Refusal {
        let model: String = model.chars().take(128).collect();
        Refusal::new(StatusCode::NOT_FOUND, format!("model '{model}' is not known"), "`bascule status` lists the models that are")
    }

    pub(crate) fn bad_request(error: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, error, hint)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self)).into_response()
    }
}

impl From<CommandError> for Refusal {
    fn from(error: CommandError) -> Refusal {
        let text = error.to_string();
        match error {
            CommandError::UnknownModel { model } => Refusal::unknown_model(&model),
            CommandError::LoadFailed { stage, cause, .. } => {
                let hint = "it is tried again by itself; mend the version, or publish another one";
                Refusal { stage: Some(stage), cause: Some(cause), ..Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, text, hint) }
            }
            CommandError::NothingToLoad { .. } => {
                Refusal::new(StatusCode::CONFLICT, text, "publish a version, or change the model's version_policy")
            }
            CommandError::Rejected { .. } => {
                Refusal::new(StatusCode::CONFLICT, text, "`bascule rollout status` shows what the decision has to build on")
            }
            CommandError::Unsupported { .. } => {
                Refusal::new(StatusCode::NOT_IMPLEMENTED, text, "use a store that can put if absent")
            }
            CommandError::Source { .. } => Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                text,
                "`bascule doctor` checks the registry; what is loaded is still served",
            ),
            CommandError::State { .. } => {
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text, "look at space and permissions of the state directory")
            }
            CommandError::Busy => Refusal::new(StatusCode::TOO_MANY_REQUESTS, text, "try again in a moment"),
            CommandError::Stopping => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text, "ask another replica, or wait for the restart")
            }
        }
    }
}
