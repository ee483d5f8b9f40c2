//! Bringing files onto disk: in parallel, each verified while it is written, and never trusted beyond its expected size.
//!
//! A file is written under a name that no version can have, hashed in order as its bytes come, synced once and renamed to its place once
//! size and digest are right: what lies at its place is complete. What is on its way, over all fetches of the process, is bounded by
//! [`Transfers`], whatever the sizes of the files.

mod incoming;
mod local;
mod partial;
mod ranged;
mod transfers;
mod writing;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::digest::{Digest, DigestBuilder};
use crate::manifest::ManifestFile;
use crate::source::{FetchError, FetchedFile, Progress};

pub(crate) use partial::free_bytes;
#[cfg(test)]
pub(crate) use transfers::TransferLimits;
pub(crate) use transfers::Transfers;

/// Where the bytes of a file come from.
pub(crate) enum Content {
    /// A local file, copied by the kernel: reflinked where the file system can, never hard-linked.
    Local(File),
    /// Pieces from elsewhere, from the first byte on. Where they break off the file has failed.
    Stream(Pieces),
    /// A file elsewhere of which parts can be read: several at a time, and each goes on where it broke off.
    Ranged(Arc<dyn Ranges>),
}

/// Pieces of a file, in order.
pub(crate) type Pieces = BoxStream<'static, Result<Bytes, FetchError>>;

/// A file elsewhere, of which parts can be read.
#[async_trait]
pub(crate) trait Ranges: Send + Sync {
    /// The bytes of this range as they come; fewer where the file ends before. An answer for another range, or of a file that is not
    /// the one of the first answer (by its entity tag), must be an error: [`FetchError::Unavailable`] is tried again, others are not.
    async fn read(&self, range: Range<u64>) -> Result<Pieces, FetchError>;
}

/// Where the files of one version come from.
#[async_trait]
pub(crate) trait OpenFile: Sync {
    /// What brings this file.
    async fn open(&self, file: &ManifestFile) -> Result<Content, FetchError>;
}

/// Brings all of these files below `dest`, several at a time. `from` is not asked for one that lies complete in `dest` already. In
/// the order of `files`.
pub(crate) async fn bring_all(
    transfers: &Transfers,
    from: &dyn OpenFile,
    files: &[ManifestFile],
    dest: &Path,
    progress: &dyn Progress,
) -> Result<Vec<FetchedFile>, FetchError> {
    // Boxed one by one: a version may have ten thousand files.
    let mut each: Vec<BoxFuture<'_, Result<FetchedFile, FetchError>>> = Vec::with_capacity(files.len());
    for file in files {
        each.push(Box::pin(bring_one(transfers, from, file, dest, progress)));
    }
    futures::stream::iter(each).buffered(transfers.limits().files.max(1)).try_collect().await
}

async fn bring_one(
    transfers: &Transfers,
    from: &dyn OpenFile,
    file: &ManifestFile,
    dest: &Path,
    progress: &dyn Progress,
) -> Result<FetchedFile, FetchError> {
    if let Some(there) = already_there(file, dest).await? {
        progress.advance(&file.path, there.bytes, file.bytes);
        return Ok(there);
    }
    write(transfers, from.open(file).await?, file, dest, progress).await
}

/// Writes `file` to its place below `dest` and checks it against its manifest. One that lies complete there already is verified and
/// stays.
pub(crate) async fn bring(
    content: Content,
    file: &ManifestFile,
    dest: &Path,
    progress: &dyn Progress,
) -> Result<FetchedFile, FetchError> {
    if let Some(there) = already_there(file, dest).await? {
        progress.advance(&file.path, there.bytes, file.bytes);
        return Ok(there);
    }
    write(Transfers::of_process(), content, file, dest, progress).await
}

async fn write(
    transfers: &Transfers,
    content: Content,
    file: &ManifestFile,
    dest: &Path,
    progress: &dyn Progress,
) -> Result<FetchedFile, FetchError> {
    let target = dest.join(&file.path);
    progress.advance(&file.path, 0, file.bytes);
    let written = match content {
        Content::Local(source) => local::copy(source, target, file, progress).await?,
        Content::Stream(pieces) => {
            let fills = incoming::batches(transfers, pieces, file, progress);
            writing::write_in_order(transfers, fills, target, file).await?
        }
        Content::Ranged(ranges) => {
            let done = ranged::Done::new(file, progress);
            let fills = ranged::fills(transfers, ranges.as_ref(), file, &done);
            writing::write_in_order(transfers, fills, target, file).await?
        }
    };
    progress.advance(&file.path, written.bytes, file.bytes);
    Ok(written)
}

/// A file that lies at its place is complete. It may still be damaged, so it is read again; one that is not what the manifest names is
/// taken away: only its name, since it may be shared with other versions.
async fn already_there(file: &ManifestFile, dest: &Path) -> Result<Option<FetchedFile>, FetchError> {
    let (target, file) = (dest.join(&file.path), file.clone());
    off_thread(move || {
        let found = match std::fs::symlink_metadata(&target) {
            Ok(found) => found,
            // Whatever else is wrong with the place is told by whoever writes there.
            Err(_) => return Ok(None),
        };
        let disk = |error| FetchError::disk(&target, error);
        if found.is_file() && found.len() == file.bytes && file.sha256.is_some() {
            let (sha256, bytes) = hash_file(&target).map_err(disk)?;
            if Some(sha256) == file.sha256 {
                return Ok(Some(FetchedFile { path: file.path, sha256, bytes }));
            }
            tracing::warn!(file = %target.display(), actual = %sha256, "a file on local disk is damaged and is brought again");
        }
        std::fs::remove_file(&target).map_err(disk)?;
        Ok(None)
    })
    .await
}

fn check(file: &ManifestFile, sha256: Digest, bytes: u64) -> Result<(), FetchError> {
    if bytes != file.bytes {
        return Err(FetchError::Size { file: file.path.clone(), expected: file.bytes, actual: bytes });
    }
    match file.sha256 {
        Some(expected) if expected != sha256 => Err(FetchError::Corrupt { file: file.path.clone(), expected, actual: sha256 }),
        _ => Ok(()),
    }
}

/// Runs what blocks.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, FetchError> + Send + 'static) -> Result<T, FetchError> {
    join(tokio::task::spawn_blocking(work).await)
}

fn join<T>(outcome: Result<Result<T, FetchError>, tokio::task::JoinError>) -> Result<T, FetchError> {
    outcome.unwrap_or_else(|error| Err(FetchError::unavailable("the blocking thread", error)))
}

/// Digest and size of a file on disk. Blocks.
pub(crate) fn hash_file(path: &Path) -> io::Result<(Digest, u64)> {
    hash(File::open(path)?)
}

/// The same for a file that is open. Blocks.
pub(crate) fn hash(mut file: File) -> io::Result<(Digest, u64)> {
    let (mut hash, mut bytes) = (DigestBuilder::default(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hash.finish(), bytes)),
            Ok(read) => {
                hash.bytes(&buffer[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
