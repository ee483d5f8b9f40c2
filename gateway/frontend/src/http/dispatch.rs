//! One request from head to answer: its id, its endpoint, its record in log and metrics.
//!
//! A handler that panics is a 500 like any other failure. One that is dropped, because its caller went away, is recorded as 499.
//! Deliberately absent: what the endpoints do.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bascule_serving::{InferError, Readiness, Serving};
use futures::FutureExt;
use hyper::header::EXPECT;
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use tokio::sync::Semaphore;

use super::answer::{Answer, head_only, json, refused};
use super::body::{Budget, Upload, discard};
use super::failure::{Failure, cut};
use super::meters::Meters;
use super::routes::{Endpoint, ModelEndpoint, endpoint};
use super::{HttpSettings, infer, model, repository};
use crate::answered_by::MODEL_VERSION;
use crate::describe;
use crate::errors::CLIENT_CLOSED_REQUEST;
use crate::request_id::RequestId;

/// What comes from callers is logged up to here.
const MAX_LOGGED_BYTES: usize = 128;

/// What every request of the port uses.
pub(crate) struct Context {
    pub(crate) serving: Serving,
    pub(crate) settings: HttpSettings,
    pub(crate) budget: Budget,
    /// One for each processor: what takes long is not made shorter by more of it at once.
    pub(crate) workers: Arc<Semaphore>,
    pub(crate) meters: Meters,
}

impl Context {
    pub(crate) fn new(serving: Serving, settings: HttpSettings) -> Context {
        let budget = Budget::new(settings.max_buffered_bytes);
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Context { serving, settings, budget, workers: Arc::new(Semaphore::new(processors)), meters: Meters::new() }
    }

    /// Runs what would hold up the other requests of this thread.
    ///
    /// # Errors
    /// Those of the work, and an internal one where it panics.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        // Nobody closes the semaphore.
        let worker = Arc::clone(&self.workers).acquire_owned().await.ok();
        let working = tokio::task::spawn_blocking(move || {
            let _worker = worker;
            work()
        });
        match working.await {
            Ok(result) => result,
            Err(error) => Err(InferError::Internal { message: format!("a codec ended early: {error}") }.into()),
        }
    }
}

/// What is known of a request before its handler runs.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) arrived: Instant,
    pub(crate) peer: SocketAddr,
}

/// Answers a request.
pub(crate) async fn dispatch(context: Arc<Context>, peer: SocketAddr, request: Request<Upload>) -> Answer {
    let call = Call { arrived: Instant::now(), peer };
    let id = RequestId::of(request.headers());
    let (head, mut body) = request.into_parts();
    let head = Request::from_parts(head, ());
    let mut record = Record { context: &context, id: id.as_str(), head: &head, arrived: call.arrived, open: true };
    let result = guarded(handle(&context, &call, &head, &mut body)).await;
    record.close(&result);
    drop(record);
    // Whoever waits to be asked for the body is not going to send it.
    let is_coming = !matches!(result, Err(Failure::Slow { .. } | Failure::Engine(InferError::Cancelled)));
    if is_coming && !head.headers().contains_key(EXPECT) {
        discard(body, &context.settings);
    }
    let mut answer = result.unwrap_or_else(|failure| refused(&failure, id.as_str()));
    id.tell(answer.headers_mut());
    if head.method() == Method::HEAD { head_only(answer) } else { answer }
}

/// Turns a panic into a failure like any other. What it held is dropped with the handler, so nothing broken is seen again.
async fn guarded(handler: impl Future<Output = Result<Answer, Failure>>) -> Result<Answer, Failure> {
    let handled = AssertUnwindSafe(handler).catch_unwind().await;
    handled.unwrap_or_else(|_| Err(InferError::Internal { message: "the handler panicked".to_owned() }.into()))
}

