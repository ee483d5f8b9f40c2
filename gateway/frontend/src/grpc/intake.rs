//! What every call passes on its way in and out.
//!
//! In: the request id, deadline and key are read. Out: the request id is told, faults in reading a request become the caller's, and a
//! panic becomes an internal error.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use bascule_serving::InferError;
use futures::FutureExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tonic::Code;
use tonic::body::Body;

use super::call::Call;
use super::dispatch::Dispatch;
use super::service::{Peer, Service};
use super::status::{CAUSE, logged, reading_code, status};

const GRPC_STATUS: &str = "grpc-status";

/// Answers one call.
pub(crate) async fn answer(service: &Service, dispatch: &Dispatch, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    let arrived = Instant::now();
    if !is_grpc(&request) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let mut record = Record { service, code: Code::Cancelled };
    let response = take(dispatch, peer, request, arrived).await;
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

async fn take(dispatch: &Dispatch, peer: SocketAddr, request: Request<Incoming>, arrived: Instant) -> Response<Body> {
    let call = match Call::read(request.headers(), arrived) {
        Ok(call) => call,
        Err(error) => {
            let call = Call::unread(request.headers(), arrived);
            return finished(status(&error, &call).into_http(), &call);
        }
    };
    let response = match AssertUnwindSafe(dispatch.call(request, &call, Peer(peer))).catch_unwind().await {
        Ok(response) => response,
        Err(_) => logged(&InferError::Internal { message: "a call panicked".to_owned() }, &call).into_http(),
    };
    finished(response, &call)
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    request.method() == Method::POST && content_type.starts_with(b"application/grpc")
}

fn finished(mut response: Response<Body>, call: &Call) -> Response<Body> {
    let headers = response.headers_mut();
    // Only what our own methods refuse names a cause; the rest comes from reading the request.
    if !headers.contains_key(CAUSE)
        && let Some(code) = headers.get(GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
    {
        headers.insert(GRPC_STATUS, HeaderValue::from(i32::from(reading_code(code))));
    }
    call.id().clone().tell(headers);
    response
}
