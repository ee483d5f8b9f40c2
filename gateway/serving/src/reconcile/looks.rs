//! Looking at the source: one look at a time, on a task of its own, so that a slow source holds up nobody.

mod journals;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bascule_registry::{Listing, ModelName, Rollout, VersionSource, WriteBack};
use futures::FutureExt as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::event::{Event, Look};
use crate::engine::{EngineOptions, LiveOptions};
use crate::error::{panicked, with_causes};
use crate::journal::JournalStore;
use crate::steering::Teller;

/// After this long, whoever waits for the first look is told that it is slow.
const SLOW: Duration = Duration::from_secs(10);

/// Between two looks, at the least, whatever the settings say.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Between two looks at a source that fails, at the most.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Wishes for a look. Many while one look is under way are one wish.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    asked: Mutex<Asked>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Asked {
    ticket: u64,
    /// Models whose journal has changed, although the source may say that nothing has.
    about: BTreeSet<ModelName>,
}

impl Looks {
    /// Asks for a look. One that begins after this call has this ticket or a later one.
    pub(crate) fn ask(&self) -> u64 {
        self.ask_with(|_| ())
    }

    /// The same, and the model's journal is read again.
    pub(crate) fn ask_about(&self, model: ModelName) -> u64 {
        self.ask_with(|asked| {
            asked.about.insert(model);
        })
    }

    fn ask_with(&self, change: impl FnOnce(&mut Asked)) -> u64 {
        let mut asked = self.lock();
        change(&mut asked);
        asked.ticket += 1;
        let ticket = asked.ticket;
        drop(asked);
        self.wake.notify_one();
        ticket
    }

