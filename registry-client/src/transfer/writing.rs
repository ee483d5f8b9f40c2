//! What comes, written in the order in which it comes, and put on disk meanwhile.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::pin::pin;

use futures::future::OptionFuture;
use futures::{Stream, StreamExt as _};
use tokio::task::JoinHandle;

use super::partial::Partial;
use super::ranged::Filled;
use super::transfers::Transfers;
use super::{join, off_thread};
use crate::manifest::ManifestFile;
use crate::source::{FetchError, FetchedFile};

/// Writes what comes. While one part is hashed and written the next are awaited, and what was written before is synced; no thread waits
/// for what has not come.
pub(super) async fn write_in_order(
    transfers: &Transfers,
    fills: impl Stream<Item = Result<Filled, FetchError>>,
    target: PathBuf,
    file: &ManifestFile,
) -> Result<FetchedFile, FetchError> {
    let expected = file.clone();
    let created = target.clone();
    let partial = off_thread(move || Partial::create(created, &expected)).await?;
    let sync_bytes = transfers.limits().sync_bytes;
    let mut writing = Writing { idle: Some(partial), ready: Vec::new(), append: None, sync: None, synced: 0, sync_bytes };
    let mut fills = pin!(fills.fuse());
    let failed = loop {
        writing.start_append();
        tokio::select! {
            Some(filled) = fills.next() => match filled {
                Ok(filled) => writing.ready.push(filled),
                Err(error) => break Some(error),
            },
            Some(appended) = OptionFuture::from(writing.append.as_mut()) => {
                writing.append = None;
                if let Err(error) = join(appended).and_then(|partial| writing.appended(partial)) {
                    break Some(error);
                }
            }
            Some(synced) = OptionFuture::from(writing.sync.as_mut()) => {
                writing.sync = None;
                if let Err(error) = join(synced.map(|synced| synced.map_err(|error| FetchError::disk(&target, error)))) {
                    break Some(error);
                }
            }
            else => break None,
        }
    };
    let idle = writing.end().await;
    if let Some(error) = failed {
        return Err(error);
    }
    let partial = idle.ok_or_else(|| FetchError::unavailable("the blocking thread", io::Error::other("it lost the file")))?;
    let expected = file.clone();
    off_thread(move || partial.finish(&expected)).await
}

/// A file, what is to be written to it, and the threads that work on it.
struct Writing {
    /// The file, where nothing is appended to it just now.
    idle: Option<Partial>,
    ready: Vec<Filled>,
    append: Option<JoinHandle<Result<Partial, FetchError>>>,
    sync: Option<JoinHandle<io::Result<()>>>,
    /// As far as the disk was asked for it.
    synced: u64,
    sync_bytes: u64,
}

impl Writing {
    fn start_append(&mut self) {
        if self.ready.is_empty() {
            return;
        }
        let Some(mut partial) = self.idle.take() else { return };
        let batch = std::mem::take(&mut self.ready);
        self.append = Some(tokio::task::spawn_blocking(move || {
            // Each slot is given back as soon as its bytes are written.
            for filled in batch {
                partial.append(&filled.pieces)?;
            }
            Ok(partial)
        }));
    }

    fn appended(&mut self, partial: Partial) -> Result<(), FetchError> {
        if self.sync.is_none() && partial.bytes() - self.synced >= self.sync_bytes {
            let file: File = partial.for_sync()?;
            self.synced = partial.bytes();
            // Its outcome counts: an error of the disk is told once for a file, here or at the end.
            self.sync = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        }
        self.idle = Some(partial);
        Ok(())
    }

    /// Waits for the threads, so that nothing is left behind a failure. The file, where nothing has gone wrong with it.
    async fn end(self) -> Option<Partial> {
        if let Some(sync) = self.sync {
            drop(sync.await);
        }
        match self.append {
            Some(append) => append.await.ok()?.ok(),
            None => self.idle,
        }
    }
}
