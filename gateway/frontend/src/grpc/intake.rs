//! What every call passes on its way in and out.
//!
//! In: the request id, deadline and key are read, a single call's body is watched for standing still and counted against the port's
//! budget. Out: the request id is told, faults in reading a request become the caller's, and a panic becomes an internal error.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bascule_serving::InferError;
use bytes::Bytes;
use futures::FutureExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use hyper::body::Incoming;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};

use super::budget::Share;
use super::call::Call;
use super::dispatch::{Dispatch, STREAM_INFER};
use super::service::{Peer, Service};
use super::status::{CAUSE, logged, reading_code, status};
use crate::request_id::REQUEST_ID;

const GRPC_STATUS: &str = "grpc-status";
const ENCODING: &str = "grpc-encoding";
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// Answers one call.
pub(crate) async fn answer(service: &Service, dispatch: &Dispatch, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    let arrived = Instant::now();
    if !is_grpc(&request) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let mut record = Record { service, code: Code::Cancelled };
    let response = take(service, dispatch, peer, request, arrived).await;
    record.code = response.headers().get(GRPC_STATUS).map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
    response
}

/// Counts every call once, also one whose caller goes away and which is dropped for that.
struct Record<'a> {
    service: &'a Service,
    code: Code,
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        self.service.meters.answered(self.code);
    }
}

async fn take(
    service: &Service,
    dispatch: &Dispatch,
    peer: SocketAddr,
    request: Request<Incoming>,
    arrived: Instant,
) -> Response<Body> {
    let call = match Call::read(request.headers(), arrived) {
        Ok(call) => call,
        Err(error) => {
            let call = Call::unread(request.headers(), arrived);
            return finished(status(&error, &call).into_http(), &call);
        }
    };
    let share = Arc::new(service.budget.share());
    let mut request = admitted(request, service, &share);
    request.extensions_mut().insert(call.clone());
    request.extensions_mut().insert(Peer(peer));
    request.extensions_mut().insert(Arc::clone(&share));
    let response = match AssertUnwindSafe(dispatch.call(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => logged(&InferError::Internal { message: "a call panicked".to_owned() }, &call).into_http(),
    };
    // The request's memory counts until its answer is there.
    drop(share);
    finished(response, &call)
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    request.method() == Method::POST && content_type.starts_with(b"application/grpc")
}

/// Puts the guard around the body, and has the answer compressed as the request is.
fn admitted(mut request: Request<Incoming>, service: &Service, share: &Arc<Share>) -> Request<Body> {
    compress_as_asked(request.headers_mut());
    if request.uri().path() == STREAM_INFER {
        // A stream may rest as long as it likes; its messages are counted one by one.
        return request.map(Body::new);
    }
    let timeout = service.settings.body_timeout;
    let share = Arc::clone(share);
    request.map(|body| Body::new(GuardedBody { body, share, timeout, stall: None }))
}

/// Most clients accept compressed answers whatever their network; only who compresses is answered so.
fn compress_as_asked(headers: &mut HeaderMap) {
    let encoding = headers.get(ENCODING).filter(|encoding| *encoding != "identity").cloned();
    let accepts = |encoding: &HeaderValue| {
        let accepted = headers.get(ACCEPT_ENCODING).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
        accepted.split(',').any(|one| one.trim().as_bytes() == encoding.as_bytes())
    };
    match encoding.filter(accepts) {
        Some(encoding) => headers.insert(ACCEPT_ENCODING, encoding),
        None => headers.remove(ACCEPT_ENCODING),
    };
}

fn finished(mut response: Response<Body>, call: &Call) -> Response<Body> {
    let headers = response.headers_mut();
    // Only what our own methods refuse names a cause; the rest comes from reading the request.
    if !headers.contains_key(CAUSE)
        && let Some(code) = headers.get(GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
    {
        headers.insert(GRPC_STATUS, HeaderValue::from(i32::from(reading_code(code))));
    }
    if let Ok(id) = HeaderValue::from_str(call.id()) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// A body that fails where it stands still too long or where it takes more memory than there is.
struct GuardedBody {
    body: Incoming,
    share: Arc<Share>,
    timeout: Duration,
    stall: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for GuardedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.stall = None;
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let taken = self.share.take(bytes).map(|()| frame);
                Poll::Ready(Some(taken.map_err(|error| Status::resource_exhausted(error.to_string()))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Status::from_error(error.into())))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let timeout = self.timeout;
                let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                ready!(stall.as_mut().poll(context));
                Poll::Ready(Some(Err(Status::deadline_exceeded(format!("no byte of the request came for {timeout:?}")))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
