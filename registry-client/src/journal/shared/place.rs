//! Where shared journals lie.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::io;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;

use super::super::JournalEntries;
use crate::name::ModelName;
use crate::registry::{Registry, RegistryError, StoreEnvironment, location};

/// Why a place is not used for journals.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SharedJournalError {
    /// It can't hold any.
    #[error("{place} can't hold a journal: {why}")]
    Unfit {
        /// As it was written, quoted.
        place: String,
        /// What is lacking, and what to write instead.
        why: &'static str,
    },
    /// It is not written as it should be, or what is needed to open it is not there.
    #[error("{place} {problem}")]
    Location {
        /// As it was written, quoted.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// The directory can't be made.
    #[error("can't make directory {}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
}

const INSTEAD: &str = "it lacks put-if-absent: name a directory, or a place at s3://, gs:// or az://";
const FORGETS: &str = "memory is forgotten with the process: name a directory, or a place at s3://, gs:// or az://";
const UNKNOWN: &str = "it is no object store: name a directory, or a place at s3://, gs:// or az://";

/// A directory that was there once; it may come later.
type Opened = Arc<tokio::sync::Mutex<Option<Arc<dyn ObjectStore>>>>;

/// The place.
pub(super) enum Held {
    /// On this machine or on a share.
    Directory { dir: PathBuf, opened: Opened },
    /// In our layout, in a store of another machine.
    Store(Box<Registry>),
}

impl Held {
    /// Opens it, without asking whether it is there.
    pub(super) fn open(location: &str, environment: &StoreEnvironment) -> Result<Self, SharedJournalError> {
        let told = |error: RegistryError| match error {
            RegistryError::Location { location, problem } => {
                SharedJournalError::Location { place: location, problem: problem.into_owned() }
            }
            error => {
                SharedJournalError::Location { place: location::shown(location), problem: format!("can't be opened: {error}") }
            }
        };
        if let Some(dir) = location::local_path(location).map_err(told)? {
            return Ok(Self::Directory { dir, opened: Opened::default() });
        }
        let unfit = |why| Err(SharedJournalError::Unfit { place: location::shown(location), why });
        let scheme = location.split_once("://").map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
        match scheme.as_str() {
            "http" | "https" => return unfit(INSTEAD),
            "memory" => return unfit(FORGETS),
            _ => {}
        }
        match Registry::open_in(location, environment) {
            Ok(registry) => Ok(Self::Store(Box::new(registry))),
            Err(RegistryError::NotSupported { .. }) => unfit(UNKNOWN),
            Err(error) => Err(told(error)),
        }
    }

    /// Makes a directory that is not there.
    pub(super) fn make(&self) -> Result<(), SharedJournalError> {
        let Self::Directory { dir, .. } = self else { return Ok(()) };
        crate::durable::create_dir(dir)
            .map_err(|source| SharedJournalError::Directory { dir: dir.clone(), source: Arc::new(source) })
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Self::Directory { dir, .. } => dir.display().to_string(),
            Self::Store(registry) => registry.describe().to_owned(),
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self, Self::Directory { .. })
    }

    /// From 0 to 1, another at each call.
    pub(super) fn spread(&self) -> f64 {
        match self {
            Self::Directory { .. } => RandomState::new().hash_one(0) as f64 / u64::MAX as f64,
            Self::Store(registry) => registry.spread(),
        }
    }

    /// A model's journal.
    pub(super) async fn entries(&self, model: &ModelName) -> io::Result<JournalEntries> {
        match self {
            Self::Store(registry) => Ok(registry.entries(model)),
            Self::Directory { dir, opened } => {
                let known = opened.lock().await.clone();
                let store = match known {
                    Some(store) => store,
                    None => in_directory(dir, opened).await?,
                };
                Ok(JournalEntries::new(store, Path::from(model.as_str())))
            }
        }
    }

    /// Looks whether a directory is there. Of a store its answers tell.
    pub(super) async fn look(&self) -> io::Result<()> {
        match self {
            Self::Store(_) => Ok(()),
            Self::Directory { dir, opened } => in_directory(dir, opened).await.map(drop),
        }
    }
}

/// The directory as a store. A share that hangs may hang for ever: it holds one thread then, and the others wait for that one.
async fn in_directory(dir: &FsPath, opened: &Opened) -> io::Result<Arc<dyn ObjectStore>> {
    let (dir, mut opened) = (dir.to_owned(), Arc::clone(opened).lock_owned().await);
    let looked = tokio::task::spawn_blocking(move || {
        let store = open_dir(&dir, opened.take())?;
        *opened = Some(Arc::clone(&store));
        Ok(store)
    });
    looked.await.map_err(io::Error::other)?
}

fn open_dir(dir: &FsPath, known: Option<Arc<dyn ObjectStore>>) -> io::Result<Arc<dyn ObjectStore>> {
    if !std::fs::metadata(dir)?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory"));
    }
    if let Some(known) = known {
        return Ok(known);
    }
    Ok(Arc::new(LocalFileSystem::new_with_prefix(dir).map_err(io::Error::other)?.with_fsync(true)))
}
