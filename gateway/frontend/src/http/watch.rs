//! Watches a connection for callers that send nothing, send slowly, or do not read.
//!
//! hyper's own header time-out would also end connections that rest between requests, and nothing in it ends a write that stalls; so the
//! socket and the handlers note here what moves, and the connection's task asks now and then what to do. Deliberately absent: the pace of
//! a body, which its reader watches.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::HttpSettings;

/// What a connection begins with that speaks HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection has been doing.
#[derive(Debug)]
pub(crate) struct Watch {
    start: Instant,
    header_timeout: Duration,
    write_timeout: Duration,
    idle_timeout: Duration,
    /// Handlers that have not answered yet.
    handling: AtomicUsize,
    /// Answers whose bodies are not yet handed to the socket.
    sending: AtomicUsize,
    /// When something last moved, in milliseconds from the start.
    moved: AtomicU64,
    /// When the first byte after the last request came, in milliseconds from the start plus one; 0 for none.
    stirred: AtomicU64,
    /// Whether the socket takes no more for now.
    writing: AtomicBool,
    http2: AtomicBool,
}

/// What to do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Ask again then.
    Keep(Instant),
    /// Nobody wants anything of it.
    Idle,
    /// Its caller is too slow.
    Stalled,
}

impl Watch {
    pub(crate) fn new(settings: &HttpSettings) -> Arc<Watch> {
        Arc::new(Watch {
            start: Instant::now(),
            header_timeout: settings.header_timeout,
            write_timeout: settings.write_timeout,
            idle_timeout: settings.idle_timeout,
            handling: AtomicUsize::new(0),
            sending: AtomicUsize::new(0),
            moved: AtomicU64::new(0),
            stirred: AtomicU64::new(0),
            writing: AtomicBool::new(false),
            http2: AtomicBool::new(false),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn moved(&self) {
        self.moved.store(self.now(), Ordering::Relaxed);
    }

    fn is_busy(&self) -> bool {
        self.handling.load(Ordering::Relaxed) + self.sending.load(Ordering::Relaxed) > 0
    }

    /// Whether no request is under way, nor an answer on the socket's threshold. Half a head is no request.
    pub(crate) fn is_free(&self) -> bool {
        !self.is_busy() && !self.writing.load(Ordering::Relaxed)
    }

    /// A handler begins.
    pub(crate) fn handling(self: &Arc<Self>) -> Handling {
        self.handling.fetch_add(1, Ordering::Relaxed);
        self.moved();
        Handling(Arc::clone(self))
    }

    /// What to do now.
    pub(crate) fn verdict(&self) -> Verdict {
        let after = |millis: u64, timeout: Duration| self.start + Duration::from_millis(millis) + timeout;
        let moved = self.moved.load(Ordering::Relaxed);
        let (limit, then) = if self.handling.load(Ordering::Relaxed) > 0 {
            // A handler has its own limits; look again in a while.
            return Verdict::Keep(Instant::now() + self.write_timeout);
        } else if self.sending.load(Ordering::Relaxed) > 0 {
            (after(moved, self.write_timeout), Verdict::Stalled)
        } else {
            match self.stirred.load(Ordering::Relaxed).checked_sub(1) {
                // HTTP/2 stirs for its own upkeep.
                Some(since) if !self.http2.load(Ordering::Relaxed) => (after(since, self.header_timeout), Verdict::Stalled),
                _ => (after(moved, self.idle_timeout), Verdict::Idle),
            }
        };
        if Instant::now() >= limit { then } else { Verdict::Keep(limit) }
    }

    fn received(&self) {
        if !self.is_busy() && self.stirred.load(Ordering::Relaxed) == 0 {
            self.stirred.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    /// Follows the first bytes of a connection, of which `seen` were the preface's.
    fn preface(&self, seen: usize, received: &[u8]) -> Option<usize> {
        let expected = &PREFACE[seen..];
        let compared = expected.len().min(received.len());
        if expected[..compared] != received[..compared] {
            return None;
        }
        if compared < expected.len() {
            return Some(seen + compared);
        }
        self.http2.store(true, Ordering::Relaxed);
        None
    }

    fn sent(&self) {
        // HTTP/2 writes for its own upkeep; what it sends of answers is noted by their bodies.
        if !self.http2.load(Ordering::Relaxed) {
            self.moved();
        }
    }

    fn finished(&self, count: &AtomicUsize) {
        count.fetch_sub(1, Ordering::Relaxed);
        self.moved();
        if !self.is_busy() {
            self.stirred.store(0, Ordering::Relaxed);
        }
    }
}

/// A handler under way.
#[derive(Debug)]
pub(crate) struct Handling(Arc<Watch>);

impl Handling {
    /// The answer is there; its body is to be sent.
    pub(crate) fn sending(self) -> Sending {
        self.0.sending.fetch_add(1, Ordering::Relaxed);
        Sending(Arc::clone(&self.0))
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        self.0.finished(&self.0.handling);
    }
}

/// An answer's body on its way to the socket.
#[derive(Debug)]
pub(crate) struct Sending(Arc<Watch>);

impl Sending {
    pub(crate) fn moved(&self) {
        self.0.moved();
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.finished(&self.0.sending);
    }
}

/// A socket that tells its watch what moves, and that fails when a write stalls.
pub(crate) struct WatchedStream<S> {
    inner: S,
    watch: Arc<Watch>,
    /// How much of HTTP/2's preface has come; `None` where something else came, or all of it.
    preface: Option<usize>,
    stall: Option<Pin<Box<Sleep>>>,
}

impl<S> WatchedStream<S> {
    pub(crate) fn new(inner: S, watch: Arc<Watch>) -> WatchedStream<S> {
        WatchedStream { inner, watch, preface: Some(0), stall: None }
    }

    /// Ends a write that has waited too long.
    fn guard(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.watch.writing.store(written.is_pending(), Ordering::Relaxed);
        if written.is_ready() {
            self.stall = None;
            self.watch.sent();
            return written;
        }
        let timeout = self.watch.write_timeout;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let received = &buffer.filled()[before..];
        if !received.is_empty() {
            self.preface = self.preface.and_then(|seen| self.watch.preface(seen, received));
            self.watch.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
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
    use super::*;

    /// Whether a connection that begins with these pieces is taken for HTTP/2.
    fn speaks_http2(pieces: &[&[u8]]) -> bool {
        let watch = Watch::new(&HttpSettings::default());
        let mut stream = WatchedStream::new((), Arc::clone(&watch));
        for piece in pieces {
            stream.preface = stream.preface.and_then(|seen| watch.preface(seen, piece));
        }
        watch.http2.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn http2_is_known_by_its_whole_preface() {
        assert!(speaks_http2(&[PREFACE]));
        assert!(speaks_http2(&[b"P", b"RI * HTTP/2.0\r\n\r\nS", b"M\r\n\r\n\0\0"]));
        assert!(!speaks_http2(&[b"PRI"]));
        assert!(!speaks_http2(&[b"POST / HTTP/1.1", PREFACE]));
        assert!(!speaks_http2(&[b"PR", b"X", PREFACE]));
    }

    #[tokio::test]
    async fn a_busy_connection_is_kept() {
        let settings = HttpSettings { idle_timeout: Duration::ZERO, header_timeout: Duration::ZERO, ..HttpSettings::default() };
        let watch = Watch::new(&settings);
        assert_eq!(watch.verdict(), Verdict::Idle);
        watch.received();
        assert_eq!(watch.verdict(), Verdict::Stalled);
        let handling = watch.handling();
        assert!(matches!(watch.verdict(), Verdict::Keep(_)));
        assert!(!watch.is_free());
        let sending = handling.sending();
        assert!(matches!(watch.verdict(), Verdict::Keep(_)));
        drop(sending);
        assert!(watch.is_free());
        assert_eq!(watch.verdict(), Verdict::Idle);
    }
}
