//! Which journal a decision goes to.

use std::sync::Arc;

use async_trait::async_trait;
use bascule_registry::{Entry, JournalError, Layout, LocalJournal, ModelName, Proposal, Registry, Rollout};
use bascule_serving::JournalStore;

use crate::config::Place;

/// The registry's own journals for models in its layout, which every replica sees; one beside it for plain models.
pub(super) struct Journals {
    registry: Place,
    beside: LocalJournal,
    /// Other replicas write the one beside it, too.
    shared: bool,
}

impl Journals {
    pub(super) fn new(registry: Place, beside: LocalJournal, shared: bool) -> Journals {
        Journals { registry, beside, shared }
    }

    /// Opened for each decision: the directory may have been away when the program started, or have become another since.
    async fn registry(&self) -> Result<Registry, JournalError> {
        let location = self.registry.0.clone();
        let unavailable = |source| JournalError::Unavailable { place: format!("registry {}", self.registry.0), source };
        let opened = tokio::task::spawn_blocking(move || Registry::open(&location)).await;
        opened.map_err(|error| unavailable(Arc::new(error)))?.map_err(|error| unavailable(Arc::new(error)))
    }
}

#[async_trait]
impl JournalStore for Journals {
    async fn append(&self, model: &ModelName, layout: Layout, proposal: &Proposal) -> Result<u64, JournalError> {
        if layout.holds_journal() {
            return self.registry().await?.propose(model, proposal).await;
        }
        self.beside.propose(model, proposal).await
    }

    async fn rollout(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        self.beside.rollout(model).await
    }

    async fn has_grown(&self, model: &ModelName, seq: u64) -> Result<bool, JournalError> {
        if self.shared { self.beside.has_grown(model, seq).await } else { Ok(false) }
    }
    async fn entries(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError> {
        self.beside.journal(model).await
    }
}
