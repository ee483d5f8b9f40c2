//! Answers: status, headers and a body of ready bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;
use smallvec::{SmallVec, smallvec};

use super::failure::Failure;
use super::watch::Sending;
use crate::codec::write_string;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// A body that is all there: parts that are sent one after the other without being joined.
#[derive(Debug, Default)]
pub(crate) struct AnswerBody {
    parts: SmallVec<[Bytes; 4]>,
    next: usize,
    left: u64,
    /// Tells the connection that something is being sent.
    sending: Option<Sending>,
}

impl AnswerBody {
    pub(crate) fn new(parts: SmallVec<[Bytes; 4]>) -> AnswerBody {
        let left = parts.iter().map(|part| part.len() as u64).sum();
        AnswerBody { parts, next: 0, left, sending: None }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.left
    }

    /// Ties the body to its connection's watch.
    pub(crate) fn watched(mut self, sending: Sending) -> AnswerBody {
        self.sending = Some(sending);
        self
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.next;
        let Some(part) = self.parts.get_mut(next).map(std::mem::take) else { return Poll::Ready(None) };
        self.next += 1;
        self.left -= part.len() as u64;
        if let Some(sending) = &self.sending {
            sending.moved();
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.next == self.parts.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

pub(crate) type Answer = Response<AnswerBody>;

/// An answer of these bytes.
pub(crate) fn answer(status: StatusCode, content_type: HeaderValue, parts: SmallVec<[Bytes; 4]>) -> Answer {
    let mut answer = Response::new(AnswerBody::new(parts));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Result<Answer, Failure> {
    match serde_json::to_vec(value) {
        Ok(text) => Ok(answer(status, JSON, smallvec![text.into()])),
        Err(error) => Err(bascule_serving::InferError::Internal { message: format!("an answer can't be written: {error}") }.into()),
    }
}

/// 200 without a body, as Triton answers commands.
pub(crate) fn done() -> Answer {
    answer(StatusCode::OK, JSON, SmallVec::new())
}

/// What a refused caller gets.
pub(crate) fn refused(failure: &Failure, request_id: &str) -> Answer {
    let mut text = b"{\"error\":".to_vec();
    write_string(&mut text, &failure.message(request_id));
    text.push(b'}');
    let mut answer = answer(failure.status(), JSON, smallvec![text.into()]);
    if let Some(retry_after) = failure.retry_after() {
        // Whole seconds, and never 0: that would be an invitation to hammer.
        let seconds = retry_after.as_millis().div_ceil(1000).max(1);
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)));
    }
    if let Some((name, value)) = failure.header() {
        answer.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    answer
}

/// The same head without the body, for HEAD.
pub(crate) fn head_only(mut answer: Answer) -> Answer {
    let bytes = answer.body().bytes();
    answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    *answer.body_mut() = AnswerBody::default();
    answer
}
