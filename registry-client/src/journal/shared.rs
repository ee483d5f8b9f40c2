//! One place for the journals of several replicas, where their registries can hold none.
//!
//! In an object store they lie as in a registry (`<model>/rollout/<20 digits>.json`), and its change log makes following all of them one
//! GET where nothing was decided; each is asked for once in a repair interval. In a directory they lie as one replica's own do
//! (`<model>/<20 digits>.json`), and each is asked for every time. A place that is away changes nothing of what was read from it, and is
//! asked ever more rarely. Whether a version exists is not known here and not checked.

mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as FsPath;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use self::place::Held;
pub use self::place::SharedJournalError;
use super::entries::late;
use super::floors::Floors;
use super::{Entry, JournalEntries, JournalError, JournalPage, Proposal, Rollout, WRITE_LIMIT};
use crate::clock::{Clock, SystemClock};
use crate::name::ModelName;
use crate::registry::versions::with_causes;
use crate::registry::{REPAIR_INTERVAL, Registry, StoreEnvironment};
use crate::source::SourceHealth;

/// How long one look waits for the place: others wait for the look.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long reading a journal may take: a long one without a checkpoint has many entries.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at a place that fails, at the most.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Journals that are asked for at a time.
const ASKED: usize = 16;

/// Journals of any number of models, which several replicas write.
pub struct SharedJournal {
    /// The setting that names it, and the place: `rollout.journal s3://bucket/prefix`.
    name: String,
    place: String,
    held: Held,
    clock: Arc<dyn Clock>,
    seen: tokio::sync::Mutex<Seen>,
    health: Mutex<Health>,
    floors: Floors,
    /// The store was seen to have put-if-absent.
    proven: AtomicBool,
    /// A decision was written since the last look: the place is not away.
    answered: AtomicBool,
}

/// How far its change log was read.
#[derive(Default)]
struct Seen {
    /// `None` before the first look.
    change: Option<u64>,
    /// When each journal is to be asked for again.
    due: Duration,
    /// Models that the log has named and whose journals have not been asked for since.
    named: BTreeSet<ModelName>,
    /// Those that are still to be asked for because it is time.
    left: BTreeSet<ModelName>,
    /// Those that have grown, and nobody has been told.
    grown: BTreeSet<ModelName>,
    failures: u32,
    /// What the last look failed with, and when the next one is worth a try.
    failed: Option<(JournalError, Duration)>,
}

#[derive(Default)]
struct Health {
    last_good: Option<DateTime<Utc>>,
    error: Option<String>,
}

impl SharedJournal {
    /// Journals at a path, `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`, with the credentials that a
    /// registry there is opened with. A store need not be reachable yet. `setting` is what users call the place, for errors. How far the
    /// journals go is kept in the file `kept`, where one is given; then a directory that is not there is made, unless journals were read from
    /// it before. Blocks.
    ///
    /// # Errors
    /// A place that is written wrong or can hold no journal, credentials that the environment has by halves, a directory that can't be
    /// made.
    pub fn open(setting: &str, location: &str, kept: Option<&FsPath>) -> Result<Self, SharedJournalError> {
        Self::open_in(setting, location, &StoreEnvironment::of_process(), kept)
    }

    /// The same with these variables instead of those of the process.
    ///
    /// # Errors
    /// As [`SharedJournal::open`].
    pub fn open_in(
        setting: &str,
        location: &str,
        environment: &StoreEnvironment,
        kept: Option<&FsPath>,
    ) -> Result<Self, SharedJournalError> {
        let held = Held::open(location, environment)?;
        let journal = Self::over(setting, held, kept);
        if kept.is_some() && journal.floors.is_empty() {
            journal.held.make()?;
        }
        Ok(journal)
    }

