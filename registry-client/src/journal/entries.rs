//! A journal in an object store: `<20 digits>.json` and a checkpoint of the fold every 100 entries.
//!
//! Entries stay where they are; a checkpoint only saves reading them. One that was written by other rules of folding, or
//! can't be read, is passed over.

use std::collections::VecDeque;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ENTRY_SCHEMA, Entry, JournalError, Op, Proposal, Rollout};
use crate::log::{MAX_ENTRY_BYTES, NumberedLog, Put, Read, lacks_put_if_absent, put_if_absent, read_small};

/// A checkpoint is written after each so many entries.
pub(super) const CHECKPOINT_EVERY: u64 = 100;
/// A checkpoint remembers this many ids, so that a late retry is still known.
const REMEMBERED_IDS: usize = 1_000;
/// Raised whenever [`Rollout::apply`] comes to another result for the same entries.
const FOLD_VERSION: u32 = 2;
/// How often an append that loses its number tries the next.
const APPEND_TRIES: u32 = 64;
const MAX_CHECKPOINT_BYTES: u64 = 8 << 20;

/// The journal of one model.
#[derive(Debug, Clone)]
pub(crate) struct JournalEntries {
    store: Arc<dyn ObjectStore>,
    dir: Path,
    log: NumberedLog,
}

/// A fold, and what is needed to go on from it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Checkpoint {
    fold: u32,
    rollout: Rollout,
    /// The ids of the latest entries with their numbers, oldest first.
    ids: VecDeque<(Uuid, u64)>,
}

/// A fold, and the id of the last entry in it, by which the journal is known again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Folded {
    pub(crate) rollout: Rollout,
    pub(crate) last: Option<Uuid>,
    /// The journal was not the one that had been folded before, as after its registry was restored from a backup: it was begun anew.
    pub(crate) is_another: bool,
}

impl Checkpoint {
    fn apply(&mut self, entry: &Entry) {
        self.rollout.apply(entry);
        if self.ids.len() == REMEMBERED_IDS {
            self.ids.pop_front();
        }
        self.ids.push_back((entry.id, entry.seq));
    }

    fn seq_of(&self, id: Uuid) -> Option<u64> {
        self.ids.iter().find(|(known, _)| *known == id).map(|(_, seq)| *seq)
    }
}

