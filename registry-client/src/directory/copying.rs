//! Fetching a plain version: copied while it is known not to change.
//!
//! The files have no digests to check against. They are the listed ones if the directory's digest is that of the generation
//! before the copy and after it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::plain::{self, PlainFile, PlainFiles, ScanError, Stamp};
use crate::listing::Generation;
use crate::source::{FetchError, Fetched, Progress};
use crate::transfer::{Content, bring};

pub(super) async fn copy_plain(
    root: &Path,
    generation: &Generation,
    dest: &Path,
    progress: &dyn Progress,
) -> Result<Fetched, FetchError> {
    let listed = rescan(root, generation).await?;
    let mut files = Vec::with_capacity(listed.files.len());
    for file in &generation.manifest.files {
        let from = listed.files.iter().find(|from| from.path == file.path).cloned().ok_or_else(|| changed(generation))?;
        let opened = tokio::task::spawn_blocking(move || open(&from)).await.map_err(io::Error::other).flatten();
        let content =
            opened.map_err(|error| FetchError::unavailable(format!("file `{}` of {}", file.path, generation.key), error))?;
        let content = content.ok_or_else(|| changed(generation))?;
        match bring(Content::Local(content), file, dest, progress).await {
            Ok(brought) => files.push(brought),
            // Without a digest of its own a file can only have grown or shrunk.
            Err(FetchError::Size { .. }) => return Err(changed(generation)),
            Err(error) => return Err(error),
        }
    }
    rescan(root, generation).await?;
    Ok(Fetched { files })
}

/// Opens a file that is as it was when it was listed; `None` where it is not.
fn open(file: &PlainFile) -> io::Result<Option<File>> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&file.place)?;
    Ok(Some(opened).filter(|opened| opened.metadata().is_ok_and(|meta| meta.is_file() && Stamp::of(&meta) == file.stamp)))
}

/// The files, where they are those of the generation.
async fn rescan(root: &Path, generation: &Generation) -> Result<PlainFiles, FetchError> {
    let (root, key) = (root.to_owned(), generation.key.clone());
    let scanned = tokio::task::spawn_blocking(move || {
        let root = root.canonicalize()?;
        let dir = root.join(key.model.as_str()).join(key.version.to_string());
        let dir = dir.canonicalize()?;
        if !dir.starts_with(&root) {
            return Err(ScanError::Refused("it is a symbolic link out of the repository".into()));
        }
        plain::scan(&root, &dir, &key)
    });
    let unavailable = |error: io::Error| FetchError::unavailable(format!("the files of {}", generation.key), error);
    match scanned.await.map_err(|error| unavailable(io::Error::other(error)))? {
        Ok(Some(files)) if files.digest == generation.digest => Ok(files),
        Ok(_) => Err(changed(generation)),
        Err(ScanError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            Err(FetchError::NotFound { what: generation.key.to_string() })
        }
        Err(ScanError::Io(error)) => Err(unavailable(error)),
        Err(ScanError::Refused(why)) => Err(unavailable(io::Error::other(why))),
    }
}

fn changed(generation: &Generation) -> FetchError {
    FetchError::Changed { what: generation.key.to_string() }
}
