//! The files of a publish: found, measured, uploaded.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::{GetResultPayload, MultipartUpload, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions};
use tokio::io::AsyncReadExt as _;

use super::PublishError;
use crate::digest::{Digest, DigestBuilder};
use crate::log::{Put, put_if_absent};
use crate::manifest::{MAX_FILES, ManifestFile};
use crate::name::ModelName;
use crate::registry::Registry;
use crate::source::Progress;

/// Files up to this size are put at once; larger ones in parts of at least this size.
const PART_BYTES: u64 = 8 << 20;
/// Stores take up to 10,000 parts.
const MAX_PARTS: u64 = 9_000;
const MAX_DEPTH: usize = 16;

/// The files of a version that lies in one file or in a directory, with their paths inside the version, in order. Names that
/// start with a dot are left out. Blocks.
///
/// # Errors
/// Something can't be read, is neither file nor directory, has a name that is not UTF-8, or there is too much of it.
pub fn collect_files(from: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    if from.is_dir() {
        collect_below(from, "", 0, &mut files)?;
    } else {
        let name = from.file_name().ok_or_else(|| io::Error::other("it does not name a file"))?;
        std::fs::metadata(from)?;
        files.push((utf8(name)?.to_owned(), from.to_owned()));
    }
    files.sort_unstable();
    Ok(files)
}

fn collect_below(dir: &Path, prefix: &str, depth: usize, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in dir.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let name = utf8(&name)?;
        if name.starts_with('.') {
            continue;
        }
        let inside = format!("{prefix}{name}");
        let meta = std::fs::metadata(entry.path())?;
        if meta.is_dir() && depth < MAX_DEPTH {
            collect_below(&entry.path(), &format!("{inside}/"), depth + 1, files)?;
        } else if meta.is_file() && files.len() < MAX_FILES {
            files.push((inside, entry.path()));
        } else {
            let why = if meta.is_dir() { "is too deep" } else { "is not a file, or one too many" };
            return Err(io::Error::other(format!("`{inside}` {why}")));
        }
    }
    Ok(())
}

fn utf8(name: &std::ffi::OsStr) -> io::Result<&str> {
    name.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("name {name:?} is not UTF-8")))
}

/// Digest and size of a file that is to be published.
pub(crate) async fn measure(path: &Path) -> Result<(Option<Digest>, u64), PublishError> {
    let owned = path.to_owned();
    let measured = tokio::task::spawn_blocking(move || {
        // Reading a pipe or a device would wait, or never end.
        if !std::fs::metadata(&owned)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        crate::transfer::hash_file(&owned)
    });
    let measured = measured.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let (digest, bytes) = measured.map_err(|error| unreadable(path, error))?;
    Ok((Some(digest), bytes))
}

fn unreadable(path: &Path, error: io::Error) -> PublishError {
    PublishError::File { path: path.to_owned(), source: Arc::new(error) }
}

/// Reads a file in parts, and hashes what it reads: what is uploaded is what was measured, or the upload fails.
struct Parts {
    file: tokio::fs::File,
    hash: DigestBuilder,
}

impl Parts {
    async fn open(path: &Path) -> Result<Self, PublishError> {
        let file = tokio::fs::File::open(path).await.map_err(|error| unreadable(path, error))?;
        Ok(Self { file, hash: DigestBuilder::default() })
    }

    /// Up to `limit` bytes; fewer only at the end of the file.
    async fn next(&mut self, path: &Path, limit: u64) -> Result<Bytes, PublishError> {
        let mut part = Vec::new();
        (&mut self.file).take(limit).read_to_end(&mut part).await.map_err(|error| unreadable(path, error))?;
        self.hash.bytes(&part);
        Ok(part.into())
    }
}

impl Registry {
    /// Makes sure that the blob is there. Returns how many bytes were there already.
    pub(super) async fn upload(
        &self,
        model: &ModelName,
        file: &ManifestFile,
        source: &Path,
        progress: &dyn Progress,
    ) -> Result<u64, PublishError> {
        let Some(digest) = file.sha256 else {
            return Err(PublishError::FileChanged { path: source.to_owned() });
        };
        let blob = self.blob_path(model, &digest);
        progress.advance(&file.path, 0, file.bytes);
        let there = match self.store.head(&blob).await {
            Ok(meta) => Some(meta.size),
            Err(object_store::Error::NotFound { .. }) => None,
            Err(error) => return Err(PublishError::unavailable(blob.to_string(), error)),
        };
        if there == Some(file.bytes) && self.is_whole(&blob, &digest).await? {
            progress.advance(&file.path, file.bytes, file.bytes);
            return Ok(file.bytes);
        }
        if file.bytes <= PART_BYTES {
            self.upload_whole(&blob, file, source, there.is_some()).await?;
        } else {
            self.upload_parts(&blob, file, source, progress).await?;
        }
        progress.advance(&file.path, file.bytes, file.bytes);
        Ok(0)
    }

