//! Collecting a body: once, aligned, and never beyond its caps.
//!
//! The bytes go into one buffer, placed so that the first byte after the JSON is aligned. The buffer grows with what has arrived
//! ([`trusted_bytes`]), so a length that a header claims costs nothing. All buffers of the port share one budget. Deliberately
//! absent: streaming into the codec; a request is decoded when it is whole. An answer takes over the room of its request, so what is
//! computed and not yet sent counts as well; it is never refused for that, since the work is done: the budget goes into debt, and new
//! bodies wait for it to be paid.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bascule_runtime_api::AlignedBuffer;
use bascule_serving::InferError;
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::HttpSettings;
use super::failure::Failure;
use super::watch::{Receiving, Watch};
use crate::patience::{Patience, Slow};
use crate::trust::trusted_bytes;

/// When a caller may try again while the budget is spent.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The memory that all bodies under way share.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Below 0 where answers have taken more than was left.
    left: Arc<AtomicI64>,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Budget {
        Budget { left: Arc::new(AtomicI64::new(counted(bytes))) }
    }

    /// Room for one request. It is given back when the room is dropped.
    pub(crate) fn room(&self, limit_bytes: usize) -> Room {
        Room { budget: self.clone(), limit_bytes, taken: AtomicI64::new(0) }
    }
}

/// No memory is larger.
fn counted(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// One request's share of the budget, and its own cap.
#[derive(Debug)]
pub(crate) struct Room {
    budget: Budget,
    pub(crate) limit_bytes: usize,
    taken: AtomicI64,
}

impl Room {
    fn too_large(&self) -> Failure {
        InferError::TooLarge { what: "the body".to_owned(), limit_bytes: self.limit_bytes }.into()
    }

    fn take(&self, bytes: usize) -> Result<(), Failure> {
        let bytes = counted(bytes);
        let spend = |left: i64| left.checked_sub(bytes).filter(|left| *left >= 0);
        match self.budget.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend) {
            Ok(_) => {
                self.taken.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(_) => Err(InferError::Overloaded { what: "the memory for bodies".to_owned(), retry_after: RETRY_AFTER }.into()),
        }
    }

    /// Takes exactly so much from now on, whatever is left.
    pub(crate) fn settle(&self, bytes: usize) {
        let bytes = counted(bytes);
        let taken = self.taken.swap(bytes, Ordering::Relaxed);
        self.budget.left.fetch_add(taken - bytes, Ordering::Relaxed);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.left.fetch_add(*self.taken.get_mut(), Ordering::Relaxed);
    }
}

/// A body while it is put together.
pub(crate) struct Assembly<'r> {
    room: &'r Room,
    /// What the whole body will have, where that was said.
    expected: Option<usize>,
    buffer: AlignedBuffer,
    /// What was taken of the room.
    size: usize,
    filled: usize,
}

impl<'r> Assembly<'r> {
    /// The byte at `offset` is to be aligned.
    pub(crate) fn new(room: &'r Room, expected: Option<usize>, offset: usize) -> Assembly<'r> {
        Assembly { room, expected, buffer: AlignedBuffer::with_capacity_aligned_at(0, offset), size: 0, filled: 0 }
    }

    /// Free space for at least one more byte.
    pub(crate) fn space(&mut self) -> Result<&mut [u8], Failure> {
        if self.filled == self.size {
            self.grow(self.filled + 1)?;
        }
        self.buffer.resize(self.size);
        let filled = self.filled;
        Ok(&mut self.buffer.as_mut()[filled..])
    }

    /// Whether there is no space, and will be none.
    pub(crate) fn is_at_cap(&self) -> bool {
        self.filled == self.room.limit_bytes
    }

    /// Notes that so many bytes of the space were filled.
    pub(crate) fn advance(&mut self, count: usize) -> Result<(), Failure> {
        if self.is_at_cap() && count > 0 {
            return Err(self.room.too_large());
        }
        self.filled += count;
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        debug_assert_eq!(self.buffer.len(), self.filled, "what is pushed goes behind what was pushed");
        let end = self.filled + bytes.len();
        if end > self.size {
            self.grow(end)?;
        }
        self.buffer.extend_from_slice(bytes);
        self.filled = end;
        Ok(())
    }

    fn grow(&mut self, needed: usize) -> Result<(), Failure> {
        let limit = self.room.limit_bytes;
        if needed > limit {
            return Err(self.room.too_large());
        }
        let trusted = trusted_bytes(self.filled).max(needed);
        let wanted = match self.expected {
            Some(expected) => expected.max(needed),
            None => needed.saturating_mul(2).max(4096),
        };
        let size = wanted.min(trusted).min(limit);
        self.room.take(size - self.size)?;
        self.buffer.reserve_total(size);
        self.size = size;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Bytes {
        self.buffer.resize(self.filled);
        self.buffer.into_bytes()
    }
}

/// A request's body, of which the connection's watch knows how long it is coming.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Incoming,
    receiving: Option<Receiving>,
}

impl Upload {
    pub(crate) fn new(body: Incoming, watch: &Arc<Watch>) -> Upload {
        let receiving = (!body.is_end_stream()).then(|| watch.receiving());
        Upload { body, receiving }
    }

    /// Whether nothing more comes.
    fn is_whole(&self) -> bool {
        self.receiving.is_none()
    }

