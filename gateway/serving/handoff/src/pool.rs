//! The pool: one bounded queue, its slots, and the rules by which owners sleep and wake.

use std::time::Instant;

use crate::slot::Slot;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, lock};

/// What a pool queues: an order of entries that the pool need not know.
pub trait Waiting {
    /// One piece of work.
    type Entry;

    /// Adds an entry. The pool has checked that there is room.
    fn push(&mut self, entry: Self::Entry);

    /// Number of entries that wait.
    fn len(&self) -> usize;

    /// Removes entries that nobody needs any more. Called when the pool is full, before an entry is refused.
    fn make_room(&mut self) {}

    /// Takes every entry out. Called when nobody is going to run them.
    fn take_all(&mut self) -> Vec<Self::Entry>;

    /// Whether nothing waits.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why [`Pool::submit`] handed the entry back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// As many entries wait as the pool may hold.
    Full,
    /// The pool takes no more work; it never will again.
    Closed,
}

/// What the rule of [`Owner::next`] decided.
#[derive(Debug)]
pub enum Turn<B> {
    /// Run this now. The rule took it out of the queue.
    Run(B),
    /// Wait for more work to join what is queued, until `at` or until `len` entries wait.
    Gather {
        /// When waiting ends in any case.
        at: Instant,
        /// Queue length at which asking the rule again is worth it.
        len: usize,
    },
    /// Nothing is left to run; the rule may have removed entries.
    Nothing,
}

/// What [`Owner::next`] came back with.
#[derive(Debug)]
pub enum Next<B, S> {
    /// Work to run on this owner's session, which is held until the next call.
    Run(B),
    /// The pool is closed and its queue is empty: the session, to be dropped on this thread.
    Closed(S),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parked {
    /// Not asleep, or already told to wake.
    No,
    /// Asleep until there is work.
    Idle,
    /// Asleep until a batch is complete or its time is up.
    Gathering { len: usize },
}

#[derive(Debug)]
struct State<Q> {
    queue: Q,
    parked: Vec<Parked>,
    /// Owners that have not ended.
    owners: usize,
}

#[derive(Debug)]
struct Shared<S, Q> {
    state: Mutex<State<Q>>,
    wake: Vec<Condvar>,
    slots: Vec<Slot<S>>,
    /// Length of the queue; written under the lock, read without it.
    queued: AtomicUsize,
    closing: AtomicBool,
    /// Owners that end early and wait for a caller to give their slot back.
    leaving: AtomicUsize,
    capacity: usize,
}

/// One queue and the slots that serve it. Clones are handles to the same pool.
#[derive(Debug)]
pub struct Pool<S, Q> {
    shared: Arc<Shared<S, Q>>,
}

impl<S, Q> Clone for Pool<S, Q> {
    fn clone(&self) -> Self {
        Pool { shared: Arc::clone(&self.shared) }
    }
}

/// The one thread that may drop a slot's session.
#[derive(Debug)]
pub struct Owner<S, Q: Waiting> {
    shared: Arc<Shared<S, Q>>,
    index: usize,
    /// Whether this owner holds its slot, so that nobody else can.
    holds_slot: bool,
    /// Whether the session was given out for good.
    ended: bool,
}

/// An idle slot, taken by a caller. Dropping it gives the slot back; the session stays in it.
#[derive(Debug)]
pub struct Claim<'a, S, Q: Waiting> {
    shared: &'a Shared<S, Q>,
    index: usize,
}

impl<S, Q: Waiting> Pool<S, Q> {
    /// A pool with one slot a session. Each [`Owner`] must be moved to a thread of its own that calls [`Owner::next`] until it is
    /// closed.
    pub fn new(sessions: Vec<S>, queue: Q, capacity: usize) -> (Pool<S, Q>, Vec<Owner<S, Q>>) {
        let count = sessions.len();
        let shared = Arc::new(Shared {
            queued: AtomicUsize::new(queue.len()),
            state: Mutex::new(State { queue, parked: vec![Parked::No; count], owners: count }),
            wake: (0..count).map(|_| Condvar::new()).collect(),
            slots: sessions.into_iter().map(Slot::new).collect(),
            closing: AtomicBool::new(false),
            leaving: AtomicUsize::new(0),
            capacity,
        });
        let owner = |index| Owner { shared: Arc::clone(&shared), index, holds_slot: false, ended: false };
        let owners = (0..count).map(owner).collect();
        (Pool { shared }, owners)
    }