    fn take(&self) -> (u64, BTreeSet<ModelName>) {
        let mut asked = self.lock();
        (asked.ticket, std::mem::take(&mut asked.about))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that looks.
pub(crate) struct Seer {
    source: Arc<dyn VersionSource>,
    journal: Arc<dyn JournalStore>,
    looks: Arc<Looks>,
    mailbox: mpsc::WeakSender<Event>,
    live: watch::Receiver<LiveOptions>,
    chance: u64,
    /// The last listing, as the source gave it.
    listing: Option<Listing>,
    /// What was served before a restart of models whose source holds no journal, for as long as there is no listing.
    restored: Listing,
    /// The reconciler has not been told of it yet.
    unreported: bool,
    /// Journals of models whose source holds none.
    rollouts: BTreeMap<ModelName, Rollout>,
    /// Those that are to be read again.
    stale: BTreeSet<ModelName>,
    /// Those that could not be read the last time.
    unread: BTreeSet<ModelName>,
    /// None of them can be read now.
    journal_away: bool,
    /// Those that could not be written.
    unwritten: BTreeSet<ModelName>,
    /// Looks at them, counted.
    round: u64,
    /// Those that could not be written because the place failed, and when that was: the round.
    failed_in: BTreeMap<ModelName, u64>,
    /// How many of them failed in this round.
    refused: usize,
    /// One more look is needed at once.
    again: bool,
    /// Who is to be told what is decided here.
    write_back: Option<Arc<dyn WriteBack>>,
    teller: Option<Teller>,
    /// The last entry of each journal that the teller knows.
    told: BTreeMap<ModelName, u64>,
    failures: u32,
}

impl Seer {
    pub(crate) fn new(
        options: &EngineOptions,
        live: watch::Receiver<LiveOptions>,
        looks: Arc<Looks>,
        mailbox: mpsc::WeakSender<Event>,
        restored: Listing,
    ) -> Seer {
        Seer {
            source: Arc::clone(&options.source),
            journal: Arc::clone(&options.journal),
            looks,
            mailbox,
            live,
            chance: RandomState::new().build_hasher().finish(),
            listing: None,
            restored,
            unreported: false,
            rollouts: BTreeMap::new(),
            stale: BTreeSet::new(),
            unread: BTreeSet::new(),
            journal_away: false,
            unwritten: BTreeSet::new(),
            round: 0,
            failed_in: BTreeMap::new(),
            refused: 0,
            again: false,
            write_back: options.write_back.clone(),
            teller: None,
            told: BTreeMap::new(),
            failures: 0,
        }
    }

    /// Looks until the engine has ended.
    pub(crate) async fn run(mut self) {
        self.teller = self.write_back.take().map(|write_back| Teller::start(write_back, Arc::clone(&self.looks)));
        loop {
            if self.mailbox.strong_count() == 0 {
                return;
            }
            let (ticket, about) = self.looks.take();
            self.stale.extend(about);
            // By other rules the same listing may mean something else. An error means that the engine has ended.
            if self.live.has_changed().unwrap_or(false) {
                self.live.mark_unchanged();
                self.unreported = self.listing.is_some();
            }
            let look = self.look_patiently(ticket).await;
            if !self.tell(ticket, look).await {
                return;
            }
            let at = Instant::now() + self.pause();
            // An error means that the pause is over, which is one of the two reasons to look.
            drop(timeout_at(at, self.looks.wake.notified()).await);
        }
    }

    async fn tell(&self, ticket: u64, look: Look) -> bool {
        match self.mailbox.upgrade() {
            Some(mailbox) => {
                let (registries, journal) = (self.source.health(), self.journal.health());
                mailbox.send(Event::Looked { ticket, look, registries, journal }).await.is_ok()
            }
            None => false,
        }
    }

    /// Until the next look, half a tenth more or less by chance; longer while the source fails.
    fn pause(&mut self) -> Duration {
        // Knuth's linear congruential generator: replicas need to spread and nothing more.
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let spread = 0.95 + 0.1 * (self.chance >> 11) as f64 / (1u64 << 53) as f64;
        let interval = self.live.borrow().poll_interval.max(MIN_INTERVAL);
        let backoff = interval.saturating_mul(1 << self.failures.min(10)).min(MAX_BACKOFF.max(interval));
        let settling = self.listing.as_ref().and_then(|listing| listing.recheck_after).filter(|_| self.failures == 0);
        backoff.mul_f64(spread).min(settling.unwrap_or(Duration::MAX))
    }

    async fn look_patiently(&mut self, ticket: u64) -> Look {
        let mailbox = self.mailbox.clone();
        let mut look = std::pin::pin!(self.look());
        match timeout(SLOW, &mut look).await {
            Ok(look) => look,
            Err(_) => {
                if let Some(mailbox) = mailbox.upgrade() {
                    // The engine may have ended: the look's own report will find out.
                    drop(mailbox.send(Event::Looked { ticket, look: Look::Slow, registries: Vec::new(), journal: None }).await);
                }
                look.await
            }
        }
    }

    async fn look(&mut self) -> Look {
        let cursor = self.listing.as_ref().map(|listing| listing.cursor.clone());
        // A source that panics is one that can't be read: looking goes on.
        let listed = AssertUnwindSafe(self.source.list(cursor.as_ref())).catch_unwind().await;
        let listed = listed
            .map_err(|panic| format!("the source {}", panicked(panic.as_ref())))
            .and_then(|listed| listed.map_err(|error| with_causes(&error)));
        match listed {
            Ok(Some(listing)) => {
                self.listing = Some(listing);
                self.unreported = true;
            }
            Ok(None) => {
                if let Some(listing) = &mut self.listing {
                    listing.recheck_after = None;
                }
            }
            Err(error) => {
                self.failures += 1;
                if let Some(decided) = self.decided_meanwhile().await {
                    // Where the engine has ended, whoever tells of the failure finds out.
                    self.tell(0, Look::Decided(Box::new(decided))).await;
                }
                return Look::Failed(error);
            }
        }
        self.failures = 0;
        self.note_grown_journals().await;
        if !self.has_news() {
            return Look::Unchanged;
        }
        let Some(listing) = self.with_journals().await else { return Look::Unchanged };
        self.unreported = std::mem::take(&mut self.again);
        if self.unreported {
            self.looks.ask();
        }
        Look::Listed(Box::new(listing))
    }
}
