//! Watches a connection for callers that do not read, and counts what is under way on it.
//!
//! hyper ends a connection whose peer no longer answers its pings, and nothing else: a peer that answers them and never gives room for an
//! answer would hold its memory for good, and one whose socket is full would even outlive the pings. So every answer is sent in pieces
//! that say when they are gone, whoever holds them last; the connection's task asks now and then whether one of them stands still.
//! Deliberately absent: the pace of requests, which [`super::receive`] and [`super::intake`] have.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;

use super::budget::Share;

/// What is handed to the connection at once. Small, so that a caller is seen to read even where many large answers share a slow line;
/// few clients take larger frames anyway.
const PIECE_BYTES: usize = 32 << 10;

/// The calls of a connection.
#[derive(Debug)]
pub(crate) struct Watch {
    write_timeout: Duration,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    next: u64,
    open: HashMap<u64, Unsent>,
}

/// What of a call's answer the caller has not taken.
#[derive(Debug)]
struct Unsent {
    pieces: usize,
    /// When one of them last went, or the first one was handed over.
    moved: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(write_timeout: Duration) -> Arc<Watch> {
        Arc::new(Watch { write_timeout, calls: Mutex::default() })
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins. `share` counts the bytes of its answer.
    pub(crate) fn begin(self: &Arc<Self>, share: Share) -> Arc<Call> {
        let mut calls = self.calls();
        let id = calls.next;
        calls.next += 1;
        calls.open.insert(id, Unsent { pieces: 0, moved: None });
        Arc::new(Call { watch: Arc::clone(self), id, share })
    }

    /// Whether no call is under way and every answer is with the system.
    pub(crate) fn is_free(&self) -> bool {
        self.calls().open.is_empty()
    }

    /// When the first of the unsent answers will have stood still too long, as things are now.
    pub(crate) fn patience_ends(&self) -> Option<Instant> {
        let calls = self.calls();
        calls.open.values().filter_map(|unsent| Some(unsent.moved? + self.write_timeout)).min()
    }
}

/// A call under way: until its answer is gone.
#[derive(Debug)]
pub(crate) struct Call {
    watch: Arc<Watch>,
    id: u64,
    share: Share,
}

impl Call {
    fn unsent(&self, note: impl FnOnce(&mut Unsent)) {
        if let Some(unsent) = self.watch.calls().open.get_mut(&self.id) {
            note(unsent);
        }
    }

    /// A piece of the answer that says when it is gone.
    fn piece(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        self.share.count(bytes.len());
        self.unsent(|unsent| {
            unsent.moved.get_or_insert_with(Instant::now);
            unsent.pieces += 1;
        });
        Bytes::from_owner(Piece { bytes, call: Arc::clone(self) })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.watch.calls().open.remove(&self.id);
    }
}

/// Bytes that the caller has not taken.
struct Piece {
    bytes: Bytes,
    call: Arc<Call>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.call.share.give_back(self.bytes.len());
        self.call.unsent(|unsent| {
            unsent.pieces -= 1;
            unsent.moved = (unsent.pieces > 0).then(Instant::now);
        });
    }
}

/// The body of an answer, in pieces.
pub(crate) struct Watched {
    body: Body,
    /// What is left of the body's last frame.
    rest: Bytes,
    call: Arc<Call>,
}

impl Watched {
    pub(crate) fn new(body: Body, call: Arc<Call>) -> Watched {
        Watched { body, rest: Bytes::new(), call }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = bytes,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        let bytes = self.rest.len().min(PIECE_BYTES);
        let bytes = self.rest.split_to(bytes);
        Poll::Ready(Some(Ok(Frame::data(self.call.piece(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, hint) = (self.rest.len() as u64, self.body.size_hint());
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}

/// A socket that fails when a write stalls.
pub(crate) struct PatientSocket<S> {
    inner: S,
    write_timeout: Duration,
    stall: Option<Pin<Box<Sleep>>>,
}

impl<S> PatientSocket<S> {
    pub(crate) fn new(inner: S, write_timeout: Duration) -> PatientSocket<S> {
        PatientSocket { inner, write_timeout, stall: None }
    }

    fn guard(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PatientSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PatientSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.guard(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.guard(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::{BodyExt as _, Full};
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::grpc::budget::Budget;

    #[tokio::test]
    async fn an_answer_counts_until_its_last_piece_is_gone() {
        let budget = Budget::new(PIECE_BYTES);
        let timeout = Duration::from_secs(30);
        let watch = Watch::new(timeout);
        let call = watch.begin(budget.share());
        assert_eq!((watch.is_free(), watch.patience_ends()), (false, None), "a call that computes is not waited for");
        let whole = vec![7; PIECE_BYTES + 10];
        let mut body = Watched::new(Body::new(Full::new(Bytes::from(whole.clone()))), call);
        assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(body.size_hint().exact(), Some(10));
        let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(body.frame().await.is_none());
        assert_eq!([&first[..], &second[..]].concat(), whole);
        drop(body);
        assert!(budget.share().take(1).is_err(), "both pieces count");
        let now = Instant::now();
        assert!(watch.patience_ends().is_some_and(|end| end <= now + timeout));
        drop(first);
        assert!(watch.patience_ends().is_some_and(|end| end > now + timeout), "a piece that is gone is a sign of life");
        assert!(!watch.is_free());
        drop(second);
        assert_eq!((watch.is_free(), watch.patience_ends()), (true, None));
        assert!(budget.share().take(PIECE_BYTES).is_ok());
    }

    #[tokio::test]
    async fn a_socket_that_takes_nothing_fails() {
        let (ours, _theirs) = tokio::io::duplex(4);
        let mut socket = PatientSocket::new(ours, Duration::from_millis(20));
        let error = socket.write_all(b"more than four").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
