//! A journal in an object store: `<20 digits>.json` and a checkpoint of the fold every 100 entries.
//!
//! Entries stay where they are; a checkpoint only saves reading them. One that was written by other rules of folding, or
//! can't be read, is passed over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ENTRY_SCHEMA, Entry, JournalError, JournalPage, Op, Proposal, Rollout, WRITE_LIMIT};
use crate::log::{MAX_ENTRY_BYTES, NumberedLog, Put, Read, lacks_put_if_absent, put_if_absent, read_small};

/// A checkpoint is written after each so many entries.
pub(super) const CHECKPOINT_EVERY: u64 = 100;
/// A checkpoint remembers this many ids, so that a late retry is still known.
const REMEMBERED_IDS: usize = 1_000;
/// Raised whenever [`Rollout::apply`] comes to another result for the same entries.
const FOLD_VERSION: u32 = 4;
/// How often an append that loses its number tries the next.
const APPEND_TRIES: u32 = 64;
const MAX_CHECKPOINT_BYTES: u64 = 8 << 20;
/// A page ends with the entry that brings it to this size.
const MAX_PAGE_BYTES: u64 = 2 << 20;
/// How many entries of a page are read before their sizes are looked at.
const READ_FOR_PAGE: u64 = 16;

/// The journal of one model.
#[derive(Debug, Clone)]
pub(crate) struct JournalEntries {
    store: Arc<dyn ObjectStore>,
    dir: Path,
    log: NumberedLog,
    /// It was seen to go on to this entry at the least.
    least: u64,
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
        Self { log: NumberedLog::new(Arc::clone(&store), dir.clone()), store, dir, least: 0 }
    }

    /// The same where it is known that there is an entry of this number: one that ends before it is not believed, and not written to.
    /// A share that is not mounted and a bucket that was emptied look like that, and what was decided must not be forgotten for it.
    pub(crate) fn at_least(self, least: u64) -> Self {
        Self { least, ..self }
    }

    /// All entries.
    pub(crate) async fn all(&self) -> Result<Vec<Entry>, JournalError> {
        let tail = self.end(0).await?;
        self.read(1, tail).await
    }

    /// The last entries, or the last ones before the entry `before`: `limit` at the most, and one where there is any.
    pub(crate) async fn page(&self, before: Option<u64>, limit: usize) -> Result<JournalPage, JournalError> {
        let seq = self.log.tail(0).await.map_err(|error| self.unavailable(error))?;
        let mut last = before.map_or(seq, |before| seq.min(before.saturating_sub(1)));
        let (mut entries, mut bytes, limit) = (Vec::new(), 0, limit.max(1));
        while last > 0 && entries.len() < limit && bytes < MAX_PAGE_BYTES {
            let left = u64::try_from(limit - entries.len()).unwrap_or(u64::MAX);
            let first = last.saturating_sub(left.min(READ_FOR_PAGE) - 1).max(1);
            let read = self.log.range(first, last).await.map_err(|error| self.unavailable(error))?;
            for (seq, content) in read.into_iter().rev() {
                if bytes >= MAX_PAGE_BYTES {
                    break;
                }
                if let Some(Read::Whole(content)) = &content {
                    bytes += content.len() as u64;
                }
                entries.push(read_entry(seq, content.as_ref()));
                last = seq - 1;
            }
        }
        Ok(JournalPage { seq, entries, before: (last > 0).then_some(last + 1) })
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

    /// The number of the last entry, where that can be believed.
    async fn end(&self, known: u64) -> Result<u64, JournalError> {
        let tail = self.tail(known).await?;
        if tail < self.least {
            let short = format!("it ends at entry {tail}, but entry {} was there", self.least);
            return Err(self.unavailable(std::io::Error::other(short)));
        }
        Ok(tail)
    }

    /// Takes over the entries of another journal that are not in this one yet, and returns the state after them and how many were written.
    ///
    /// `published` begins with the last entry that was taken over, by which that journal is known again, or before it. What entries decide is
    /// not judged: the fold takes anything. Of several who take over at once each entry is written by one. Each step may take as long as one
    /// decision may; what breaks off is gone on from by whoever comes next.
    pub(crate) async fn take_over(&self, published: &[Entry]) -> Result<(Rollout, usize), JournalError> {
        let mut state = self.in_time(self.folded()).await?;
        state.rollout.agree_with_entries(published)?;
        let (mut lost, mut copied) = (0, 0);
        while let Some(next) = published.get(published.partition_point(|entry| entry.seq <= state.rollout.followed)) {
            if let Some(entry) = &state.rollout.frozen {
                return Err(JournalError::Frozen(entry.clone()));
            }
            if let Op::Unknown { op } = &next.op {
                return Err(JournalError::Frozen(format!("entry {}: {op}", next.seq)));
            }
            let entry = Entry { seq: state.rollout.seq + 1, published: Some(next.seq), ..next.clone() };
            let content = serde_json::to_vec_pretty(&entry).map_err(|error| self.unavailable(error))?;
            match self.in_time(self.put(entry.seq, content)).await? {
                Put::Done => {
                    (lost, copied) = (0, copied + 1);
                    state.apply(&entry);
                    // Whoever does not answer in time does not at the next step either.
                    drop(tokio::time::timeout(WRITE_LIMIT, self.write_checkpoint(&state)).await);
                }
                Put::Taken if lost < APPEND_TRIES => {
                    lost += 1;
                    state = self.in_time(self.folded_from(state)).await?;
                    state.rollout.agree_with_entries(published)?;
                }
                Put::Taken => return Err(JournalError::Contended(APPEND_TRIES)),
            }
        }
        Ok((state.rollout, copied))
    }

    /// Whatever fails may have been written all the same: the next try finds it.
    async fn put(&self, seq: u64, content: Vec<u8>) -> Result<Put, JournalError> {
        self.log.put(seq, content).await.map_err(|error| match lacks_put_if_absent(&error) {
            true => JournalError::NoPutIfAbsent { store: self.store.to_string() },
            false => self.unavailable(error),
        })
    }

    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, JournalError>>) -> Result<T, JournalError> {
        tokio::time::timeout(WRITE_LIMIT, answer).await.unwrap_or_else(|_| Err(self.unavailable(late(WRITE_LIMIT))))
    }

    /// The entries after this one.
    pub(crate) async fn after(&self, seq: u64) -> Result<Vec<Entry>, JournalError> {
        let tail = self.end(seq).await?;
        self.read(seq + 1, tail).await
    }

    async fn folded(&self) -> Result<Checkpoint, JournalError> {
        let tail = self.end(0).await?;
        let checkpoint = self.last_checkpoint(tail).await?;
        self.folded_to(checkpoint, tail).await
    }

    async fn folded_from(&self, state: Checkpoint) -> Result<Checkpoint, JournalError> {
        let tail = self.end(state.rollout.seq).await?;
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

/// What is told of an answer that did not come within this time.
pub(super) fn late(limit: Duration) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs()))
}

fn entry_after(rollout: &Rollout, proposal: &Proposal, at: DateTime<Utc>) -> Entry {
    let Proposal { op, by, reason, id, evidence, highest } = proposal.clone();
    let name = if rollout.begins(&op) { id.to_string() } else { rollout.id.clone() };
    Entry { schema: ENTRY_SCHEMA, seq: rollout.seq + 1, id, at, by, reason, rollout: name, op, evidence, highest, published: None }
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
        published: None,
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
