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
use crate::name::{ModelName, VersionNumber, check_version};

/// How often an append that loses its number tries the next.
const APPEND_TRIES: u32 = 64;
/// How many entries are asked for at a time by whoever is far behind.
const MAX_BATCH: u64 = 64;
/// So many entries that can't be read, one after the other, are no change log.
const MAX_UNREADABLE: u64 = 64;

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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ReadChange {
    pub(super) model: ModelName,
    /// The version, where it is about one.
    #[serde(default, deserialize_with = "number_or_nothing")]
    pub(super) version: Option<VersionNumber>,
}

/// What a newer build may write there is no reason to overlook the model.
fn number_or_nothing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<VersionNumber>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(value.and_then(|value| value.as_u64()).filter(|version| check_version(*version).is_ok()))
}

/// Reads an entry of the log.
pub(super) fn read_change(content: &Read) -> Result<ReadChange, String> {
    match content {
        Read::Whole(content) => serde_json::from_slice(content).map_err(|error| error.to_string()),
        Read::TooLarge(bytes) => Err(format!("it has {bytes} bytes")),
    }
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
        let (mut batch, mut unreadable) = (1, 0);
        'more: loop {
            // The batches grow with what there is to catch up with.
            let entries = self.changes.range(changes.last + 1, changes.last + batch).await?;
            for (seq, content) in entries {
                let Some(content) = content else { break 'more };
                changes.last = seq;
                match read_change(&content) {
                    Ok(change) => drop(changes.models.as_mut().map(|models| models.insert(change.model))),
                    Err(error) => {
                        tracing::warn!(seq, %error, "an entry of the change log is not readable: looking at everything");
                        changes.models = None;
                        unreadable += 1;
                    }
                }
            }
            if unreadable > MAX_UNREADABLE {
                // A server that answers everything with the same page would never come to an end.
                let why = format!("more than {MAX_UNREADABLE} entries of its change log are not readable");
                return Err(StoreError::Generic { store: "registry", source: why.into() });
            }
            batch = if changes.last == known + 1 { 1 } else { (batch * 2).min(MAX_BATCH) };
        }
        self.last_change.store(changes.last, Ordering::Relaxed);
        Ok(changes)
    }
}
