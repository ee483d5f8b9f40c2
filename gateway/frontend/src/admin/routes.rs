//! Paths of the admin port. What they do with the engine is in [`super::command`].

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::command;
use super::refusal::Refusal;
use super::{AdminSettings, AdminSources, guard, webhook};

/// What every request sees.
pub(crate) struct Port {
    pub(crate) sources: AdminSources,
    pub(crate) settings: AdminSettings,
    /// Whether the port listens on a loopback address.
    pub(crate) loopback: bool,
    /// A permit for each request that may wait.
    pub(crate) waits: Semaphore,
    /// Cancelled when the port stops to take requests.
    pub(crate) stopping: tokio_util::sync::CancellationToken,
}

impl Port {
    /// Lets a request wait until the permit is dropped.
    pub(crate) fn waiting(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        self.waits.try_acquire().map_err(|_| {
            let error = format!("the limit of {} waiting requests is reached", self.settings.max_waits);
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, error, "try again in a moment")
        })
    }
}

/// The routes.
pub(crate) fn router(port: Arc<Port>) -> Router {
    Router::new()
        .route("/livez", get(command::live))
        .route("/readyz", get(command::ready))
        .route("/metrics", get(command::metrics))
        .route("/admin/v1/status", get(command::status))
        .route("/admin/v1/config", get(command::config))
        .route("/admin/v1/kick", post(command::kick))
        .route("/admin/v1/registry/kick", post(command::kick))
        .route("/admin/webhooks/mlflow", post(webhook::mlflow))
        .route("/admin/v1/models/{model}", get(command::model))
        .route("/admin/v1/models/{model}/load", post(command::load))
        .route("/admin/v1/models/{model}/unload", post(command::unload))
        .route("/admin/v1/models/{model}/rollout", get(command::rollout).post(command::decide))
        .route("/admin/v1/models/{model}/journal", get(command::journal))
        .route("/admin/v1/models/{model}/versions/{version}/wait", get(command::wait))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&port), admit))
        .with_state(port)
}

async fn admit(State(port): State<Arc<Port>>, request: Request, next: Next) -> Response {
    match guard::check(request.headers(), request.uri(), port.loopback) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn nothing() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is nothing at this path", "the admin API is below /admin/v1")
}

async fn wrong_method() -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "the path does not take this method", "reads are GET, commands are POST")
}
