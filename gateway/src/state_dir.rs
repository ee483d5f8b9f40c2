//! The state directory: what must survive a restart, and the cache. One process has it at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Why a directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another process has it.
    #[error("state directory {} is used by another gateway{}", path.display(), process(*holder))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, where it can be told.
        holder: Option<u32>,
    },
    /// The disk refuses.
    #[error("state directory {} can't be used", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

fn process(holder: Option<u32>) -> String {
    holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// The directory, locked until this is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory where it is not there, and locks it. Blocks.
    ///
    /// # Errors
    /// Another process has it, or it can't be written.
    pub fn open(path: &Path) -> Result<StateDir, StateDirError> {
        let unusable = |source| StateDirError::Unusable { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(unusable)?;
        let path = path.canonicalize().map_err(unusable)?;
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who it is helps, and is not needed to know that it is there.
                drop(lock.read_to_string(&mut holder));
                return Err(StateDirError::InUse { path, holder: holder.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(unusable)?;
        Ok(StateDir { path, _lock: lock })
    }

    /// The directory, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where fetched versions lie.
    pub fn cache_dir(&self) -> PathBuf {
        self.path.join("cache")
    }

    /// Where the journals of plain models lie; made where it is not there.
    ///
    /// # Errors
    /// It can't be made.
    pub fn journal_dir(&self) -> Result<PathBuf, StateDirError> {
        let dir = self.path.join("journal");
        match std::fs::create_dir_all(&dir) {
            Ok(()) => Ok(dir),
            Err(source) => Err(StateDirError::Unusable { path: dir, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_has_the_directory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err().to_string();
        let expected = format!("is used by another gateway (process {})", std::process::id());
        assert!(error.ends_with(&expected) && error.contains("state"), "{error}");
        drop(first);
        StateDir::open(&path).unwrap();
    }
}
