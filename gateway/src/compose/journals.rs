//! Which journal a decision goes to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use bascule_registry::{
    Entry, JournalError, JournalPage, Layout, LocalJournal, ModelName, Proposal, Registries, Registry, Rollout, SharedJournal,
    SourceHealth,
};
use bascule_serving::{JournalHome, JournalKeeper, JournalStore};

use super::sources::identity;
use crate::config::{Config, Place};

/// What users call the place of shared journals.
const SETTING: &str = "rollout.journal";
/// In the state directory: how far the shared journals went.
const KEPT: &str = "shared-journals.json";

/// The registry's own journals for models in its layout, which every replica sees; one beside it for the others.
pub(super) struct Journals {
    registries: Arc<Registries>,
    held: Held,
    beside: Beside,
}

/// Where the journals are whose registries can hold none.
pub(super) enum Beside {
    /// In the state directory, for this gateway alone.
    Own(LocalJournal),
    /// Where other replicas write, too.
    Shared(Box<SharedJournal>),
}

impl Beside {
    /// As the configuration says; `own` is what is kept of the registries. Blocks.
    pub(super) fn open(config: &Config, own: &Path) -> Result<Beside> {
        match shared_journal(config, Some(&own.join(KEPT)))? {
            Some(shared) => Ok(Beside::Shared(Box::new(shared))),
            None => Ok(Beside::Own(LocalJournal::open(&own.join("journal"))?)),
        }
    }
}

impl Beside {
    async fn page(&self, model: &ModelName, before: Option<u64>, limit: usize) -> Result<(JournalHome, JournalPage), JournalError> {
        let (keeper, place, page) = match self {
            Beside::Own(journal) => (JournalKeeper::StateDirectory, journal.describe(), journal.page(model, before, limit).await?),
            Beside::Shared(journal) => (JournalKeeper::Shared, journal.describe(), journal.page(model, before, limit).await?),
        };
        Ok((JournalHome { keeper, place: place.to_owned() }, page))
    }

    async fn take_over(&self, model: &ModelName, published: &[Entry]) -> Result<Rollout, JournalError> {
        match self {
            Beside::Own(journal) => journal.take_over(model, published).await,
            Beside::Shared(journal) => journal.take_over(model, published).await,
        }
    }
}

/// The journals that replicas share, where the configuration has a place for them. `kept` is a file in which what must not be forgotten of
/// them is kept. Blocks.
///
/// # Errors
/// A place that can hold none, or is written wrong.
pub fn shared_journal(config: &Config, kept: Option<&Path>) -> Result<Option<SharedJournal>> {
    let Some(place) = &config.journal else { return Ok(None) };
    for spec in &config.registry.all {
        if identity(&spec.url)? == identity(place).context(SETTING)? {
            bail!("{SETTING}: {} is a registry's own place: give it a prefix of its own", place.shown());
        }
    }
    Ok(Some(SharedJournal::open(SETTING, &place.0, kept).context(SETTING)?))
}

/// What holds the journals of registries, by what identifies these.
pub(super) struct Held {
    /// Where the registries are, as users wrote it.
    pub(super) places: BTreeMap<Arc<str>, Place>,
    /// Those that other machines hold, which are open.
    pub(super) stores: BTreeMap<Arc<str>, Arc<Registry>>,
}

impl Journals {
    pub(super) fn new(registries: Arc<Registries>, held: Held, beside: Beside) -> Journals {
        Journals { registries, held, beside }
    }

    /// Lets the journal here go on from that of a registry which is only read. Once it does, it can without the registry, and whatever
    /// becomes of that journal.
    async fn go_on(&self, model: &ModelName) -> Result<(), JournalError> {
        match self.take_over(model).await {
            Err(error @ (JournalError::Unavailable { .. } | JournalError::Replaced { .. })) => match self.rollout(model).await? {
                own if own.is_decided_here() => Ok(()),
                _ => Err(error),
            },
            outcome => outcome.map(drop),
        }
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
        if layout.brings_journal() {
            self.go_on(model).await?;
        }
        match &self.beside {
            Beside::Own(journal) => journal.propose(model, proposal).await,
            Beside::Shared(journal) => journal.propose(model, proposal).await,
        }
    }

    async fn rollout(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        match &self.beside {
            Beside::Own(journal) => journal.rollout(model).await,
            Beside::Shared(journal) => journal.rollout(model).await,
        }
    }

    async fn grown(&self, known: &BTreeMap<ModelName, Rollout>) -> Result<BTreeSet<ModelName>, JournalError> {
        match &self.beside {
            Beside::Own(_) => Ok(BTreeSet::new()),
            Beside::Shared(journal) => journal.grown(known).await,
        }
    }

    async fn take_over(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        let own = self.rollout(model).await?;
        let registry = self.registry_of(model).await?;
        // With the last one that was taken over: by that the journal is known again.
        let mut published = registry.journal_after(model, own.followed.saturating_sub(1)).await?;
        if published.is_empty() {
            published = registry.journal(model).await?;
        }
        self.beside.take_over(model, &published).await
    }

    async fn entries(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError> {
        match &self.beside {
            Beside::Own(journal) => journal.journal(model).await,
            Beside::Shared(journal) => journal.journal(model).await,
        }
    }

    fn health(&self) -> Option<SourceHealth> {
        match &self.beside {
            Beside::Own(_) => None,
            Beside::Shared(journal) => Some(journal.health()),
        }
    }

    async fn page(
        &self,
        model: &ModelName,
        layout: Layout,
        before: Option<u64>,
        limit: usize,
    ) -> Result<(JournalHome, JournalPage), JournalError> {
        // Until something is decided here the registry's own journal is the one that counts.
        let is_beside = !layout.holds_journal() && (!layout.brings_journal() || self.rollout(model).await?.is_decided_here());
        if is_beside {
            return self.beside.page(model, before, limit).await;
        }
        let registry = self.registry_of(model).await?;
        let home = JournalHome { keeper: JournalKeeper::Registry, place: registry.describe().to_owned() };
        Ok((home, registry.journal_page(model, before, limit).await?))
    }
}
