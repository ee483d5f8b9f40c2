//! Which journal a decision goes to.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bascule_registry::{
    Entry, JournalError, JournalPage, Layout, LocalJournal, ModelName, Proposal, Registries, Registry, Rollout,
};
use bascule_serving::{JournalHome, JournalKeeper, JournalStore};

use crate::config::Place;

/// The registry's own journals for models in its layout, which every replica sees; one beside it for the others.
pub(super) struct Journals {
    registries: Arc<Registries>,
    held: Held,
    beside: LocalJournal,
    /// Other replicas write the one beside it, too.
    shared: bool,
}

/// What holds the journals of registries, by what identifies these.
pub(super) struct Held {
    /// Where the registries are, as users wrote it.
    pub(super) places: BTreeMap<Arc<str>, Place>,
    /// Those that other machines hold, which are open.
    pub(super) stores: BTreeMap<Arc<str>, Arc<Registry>>,
}

impl Journals {
    pub(super) fn new(registries: Arc<Registries>, held: Held, beside: LocalJournal, shared: bool) -> Journals {
        Journals { registries, held, beside, shared }
    }

    /// A directory is opened for each decision: it may have been away when the program started, or have become another since.
    async fn registry_of(&self, model: &ModelName) -> Result<Arc<Registry>, JournalError> {
        let place = self.registries.place_of(model);
        if let Some(registry) = place.as_ref().and_then(|place| self.held.stores.get(place)) {
            return Ok(Arc::clone(registry));
        }
        let Some(Place(location)) = place.and_then(|place| self.held.places.get(&place)).cloned() else {
            let problem = "is in no registry that could be read yet";
            return Err(JournalError::Model { model: model.to_string(), problem });
        };
        let describe = format!("registry {location}");
        let unavailable = |source| JournalError::Unavailable { place: describe.clone(), source };
        let opened = tokio::task::spawn_blocking(move || Registry::open(&location)).await;
        let opened = opened.map_err(|error| unavailable(Arc::new(error)))?;
        opened.map(Arc::new).map_err(|error| unavailable(Arc::new(error)))
    }
}

#[async_trait]
impl JournalStore for Journals {
    async fn append(&self, model: &ModelName, layout: Layout, proposal: &Proposal) -> Result<u64, JournalError> {
        if layout.holds_journal() {
            return self.registry_of(model).await?.propose(model, proposal).await;
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

    async fn page(
        &self,
        model: &ModelName,
        layout: Layout,
        before: Option<u64>,
        limit: usize,
    ) -> Result<(JournalHome, JournalPage), JournalError> {
        if layout.holds_journal() {
            let registry = self.registry_of(model).await?;
            let home = JournalHome { keeper: JournalKeeper::Registry, place: registry.describe().to_owned() };
            return Ok((home, registry.journal_page(model, before, limit).await?));
        }
        let keeper = if self.shared { JournalKeeper::Shared } else { JournalKeeper::StateDirectory };
        let home = JournalHome { keeper, place: self.beside.describe().to_owned() };
        Ok((home, self.beside.page(model, before, limit).await?))
    }
}