    /// The next part; `None` at the end.
    async fn frame(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        let frame = self.body.frame().await;
        let is_whole = frame.is_none() || self.body.is_end_stream();
        if is_whole && let Some(receiving) = self.receiving.take() {
            receiving.whole();
        }
        frame
    }
}

/// Reads a whole body. The byte at `offset` is aligned.
pub(crate) async fn collect(body: &mut Upload, offset: usize, room: &Room, settings: &HttpSettings) -> Result<Bytes, Failure> {
    let expected = body.body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if expected.is_some_and(|bytes| bytes > room.limit_bytes) {
        return Err(room.too_large());
    }
    let mut assembly = Assembly::new(room, expected, offset);
    let mut patience = patience(settings, body);
    while let Some(frame) = patience.while_waiting(body.frame()).await.map_err(too_slow)? {
        // The caller went away in the middle, or broke the protocol: nobody is there to read an answer.
        let frame = frame.map_err(|_| Failure::Engine(InferError::Cancelled))?;
        if let Ok(bytes) = frame.into_data() {
            assembly.push(&bytes)?;
        }
    }
    Ok(assembly.finish())
}

/// Over HTTP/1 the connection's own look polls the reader again, which needs no timer for that.
fn patience(settings: &HttpSettings, body: &Upload) -> Patience {
    let patience = Patience::new(settings.body_stall_timeout, settings.body_timeout);
    let is_polled_again = body.receiving.as_ref().is_some_and(|receiving| !receiving.is_http2());
    if is_polled_again { patience.polled_again() } else { patience }
}

fn too_slow(slow: Slow) -> Failure {
    Failure::Slow {
        what: match slow {
            Slow::Part => "the next part of the body",
            Slow::Whole => "the body",
        },
    }
}

/// Reads what is left of a body that nobody wants and throws it away, within bounds. A socket that is closed while bytes are still on
/// their way to it takes the answer along.
pub(crate) fn discard(mut body: Upload, settings: &HttpSettings) {
    if body.is_whole() {
        return;
    }
    let (limit, stall, total) = (settings.max_body_bytes, settings.body_stall_timeout, settings.body_timeout);
    tokio::spawn(tokio::time::timeout(total, async move {
        let mut read = 0;
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(stall, body.frame()).await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > limit {
                return;
            }
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_grow_with_what_arrives() {
        let budget = Budget::new(64 << 20);
        let room = budget.room(16 << 20);
        let claimed = 16 << 20;
        let mut assembly = Assembly::new(&room, Some(claimed), 3);
        assembly.push(&[7; 10]).unwrap();
        assert_eq!(assembly.size, trusted_bytes(0));
        let chunk = vec![9u8; 100_000];
        while assembly.filled + chunk.len() <= claimed {
            let before = assembly.filled;
            assembly.push(&chunk).unwrap();
            assert!(assembly.size <= trusted_bytes(before).max(assembly.filled), "{} for {}", assembly.size, assembly.filled);
        }
        let bytes = assembly.finish();
        assert_eq!(&bytes[..11], &[7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 9]);
        assert!(bytes[3..].as_ptr().addr().is_multiple_of(8));
    }

    #[test]
    fn a_small_body_takes_what_it_says() {
        let budget = Budget::new(1000);
        let room = budget.room(1000);
        let mut assembly = Assembly::new(&room, Some(93), 0);
        assembly.push(&[1; 93]).unwrap();
        assert_eq!(assembly.size, 93);
        assert_eq!(assembly.finish().len(), 93);
    }

    #[test]
    fn caps_hold_and_the_budget_comes_back() {
        let budget = Budget::new(10_000);
        let room = budget.room(5_000);
        let mut assembly = Assembly::new(&room, None, 0);
        assembly.push(&[1; 4_000]).unwrap();
        assert_eq!(assembly.push(&[1; 1_001]).unwrap_err().status().as_u16(), 413);
        let other = budget.room(10_000);
        let mut second = Assembly::new(&other, Some(9_000), 0);
        let refused = second.push(&[1; 9_000]).unwrap_err();
        assert_eq!((refused.status().as_u16(), refused.retry_after()), (429, Some(RETRY_AFTER)));
        drop(assembly);
        drop(room);
        second.push(&[1; 9_000]).unwrap();
        drop(second);
        drop(other);
        assert_eq!(budget.left.load(Ordering::Relaxed), 10_000);
    }

    #[test]
    fn a_caller_that_only_announces_takes_little() {
        let budget = Budget::new(1 << 30);
        let rooms: Vec<Room> = (0..4096).map(|_| budget.room(64 << 20)).collect();
        for room in &rooms {
            Assembly::new(room, Some(64 << 20), 0).push(&[1]).unwrap();
        }
        assert!(budget.left.load(Ordering::Relaxed) >= 3 << 28);
    }

    #[test]
    fn an_answer_counts_until_it_is_sent() {
        let budget = Budget::new(10_000);
        let room = budget.room(5_000);
        Assembly::new(&room, Some(100), 0).push(&[1; 100]).unwrap();
        room.settle(30_000);
        let other = budget.room(5_000);
        assert_eq!(other.take(1).unwrap_err().status().as_u16(), 429);
        room.settle(1_000);
        other.take(9_000).unwrap();
        assert!(other.take(1).is_err());
        drop((room, other));
        assert_eq!(budget.left.load(Ordering::Relaxed), 10_000);
    }
}
