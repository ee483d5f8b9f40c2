//! `ModelStreamInfer`: many requests on one call.
//!
//! Requests of a stream run side by side, a bounded number at a time, and are answered in the order in which they came, as callers that
//! give no id rely on. An error is an answer in the stream and the stream goes on; with the header `triton_grpc_error: true` an error of
//! a request that was fit to run ends the stream with its status. When the client goes away, or its deadline passes, what runs is
//! abandoned. When the server stops, what was taken up is answered and the stream ends.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Instant;

use bascule_proto::inference::infer_parameter::ParameterChoice;
use bascule_proto::inference::{InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use bascule_serving::{ErrorCode, InferError};
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::call::Call;
use super::infer::{Answer, infer};
use super::service::Service;
use super::status::{message, reading_failed, status};

const FINAL: &str = "triton_final_response";

/// The answers of a stream.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

/// Answers the requests of a stream, some of them side by side.
pub(crate) fn answers(service: &Service, call: &Call, inbound: Streaming<ModelInferRequest>) -> Answers {
    let width = service.settings.max_stream_requests.max(1);
    let requests = requests(inbound, call.deadline(), service.stopping.clone());
    let (service, call) = (service.clone(), call.clone());
    let answers = requests.map(move |request| {
        let (service, call) = (service.clone(), call.clone());
        async move {
            match request {
                Ok(request) => one(&service, &call, request).await,
                Err(status) => Err(status),
            }
        }
    });
    Box::pin(answers.buffered(width))
}

/// The requests as they come; the last item is an error where the stream ends otherwise than by its client.
fn requests(
    inbound: Streaming<ModelInferRequest>,
    deadline: Option<Instant>,
    stopping: CancellationToken,
) -> impl Stream<Item = Result<ModelInferRequest, Status>> {
    stream::unfold(Some((inbound, stopping)), move |state| async move {
        let (mut inbound, stopping) = state?;
        let received = tokio::select! {
            // A client that never pauses ends with the rest.
            biased;
            () = stopping.cancelled() => Err(Status::unavailable("the gateway is stopping")),
            () = passed(deadline) => Err(Status::deadline_exceeded("the deadline of the stream has passed")),
            received = inbound.message() => received.map_err(reading_failed),
        };
        match received {
            Ok(request) => request.map(|request| (Ok(request), Some((inbound, stopping)))),
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

async fn one(service: &Service, call: &Call, request: ModelInferRequest) -> Result<ModelStreamInferResponse, Status> {
    let id = request.id.clone();
    let share = service.budget.share();
    let answered = async {
        share.take(request.encoded_len())?;
        infer(&service.serving, call, request, Instant::now()).await
    };
    let answered = AssertUnwindSafe(answered).catch_unwind().await;
    let answered = answered.unwrap_or_else(|_| Err(InferError::Internal { message: "a request of a stream panicked".to_owned() }));
    match answered {
        Ok(Answer { mut message, .. }) => {
            let last = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
            message.parameters.insert(FINAL.to_owned(), last);
            Ok(ModelStreamInferResponse { error_message: String::new(), infer_response: Some(message) })
        }
        Err(error) if call.is_strict() && !is_refusal(error.code()) => Err(status(&error, call)),
        Err(error) => {
            let infer_response = Some(ModelInferResponse { id, ..ModelInferResponse::default() });
            Ok(ModelStreamInferResponse { error_message: message(&error, call), infer_response })
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
