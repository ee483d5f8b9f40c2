//! A file that is being written: under another name until it is whole and true.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use uuid::Uuid;

use super::check;
use crate::digest::{Digest, DigestBuilder};
use crate::durable;
use crate::manifest::ManifestFile;
use crate::source::{FetchError, FetchedFile};

/// The file. Removed when it is dropped without having been finished. All of it blocks.
pub(super) struct Partial {
    target: PathBuf,
    /// Beside the target, so that it can be renamed.
    path: PathBuf,
    file: File,
    hash: DigestBuilder,
    bytes: u64,
    expected_bytes: u64,
    finished: bool,
}

impl Partial {
    pub(super) fn create(target: PathBuf, expected: &ManifestFile) -> Result<Self, FetchError> {
        let dir = target.parent().unwrap_or(Path::new("/"));
        let path = dir.join(format!(".{}.partial", Uuid::new_v4().simple()));
        let opened = durable::create_dir(dir).and_then(|()| OpenOptions::new().read(true).write(true).create_new(true).open(&path));
        match opened {
            Ok(file) => {
                let hash = DigestBuilder::default();
                Ok(Self { target, path, file, hash, bytes: 0, expected_bytes: expected.bytes, finished: false })
            }
            Err(error) => Err(full_or_disk(&target, expected.bytes, error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// For those who write by themselves and finish with [`Partial::finish_as`].
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// How much was appended.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The same file for a thread that syncs what was written while more is written.
    pub(super) fn for_sync(&self) -> Result<File, FetchError> {
        self.file.try_clone().map_err(|error| self.failed(self.bytes, error))
    }

    pub(super) fn failed(&self, written: u64, error: io::Error) -> FetchError {
        full_or_disk(&self.target, self.expected_bytes.saturating_sub(written), error)
    }

    pub(super) fn append(&mut self, pieces: &[Bytes]) -> Result<(), FetchError> {
        for piece in pieces {
            self.hash.bytes(piece);
        }
        let written = write_all(&mut self.file, pieces).map_err(|error| self.failed(self.bytes, error))?;
        self.bytes += written;
        Ok(())
    }

    pub(super) fn finish(self, expected: &ManifestFile) -> Result<FetchedFile, FetchError> {
        let (sha256, bytes) = (self.hash.clone().finish(), self.bytes);
        self.finish_as(expected, sha256, bytes)
    }

    /// Checks it, syncs it, and gives it its name.
    pub(super) fn finish_as(mut self, expected: &ManifestFile, sha256: Digest, bytes: u64) -> Result<FetchedFile, FetchError> {
        check(expected, sha256, bytes)?;
        let named = self.file.sync_all().and_then(|()| std::fs::rename(&self.path, &self.target));
        named.map_err(|error| self.failed(bytes, error))?;
        self.finished = true;
        Ok(FetchedFile { path: expected.path.clone(), sha256, bytes })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // One that stays is under a name that nobody reads.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes all pieces with as few calls as the system takes.
fn write_all(file: &mut File, pieces: &[Bytes]) -> io::Result<u64> {
    /// The system takes no more at a time.
    const AT_ONCE: usize = 1024;
    let mut written = 0;
    for chunk in pieces.chunks(AT_ONCE) {
        let mut slices: Vec<_> = chunk.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match file.write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    written += bytes as u64;
                    IoSlice::advance_slices(&mut left, bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(written)
}

/// A full disk gets its own error, whichever way it is full.
fn full_or_disk(target: &Path, missing: u64, error: io::Error) -> FetchError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            let free = target.ancestors().skip(1).find_map(|dir| free_bytes(dir).ok()).unwrap_or(0);
            FetchError::NoSpace { path: target.to_owned(), needed: missing, free }
        }
        _ => FetchError::disk(target, error),
    }
}

/// Bytes that can still be written where this directory is. Blocks.
pub(crate) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