    /// Whether a blob that is there has the content that it is named after. Stores of other machines check that themselves and would
    /// have to send all of it; a local disk can lose bits, and publishing again has to mend what every fetch refuses.
    async fn is_whole(&self, blob: &object_store::path::Path, digest: &Digest) -> Result<bool, PublishError> {
        let unreadable = |error| PublishError::unavailable(blob.to_string(), error);
        let payload = match self.store.get(blob).await {
            Ok(result) => result.payload,
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(unreadable(error)),
        };
        let GetResultPayload::File(file, _) = payload else { return Ok(true) };
        let hashed = tokio::task::spawn_blocking(move || crate::transfer::hash(file)).await;
        let hashed = hashed.unwrap_or_else(|error| Err(io::Error::other(error)));
        let (actual, _) = hashed.map_err(|error| PublishError::unavailable(blob.to_string(), error))?;
        if actual != *digest {
            tracing::warn!(%blob, %actual, "a blob is damaged and is written again");
        }
        Ok(actual == *digest)
    }

    /// `mend` where a blob of the wrong size or content lies there.
    async fn upload_whole(
        &self,
        blob: &object_store::path::Path,
        file: &ManifestFile,
        source: &Path,
        mend: bool,
    ) -> Result<(), PublishError> {
        let mut parts = Parts::open(source).await?;
        let content = parts.next(source, PART_BYTES + 1).await?;
        if Some(parts.hash.finish()) != file.sha256 {
            return Err(PublishError::FileChanged { path: source.to_owned() });
        }
        let put = if mend {
            let options = PutOptions::from(PutMode::Overwrite);
            self.store.put_opts(blob, content.into(), options).await.map(|_| Put::Done)
        } else {
            // Where somebody else was faster the content is the same.
            put_if_absent(self.store.as_ref(), blob, content.into()).await
        };
        put.map(drop).map_err(|error| PublishError::writing(self.store.as_ref(), blob.to_string(), error))
    }

    async fn upload_parts(
        &self,
        blob: &object_store::path::Path,
        file: &ManifestFile,
        source: &Path,
        progress: &dyn Progress,
    ) -> Result<(), PublishError> {
        let failed = |error| PublishError::writing(self.store.as_ref(), blob.to_string(), error);
        let mut parts = Parts::open(source).await?;
        let mut upload = self.store.put_multipart(blob).await.map_err(failed)?;
        let sent = send_parts(&mut parts, upload.as_mut(), file, source, progress).await;
        let sent = match sent {
            // Completing is what makes the blob visible, whole: until then it can be left.
            Ok(()) if Some(parts.hash.finish()) == file.sha256 => upload.complete().await.map(drop).map_err(failed),
            Ok(()) => Err(PublishError::FileChanged { path: source.to_owned() }),
            Err(SendError::Read(error)) => Err(error),
            Err(SendError::Store(error)) => Err(failed(error)),
        };
        if sent.is_err()
            && let Err(error) = upload.abort().await
        {
            tracing::debug!(%blob, %error, "cannot abort an upload");
        }
        sent
    }
}

enum SendError {
    Read(PublishError),
    Store(object_store::Error),
}

async fn send_parts(
    parts: &mut Parts,
    upload: &mut dyn MultipartUpload,
    file: &ManifestFile,
    source: &Path,
    progress: &dyn Progress,
) -> Result<(), SendError> {
    let part_bytes = PART_BYTES.max(file.bytes.div_ceil(MAX_PARTS));
    let mut done = 0;
    loop {
        let part = parts.next(source, part_bytes).await.map_err(SendError::Read)?;
        if part.is_empty() {
            return Ok(());
        }
        done += part.len() as u64;
        if done > file.bytes {
            return Err(SendError::Read(PublishError::FileChanged { path: source.to_owned() }));
        }
        upload.put_part(part.into()).await.map_err(SendError::Store)?;
        progress.advance(&file.path, done, file.bytes);
    }
}
