//! Bringing one file onto disk: written, hashed and synced on a blocking thread, never trusted beyond its expected size.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;

use crate::digest::{Digest, DigestBuilder};
use crate::durable;
use crate::manifest::ManifestFile;
use crate::source::{FetchError, FetchedFile, Progress};

/// Pieces on their way to the disk. With pieces of a megabyte this bounds what one fetch holds in memory.
const PIECES_IN_FLIGHT: usize = 8;
/// How much of a local file is copied before progress is told.
const COPY_STEP: u64 = 16 << 20;

/// Where the bytes of a file come from.
pub(crate) enum Content {
    /// A local file, copied by the kernel: reflinked where the file system can, never hard-linked.
    Local(File),
    /// Pieces from elsewhere.
    Stream(Pieces),
    /// A file elsewhere of which parts can be read.
    Ranged(Arc<dyn Ranges>),
}

/// Pieces of a file, in order.
pub(crate) type Pieces = BoxStream<'static, Result<Bytes, FetchError>>;

/// A file elsewhere, of which parts can be read.
#[async_trait]
pub(crate) trait Ranges: Send + Sync {
    /// The bytes of this range as they come; fewer where the file ends before.
    async fn read(&self, range: Range<u64>) -> Result<Pieces, FetchError>;
}

/// Writes `file` to its place below `dest` and checks it against its manifest.
pub(crate) async fn bring(
    content: Content,
    file: &ManifestFile,
    dest: &Path,
    progress: &dyn Progress,
) -> Result<FetchedFile, FetchError> {
    let target = dest.join(&file.path);
    progress.advance(&file.path, 0, file.bytes);
    let (sha256, bytes) = match content {
        Content::Local(source) => copy_local(source, target, file, progress).await?,
        Content::Stream(pieces) => write_stream(pieces, target, file, progress).await?,
        Content::Ranged(ranges) => write_stream(ranges.read(0..file.bytes).await?, target, file, progress).await?,
    };
    check(file, sha256, bytes)?;
    progress.advance(&file.path, bytes, file.bytes);
    Ok(FetchedFile { path: file.path.clone(), sha256, bytes })
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

async fn copy_local(
    mut source: File,
    target: PathBuf,
    file: &ManifestFile,
    progress: &dyn Progress,
) -> Result<(Digest, u64), FetchError> {
    let (told, mut steps) = mpsc::channel(PIECES_IN_FLIGHT);
    // One byte more than expected tells a longer file from one that fits.
    let limit = file.bytes.saturating_add(1);
    let copy = tokio::task::spawn_blocking(move || {
        let disk = |error| FetchError::disk(&target, error);
        let mut written = create(&target).map_err(disk)?;
        let mut done = 0;
        while done < limit {
            // `io::copy` between files lets the kernel copy, and reflink where it can.
            let step = io::copy(&mut (&mut source).take(COPY_STEP.min(limit - done)), &mut written).map_err(disk)?;
            done += step;
            if step == 0 {
                break;
            }
            if told.blocking_send(done).is_err() {
                return Err(disk(io::Error::other("nobody waits for the copy any more")));
            }
        }
        written.sync_all().map_err(disk)?;
        hash_file(&target).map_err(disk)
    });
    while let Some(done) = steps.recv().await {
        progress.advance(&file.path, done.min(file.bytes), file.bytes);
    }
    join(copy.await)
}

async fn write_stream(
    mut pieces: impl Stream<Item = Result<Bytes, FetchError>> + Unpin,
    target: PathBuf,
    file: &ManifestFile,
    progress: &dyn Progress,
) -> Result<(Digest, u64), FetchError> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(PIECES_IN_FLIGHT);
    let write = tokio::task::spawn_blocking(move || {
        let disk = |error| FetchError::disk(&target, error);
        let mut written = create(&target).map_err(disk)?;
        let (mut hash, mut bytes) = (DigestBuilder::default(), 0);
        while let Some(piece) = receiver.blocking_recv() {
            hash.bytes(&piece);
            bytes += piece.len() as u64;
            written.write_all(&piece).map_err(disk)?;
        }
        written.sync_all().map_err(disk)?;
        Ok((hash.finish(), bytes))
    });
    let mut done = 0_u64;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        done = done.saturating_add(piece.len() as u64);
        if done > file.bytes {
            return Err(FetchError::Size { file: file.path.clone(), expected: file.bytes, actual: done });
        }
        if sender.send(piece).await.is_err() {
            // The writer has failed and says why below.
            break;
        }
        progress.advance(&file.path, done, file.bytes);
    }
    drop(sender);
    join(write.await)
}

