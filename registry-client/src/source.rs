//! The seam between the engine and whatever knows which versions exist.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::digest::Digest;
use crate::listing::{Cursor, Generation, Listing};
use crate::name::ModelName;
use crate::registry::access::access_error;

/// A cause that can be shared by all who waited for the same attempt.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// A cause as it is shown. What was wrong with the access to a store says all that its wrapping says, and what was tried.
pub(crate) fn cause(error: impl StdError + Send + Sync + 'static) -> Cause {
    let access = (&error as &(dyn StdError + 'static)).downcast_ref().and_then(access_error).cloned();
    access.map_or_else(|| Arc::new(error) as Cause, |access| Arc::new(access) as Cause)
}

/// Says which versions exist and brings their files. It never says what should be loaded.
///
/// [`crate::conformance`] is what every source has to pass.
#[async_trait]
pub trait VersionSource: Send + Sync {
    /// For people: `directory ./models`.
    fn describe(&self) -> String;

    /// What exists now; `None` where nothing has changed since the listing that had this cursor.
    ///
    /// # Errors
    /// The whole source can't be read. What was listed before still counts: an error never removes anything.
    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError>;

    /// Writes the files of this generation under `dest`, an existing directory, and checks size and digest of each while it is
    /// written. Each file is synced to disk; the directories are left to the caller.
    ///
    /// A file may lie in `dest` at its place already, complete, and shared with other versions: it is verified and not brought
    /// again. It is never written to; where it is damaged it is removed and brought anew. For the same reason a file is
    /// written under another name, and gets its own once it is complete.
    ///
    /// # Errors
    /// Files that lie at their place in `dest` afterwards are complete. Nothing else in it counts.
    async fn fetch(&self, generation: &Generation, dest: &Path, progress: &dyn Progress) -> Result<Fetched, FetchError>;

    /// How looking at each of its parts went; nothing where it has none.
    fn health(&self) -> Vec<SourceHealth> {
        Vec::new()
    }

    /// Told at the start of a model that was served before it, from the registry at this place ([`crate::ListedModel::registry`]).
    /// False where that is none of this source's: then it is not served any more.
    fn adopt(&self, _model: &ModelName, _registry: &str) -> bool {
        true
    }
}

/// How looking at one of several registries went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceHealth {
    /// What users call it, where it has a name.
    pub name: Option<String>,
    /// For people.
    pub describe: String,
    /// When a look last succeeded.
    pub last_good: Option<DateTime<Utc>>,
    /// Why the last look failed; nothing after one that did not.
    pub error: Option<String>,
    /// What the last look found wrong outside any model.
    pub problems: Vec<String>,
}

/// Told how far a transfer is. Called often: it must be cheap and must not block.
pub trait Progress: Send + Sync {
    /// Of `file`, `done` of `total` bytes are there.
    fn advance(&self, file: &str, done: u64, total: u64);
}

/// A [`Progress`] for those who do not look.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn advance(&self, _file: &str, _done: u64, _total: u64) {}
}

/// What a fetch wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Every file with the digest of what lies on disk now.
    pub files: Vec<FetchedFile>,
}

impl Fetched {
    /// All sizes together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// One file that a fetch wrote.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FetchedFile {
    /// Its path inside the version.
    pub path: String,
    /// The digest of its content.
    pub sha256: Digest,
    /// Its size.
    pub bytes: u64,
}

/// Why a source can't be listed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// It is not there, can't be reached or refuses: worth another try later.
    #[error("{place} can't be read")]
    Unavailable {
        /// What was asked.
        place: String,
        /// Why.
        source: Cause,
    },
}

impl SourceError {
    pub(crate) fn unavailable(place: impl Into<String>, source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Unavailable { place: place.into(), source: cause(source) }
    }
}

/// Why the files of a version are not there. Cheap to clone: all who waited for one fetch get the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The source has no such version or file.
    #[error("{what} does not exist")]
    NotFound {
        /// The version or file.
        what: String,
    },
    /// The content differs from what the manifest names. Another try helps only if the source is mended.
    #[error("file `{file}` is corrupt: its sha256 is {actual}, its manifest says {expected}")]
    Corrupt {
        /// Path inside the version.
        file: String,
        /// Digest in the manifest.
        expected: Digest,
        /// Digest of what came.
        actual: Digest,
    },
    /// The size differs from what the manifest names.
    #[error("file `{file}` is corrupt: it has {actual} bytes or more, its manifest says {expected}")]
    Size {
        /// Path inside the version.
        file: String,
        /// Size in the manifest.
        expected: u64,
        /// Size of what came, as far as it was read.
        actual: u64,
    },
    /// Nobody who is trusted vouches for it.
    #[error("{what} is refused")]
    Refused {
        /// The version.
        what: String,
        /// Why.
        source: Arc<crate::signing::Untrusted>,
    },
    /// A plain directory changed since it was listed: list again.
    #[error("the files of {what} have changed since they were listed")]
    Changed {
        /// The version.
        what: String,
    },
    /// The source can't be reached or refuses: worth another try.
    #[error("{place} can't be read")]
    Unavailable {
        /// What was asked.
        place: String,
        /// Why.
        source: Cause,
    },
    /// The local disk is full.
    #[error("{} can't be written: {needed} bytes are needed and {free} are free", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that can be.
        free: u64,
    },
    /// The local disk failed: no permission, broken.
    #[error("{} can't be written", path.display())]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
}

impl FetchError {
    /// True where the same fetch may work later without anybody mending the version.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Changed { .. } | Self::Unavailable { .. } | Self::NoSpace { .. } | Self::Disk { .. })
    }

    pub(crate) fn unavailable(place: impl Into<String>, source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Unavailable { place: place.into(), source: cause(source) }
    }

    pub(crate) fn disk(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Disk { path: path.into(), source: Arc::new(source) }
    }
}
