//! A journal for registries that can hold none: a plain directory, or anything that is only read.

use std::path::Path as FsPath;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use uuid::Uuid;

use super::{Entry, JournalEntries, JournalError, JournalPage, Op, Proposal, Rollout};
use crate::clock::{Clock, SystemClock};
use crate::name::ModelName;

/// Journals of any number of models in a local directory, for one replica: `<dir>/<model>/<20 digits>.json`, with the same
/// entries, fold and checkpoints as in a registry. Whether a version exists is not known here and not checked.
pub struct LocalJournal {
    store: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    description: String,
}

impl LocalJournal {
    /// Opens the directory, and makes it where it is not there.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] where it can't be made or opened.
    pub fn open(dir: &FsPath) -> Result<Self, JournalError> {
        Self::with_clock(dir, Arc::new(SystemClock::default()))
    }

    /// The same with a clock that says when an entry was written.
    ///
    /// # Errors
    /// As [`LocalJournal::open`].
    pub fn with_clock(dir: &FsPath, clock: Arc<dyn Clock>) -> Result<Self, JournalError> {
        let place = || format!("journal directory {}", dir.display());
        std::fs::create_dir_all(dir).map_err(|error| JournalError::unavailable(place(), error))?;
        let store = LocalFileSystem::new_with_prefix(dir).map_err(|error| JournalError::unavailable(place(), error))?;
        Ok(Self { store: Arc::new(store.with_fsync(true)), clock, description: format!("directory {}", dir.display()) })
    }

    /// Writes an entry after the model's last one and returns its number; the number that it has where its id is there.
    ///
    /// # Errors
    /// [`JournalError::Refused`] and [`JournalError::Frozen`] as things stand; others where the disk fails.
    pub async fn append(&self, model: &ModelName, op: Op, by: &str, reason: &str, id: Uuid) -> Result<u64, JournalError> {
        let proposal = Proposal { op, by: by.into(), reason: reason.into(), id, evidence: None, highest: None };
        self.propose(model, &proposal).await
    }

    /// The same with evidence.
    ///
    /// # Errors
    /// As [`LocalJournal::append`].
    pub async fn propose(&self, model: &ModelName, proposal: &Proposal) -> Result<u64, JournalError> {
        self.entries(model).append(proposal, self.clock.now()).await
    }

    /// Takes over the entries of a registry's own journal that are not in the model's journal here yet, and returns the state after them.
    /// `published` begins with the last one that was taken over, or before it.
    ///
    /// # Errors
    /// [`JournalError::Replaced`] where that journal is another one now.
    /// [`JournalError::Frozen`] where one of them is not known to this build; others where the disk fails.
    pub async fn take_over(&self, model: &ModelName, published: &[Entry]) -> Result<Rollout, JournalError> {
        Ok(self.entries(model).take_over(published).await?.0)
    }

    /// All entries of a model; none where it has no journal.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] where the disk fails.
    pub async fn journal(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError> {
        self.entries(model).all().await
    }

    /// The last entries of a model's journal, or the last ones before an entry, newest first: `limit` at the most, and fewer where they are
    /// large.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] where the disk fails.
    pub async fn page(&self, model: &ModelName, before: Option<u64>, limit: usize) -> Result<JournalPage, JournalError> {
        self.entries(model).page(before, limit).await
    }

    /// For people: `directory state/journal`.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// The state of a model's journal.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] where the disk fails.
    pub async fn rollout(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        self.entries(model).rollout().await
    }

    /// Whether there is an entry after this one.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] where the disk fails.
    pub async fn has_grown(&self, model: &ModelName, seq: u64) -> Result<bool, JournalError> {
        self.entries(model).has(seq.saturating_add(1)).await
    }

    fn entries(&self, model: &ModelName) -> JournalEntries {
        JournalEntries::new(Arc::clone(&self.store), Path::from(model.as_str()))
    }
}
