//! The change log of a registry: which models to look at again.
//!
//! It is a hint that saves listing. What it says is looked up where it was committed; an entry that was lost delays, until
//! the next full look.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use object_store::Error as StoreError;
use serde::{Deserialize, Serialize};

use super::Registry;
use crate::log::{Put, Read};
use crate::name::{ModelName, VersionNumber};

/// How often an append that loses its number tries the next.
const APPEND_TRIES: u32 = 64;

/// What has changed in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    Publish,
    Tombstone,
    Journal,
    Signature,
}

#[derive(Serialize)]
struct Change<'a> {
    seq: u64,
    model: &'a ModelName,
    what: What,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<VersionNumber>,
}

/// All that a reader needs of a change. Whatever else it says, newer builds included, the model is looked at again.
#[derive(Deserialize)]
struct ReadChange {
    model: ModelName,
}

/// What the log says since some number.
pub(crate) struct Changes {
    /// The last number that is there.
    pub(crate) last: u64,
    /// The models to look at; `None` for all, where an entry was not readable.
    pub(crate) models: Option<BTreeSet<ModelName>>,
}

impl Registry {
    /// Appends to the log. Failing is not an error for whoever has committed: it only delays.
    pub(super) async fn note_change(&self, model: &ModelName, what: What, version: Option<VersionNumber>) {
        if let Err(error) = self.append_change(model, what, version).await {
            tracing::warn!(%model, %error, "the change log was not written: others see the change at their next full look");
        }
    }

    async fn append_change(&self, model: &ModelName, what: What, version: Option<VersionNumber>) -> Result<(), StoreError> {
        for _ in 0..APPEND_TRIES {
            let seq = self.changes.tail(self.last_change.load(Ordering::Relaxed)).await? + 1;
            let content = serde_json::to_vec(&Change { seq, model, what, version })
                .map_err(|error| StoreError::Generic { store: "registry", source: error.into() })?;
            let put = self.changes.put(seq, content).await?;
            self.last_change.store(seq, Ordering::Relaxed);
            if put == Put::Done {
                return Ok(());
            }
        }
        let busy = format!("others kept writing at each of {APPEND_TRIES} tries");
        Err(StoreError::Generic { store: "registry", source: busy.into() })
    }

    /// The last change that is there.
    pub(crate) async fn last_change(&self) -> Result<u64, StoreError> {
        let last = self.changes.tail(self.last_change.load(Ordering::Relaxed)).await?;
        self.last_change.store(last, Ordering::Relaxed);
        Ok(last)
    }

    /// What has changed after this number: one GET where nothing has.
    pub(crate) async fn changes_after(&self, known: u64) -> Result<Changes, StoreError> {
        let mut changes = Changes { last: known, models: Some(BTreeSet::new()) };
        while let Some(content) = self.changes.get(changes.last + 1).await? {
            changes.last += 1;
            let change = match &content {
                Read::Whole(content) => serde_json::from_slice::<ReadChange>(content).map_err(|error| error.to_string()),
                Read::TooLarge(bytes) => Err(format!("it has {bytes} bytes")),
            };
            match change {
                Ok(change) => drop(changes.models.as_mut().map(|models| models.insert(change.model))),
                Err(error) => {
                    tracing::warn!(seq = changes.last, %error, "an entry of the change log is not readable: looking at everything");
                    changes.models = None;
                }
            }
        }
        self.last_change.store(changes.last, Ordering::Relaxed);
        Ok(changes)
    }
}