fn join<T>(outcome: Result<Result<T, FetchError>, tokio::task::JoinError>) -> Result<T, FetchError> {
    outcome.unwrap_or_else(|error| Err(FetchError::unavailable("the blocking thread", error)))
}

fn create(target: &Path) -> io::Result<File> {
    if let Some(dir) = target.parent() {
        durable::create_dir(dir)?;
    }
    OpenOptions::new().write(true).create_new(true).open(target)
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
mod tests {
    use std::sync::Mutex;

    use futures::stream;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, u64)>>);

    impl Progress for Recorder {
        fn advance(&self, file: &str, done: u64, total: u64) {
            assert_eq!(file, "sub/file.bin");
            self.0.lock().unwrap().push((done, total));
        }
    }

    fn expected(content: &[u8], bytes: u64) -> ManifestFile {
        ManifestFile { path: "sub/file.bin".into(), sha256: Some(Digest::of(content)), bytes }
    }

    /// The same bytes as a local file and as a stream of pieces.
    fn both(dir: &Path, content: &[u8]) -> [Content; 2] {
        let source = dir.join("source");
        std::fs::write(&source, content).unwrap();
        let pieces: Vec<_> = content.chunks(3).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        [Content::Local(File::open(source).unwrap()), Content::Stream(stream::iter(pieces).boxed())]
    }

    #[tokio::test]
    async fn what_fits_is_written_and_progress_only_rises() {
        let dir = tempfile::tempdir().unwrap();
        for content in [&b"0123456789"[..], b""] {
            for (nth, source) in both(dir.path(), content).into_iter().enumerate() {
                let dest = dir.path().join(format!("dest-{}-{nth}", content.len()));
                let progress = Recorder::default();
                let file = expected(content, content.len() as u64);
                let fetched = bring(source, &file, &dest, &progress).await.unwrap();
                assert_eq!((fetched.sha256, fetched.bytes), (Digest::of(content), file.bytes));
                assert_eq!(std::fs::read(dest.join("sub/file.bin")).unwrap(), content);
                let told = progress.0.into_inner().unwrap();
                assert!(told.is_sorted() && told.iter().all(|(_, total)| *total == file.bytes), "{told:?}");
                assert_eq!(told.last(), Some(&(file.bytes, file.bytes)));
            }
        }
    }

    #[tokio::test]
    async fn what_differs_is_an_error_that_names_file_and_digests() {
        let dir = tempfile::tempdir().unwrap();
        for (nth, source) in both(dir.path(), b"0123456789").into_iter().enumerate() {
            let dest = dir.path().join(format!("corrupt-{nth}"));
            let error = bring(source, &expected(b"9876543210", 10), &dest, &Recorder::default()).await.unwrap_err();
            assert!(matches!(error, FetchError::Corrupt { .. }) && !error.is_transient());
            let text = error.to_string();
            for part in ["sub/file.bin", &Digest::of(b"0123456789").to_string(), &Digest::of(b"9876543210").to_string()] {
                assert!(text.contains(part), "{text} should name {part}");
            }
        }
        for bytes in [4, 11] {
            for (nth, source) in both(dir.path(), b"0123456789").into_iter().enumerate() {
                let dest = dir.path().join(format!("size-{bytes}-{nth}"));
                let error = bring(source, &expected(b"0123456789", bytes), &dest, &Recorder::default()).await.unwrap_err();
                assert!(matches!(error, FetchError::Size { expected, .. } if expected == bytes), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn a_longer_file_is_not_written_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[0; 64]))).boxed();
        let error = bring(Content::Stream(endless), &expected(b"", 100), dir.path(), &Recorder::default()).await.unwrap_err();
        assert!(matches!(error, FetchError::Size { actual: 128, .. }), "{error}");
        let zeros = File::open("/dev/zero").unwrap();
        let dest = dir.path().join("zeros");
        let error = bring(Content::Local(zeros), &expected(b"", 100), &dest, &Recorder::default()).await.unwrap_err();
        assert!(matches!(error, FetchError::Size { actual: 101, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_disk_that_refuses_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("sub"), b"in the way").unwrap();
        for source in both(dir.path(), b"0123456789") {
            let error = bring(source, &expected(b"0123456789", 10), dir.path(), &Recorder::default()).await.unwrap_err();
            assert!(matches!(error, FetchError::Disk { .. }) && error.to_string().contains("sub/file.bin"), "{error}");
        }
    }
}