    /// Queues an entry, or hands it back.
    pub fn submit(&self, entry: Q::Entry) -> Result<(), (Q::Entry, Refusal)> {
        let mut state = lock(&self.shared.state);
        if self.shared.closing.load(Ordering::SeqCst) {
            return Err((entry, Refusal::Closed));
        }
        if state.queue.len() >= self.shared.capacity {
            self.shared.change_queue(&mut state, Q::make_room);
        }
        if state.queue.len() >= self.shared.capacity {
            return Err((entry, Refusal::Full));
        }
        self.shared.change_queue(&mut state, |queue| queue.push(entry));
        self.shared.wake_one(&mut state);
        Ok(())
    }

    /// Whether an entry is not refused as [`Refusal::Full`] now. Good for refusing early; [`Pool::submit`] has the last word.
    pub fn has_room(&self) -> bool {
        // Where nothing waits, a slot may be free; where the pool is closed, it is not for want of room that it takes nothing.
        let has_place = self.shared.queued.load(Ordering::SeqCst) < self.shared.capacity.max(1);
        if has_place || self.is_closed() {
            return true;
        }
        let mut state = lock(&self.shared.state);
        if state.queue.len() >= self.shared.capacity {
            self.shared.change_queue(&mut state, Q::make_room);
        }
        state.queue.len() < self.shared.capacity
    }

    /// Takes an idle slot for the calling thread; only while nothing is queued, so that nobody is overtaken.
    pub fn claim(&self) -> Option<Claim<'_, S, Q>> {
        if self.shared.queued.load(Ordering::SeqCst) != 0 || self.shared.closing.load(Ordering::SeqCst) {
            return None;
        }
        let index = self.shared.slots.iter().position(Slot::claim)?;
        let claim = Claim { shared: &self.shared, index };
        // Work that arrived since the first look goes first; dropping the claim wakes the owner for it.
        (self.shared.queued.load(Ordering::SeqCst) == 0).then_some(claim)
    }

    /// Ends the pool: new work is refused, queued work is still run, then each owner gets its session back. Returns at once.
    pub fn close(&self) {
        self.shared.close(&mut lock(&self.shared.state));
    }

    /// Ends the pool as [`Pool::close`] does, and hands back what is queued: it will not be run.
    pub fn abort(&self) -> Vec<Q::Entry> {
        let mut state = lock(&self.shared.state);
        self.shared.close(&mut state);
        self.shared.change_queue(&mut state, Q::take_all)
    }

    /// Whether [`Pool::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.shared.closing.load(Ordering::SeqCst)
    }

    /// Number of entries that wait.
    pub fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::SeqCst)
    }

    /// Entries that may wait at the most.
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.shared.slots.len()
    }
}

impl<S, Q: Waiting> Shared<S, Q> {
    /// Changes the queue and publishes its length. Where it became shorter, nobody who gathers has seen what is left: the lengths
    /// that they wait for count entries that are gone.
    fn change_queue<R>(&self, state: &mut State<Q>, change: impl FnOnce(&mut Q) -> R) -> R {
        let before = state.queue.len();
        let result = change(&mut state.queue);
        let after = state.queue.len();
        self.queued.store(after, Ordering::SeqCst);
        if after < before {
            for parked in &mut state.parked {
                if let Parked::Gathering { len } = parked {
                    *len = (*len).min(after.max(1));
                }
            }
        }
        result
    }

    fn close(&self, state: &mut State<Q>) {
        self.closing.store(true, Ordering::SeqCst);
        for (parked, wake) in state.parked.iter_mut().zip(&self.wake) {
            *parked = Parked::No;
            wake.notify_one();
        }
    }

    /// Wakes one owner that can use what is queued. While one gathers and its batch can't be complete, nobody is woken.
    fn wake_one(&self, state: &mut State<Q>) {
        let queued = state.queue.len();
        let mut somebody_gathers = false;
        for (index, parked) in state.parked.iter_mut().enumerate() {
            if let Parked::Gathering { len } = *parked {
                somebody_gathers = true;
                if queued >= len {
                    *parked = Parked::No;
                    self.wake[index].notify_one();
                    return;
                }
            }
        }
        if somebody_gathers {
            return;
        }
        let idle = state.parked.iter().zip(&self.slots).position(|(parked, slot)| *parked == Parked::Idle && slot.is_idle());
        if let Some(index) = idle {
            state.parked[index] = Parked::No;
            self.wake[index].notify_one();
        }
    }

    /// Gives a slot back, and makes sure that somebody looks at what was queued, or closed, meanwhile.
    fn release(&self, index: usize) {
        self.slots[index].release();
        // The slot's store and these loads are one order with submit's and close's store and the owner's failed claim: either the
        // owner saw the slot idle, or this thread sees what the owner was woken for.
        let wanted = [self.queued.load(Ordering::SeqCst), self.leaving.load(Ordering::SeqCst)];
        if wanted != [0, 0] || self.closing.load(Ordering::SeqCst) {
            let mut state = lock(&self.state);
            state.parked[index] = Parked::No;
            self.wake[index].notify_one();
        }
    }
}