    fn over(setting: &str, held: Held, kept: Option<&FsPath>) -> Self {
        let place = held.describe();
        Self {
            name: format!("{setting} {place}"),
            floors: Floors::open(&place, kept),
            place,
            held,
            clock: Arc::new(SystemClock::default()),
            seen: tokio::sync::Mutex::default(),
            health: Mutex::default(),
            proven: AtomicBool::new(false),
            answered: AtomicBool::new(false),
        }
    }

    /// Takes the time from this clock.
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// For people: `s3://bucket/prefix`.
    pub fn describe(&self) -> &str {
        &self.place
    }

    /// How the last look went.
    pub fn health(&self) -> SourceHealth {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        SourceHealth {
            name: None,
            describe: self.place.clone(),
            last_good: health.last_good,
            error: health.error.clone(),
            problems: Vec::new(),
        }
    }

    /// Asks the place whether it can hold journals: a store by writing to it. A directory may still have to be made.
    ///
    /// # Errors
    /// [`JournalError::NoPutIfAbsent`], [`JournalError::Unavailable`].
    pub async fn check(&self) -> Result<(), JournalError> {
        let asked = async {
            match (&self.held, self.held.look().await) {
                (Held::Directory { .. }, Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                _ => self.prove().await,
            }
        };
        self.in_time(WRITE_LIMIT, asked).await
    }

    /// Writes an entry after the model's last one and returns its number; the number that it has where its id is there.
    ///
    /// # Errors
    /// [`JournalError::Refused`] and [`JournalError::Frozen`] as things stand, [`JournalError::NoPutIfAbsent`]. After
    /// [`JournalError::Unavailable`] retry with the same id.
    pub async fn propose(&self, model: &ModelName, proposal: &Proposal) -> Result<u64, JournalError> {
        let seq = self.in_time(WRITE_LIMIT, self.append(model, proposal)).await?;
        self.floors.raise(model, seq);
        self.floors.save().await;
        self.answered.store(true, Ordering::Relaxed);
        Ok(seq)
    }

    /// Takes over the entries of a registry's own journal that are not in the model's journal here yet, and returns the state after them.
    /// `published` begins with the last one that was taken over, or before it.
    ///
    /// # Errors
    /// [`JournalError::Replaced`] where that journal is another one now.
    /// As [`SharedJournal::propose`].
    pub async fn take_over(&self, model: &ModelName, published: &[Entry]) -> Result<Rollout, JournalError> {
        let rollout = self.copied(model, published).await?;
        self.floors.raise(model, rollout.seq);
        self.floors.save().await;
        Ok(rollout)
    }

    /// All entries of a model; none where it has no journal.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`].
    pub async fn journal(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError> {
        let read = async { self.entries(model).await?.all().await.map_err(|error| self.told(error)) };
        self.in_time(READ_LIMIT, read).await
    }

    /// The last entries of a model's journal, or the last ones before an entry, newest first: `limit` at the most, and fewer where they are
    /// large.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`].
    pub async fn page(&self, model: &ModelName, before: Option<u64>, limit: usize) -> Result<JournalPage, JournalError> {
        let read = async { self.entries(model).await?.page(before, limit).await.map_err(|error| self.told(error)) };
        self.in_time(READ_LIMIT, read).await
    }

    /// The state of a model's journal.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`]; also where it ends before an entry that was there.
    pub async fn rollout(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        let read = async { self.entries(model).await?.rollout().await.map_err(|error| self.told(error)) };
        let rollout = self.in_time(READ_LIMIT, read).await?;
        self.floors.raise(model, rollout.seq);
        Ok(rollout)
    }

    /// The models whose journals have entries after those that are folded in here. Where asking for all of them takes too long for one look,
    /// the next one goes on.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`]. What has grown is found by a later call.
    pub async fn grown(&self, known: &BTreeMap<ModelName, Rollout>) -> Result<BTreeSet<ModelName>, JournalError> {
        let mut seen = self.seen.lock().await;
        let now = self.clock.elapsed();
        let answered = self.answered.swap(false, Ordering::Relaxed);
        if let Some((error, _)) = seen.failed.as_ref().filter(|(_, retry_at)| !answered && now < *retry_at) {
            return Err(error.clone());
        }
        let looked = self.look(&mut seen, known, now).await;
        self.take_note(&mut seen, looked.as_ref().err());
        self.floors.save().await;
        looked
    }

    fn take_note(&self, seen: &mut Seen, failure: Option<&JournalError>) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(error) = failure else {
            (seen.failures, seen.failed) = (0, None);
            *health = Health { last_good: Some(self.clock.now()), error: None };
            return;
        };
        seen.failures = seen.failures.saturating_add(1);
        let pause = Duration::from_millis(500).saturating_mul(1 << seen.failures.min(10)).min(MAX_BACKOFF);
        // From when it failed, which may be later than when the look began.
        let retry_at = self.clock.elapsed() + pause.mul_f64(1.0 - self.held.spread() / 4.0);
        seen.failed = Some((error.clone(), retry_at));
        health.error = Some(with_causes(error));
    }

    /// Whoever is cancelled here has lost nothing: what the log has named is remembered until it has been asked for.
    async fn look(
        &self,
        seen: &mut Seen,
        known: &BTreeMap<ModelName, Rollout>,
        now: Duration,
    ) -> Result<BTreeSet<ModelName>, JournalError> {
        let until = Instant::now() + PATIENCE;
        let Ok(noted) = timeout_at(until, self.note_changes(seen, known, now)).await else {
            // A log that others have written much to would be begun with again and again: its end is found faster, and all are asked for then.
            seen.change = None;
            return Err(self.unavailable(late(PATIENCE)));
        };
        noted?;
        let waiting = seen.named.len() + seen.left.len();
        match timeout_at(until, self.ask(seen, known)).await {
            Ok(asked) => asked?,
            // Whoever answers is not away: what is left is asked for at the next look.
            Err(_) if seen.named.len() + seen.left.len() < waiting => {}
            Err(_) => return Err(self.unavailable(late(PATIENCE))),
        }
        Ok(std::mem::take(&mut seen.grown))
    }

    /// Takes note of the journals that are to be asked for.
    async fn note_changes(&self, seen: &mut Seen, known: &BTreeMap<ModelName, Rollout>, now: Duration) -> Result<(), JournalError> {
        self.held.look().await.map_err(|error| self.unavailable(error))?;
        let all = match &self.held {
            Held::Store(registry) => self.read_log(registry, seen, now).await?,
            // Those that the last look did not come to are first.
            Held::Directory { .. } => seen.left.is_empty(),
        };
        if all {
            seen.left.extend(known.keys().cloned());
            seen.due = now + REPAIR_INTERVAL.mul_f64(1.0 - self.held.spread() / 10.0);
        }
        seen.named.retain(|name| known.contains_key(name));
        seen.left.retain(|name| known.contains_key(name) && !seen.named.contains(name));
        Ok(())
    }

    /// Asks for journals, first for those that have been named.
    async fn ask(&self, seen: &mut Seen, known: &BTreeMap<ModelName, Rollout>) -> Result<(), JournalError> {
        let asked: Vec<_> = seen.named.iter().chain(&seen.left).cloned().collect();
        let asked = asked.into_iter().map(|name| {
            let seq = known.get(&name).map_or(0, |rollout| rollout.seq);
            async move { (self.has_grown(&name, seq).await, name) }
        });
        let mut answers = futures::stream::iter(asked).buffer_unordered(ASKED);
        while let Some((answer, name)) = answers.next().await {
            let has_grown = answer?;
            seen.named.remove(&name);
            seen.left.remove(&name);
            if has_grown {
                seen.grown.insert(name);
            }
        }
        Ok(())
    }

    /// Whether a journal has an entry after this one.
    async fn has_grown(&self, model: &ModelName, seq: u64) -> Result<bool, JournalError> {
        match self.entries(model).await?.has(seq.saturating_add(1)).await {
            // What is wrong with one journal in a directory is no reason to hold up the others: reading it again tells.
            Err(_) if self.held.is_directory() => Ok(true),
            answer => answer.map_err(|error| self.told(error)),
        }
    }

    /// Takes in what the change log says, and returns whether every journal is to be asked for.
    async fn read_log(&self, registry: &Registry, seen: &mut Seen, now: Duration) -> Result<bool, JournalError> {
        let unavailable = |error| self.unavailable(error);
        let Some(last) = seen.change else {
            seen.change = Some(registry.last_change().await.map_err(unavailable)?);
            return Ok(true);
        };
        let changes = registry.changes_after(last).await.map_err(unavailable)?;
        let unreadable = changes.models.is_none();
        seen.named.extend(changes.models.into_iter().flatten());
        seen.change = Some(changes.last);
        if unreadable {
            seen.due = now;
        }
        if now >= seen.due {
            // A log that was restored from a backup ends before what was read of it: what is written to it then is seen from here on.
            seen.change = Some(registry.last_change().await.map_err(unavailable)?);
        }
        Ok(now >= seen.due)
    }

    async fn append(&self, model: &ModelName, proposal: &Proposal) -> Result<u64, JournalError> {
        self.prove().await?;
        let entries = self.entries(model).await?;
        let seq = entries.append(proposal, self.clock.now()).await.map_err(|error| self.told(error))?;
        if let Held::Store(registry) = &self.held {
            registry.note_decision(model, proposal.op.version()).await;
        }
        Ok(seq)
    }

    async fn copied(&self, model: &ModelName, published: &[Entry]) -> Result<Rollout, JournalError> {
        let proven = async {
            self.prove().await?;
            self.entries(model).await
        };
        let entries = self.in_time(WRITE_LIMIT, proven).await?;
        let (rollout, copied) = entries.take_over(published).await.map_err(|error| self.told(error))?;
        if let Held::Store(registry) = &self.held
            && copied > 0
        {
            // One that is lost only delays.
            drop(tokio::time::timeout(WRITE_LIMIT, registry.note_decision(model, None)).await);
        }
        Ok(rollout)
    }

    /// A server that takes no notice of the condition would let two replicas write one entry.
    async fn prove(&self) -> Result<(), JournalError> {
        let Held::Store(registry) = &self.held else {
            return self.held.look().await.map_err(|error| self.unavailable(error));
        };
        if self.proven.load(Ordering::Relaxed) {
            return Ok(());
        }
        match registry.has_put_if_absent().await {
            Ok(true) => self.proven.store(true, Ordering::Relaxed),
            Ok(false) => return Err(JournalError::NoPutIfAbsent { store: self.name.clone() }),
            Err(error) => return Err(self.unavailable(error)),
        }
        Ok(())
    }

    async fn entries(&self, model: &ModelName) -> Result<JournalEntries, JournalError> {
        let entries = self.held.entries(model).await.map_err(|error| self.unavailable(error))?;
        Ok(entries.at_least(self.floors.of(model)))
    }

    async fn in_time<T>(&self, limit: Duration, answer: impl Future<Output = Result<T, JournalError>>) -> Result<T, JournalError> {
        tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(self.unavailable(late(limit))))
    }

    fn unavailable(&self, error: impl std::error::Error + Send + Sync + 'static) -> JournalError {
        JournalError::unavailable(self.name.clone(), error)
    }

    /// An error of a journal, with the setting that says where it is.
    fn told(&self, error: JournalError) -> JournalError {
        match error {
            JournalError::Unavailable { source, .. } => JournalError::Unavailable { place: self.name.clone(), source },
            JournalError::NoPutIfAbsent { .. } => JournalError::NoPutIfAbsent { store: self.name.clone() },
            error => error,
        }
    }
}

#[cfg(test)]
mod tests;
