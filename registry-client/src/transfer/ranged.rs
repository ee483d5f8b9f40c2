//! A file read in ranges, several at a time. One that breaks off or stalls goes on where it broke.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::time::{sleep, timeout};

use super::transfers::{Slot, Transfers};
use super::{Pieces, Ranges};
use crate::manifest::ManifestFile;
use crate::source::{FetchError, Progress};

/// Bytes of a file on their way to the disk.
pub(super) struct Filled {
    pub(super) pieces: Vec<Bytes>,
    pub(super) slot: Slot,
}

/// How much of a file has come, over all of its ranges.
pub(super) struct Done<'a> {
    file: &'a ManifestFile,
    bytes: AtomicU64,
    progress: &'a dyn Progress,
}

impl<'a> Done<'a> {
    pub(super) fn new(file: &'a ManifestFile, progress: &'a dyn Progress) -> Self {
        Self { file, bytes: AtomicU64::new(0), progress }
    }

    /// Ranges of one file are polled by one task, so what is told only rises.
    fn add(&self, bytes: u64) {
        let done = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.progress.advance(&self.file.path, done, self.file.bytes);
    }
}

/// The whole file, in order.
pub(super) fn fills<'a>(
    transfers: &'a Transfers,
    ranges: &'a dyn Ranges,
    file: &'a ManifestFile,
    done: &'a Done<'a>,
) -> impl Stream<Item = Result<Filled, FetchError>> + 'a {
    let (size, step) = (file.bytes, transfers.limits().range_bytes.max(1));
    let count = size.div_ceil(step);
    let parts = (0..count).map(move |nth| (nth * step)..((nth + 1) * step).min(size));
    let reads = parts.map(move |range| Box::pin(fill(transfers, ranges, range, done)));
    // Slots are given in the order of asking, so the first range that is missing always has one, and all others follow it.
    futures::stream::iter(reads).buffered(transfers.limits().ranges.max(1))
}

/// Reads one range, in as many tries as it takes while bytes come.
async fn fill(transfers: &Transfers, ranges: &dyn Ranges, range: Range<u64>, done: &Done<'_>) -> Result<Filled, FetchError> {
    let slot = transfers.slot().await.ok_or_else(|| broke_off(done, "it was given up"))?;
    let filled = Filled { pieces: Vec::new(), slot };
    let mut reading = Reading { transfers, done, at: range.start, told: range.start, end: range.end, filled };
    let mut tries = 0;
    while reading.at < reading.end {
        let before = reading.at;
        let Err(error) = reading.read(ranges).await else { break };
        if !matches!(error, FetchError::Unavailable { .. } | FetchError::Size { .. }) {
            return Err(error);
        }
        tries = if reading.at > before { 1 } else { tries + 1 };
        if tries >= transfers.limits().tries.max(1) {
            return Err(error);
        }
        tracing::debug!(file = done.file.path, at = reading.at, end = reading.end, tries, %error, "a transfer broke off");
        sleep(transfers.backoff(tries)).await;
    }
    Ok(reading.filled)
}

/// One range, as far as it has come.
struct Reading<'a> {
    transfers: &'a Transfers,
    done: &'a Done<'a>,
    at: u64,
    /// As far as progress was told: what is thrown away and comes again is not told twice.
    told: u64,
    end: u64,
    filled: Filled,
}

impl Reading<'_> {
    /// Asks for what is missing; an error where not all of it comes.
    async fn read(&mut self, ranges: &dyn Ranges) -> Result<(), FetchError> {
        let stall = self.transfers.limits().stall;
        let (began, taken) = (self.at, self.filled.pieces.len());
        let answer = timeout(stall, ranges.read(began..self.end)).await;
        let mut pieces: Pieces = answer.map_err(|_| broke_off(self.done, "there was no answer in time"))??;
        loop {
            let piece = timeout(stall, pieces.next()).await.map_err(|_| broke_off(self.done, "it stopped moving"))?;
            let piece = match piece {
                Some(piece) => piece?,
                None if self.at == self.end => return Ok(()),
                // Where the file itself is shorter the next try says so too.
                None => return Err(size(self.done, self.at)),
            };
            if piece.len() as u64 > self.end - self.at {
                // An answer that does not end where it was asked to need not have begun there either: nothing of it counts.
                let sent = self.at.saturating_add(piece.len() as u64);
                self.throw_away(began, taken);
                return Err(if self.end == self.done.file.bytes {
                    size(self.done, sent)
                } else {
                    broke_off(self.done, "it sent more than was asked for")
                });
            }
            self.keep(piece);
        }
    }

    fn keep(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.at += piece.len() as u64;
        self.filled.slot.hold(piece.len());
        self.filled.pieces.push(piece);
        if self.at > self.told {
            self.done.add(self.at - self.told);
            self.told = self.at;
        }
    }

    fn throw_away(&mut self, began: u64, taken: usize) {
        for piece in self.filled.pieces.drain(taken..) {
            self.filled.slot.let_go(piece.len());
        }
        self.at = began;
    }
}

fn size(done: &Done<'_>, actual: u64) -> FetchError {
    FetchError::Size { file: done.file.path.clone(), expected: done.file.bytes, actual }
}

fn broke_off(done: &Done<'_>, why: &'static str) -> FetchError {
    FetchError::unavailable(format!("file `{}`", done.file.path), std::io::Error::other(why))
}
