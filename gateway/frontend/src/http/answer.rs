//! Answers: status, headers and a body of ready bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;
use smallvec::{SmallVec, smallvec};

use super::body::Room;
use super::failure::Failure;
use super::watch::Sending;
use crate::codec::write_string;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// What lasts until the socket has taken the last byte of an answer.
#[derive(Debug)]
struct Owed {
    /// Tells the connection that something is being sent.
    sending: Sending,
    /// The answer's share of the memory for bodies.
    _room: Option<Arc<Room>>,
}

/// Bytes of an answer on their way to the socket. hyper may keep them long after it has asked for them, HTTP/2 above all, so they
/// themselves tell when they move.
#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Bytes,
    owed: Option<Arc<Owed>>,
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(owed) = &self.owed {
            owed.sending.moved();
        }
    }
}

/// A body that is all there: parts that are sent one after the other without being joined.
#[derive(Debug, Default)]
pub(crate) struct AnswerBody {
    parts: SmallVec<[Bytes; 4]>,
    next: usize,
    left: u64,
    room: Option<Arc<Room>>,
    owed: Option<Arc<Owed>>,
}

impl AnswerBody {
    pub(crate) fn new(parts: SmallVec<[Bytes; 4]>) -> AnswerBody {
        let left = parts.iter().map(|part| part.len() as u64).sum();
        AnswerBody { parts, next: 0, left, room: None, owed: None }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.left
    }

    /// Keeps a share of the memory for bodies until the body is sent.
    pub(crate) fn keep(&mut self, room: Arc<Room>) {
        self.room = Some(room);
    }

    /// Ties the body to its connection's watch.
    pub(crate) fn watched(mut self, sending: Sending) -> AnswerBody {
        self.owed = Some(Arc::new(Owed { sending, _room: self.room.take() }));
        self
    }
}

impl Body for AnswerBody {
    type Data = Chunk;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, Infallible>>> {
        let next = self.next;
        let Some(bytes) = self.parts.get_mut(next).map(std::mem::take) else { return Poll::Ready(None) };
        self.next += 1;
        self.left -= bytes.len() as u64;
        let owed = self.owed.clone();
        Poll::Ready(Some(Ok(Frame::data(Chunk { bytes, owed }))))
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
