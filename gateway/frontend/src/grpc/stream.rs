//! `ModelStreamInfer`: many requests on one call.
//!
//! Requests of a stream run side by side, a bounded number at a time, and are answered in the order in which they came, as callers that
//! give no id rely on. An error is an answer in the stream and the stream goes on; with the header `triton_grpc_error: true` an error of
//! a request that was fit to run ends the stream with its status. A message that can't be read ends it, too. When the client goes away, or its deadline passes, what runs is
//! abandoned. When the server stops, what was taken up is answered and the stream ends.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bascule_serving::{ErrorCode, InferError};
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use super::budget::Budget;
use super::call::Call;
use super::infer::{Answer, Form, infer, read};
use super::packing;
use super::receive::{Messages, Received};
use super::reply::{self, Encoded};
use super::service::Service;
use super::status::{message as message_of, status};

/// What came of reading one message of a stream.
type Message = Result<Received, InferError>;

/// Answers the requests of a stream, some of them side by side.
///
/// # Errors
/// Where its messages are packed in an unknown way.
pub(crate) fn answers(service: &Service, call: &Call, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let (head, body) = request.into_parts();
    let packed = packing::of_request(&head.headers)?;
    let form = Form { is_streamed: true, coding: packing::of_answer(&head.headers) };
    let messages = Messages::new(body, packed, service.limits());
    let budget = service.budget.clone();
    let requests = requests(messages, budget, call.deadline(), service.stopping.clone());
    let width = service.settings.max_stream_requests.max(1);
    let (service, call) = (service.clone(), call.clone());
    let answers = requests.map(move |message| {
        let (service, call) = (service.clone(), call.clone());
        async move { one(&service, &call, message?, form).await }
    });
    Ok(reply::response(Box::pin(answers.buffered(width)), form.coding))
}

/// The requests as they come; the last item is an error where the stream ends otherwise than by its client.
fn requests(
    messages: Messages<Incoming>,
    budget: Arc<Budget>,
    deadline: Option<Instant>,
    stopping: CancellationToken,
) -> impl Stream<Item = Result<Message, Status>> {
    stream::unfold(Some((messages, budget, stopping)), move |state| async move {
        let (mut messages, budget, stopping) = state?;
        let received = tokio::select! {
            // A client that never pauses ends with the rest.
            biased;
            () = stopping.cancelled() => Err(Status::unavailable("the gateway is stopping")),
            () = passed(deadline) => Err(Status::deadline_exceeded("the deadline of the stream has passed")),
            received = messages.next(budget.share()) => received,
        };
        match received {
            Ok(message) => message.map(|message| (Ok(message), Some((messages, budget, stopping)))),
            Err(status) => Some((Err(status), None)),
        }
    })
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn one(service: &Service, call: &Call, message: Message, form: Form) -> Result<Encoded, Status> {
    let mut id = String::new();
    let answered = async {
        let request = match message {
            Ok(received) => read(service, received).await,
            Err(error) => Err(error),
        };
        // After a message that can't be read, nothing is sure to be one.
        let is_fault = |error: &InferError| matches!(error.code(), ErrorCode::InvalidArgument | ErrorCode::TooLarge);
        let request = match request {
            Err(error) if is_fault(&error) => return Ok(Err(status(&error, call))),
            request => request?,
        };
        id.clone_from(&request.message.id);
        infer(service, call, request, form, Instant::now()).await.map(Ok)
    };
    let answered = AssertUnwindSafe(answered).catch_unwind().await;
    let answered = answered.unwrap_or_else(|_| Err(InferError::Internal { message: "a request of a stream panicked".to_owned() }));
    match answered {
        Ok(answer) => answer.map(|Answer { encoded, .. }| encoded),
        Err(error) if call.is_strict() && !is_refusal(error.code()) => Err(status(&error, call)),
        Err(error) => {
            let parts = reply::streamed_error(id, message_of(&error, call), form.coding);
            let parts = parts.map_err(|error| status(&error, call))?;
            Ok(Encoded { parts, share: Arc::new(service.budget.share()) })
        }
    }
}

/// Whether the request itself was at fault, and nothing was tried.
fn is_refusal(code: ErrorCode) -> bool {
    match code {
        ErrorCode::NotFound | ErrorCode::InvalidArgument | ErrorCode::TooLarge | ErrorCode::Unsupported => true,
        ErrorCode::Overloaded | ErrorCode::NotReady | ErrorCode::DeadlineExceeded | ErrorCode::Cancelled | ErrorCode::Internal => {
            false
        }
    }
}
