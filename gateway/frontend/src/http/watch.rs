//! Watches a connection for callers that send nothing, send slowly, or do not read.
//!
//! hyper's own header time-out would also end connections that rest between requests, and nothing in it ends a write that stalls; so the
//! socket, the handlers and the bodies note here what moves, and the connection's task asks now and then what to do. An answer is owed
//! until the socket has taken its last byte, wherever hyper keeps it until then. Deliberately absent: the pace of a request's body, which
//! its reader watches.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a connection that is to close may take for what its protocol still owes.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// What a connection begins with that speaks HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection may let others wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// For a whole head, from its first byte on.
    pub(crate) header: Duration,
    /// Without the socket taking any of an answer.
    pub(crate) write: Duration,
    /// Without a request.
    pub(crate) idle: Duration,
    /// Without any of a body that is coming; its reader ends it.
    pub(crate) stall: Duration,
}

impl Timeouts {
    /// How long to look away at the most: a connection begins to stir without telling its task.
    fn look(&self) -> Duration {
        self.header.min(self.write).min(self.idle).min(self.stall).max(Duration::from_millis(1))
    }
}

/// What a connection has been doing.
#[derive(Debug)]
pub(crate) struct Watch {
    start: Instant,
    timeouts: Timeouts,
    /// Handlers that have not answered yet.
    handling: AtomicUsize,
    /// Answers that the socket has not yet taken whole.
    sending: AtomicUsize,
    /// Bodies of requests that have not come whole, whether or not somebody wants them.
    receiving: AtomicUsize,
    /// When something last moved, in milliseconds from the start.
    moved: AtomicU64,
    /// When the first byte after the last request came, or when its turn came, in milliseconds from the start plus one; 0 for none.
    stirred: AtomicU64,
    /// Whether the socket takes no more for now.
    writing: AtomicBool,
    /// Whether a body was given up before its end: what is left of it may still come.
    abandoned: AtomicBool,
    http2: AtomicBool,
    /// When each answer that is owed over HTTP/2 last moved. There, one that nobody reads rests while others move.
    answers: Mutex<Vec<Arc<AtomicU64>>>,
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
    pub(crate) fn new(timeouts: Timeouts) -> Arc<Watch> {
        Arc::new(Watch {
            start: Instant::now(),
            timeouts,
            handling: AtomicUsize::new(0),
            sending: AtomicUsize::new(0),
            receiving: AtomicUsize::new(0),
            moved: AtomicU64::new(0),
            stirred: AtomicU64::new(0),
            writing: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            answers: Mutex::default(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn moved(&self) {
        self.moved.store(self.now(), Ordering::Relaxed);
    }

    fn is_busy(&self) -> bool {
        [&self.handling, &self.sending, &self.receiving].iter().any(|count| count.load(Ordering::Relaxed) > 0)
    }

    /// A handler begins: the head that was coming is there.
    pub(crate) fn handling(self: &Arc<Self>) -> Handling {
        self.handling.fetch_add(1, Ordering::Relaxed);
        self.stirred.store(0, Ordering::Relaxed);
        Handling(Arc::clone(self))
    }

    fn answers(&self) -> MutexGuard<'_, Vec<Arc<AtomicU64>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the answer that has waited longest last moved; for HTTP/2 only.
    fn oldest_answer(&self) -> Option<u64> {
        if !self.http2.load(Ordering::Relaxed) {
            return None;
        }
        self.answers().iter().map(|moved| moved.load(Ordering::Relaxed)).min()
    }

    /// Whether requests are read by tasks of their own, which nobody wakes when it is time to look.
    pub(crate) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// A body of a request begins to come.
    pub(crate) fn receiving(self: &Arc<Self>) -> Receiving {
        self.receiving.fetch_add(1, Ordering::Relaxed);
        Receiving { watch: Arc::clone(self), whole: false }
    }

    /// What to do now.
    pub(crate) fn verdict(&self) -> Verdict {
        let look = Instant::now() + self.timeouts.look();
        let after = |millis: u64, timeout: Duration| self.start + Duration::from_millis(millis) + timeout;
        let moved = self.moved.load(Ordering::Relaxed);
        if let Some(oldest) = self.oldest_answer()
            && Instant::now() >= after(oldest, self.timeouts.write)
        {
            return Verdict::Stalled;
        }
        let (limit, then) = if self.handling.load(Ordering::Relaxed) > 0 {
            // A handler has its own limits.
            return Verdict::Keep(look);
        } else if self.sending.load(Ordering::Relaxed) > 0 {
            (after(moved, self.timeouts.write), Verdict::Stalled)
        } else if self.receiving.load(Ordering::Relaxed) > 0 {
            // A body that is thrown away has its own limits as well.
            return Verdict::Keep(look);
        } else {
            match self.stirred.load(Ordering::Relaxed).checked_sub(1) {
                // HTTP/2 stirs for its own upkeep.
                Some(since) if !self.http2.load(Ordering::Relaxed) => (after(since, self.timeouts.header), Verdict::Stalled),
                _ => (after(moved, self.timeouts.idle), Verdict::Idle),
            }
        };
        if Instant::now() >= limit { then } else { Verdict::Keep(limit.min(look)) }
    }

    /// What to do now with a connection that is to close since then. It ends by itself where its protocol lets it, so what is left is
    /// cut: half a head, and a peer that does not say good-bye. Such a peer gets longer where it was answered meanwhile, because the
    /// answer may still lie in the buffers of the system.
    pub(crate) fn closing(&self, since: Instant) -> Verdict {
        if self.is_busy() || self.writing.load(Ordering::Relaxed) {
            let stalled = self.verdict() == Verdict::Stalled;
            return if stalled { Verdict::Stalled } else { Verdict::Keep(Instant::now() + CLOSE_GRACE) };
        }
        let moved = self.start + Duration::from_millis(self.moved.load(Ordering::Relaxed));
        let answered = self.http2.load(Ordering::Relaxed) && moved > since;
        let limit = if answered { moved + self.timeouts.write } else { since + CLOSE_GRACE };
        if Instant::now() >= limit { Verdict::Idle } else { Verdict::Keep(limit) }
    }

    /// Bytes came. While a body is coming they are the body's; else they begin a head, also where its turn has not come. The piece of a
    /// head that comes with the last bytes of a body is not told from them: then the connection counts as resting.
    fn received(&self) {
        if self.receiving.load(Ordering::Relaxed) == 0 && self.stirred.load(Ordering::Relaxed) == 0 {
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

    /// Whether the peer may be sending when its connection ends: the rest of a body, or what HTTP/2 says of what it reads.
    fn is_talking(&self) -> bool {
        self.http2.load(Ordering::Relaxed) || self.abandoned.load(Ordering::Relaxed)
    }

    fn sent(&self) {
        // HTTP/2 writes for its own upkeep; what it sends of answers is noted by their bytes.
        if !self.http2.load(Ordering::Relaxed) {
            self.moved();
        }
    }

    /// Something is over. Who tells that it moved does so before.
    fn finished(&self, count: &AtomicUsize) {
        count.fetch_sub(1, Ordering::Relaxed);
        // A head that began to come ahead of its turn has its time from now on.
        if !self.is_busy() && self.stirred.load(Ordering::Relaxed) != 0 {
            self.stirred.store(self.now() + 1, Ordering::Relaxed);
        }
    }
}

/// A handler under way.
#[derive(Debug)]
pub(crate) struct Handling(Arc<Watch>);

impl Handling {
    /// The answer is there; its body is to be sent.
    pub(crate) fn sending(self) -> Sending {
        let watch = Arc::clone(&self.0);
        watch.moved();
        watch.sending.fetch_add(1, Ordering::Relaxed);
        let own = watch.http2.load(Ordering::Relaxed).then(|| Arc::new(AtomicU64::new(watch.now())));
        if let Some(own) = &own {
            watch.answers().push(Arc::clone(own));
        }
        Sending { watch, own }
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        // One that gave no answer, and that nobody waits for any more, is the last that moved.
        if self.0.sending.load(Ordering::Relaxed) == 0 {
            self.0.moved();
        }
        self.0.finished(&self.0.handling);
    }
}

/// A body of a request on its way from the socket.
#[derive(Debug)]
pub(crate) struct Receiving {
    watch: Arc<Watch>,
    whole: bool,
}

impl Receiving {
    /// Whether its connection speaks HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.watch.is_http2()
    }

    /// All of it is there.
    pub(crate) fn whole(mut self) {
        self.whole = true;
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if !self.whole {
            self.watch.abandoned.store(true, Ordering::Relaxed);
        }
        // While a handler is at work, its answer is going to move.
        if self.watch.handling.load(Ordering::Relaxed) == 0 {
            self.watch.moved();
        }
        self.watch.finished(&self.watch.receiving);
    }
}

/// An answer's body on its way to the socket.
#[derive(Debug)]
pub(crate) struct Sending {
    watch: Arc<Watch>,
    /// Over HTTP/2: when this one last moved.
    own: Option<Arc<AtomicU64>>,
}

impl Sending {
    /// Some of it has moved. Over HTTP/1 the socket tells that itself.
    pub(crate) fn moved(&self) {
        if let Some(own) = &self.own {
            self.watch.moved();
            own.store(self.watch.now(), Ordering::Relaxed);
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            self.watch.answers().retain(|other| !Arc::ptr_eq(other, own));
            self.watch.moved();
        }
        self.watch.finished(&self.watch.sending);
    }
}

/// A socket that tells its watch what moves, that fails when a write stalls, and that is closed only when its peer has heard of the end.
pub(crate) struct WatchedStream<S> {
    inner: S,
    watch: Arc<Watch>,
    /// How much of HTTP/2's preface has come; `None` where something else came, or all of it.
    preface: Option<usize>,
    stall: Option<Pin<Box<Sleep>>>,
    /// Runs from when the end was told to the peer.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S> WatchedStream<S> {
    pub(crate) fn new(inner: S, watch: Arc<Watch>) -> WatchedStream<S> {
        WatchedStream { inner, watch, preface: Some(0), stall: None, linger: None }
    }

    /// Ends a write that has waited too long.
    fn guard(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.watch.writing.store(written.is_pending(), Ordering::Relaxed);
        if written.is_ready() {
            self.stall = None;
            self.watch.sent();
            return written;
        }
        let timeout = self.watch.timeouts.write;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")))
    }
}

impl<S: AsyncRead + Unpin> WatchedStream<S> {
    /// Reads on and forgets, until the peer ends or for a while. A socket that is closed while its peer still sends is reset, and what the
    /// peer has not received by then is lost.
    fn linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSE_GRACE)));
        if linger.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut scratch = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.inner).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
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
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
        }
        if self.watch.is_talking() {
            ready!(self.linger(context));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_hours(1);
    const PATIENT: Timeouts = Timeouts { header: LONG, write: LONG, idle: LONG, stall: LONG };

    /// Whether a connection that begins with these pieces is taken for HTTP/2.
    fn speaks_http2(pieces: &[&[u8]]) -> bool {
        let watch = Watch::new(PATIENT);
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
        let watch = Watch::new(Timeouts { header: Duration::ZERO, idle: Duration::ZERO, ..PATIENT });
        assert_eq!(watch.verdict(), Verdict::Idle);
        watch.received();
        assert_eq!(watch.verdict(), Verdict::Stalled);
        let handling = watch.handling();
        assert!(matches!(watch.verdict(), Verdict::Keep(_)));
        let long_ago = Instant::now() - CLOSE_GRACE;
        assert!(matches!(watch.closing(long_ago), Verdict::Keep(_)));
        let sending = handling.sending();
        assert!(matches!(watch.verdict(), Verdict::Keep(_)));
        assert!(matches!(watch.closing(long_ago), Verdict::Keep(_)));
        drop(sending);
        assert_eq!(watch.closing(long_ago), Verdict::Idle);
        assert_eq!(watch.verdict(), Verdict::Idle);
    }

    #[tokio::test]
    async fn bytes_of_a_body_are_no_head_and_others_are() {
        let watch = Watch::new(Timeouts { header: Duration::ZERO, ..PATIENT });
        let is_kept = |watch: &Watch| matches!(watch.verdict(), Verdict::Keep(_));
        let (handling, receiving) = (watch.handling(), watch.receiving());
        watch.received();
        drop(handling);
        // The answer is gone, the rest of the refused body still comes.
        watch.received();
        assert!(is_kept(&watch));
        drop(receiving);
        assert!(is_kept(&watch));
        // The next head begins while a handler runs.
        let handling = watch.handling();
        watch.received();
        assert!(is_kept(&watch));
        drop(handling);
        assert_eq!(watch.verdict(), Verdict::Stalled);
    }

    #[tokio::test]
    async fn who_was_answered_while_closing_has_time_to_say_good_bye() {
        let mut watch = Watch::new(PATIENT);
        let since = Instant::now() - CLOSE_GRACE;
        Arc::get_mut(&mut watch).unwrap().start = since - CLOSE_GRACE;
        watch.http2.store(true, Ordering::Relaxed);
        assert_eq!(watch.closing(since), Verdict::Idle);
        drop(watch.handling().sending());
        assert!(matches!(watch.closing(since), Verdict::Keep(_)));
        watch.http2.store(false, Ordering::Relaxed);
        assert_eq!(watch.closing(since), Verdict::Idle);
    }
}
