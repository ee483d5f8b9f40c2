//! Where rollout decisions are written, and where the decisions on models come from whose source can hold no journal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use bascule_registry::{Entry, JournalError, JournalPage, Layout, LocalJournal, ModelName, Proposal, Rollout, SourceHealth};
use serde::{Deserialize, Serialize};

use crate::error::with_causes;
use crate::serving::{CommandError, Serving, shown};

/// The most entries of a journal that [`Serving::journal`] gives at once.
pub const MAX_PAGE_ENTRIES: usize = 1_000;

/// How long reading a part of a journal may take.
const PAGE_WAIT: Duration = Duration::from_secs(20);

/// What keeps the journal of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalKeeper {
    /// The registry of the model: every gateway reads it.
    #[serde(rename = "registry")]
    Registry,
    /// The state directory of a gateway, for this one alone.
    #[serde(rename = "state directory")]
    StateDirectory,
    /// What the setting `rollout.journal` names: every gateway that has it set reads it.
    #[serde(rename = "rollout.journal")]
    Shared,
}

/// Where the journal of a model is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalHome {
    /// What keeps it.
    pub keeper: JournalKeeper,
    /// Where that is, for people.
    pub place: String,
}

/// A part of a model's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelJournal {
    /// The model.
    pub model: String,
    /// Where it was read.
    pub home: JournalHome,
    /// What was read.
    #[serde(flatten)]
    pub page: JournalPage,
}

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
    /// [`JournalError::Frozen`] where an entry there is not known to this build, [`JournalError::Replaced`] where it is not the journal that
    /// was taken over from before, [`JournalError::Unavailable`] where one of both fails.
    async fn take_over(&self, model: &ModelName) -> Result<Rollout, JournalError>;

    /// All entries of the journal of such a model.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] where the store fails.
    async fn entries(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError>;

    /// The last entries of any model's journal, or the last ones before an entry, newest first, `limit` at the most; and where they are.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`] where the store fails.
    async fn page(
        &self,
        model: &ModelName,
        layout: Layout,
        before: Option<u64>,
        limit: usize,
    ) -> Result<(JournalHome, JournalPage), JournalError>;

    /// How looking at the store goes; nothing where it is this gateway's own.
    fn health(&self) -> Option<SourceHealth> {
        None
    }
}

impl Serving {
    /// The last entries of a model's journal, or the last ones before the entry `before`, newest first: `limit` at the most, and no more
    /// than [`MAX_PAGE_ENTRIES`].
    ///
    /// # Errors
    /// [`CommandError::UnknownModel`]; [`CommandError::Source`] where the journal can't be read now.
    pub async fn journal(&self, model: &str, before: Option<u64>, limit: usize) -> Result<ModelJournal, CommandError> {
        let unknown = || CommandError::UnknownModel { model: shown(model) };
        let name = ModelName::new(model).map_err(|_| unknown())?;
        let status = self.status();
        let layout = status.model(model).and_then(|known| known.layout).ok_or_else(unknown)?;
        let page = self.shared.journal.page(&name, layout, before, limit.clamp(1, MAX_PAGE_ENTRIES));
        let failed = |message| CommandError::Source { message };
        let slow = || failed(format!("the journal of model '{name}' is not read within {} s", PAGE_WAIT.as_secs()));
        let page = tokio::time::timeout(PAGE_WAIT, page).await.map_err(|_| slow())?;
        // Whatever it is: nothing was asked for that makes no sense.
        let (home, page) = page.map_err(|error| failed(with_causes(&error)))?;
        Ok(ModelJournal { model: name.to_string(), home, page })
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

    async fn page(
        &self,
        model: &ModelName,
        _layout: Layout,
        before: Option<u64>,
        limit: usize,
    ) -> Result<(JournalHome, JournalPage), JournalError> {
        let home = JournalHome { keeper: JournalKeeper::StateDirectory, place: self.describe().to_owned() };
        Ok((home, LocalJournal::page(self, model, before, limit).await?))
    }
}
