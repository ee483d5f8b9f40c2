//! A file that comes from its first byte to its last, in batches that are worth a write.

use futures::{Stream, StreamExt as _};
use tokio::time::timeout;

use super::Pieces;
use super::ranged::Filled;
use super::transfers::Transfers;
use crate::manifest::ManifestFile;
use crate::source::{FetchError, Progress};

/// A batch has this many bytes before it is written, and less than a piece more.
const BATCH_BYTES: usize = 1 << 20;

struct Incoming<'a> {
    transfers: &'a Transfers,
    pieces: Pieces,
    file: &'a ManifestFile,
    progress: &'a dyn Progress,
    done: u64,
    ended: bool,
}

/// The whole file, in order. More than its size is an error as soon as it comes.
pub(super) fn batches<'a>(
    transfers: &'a Transfers,
    pieces: Pieces,
    file: &'a ManifestFile,
    progress: &'a dyn Progress,
) -> impl Stream<Item = Result<Filled, FetchError>> + 'a {
    let incoming = Incoming { transfers, pieces, file, progress, done: 0, ended: false };
    futures::stream::try_unfold(incoming, |mut incoming| async move { Ok(incoming.batch().await?.map(|batch| (batch, incoming))) })
}

impl Incoming<'_> {
    async fn batch(&mut self) -> Result<Option<Filled>, FetchError> {
        if self.ended {
            return Ok(None);
        }
        let slot = self.transfers.slot().await.ok_or_else(|| self.broke_off("it was given up"))?;
        let (mut batch, mut bytes) = (Filled { pieces: Vec::new(), slot }, 0);
        while bytes < BATCH_BYTES {
            let piece = timeout(self.transfers.limits().stall, self.pieces.next()).await;
            let Some(piece) = piece.map_err(|_| self.broke_off("it stopped moving"))? else {
                self.ended = true;
                break;
            };
            let piece = piece?;
            self.done = self.done.saturating_add(piece.len() as u64);
            if self.done > self.file.bytes {
                return Err(FetchError::Size { file: self.file.path.clone(), expected: self.file.bytes, actual: self.done });
            }
            bytes += piece.len();
            batch.slot.hold(piece.len());
            batch.pieces.push(piece);
            self.progress.advance(&self.file.path, self.done, self.file.bytes);
        }
        Ok(Some(batch))
    }

    fn broke_off(&self, why: &'static str) -> FetchError {
        FetchError::unavailable(format!("file `{}`", self.file.path), std::io::Error::other(why))
    }
}