impl<S, Q: Waiting> Claim<'_, S, Q> {
    /// Position of the slot.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Lends the session; always `Some` while the claim is held.
    pub fn with_session<R>(&mut self, access: impl FnOnce(&mut S) -> R) -> Option<R> {
        self.shared.slots[self.index].with_session(access)
    }
}

impl<S, Q: Waiting> Drop for Claim<'_, S, Q> {
    fn drop(&mut self) {
        self.shared.release(self.index);
    }
}

impl<S, Q: Waiting> Owner<S, Q> {
    /// Position of this owner's slot.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Ends the turn before, waits for work, and lets `rule` take some of it: `rule(queue, closing)` is called under the pool's lock
    /// with a queue that is not empty. Once the pool is closed and nothing is queued, the session comes back.
    pub fn next<B>(&mut self, mut rule: impl FnMut(&mut Q, bool) -> Turn<B>) -> Next<B, S> {
        self.release_slot();
        let shared = Arc::clone(&self.shared);
        let mut state = lock(&shared.state);
        loop {
            let closing = shared.closing.load(Ordering::SeqCst);
            if state.queue.is_empty() {
                if closing && let Some(session) = shared.slots[self.index].close() {
                    self.ended = true;
                    return Next::Closed(session);
                }
                state = self.park(state, Parked::Idle, None);
                continue;
            }
            if !shared.slots[self.index].claim() {
                // A caller runs on this slot. Another owner may be free for what woke this one.
                shared.wake_one(&mut state);
                state = self.park(state, Parked::Idle, None);
                continue;
            }
            // Noted before the rule is called: if that panics, this owner still knows that the session is its to drop.
            self.holds_slot = true;
            match shared.change_queue(&mut state, |queue| rule(queue, closing)) {
                Turn::Run(batch) => {
                    if !state.queue.is_empty() {
                        shared.wake_one(&mut state);
                    }
                    return Next::Run(batch);
                }
                Turn::Gather { at, len } => {
                    self.release_slot();
                    state = self.park(state, Parked::Gathering { len }, Some(at));
                }
                Turn::Nothing => self.release_slot(),
            }
        }
    }

    fn release_slot(&mut self) {
        if std::mem::take(&mut self.holds_slot) {
            self.shared.slots[self.index].release();
        }
    }

    /// Lends the session, between a [`Next::Run`] and the next call of [`Owner::next`]; `None` at any other time.
    pub fn with_session<R>(&mut self, access: impl FnOnce(&mut S) -> R) -> Option<R> {
        if self.holds_slot { self.shared.slots[self.index].with_session(access) } else { None }
    }

    fn park<'a>(&self, mut state: MutexGuard<'a, State<Q>>, how: Parked, until: Option<Instant>) -> MutexGuard<'a, State<Q>>
    where
        S: 'a,
    {
        state.parked[self.index] = how;
        let wake = &self.shared.wake[self.index];
        let mut state = match until {
            None => wake.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner),
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                wake.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0
            }
        };
        state.parked[self.index] = Parked::No;
        state
    }
}

impl<S, Q: Waiting> Owner<S, Q> {
    /// Takes the session of an owner that ends early; a caller that runs on it is waited for.
    fn take_back(&self) -> Option<S> {
        let slot = &self.shared.slots[self.index];
        if self.holds_slot {
            return slot.abandon();
        }
        self.shared.leaving.fetch_add(1, Ordering::SeqCst);
        let mut state = lock(&self.shared.state);
        let session = loop {
            match slot.close() {
                Some(session) => break session,
                None => state = self.park(state, Parked::Idle, None),
            }
        };
        self.shared.leaving.fetch_sub(1, Ordering::SeqCst);
        Some(session)
    }
}

impl<S, Q: Waiting> Drop for Owner<S, Q> {
    /// An owner that ends early, by a panic of its thread, takes its session along: nobody may claim it afterwards. Its work is left
    /// to the others; the last one closes the pool, and what nobody will run is dropped.
    fn drop(&mut self) {
        if !self.ended {
            drop(self.take_back());
        }
        let mut state = lock(&self.shared.state);
        state.owners -= 1;
        if self.ended {
            return;
        }
        let stranded = if state.owners == 0 {
            self.shared.close(&mut state);
            self.shared.change_queue(&mut state, Q::take_all)
        } else {
            self.shared.wake_one(&mut state);
            Vec::new()
        };
        // Dropping an entry may wake whoever waits for it, which must not happen under the lock.
        drop(state);
        drop(stranded);
    }
}
