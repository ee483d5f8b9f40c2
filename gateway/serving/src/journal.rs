//! Where rollout decisions are written, and where the decisions on models come from whose source can hold no journal.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use bascule_registry::{Entry, JournalError, Layout, LocalJournal, ModelName, Proposal, Rollout, SourceHealth};

/// Writes and reads rollout journals. Where the layout holds a journal it comes with the listing; else it is in a store
/// beside the source.
#[async_trait]
pub trait JournalStore: Send + Sync {
    /// Writes an entry after the model's last one and returns its number; the number that it has where its id is there already.
    ///
    /// # Errors
    /// [`JournalError::Refused`] and others where the decision makes no sense as things stand, or where the store fails.
    async fn append(&self, model: &ModelName, layout: Layout, proposal: &Proposal) -> Result<u64, JournalError>;

    /// The state of the journal of a model whose listing brings none.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] where the store fails.
    async fn rollout(&self, model: &ModelName) -> Result<Rollout, JournalError>;

    /// The models whose journals have entries after those that are folded in here: other replicas may write them, too. Cheap, since every
    /// look asks.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] where the store fails: nothing is known of any journal then, and all stays as it is.
    async fn grown(&self, known: &BTreeMap<ModelName, Rollout>) -> Result<BTreeSet<ModelName>, JournalError>;

    /// Takes over what is new in the journal that a model's source only lets be read, and returns the state after it.
    ///
    /// # Errors
    /// [`JournalError::Frozen`] where an entry there is not known to this build, [`JournalError::Unavailable`] where one of both fails.
    async fn take_over(&self, model: &ModelName) -> Result<Rollout, JournalError>;

    /// All entries of the journal of such a model.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] where the store fails.
    async fn entries(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError>;

    /// How looking at the store goes; nothing where it is this gateway's own.
    fn health(&self) -> Option<SourceHealth> {
        None
    }
}

/// One directory for the journals of every model, whatever its layout: for one replica. It knows of no source to take over from.
#[async_trait]
impl JournalStore for LocalJournal {
    async fn append(&self, model: &ModelName, _layout: Layout, proposal: &Proposal) -> Result<u64, JournalError> {
        self.propose(model, proposal).await
    }

    async fn rollout(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        LocalJournal::rollout(self, model).await
    }

    async fn grown(&self, known: &BTreeMap<ModelName, Rollout>) -> Result<BTreeSet<ModelName>, JournalError> {
        let mut grown = BTreeSet::new();
        for (name, rollout) in known {
            // One that can't be asked for is the trouble of its own model: reading it tells.
            if self.has_grown(name, rollout.seq).await.unwrap_or(true) {
                grown.insert(name.clone());
            }
        }
        Ok(grown)
    }

    async fn take_over(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        LocalJournal::rollout(self, model).await
    }

    async fn entries(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError> {
        self.journal(model).await
    }
}
