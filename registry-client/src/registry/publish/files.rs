//! The files of a publish: found, measured, read again in parts.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use super::PublishError;
use crate::digest::{Digest, DigestBuilder};
use crate::manifest::MAX_FILES;

/// Files up to this size are put at once; larger ones in parts of at least this size.
pub(in crate::registry) const PART_BYTES: u64 = 8 << 20;
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

/// A file as it was read once: what is uploaded later is this, or the upload fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(super) path: PathBuf,
    pub(crate) sha256: Digest,
    pub(crate) bytes: u64,
    pub(super) part_bytes: u64,
    /// The digests of its parts, one at the least; that of the whole where there is one part.
    pub(super) parts: Vec<Digest>,
}

/// Reads all of these files, as many at a time as there are cores.
pub(crate) async fn measure_all(paths: &[&Path], part_bytes: u64) -> Result<Vec<Measured>, PublishError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let owned: Vec<PathBuf> = paths.iter().map(|path| (*path).to_owned()).collect();
    futures::stream::iter(owned).map(|path| measure_off_thread(path, part_bytes)).buffered(cores).try_collect().await
}

async fn measure_off_thread(path: PathBuf, part_bytes: u64) -> Result<Measured, PublishError> {
    let measured = tokio::task::spawn_blocking({
        let path = path.clone();
        move || measure(path, part_bytes)
    });
    measured.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| unreadable(&path, error))
}

fn measure(path: PathBuf, part_bytes: u64) -> io::Result<Measured> {
    let expected = std::fs::metadata(&path)?;
    // Reading a pipe or a device would wait, or never end.
    if !expected.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let part_bytes = part_bytes.max(expected.len().div_ceil(MAX_PARTS));
    let mut file = File::open(&path)?;
    let (mut whole, mut bytes, mut parts) = (DigestBuilder::default(), 0, Vec::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        let (mut part, mut left) = (DigestBuilder::default(), part_bytes);
        let in_parts = expected.len() > part_bytes;
        while left > 0 {
            let read = (&mut file).take(left).read(&mut buffer)?;
            if read == 0 {
                break;
            }
            whole.bytes(&buffer[..read]);
            if in_parts {
                part.bytes(&buffer[..read]);
            }
            left -= read as u64;
        }
        let read = part_bytes - left;
        bytes += read;
        if read > 0 && in_parts {
            parts.push(part.finish());
        }
        if left > 0 {
            break;
        }
    }
    let sha256 = whole.finish();
    if parts.is_empty() {
        parts.push(sha256);
    }
    Ok(Measured { path, sha256, bytes, part_bytes, parts })
}

impl Measured {
    pub(super) fn part_len(&self, nth: usize) -> u64 {
        self.bytes.saturating_sub(self.part_bytes.saturating_mul(nth as u64)).min(self.part_bytes)
    }

    /// Reads a part again; an error where it is not what was measured.
    pub(super) async fn read_part(&self, nth: usize) -> Result<Bytes, PublishError> {
        let (start, length, last) = (self.part_bytes * nth as u64, self.part_len(nth), nth + 1 == self.parts.len());
        let (path, expected) = (self.path.clone(), self.parts.get(nth).copied());
        let read = tokio::task::spawn_blocking(move || {
            // One byte more than the last part has tells a file that has grown.
            let limit = usize::try_from(length + u64::from(last)).map_err(io::Error::other)?;
            let part = read_at(&path, start, limit)?;
            let same = part.len() as u64 == length && Some(Digest::of(&part)) == expected;
            Ok(same.then(|| Bytes::from(part)))
        });
        let read = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let read = read.map_err(|error| unreadable(&self.path, error))?;
        read.ok_or_else(|| PublishError::FileChanged { path: self.path.clone() })
    }
}

/// Up to `limit` bytes from there; fewer only at the end of the file.
fn read_at(path: &Path, start: u64, limit: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let (mut part, mut filled) = (vec![0; limit], 0);
    while filled < limit {
        match file.read_at(&mut part[filled..], start + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    part.truncate(filled);
    Ok(part)
}

fn unreadable(path: &Path, error: io::Error) -> PublishError {
    PublishError::File { path: path.to_owned(), source: Arc::new(error) }
}