impl JournalEntries {
    /// The journal below this directory.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, dir: Path) -> Self {
        Self { log: NumberedLog::new(Arc::clone(&store), dir.clone()), store, dir }
    }

    /// All entries.
    pub(crate) async fn all(&self) -> Result<Vec<Entry>, JournalError> {
        let tail = self.log.tail(0).await.map_err(|error| self.unavailable(error))?;
        self.read(1, tail).await
    }

    /// The state now.
    pub(crate) async fn rollout(&self) -> Result<Rollout, JournalError> {
        Ok(self.folded().await?.rollout)
    }

    /// The state after the entry `tail`, read from where `known` stands, or from the beginning where that is in no part of this journal.
    pub(crate) async fn rollout_to(&self, known: Folded, tail: u64) -> Result<Folded, JournalError> {
        let seq = known.rollout.seq;
        // Far behind, a checkpoint saves most of the reading; and what froze may have been mended.
        if known.rollout.frozen.is_some() || seq > tail || tail - seq > CHECKPOINT_EVERY {
            return self.folded_anew(tail, seq > tail).await;
        }
        // The last entry is read once more: another one there means another journal. One that can't be read tells nothing.
        let first = if known.last.is_some() { seq.max(1) } else { seq + 1 };
        let entries = self.read(first, tail).await?;
        let is_another = |entry: &Entry| entry.seq == seq && !entry.id.is_nil() && Some(entry.id) != known.last;
        if known.last.is_some() && entries.first().is_some_and(is_another) {
            return self.folded_anew(tail, true).await;
        }
        let mut folded = Folded { is_another: false, ..known };
        for entry in entries.iter().filter(|entry| entry.seq > seq) {
            folded.rollout.apply(entry);
            folded.last = Some(entry.id);
        }
        Ok(folded)
    }

    async fn folded_anew(&self, tail: u64, is_another: bool) -> Result<Folded, JournalError> {
        let checkpoint = self.last_checkpoint(tail).await?;
        let state = self.folded_to(checkpoint, tail).await?;
        Ok(Folded { last: state.ids.back().map(|(id, _)| *id), rollout: state.rollout, is_another })
    }

    /// The number of the last entry. `known` is where to start looking.
    pub(crate) async fn tail(&self, known: u64) -> Result<u64, JournalError> {
        self.log.tail(known).await.map_err(|error| self.unavailable(error))
    }

    /// Whether there is an entry of this number.
    pub(crate) async fn has(&self, seq: u64) -> Result<bool, JournalError> {
        self.log.exists(seq).await.map_err(|error| self.unavailable(error))
    }

    /// Writes an entry after the last one and returns its number. `check` is asked besides [`Rollout::validate`], each time
    /// that others have written in between.
    pub(crate) async fn append(&self, proposal: &Proposal, at: DateTime<Utc>) -> Result<u64, JournalError> {
        let mut state = self.folded().await?;
        for _ in 0..APPEND_TRIES {
            if let Some(seq) = state.seq_of(proposal.id) {
                return Ok(seq);
            }
            state.rollout.validate(&proposal.op)?;
            let entry = entry_after(&state.rollout, proposal, at);
            let content = serde_json::to_vec_pretty(&entry).map_err(|error| self.unavailable(error))?;
            if content.len() as u64 > MAX_ENTRY_BYTES {
                let reason = format!("its entry has {} bytes, the limit is {MAX_ENTRY_BYTES}", content.len());
                return Err(JournalError::refused(&proposal.op, reason));
            }
            match self.log.put(entry.seq, content).await {
                Ok(Put::Done) => {
                    state.apply(&entry);
                    self.write_checkpoint(&state).await;
                    return Ok(entry.seq);
                }
                Ok(Put::Taken) => state = self.folded_from(state).await?,
                Err(error) if lacks_put_if_absent(&error) => {
                    return Err(JournalError::NoPutIfAbsent { store: self.store.to_string() });
                }
                Err(error) => {
                    // It may have been written all the same: the id tells.
                    let error = self.unavailable(error);
                    state = self.folded_from(state).await.map_err(|_| error.clone())?;
                    return state.seq_of(proposal.id).ok_or(error);
                }
            }
        }
        Err(JournalError::Contended(APPEND_TRIES))
    }

    async fn folded(&self) -> Result<Checkpoint, JournalError> {
        let tail = self.log.tail(0).await.map_err(|error| self.unavailable(error))?;
        let checkpoint = self.last_checkpoint(tail).await?;
        self.folded_to(checkpoint, tail).await
    }

    async fn folded_from(&self, state: Checkpoint) -> Result<Checkpoint, JournalError> {
        let tail = self.log.tail(state.rollout.seq).await.map_err(|error| self.unavailable(error))?;
        self.folded_to(state, tail).await
    }

    async fn folded_to(&self, mut state: Checkpoint, tail: u64) -> Result<Checkpoint, JournalError> {
        for entry in self.read(state.rollout.seq + 1, tail).await? {
            state.apply(&entry);
        }
        Ok(state)
    }

    async fn read(&self, first: u64, last: u64) -> Result<Vec<Entry>, JournalError> {
        let entries = self.log.range(first, last).await.map_err(|error| self.unavailable(error))?;
        Ok(entries.into_iter().map(|(seq, content)| read_entry(seq, content.as_ref())).collect())
    }

    async fn last_checkpoint(&self, tail: u64) -> Result<Checkpoint, JournalError> {
        let mut seq = tail - tail % CHECKPOINT_EVERY;
        // A writer that was killed may have left one out; more than a few are not looked for.
        for _ in 0..3 {
            if seq == 0 {
                break;
            }
            let content = read_small(self.store.as_ref(), &self.checkpoint_path(seq), MAX_CHECKPOINT_BYTES).await;
            let checkpoint = content.map(|content| match content {
                Some(Read::Whole(content)) => Some(serde_json::from_slice::<Checkpoint>(&content)),
                Some(Read::TooLarge(_)) | None => None,
            });
            match checkpoint {
                Ok(Some(Ok(checkpoint))) if checkpoint.fold == FOLD_VERSION && checkpoint.rollout.seq == seq => {
                    return Ok(checkpoint);
                }
                Ok(Some(Err(error))) => tracing::warn!(journal = %self.dir, seq, %error, "checkpoint is not readable"),
                Ok(_) => {}
                Err(error) => return Err(self.unavailable(error)),
            }
            seq -= CHECKPOINT_EVERY;
        }
        Ok(Checkpoint { fold: FOLD_VERSION, ..Checkpoint::default() })
    }

    /// A checkpoint that is not written costs the next readers some GETs and nothing else.
    async fn write_checkpoint(&self, state: &Checkpoint) {
        let seq = state.rollout.seq;
        if !seq.is_multiple_of(CHECKPOINT_EVERY) || state.rollout.frozen.is_some() {
            return;
        }
        let written = match serde_json::to_vec(state) {
            Ok(content) => put_if_absent(self.store.as_ref(), &self.checkpoint_path(seq), content.into()).await,
            Err(error) => Err(StoreError::Generic { store: "journal", source: error.into() }),
        };
        if let Err(error) = written {
            tracing::warn!(journal = %self.dir, seq, %error, "checkpoint was not written");
        }
    }

    fn checkpoint_path(&self, seq: u64) -> Path {
        self.dir.clone().join("checkpoint").join(format!("{seq}.json"))
    }

    fn unavailable(&self, error: impl std::error::Error + Send + Sync + 'static) -> JournalError {
        JournalError::unavailable(format!("journal {}", self.dir), error)
    }
}

fn entry_after(rollout: &Rollout, proposal: &Proposal, at: DateTime<Utc>) -> Entry {
    let Proposal { op, by, reason, id, evidence, highest } = proposal.clone();
    let name = if rollout.begins(&op) { id.to_string() } else { rollout.id.clone() };
    Entry { schema: ENTRY_SCHEMA, seq: rollout.seq + 1, id, at, by, reason, rollout: name, op, evidence, highest }
}

/// What can't be read freezes the journal, as what is not known does: nobody guesses what was decided.
fn read_entry(seq: u64, content: Option<&Read>) -> Entry {
    let unreadable = |why: String| Entry {
        schema: ENTRY_SCHEMA,
        seq,
        id: Uuid::nil(),
        at: DateTime::UNIX_EPOCH,
        by: String::new(),
        reason: String::new(),
        rollout: String::new(),
        op: Op::Unknown { op: why },
        evidence: None,
        highest: None,
    };
    match content {
        Some(Read::Whole(content)) => match serde_json::from_slice::<Entry>(content) {
            Ok(entry) if entry.seq == seq => entry,
            Ok(entry) => unreadable(format!("says that its number is {}", entry.seq)),
            Err(error) => unreadable(format!("unreadable: {error}")),
        },
        Some(Read::TooLarge(bytes)) => unreadable(format!("unreadable: it has {bytes} bytes")),
        None => unreadable("missing".into()),
    }
}
