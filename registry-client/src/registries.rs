//! Several registries as one source: each is looked at in its own time, and one that fails or hangs holds up no other.
//!
//! A model belongs to the registry that has it. Where a second one has a model of the same name, the first keeps it and the clash is
//! a problem that names both; where none of them had it before, it is loaded from neither. While the registry of a model can't be
//! read its models stay as they were, and a listing that lacks a registry can remove nothing. One registry alone is looked at as long as it
//! takes, as if this were not here.

mod merge;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use tokio::task::JoinSet;

use crate::clock::{Clock, SystemClock};
use crate::listing::{Cursor, Generation, Listing};
use crate::name::ModelName;
use crate::registry::versions::with_causes;
use crate::source::{FetchError, Fetched, Progress, SourceError, SourceHealth, VersionSource};
use merge::Tagged;

/// How long one look waits for one of several registries. One that takes longer goes on, and is in a later look.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks at one of several registries that fails, at the most.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// One of several registries.
#[derive(Clone)]
pub struct NamedSource {
    /// What users call it; nothing where there is only one.
    pub name: Option<String>,
    /// Where it is, as it is known after a restart.
    pub place: Arc<str>,
    /// What lists and fetches.
    pub source: Arc<dyn VersionSource>,
}

impl NamedSource {
    /// For people: its name and what it is.
    fn describe(&self) -> String {
        match &self.name {
            Some(name) => format!("`{name}` ({})", self.source.describe()),
            None => self.source.describe(),
        }
    }
}

/// All registries of a gateway.
pub struct Registries {
    members: Vec<NamedSource>,
    clock: Arc<dyn Clock>,
    looks: tokio::sync::Mutex<Looks>,
    owners: Mutex<BTreeMap<ModelName, usize>>,
    /// An owner was told since the listings were last merged.
    adopted: AtomicBool,
    health: Mutex<Vec<Health>>,
}

type Looked = (usize, Result<Option<Listing>, SourceError>);

/// What was seen so far, and the looks that are under way.
struct Looks {
    /// On tasks of their own: they go on while nobody waits for them.
    running: JoinSet<Looked>,
    members: Vec<Member>,
    tagged: Tagged,
    /// What the listings came to: with a thousand models that takes longer than to find out that none has changed.
    merged: Option<Listing>,
    /// One of the listings is another since.
    changed: bool,
}

#[derive(Default)]
struct Member {
    /// The last listing that could be believed.
    listing: Option<Listing>,
    /// The last answer was empty after one that was not.
    emptied: bool,
    /// When the look that is under way began.
    began: Option<Duration>,
    failures: u32,
    /// Not before this.
    next: Duration,
}

#[derive(Default)]
struct Health {
    last_good: Option<DateTime<Utc>>,
    error: Option<String>,
    /// The error as it came: a single registry's is passed on.
    failure: Option<SourceError>,
    problems: Vec<String>,
}

impl Registries {
    /// These registries, of which there is at least one.
    pub fn new(members: Vec<NamedSource>) -> Self {
        let looks = Looks {
            running: JoinSet::new(),
            members: members.iter().map(|_| Member::default()).collect(),
            tagged: Tagged::default(),
            merged: None,
            changed: false,
        };
        let health = members.iter().map(|_| Health::default()).collect();
        Self {
            members,
            clock: Arc::new(SystemClock::default()),
            looks: tokio::sync::Mutex::new(looks),
            owners: Mutex::default(),
            adopted: AtomicBool::new(false),
            health: Mutex::new(health),
        }
    }

    /// Takes the time from this clock.
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The place of the registry that a model belongs to, where that is known.
    pub fn place_of(&self, model: &ModelName) -> Option<Arc<str>> {
        let owner = match self.members.len() {
            1 => 0,
            _ => *lock(&self.owners).get(model)?,
        };
        self.members.get(owner).map(|member| Arc::clone(&member.place))
    }

    /// Begins a look at each registry that is due and has none under way.
    fn begin(&self, looks: &mut Looks, now: Duration) {
        for (index, (member, named)) in looks.members.iter_mut().zip(&self.members).enumerate() {
            if member.began.is_some() || (self.members.len() > 1 && now < member.next) {
                continue;
            }
            member.began = Some(now);
            let (source, cursor) = (Arc::clone(&named.source), member.listing.as_ref().map(|listing| listing.cursor.clone()));
            looks.running.spawn(async move {
                let listed = AssertUnwindSafe(source.list(cursor.as_ref())).catch_unwind().await;
                let panicked = || SourceError::unavailable(source.describe(), std::io::Error::other("the look panicked"));
                (index, listed.unwrap_or_else(|_| Err(panicked())))
            });
        }
    }

