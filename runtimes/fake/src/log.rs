//! What was done to a runtime, and the one lock and condition variable that all waiting goes through.
//!
//! Runs are counted, not kept: a log stays small however long a test serves. Only loads and drops are kept one by one.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use bascule_runtime_api::RunError;

/// A session that was made or dropped, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEvent {
    /// The session's number: sessions are counted from 1 as they are made.
    pub session: u64,
    /// [`crate::FakeModel::tag`].
    pub tag: String,
    /// The thread that did it.
    pub thread: ThreadId,
    /// That thread's name.
    pub thread_name: Option<String>,
}

impl SessionEvent {
    fn here(session: u64, tag: &str) -> SessionEvent {
        let thread = thread::current();
        SessionEvent { session, tag: tag.to_owned(), thread: thread.id(), thread_name: thread.name().map(str::to_owned) }
    }
}

/// How often what happened, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FakeCounts {
    /// Sessions made so far.
    pub loaded: usize,
    /// Sessions that are alive.
    pub live: usize,
    /// Runs under way, those at the gate included.
    pub running: usize,
    /// Runs that wait at the gate.
    pub blocked: usize,
    /// Runs that gave outputs.
    pub succeeded: u64,
    /// Runs that failed for any cause but an interrupt, panics included.
    pub failed: u64,
    /// Runs that were interrupted.
    pub interrupted: u64,
}

#[derive(Debug, Default)]
struct LogState {
    counts: FakeCounts,
    loads: Vec<SessionEvent>,
    drops: Vec<SessionEvent>,
    batch_sizes: BTreeMap<i64, u64>,
    gate_open: bool,
    last_session: u64,
    /// The sessions that run, and whether their run was interrupted.
    running: BTreeMap<u64, bool>,
}

/// What was done to a [`crate::FakeRuntime`], and the gate of its models with `block`. The gate is closed at first.
#[derive(Debug, Default)]
pub struct FakeLog {
    state: Mutex<LogState>,
    changed: Condvar,
}

impl FakeLog {
    /// The sessions that were made, in order.
    pub fn loads(&self) -> Vec<SessionEvent> {
        self.lock().loads.clone()
    }

    /// The sessions that were dropped, in order.
    pub fn drops(&self) -> Vec<SessionEvent> {
        self.lock().drops.clone()
    }

    /// How many runs had how many rows: the first size of the first input, 1 where that is a scalar or there is none.
    pub fn batch_sizes(&self) -> BTreeMap<i64, u64> {
        self.lock().batch_sizes.clone()
    }

    /// The counters.
    pub fn counts(&self) -> FakeCounts {
        self.lock().counts
    }

    /// Waits until the counters meet a condition; false where they do not within `limit`.
    pub fn wait_until(&self, limit: Duration, condition: impl Fn(&FakeCounts) -> bool) -> bool {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, limit, |state| !condition(&state.counts));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Opens the gate: the runs that wait there go on, later ones do not wait.
    pub fn release(&self) {
        self.change(|state| state.gate_open = true);
    }

    /// Closes the gate again.
    pub fn hold(&self) {
        self.change(|state| state.gate_open = false);
    }

    /// Records a session that was made; the number stands for it from then on.
    pub(crate) fn loaded(&self, tag: &str) -> u64 {
        self.change(|state| {
            state.last_session += 1;
            state.loads.push(SessionEvent::here(state.last_session, tag));
            state.counts.loaded += 1;
            state.counts.live += 1;
            state.last_session
        })
    }

    /// Records that this thread drops a session.
    pub(crate) fn dropped(&self, session: u64, tag: &str) {
        self.change(|state| {
            state.drops.push(SessionEvent::here(session, tag));
            state.counts.live -= 1;
        });
    }

    /// Records that a run begins.
    pub(crate) fn begin(&self, session: u64, rows: i64) -> RunRecord<'_> {
        self.change(|state| {
            *state.batch_sizes.entry(rows).or_default() += 1;
            state.counts.running += 1;
            state.running.insert(session, false);
        });
        RunRecord { log: self, session, outcome: Outcome::Failed }
    }

    /// Interrupts a session's run; nothing where none is under way.
    pub(crate) fn interrupt(&self, session: u64) {
        self.change(|state| {
            if let Some(interrupted) = state.running.get_mut(&session) {
                *interrupted = true;
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, LogState> {
        // Nothing panics while the lock is held, so a poisoned lock can't come from a torn change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut LogState) -> T) -> T {
        let value = change(&mut self.lock());
        self.changed.notify_all();
        value
    }
}

enum Outcome {
    Succeeded,
    Failed,
    Interrupted,
}

/// A run under way. Dropping it records the end: as a failure, unless [`RunRecord::ended`] said otherwise, so that a panic counts as
/// one.
pub(crate) struct RunRecord<'a> {
    log: &'a FakeLog,
    session: u64,
    outcome: Outcome,
}

impl RunRecord<'_> {
    /// Says how the run ended.
    pub(crate) fn ended<T>(&mut self, result: &Result<T, RunError>) {
        self.outcome = match result {
            Ok(_) => Outcome::Succeeded,
            Err(RunError::Interrupted) => Outcome::Interrupted,
            Err(_) => Outcome::Failed,
        };
    }

    /// Waits until the gate is open.
    pub(crate) fn wait_at_gate(&self) -> Result<(), RunError> {
        self.log.change(|state| state.counts.blocked += 1);
        let state = self.log.lock();
        let waits = |state: &mut LogState| !state.gate_open && !self.is_interrupted(state);
        let state = self.log.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        let interrupted = self.is_interrupted(&state);
        drop(state);
        self.log.change(|state| state.counts.blocked -= 1);
        if interrupted { Err(RunError::Interrupted) } else { Ok(()) }
    }

    /// Waits for a time. The clock is exact to some tens of microseconds, as the operating system's timers are.
    pub(crate) fn wait(&self, delay: Duration) -> Result<(), RunError> {
        let end = Instant::now() + delay;
        let mut state = self.log.lock();
        loop {
            if self.is_interrupted(&state) {
                return Err(RunError::Interrupted);
            }
            let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else { return Ok(()) };
            state = self.log.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_interrupted(&self, state: &LogState) -> bool {
        state.running.get(&self.session).copied().unwrap_or_default()
    }
}

impl Drop for RunRecord<'_> {
    fn drop(&mut self) {
        self.log.change(|state| {
            state.running.remove(&self.session);
            state.counts.running -= 1;
            match self.outcome {
                Outcome::Succeeded => state.counts.succeeded += 1,
                Outcome::Failed => state.counts.failed += 1,
                Outcome::Interrupted => state.counts.interrupted += 1,
            }
        });
    }
}