async fn handle(context: &Arc<Context>, call: &Call, head: &Request<()>, body: &mut Upload) -> Result<Answer, Failure> {
    let endpoint = endpoint(head.uri().path()).ok_or(Failure::NoPath)?;
    if !endpoint.takes(head.method()) {
        return Err(Failure::Method { allowed: endpoint.allowed().unwrap_or_default() });
    }
    match endpoint {
        Endpoint::ServerMetadata => json(StatusCode::OK, &describe::server_metadata()),
        Endpoint::Live => json(StatusCode::OK, &json!({ "live": true })),
        Endpoint::Ready => server_ready(&context.serving),
        Endpoint::Statistics => model::statistics(context, None, None),
        Endpoint::Model { name, version, what } => match what {
            ModelEndpoint::Infer => infer::infer(context, call, &name, version, head.headers(), body).await,
            ModelEndpoint::Metadata => model::metadata(context, &name, version).await,
            ModelEndpoint::Config => model::config(context, &name, version).await,
            ModelEndpoint::Ready => model::ready(context, &name, version),
            ModelEndpoint::Statistics => model::statistics(context, Some(&name), version),
        },
        Endpoint::Index => repository::index(context, head, body).await,
        Endpoint::Load { name } => repository::load(context, call, &name, head, body).await,
        Endpoint::Unload { name } => repository::unload(context, call, &name, head, body).await,
        Endpoint::Unsupported(what) => Err(InferError::Unsupported { what: what.to_owned() }.into()),
    }
}

fn server_ready(serving: &Serving) -> Result<Answer, Failure> {
    let reason = match serving.readiness() {
        Readiness::Ready => return json(StatusCode::OK, &json!({ "ready": true })),
        Readiness::NotYet { reason } => reason,
        Readiness::Stopping => "the gateway is stopping".to_owned(),
    };
    json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ready": false, "error": format!("not ready: {reason}") }))
}

/// Sees to it that every request is recorded once, also one whose handler is dropped.
struct Record<'a> {
    context: &'a Context,
    id: &'a str,
    head: &'a Request<()>,
    arrived: Instant,
    open: bool,
}

impl Record<'_> {
    fn close(&mut self, result: &Result<Answer, Failure>) {
        self.open = false;
        let status = result.as_ref().map_or_else(Failure::status, Answer::status).as_u16();
        self.context.meters.answered(status);
        self.log(status, result.as_ref().ok(), result.as_ref().err());
    }

    fn log(&self, status: u16, answer: Option<&Answer>, failure: Option<&Failure>) {
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    request_id = self.id,
                    method = cut(self.head.method().as_str(), MAX_LOGGED_BYTES),
                    path = cut(self.head.uri().path(), MAX_LOGGED_BYTES),
                    model = self.model().as_deref().map(|model| cut(model, MAX_LOGGED_BYTES)),
                    version = answer.and_then(|answer| answer.headers().get(MODEL_VERSION)?.to_str().ok()),
                    status,
                    took_us = u64::try_from(self.arrived.elapsed().as_micros()).unwrap_or(u64::MAX),
                    cause = failure.map(|failure| failure.inward().map_or_else(|| failure.message(self.id), str::to_owned)),
                    "request"
                )
            };
        }
        // Everything else is how things are meant to go where a caller errs or a model is away: a caller could fill the log with it.
        if status == StatusCode::INTERNAL_SERVER_ERROR.as_u16() {
            event!(warn);
        } else {
            event!(debug);
        }
    }

    fn model(&self) -> Option<String> {
        match endpoint(self.head.uri().path())? {
            Endpoint::Model { name, .. } | Endpoint::Load { name } | Endpoint::Unload { name } => Some(name.into_owned()),
            _ => None,
        }
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if self.open {
            self.context.meters.answered(CLIENT_CLOSED_REQUEST);
            self.log(CLIENT_CLOSED_REQUEST, None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_failure_that_shows_nothing() {
        let failure = guarded(async { panic!("secret") }).await.unwrap_err();
        assert_eq!(failure.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(failure.message("r-1"), "internal error; request id r-1");
        assert_eq!(failure.inward(), Some("the handler panicked"));
    }
}