    /// Takes in what the looks bring, until all have ended or none of those that go on deserves more patience.
    async fn wait(&self, looks: &mut Looks) {
        loop {
            let now = self.clock.elapsed();
            let left = looks.members.iter().filter_map(|member| (member.began? + PATIENCE).checked_sub(now)).max();
            // Where there is only one, nobody is held up. One that has used up its patience is not waited for.
            let patience = if self.members.len() == 1 { Duration::MAX } else { left.unwrap_or_default() };
            match tokio::time::timeout(patience, looks.running.join_next()).await {
                Ok(Some(Ok((index, outcome)))) => self.take_in(looks, index, outcome),
                // A task is only ever cancelled by the end of the program.
                Ok(None | Some(Err(_))) | Err(_) => return,
            }
        }
    }

    fn take_in(&self, looks: &mut Looks, index: usize, outcome: Result<Option<Listing>, SourceError>) {
        let Some(member) = looks.members.get_mut(index) else { return };
        member.began = None;
        let now = self.clock.elapsed();
        let mut all = lock(&self.health);
        let Some(health) = all.get_mut(index) else { return };
        match outcome {
            Ok(listing) => {
                (member.failures, member.next) = (0, now);
                *health = Health {
                    last_good: Some(self.clock.now()),
                    problems: std::mem::take(&mut health.problems),
                    ..Health::default()
                };
                if let Some(listing) = listing {
                    looks.changed = true;
                    health.problems.clone_from(&listing.problems);
                    let before = member.listing.as_ref().is_some_and(|before| !before.models.is_empty());
                    member.emptied = listing.models.is_empty() && (before || member.emptied);
                    if !member.emptied {
                        member.listing = Some(listing);
                    }
                } else if let Some(listing) = &mut member.listing {
                    listing.recheck_after = None;
                }
            }
            Err(error) => {
                member.failures += 1;
                let pause = Duration::from_millis(500).saturating_mul(1 << member.failures.min(10)).min(MAX_BACKOFF);
                // Up to a quarter less by chance: replicas that failed together must not come back together.
                let chance = RandomState::new().hash_one(now) as f64 / u64::MAX as f64;
                member.next = now + pause.mul_f64(1.0 - chance / 4.0);
                health.error = Some(with_causes(&error));
                health.failure = Some(error);
            }
        }
    }

    /// The error of all of them, where none can be read.
    fn failure(&self) -> Option<SourceError> {
        let health = lock(&self.health);
        let failures: Option<Vec<_>> = health.iter().map(|health| health.failure.clone()).collect();
        match failures?.as_slice() {
            [only] => Some(only.clone()),
            failures => {
                let texts: Vec<_> = failures.iter().map(|error| with_causes(error)).collect();
                Some(SourceError::unavailable("every registry", std::io::Error::other(texts.join("; "))))
            }
        }
    }
}

#[async_trait]
impl VersionSource for Registries {
    fn describe(&self) -> String {
        self.members.iter().map(NamedSource::describe).collect::<Vec<_>>().join(", ")
    }

    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        let mut looks = self.looks.lock().await;
        self.begin(&mut looks, self.clock.elapsed());
        self.wait(&mut looks).await;
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let listing = self.merged(&mut looks);
        let is_new = since.is_none_or(|since| since.state != listing.cursor.state);
        Ok(is_new.then(|| listing.clone()))
    }

    async fn fetch(&self, generation: &Generation, dest: &Path, progress: &dyn Progress) -> Result<Fetched, FetchError> {
        let owner = match self.members.len() {
            1 => Some(0),
            _ => lock(&self.owners).get(&generation.key.model).copied(),
        };
        match owner.and_then(|owner| self.members.get(owner)) {
            Some(member) => member.source.fetch(generation, dest, progress).await,
            None => {
                let why = std::io::Error::other("it is not known yet in which one the model is");
                Err(FetchError::unavailable(format!("the registry of {}", generation.key), why))
            }
        }
    }

    fn health(&self) -> Vec<SourceHealth> {
        let health = lock(&self.health);
        let of = |(member, health): (&NamedSource, &Health)| SourceHealth {
            name: member.name.clone(),
            describe: member.source.describe(),
            last_good: health.last_good,
            error: health.error.clone(),
            problems: health.problems.clone(),
        };
        self.members.iter().zip(health.iter()).map(of).collect()
    }

    fn adopt(&self, model: &ModelName, registry: &str) -> bool {
        let owner = self.members.iter().position(|member| *member.place == *registry);
        if let Some(owner) = owner {
            lock(&self.owners).insert(model.clone(), owner);
            self.adopted.store(true, Ordering::SeqCst);
        }
        owner.is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
