//! Every interleaving of claim, submit, gather and close, explored by loom. Run with `RUSTFLAGS="--cfg loom"`.
//!
//! Time does not pass here: an owner that gathers wakes by being told to, or never, and loom calls that a deadlock.

use std::collections::VecDeque;
use std::time::Instant;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use crate::{Next, Owner, Pool, Refusal, Turn, Waiting};

#[derive(Default)]
struct Fifo(VecDeque<u32>);

impl Waiting for Fifo {
    type Entry = u32;
    fn push(&mut self, entry: u32) {
        self.0.push_back(entry);
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn take_all(&mut self) -> Vec<u32> {
        self.0.drain(..).collect()
    }
}

/// A session that knows which thread drops it, and how often it ran.
struct Session {
    owner: Option<thread::ThreadId>,
    runs: Arc<AtomicUsize>,
}

impl Drop for Session {
    fn drop(&mut self) {
        assert_eq!(self.owner, Some(thread::current().id()), "a session was dropped by a thread that is not its owner");
    }
}

fn pool(slots: usize) -> (Pool<Session, Fifo>, Vec<Owner<Session, Fifo>>, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let sessions = (0..slots).map(|_| Session { owner: None, runs: Arc::clone(&runs) }).collect();
    let (pool, owners) = Pool::new(sessions, Fifo::default(), 8);
    (pool, owners, runs)
}

fn own(mut owner: Owner<Session, Fifo>) {
    loop {
        let next = owner.next(|queue, _| match queue.0.pop_front() {
            Some(entry) => Turn::Run(entry),
            None => Turn::Nothing,
        });
        match next {
            Next::Run(_) => {
                owner.with_session(|session| session.runs.fetch_add(1, Ordering::SeqCst));
            }
            Next::Closed(mut session) => {
                session.owner = Some(thread::current().id());
                return;
            }
        }
    }
}

/// Runs inline where a slot is free, else queues; says how many runs are owed.
fn infer(pool: &Pool<Session, Fifo>) -> usize {
    if let Some(mut claim) = pool.claim() {
        claim.with_session(|session| session.runs.fetch_add(1, Ordering::SeqCst));
        return 1;
    }
    match pool.submit(1) {
        Ok(()) => 1,
        Err((_, Refusal::Closed)) => 0,
        Err((_, Refusal::Full)) => unreachable!("the queue has room"),
    }
}

fn explore(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(body);
}

#[test]
fn submit_against_close_loses_nothing() {
    explore(3, || {
        let (pool, mut owners, runs) = pool(1);
        let owner = owners.remove(0);
        let owning = thread::spawn(move || own(owner));
        let submitter = {
            let pool = pool.clone();
            thread::spawn(move || usize::from(pool.submit(1).is_ok()))
        };
        pool.close();
        let owed = submitter.join().unwrap();
        owning.join().unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), owed);
    });
}

#[test]
fn claim_and_submit_against_close_lose_nothing_and_the_owner_drops() {
    explore(3, || {
        let (pool, mut owners, runs) = pool(1);
        let owner = owners.remove(0);
        let owning = thread::spawn(move || own(owner));
        let caller = {
            let pool = pool.clone();
            thread::spawn(move || infer(&pool) + infer(&pool))
        };
        pool.close();
        let owed = caller.join().unwrap();
        owning.join().unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), owed);
    });
}

#[test]
fn two_callers_and_one_slot_never_lose_a_wake_up() {
    explore(2, || {
        let (pool, mut owners, runs) = pool(1);
        let owner = owners.remove(0);
        let owning = thread::spawn(move || own(owner));
        let caller = {
            let pool = pool.clone();
            thread::spawn(move || infer(&pool))
        };
        let owed = infer(&pool) + caller.join().unwrap();
        pool.close();
        owning.join().unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), owed);
        assert_eq!(owed, 2, "an open pool takes everything");
    });
}

#[test]
fn two_owners_share_one_queue() {
    explore(2, || {
        let (pool, owners, runs) = pool(2);
        let owning: Vec<_> = owners.into_iter().map(|owner| thread::spawn(move || own(owner))).collect();
        let owed = infer(&pool) + infer(&pool);
        pool.close();
        owning.into_iter().for_each(|owner| owner.join().unwrap());
        assert_eq!(runs.load(Ordering::SeqCst), owed);
    });
}

/// Takes pairs, and what is left once the pool closes.
fn pairs(queue: &mut Fifo, closing: bool) -> Turn<usize> {
    if closing || queue.0.len() >= 2 {
        return Turn::Run(queue.0.drain(..queue.0.len().min(2)).count());
    }
    Turn::Gather { at: Instant::now(), len: queue.0.len() + 1 }
}

/// Runs one batch, then ends as a thread that panics does; how many entries it had.
fn run_a_batch(mut owner: Owner<Session, Fifo>) -> usize {
    let entries = match owner.next(pairs) {
        Next::Run(entries) => entries,
        Next::Closed(mut session) => {
            session.owner = Some(thread::current().id());
            return 0;
        }
    };
    owner.with_session(|session| session.owner = Some(thread::current().id()));
    entries
}

#[test]
fn a_gathering_owner_is_told_of_a_whole_batch() {
    explore(3, || {
        let (pool, mut owners, _) = pool(1);
        let owner = owners.remove(0);
        let owning = thread::spawn(move || run_a_batch(owner));
        let submitter = {
            let pool = pool.clone();
            thread::spawn(move || pool.submit(1).is_ok())
        };
        assert!(pool.submit(2).is_ok() && submitter.join().unwrap());
        assert_eq!(owning.join().unwrap(), 2);
        assert!(pool.is_closed(), "the last owner has ended");
    });
}

#[test]
fn two_gathering_owners_leave_no_whole_batch_behind() {
    explore(2, || {
        let (pool, owners, _) = pool(2);
        let owning: Vec<_> = owners.into_iter().map(|owner| thread::spawn(move || run_a_batch(owner))).collect();
        for entry in 0..4 {
            assert!(pool.submit(entry).is_ok());
        }
        assert_eq!(owning.into_iter().map(|owner| owner.join().unwrap()).sum::<usize>(), 4);
    });
}

#[test]
fn a_gathering_owner_is_told_of_the_close() {
    explore(3, || {
        let (pool, mut owners, _) = pool(1);
        let owner = owners.remove(0);
        let owning = thread::spawn(move || run_a_batch(owner));
        let submitter = {
            let pool = pool.clone();
            thread::spawn(move || usize::from(pool.submit(1).is_ok()))
        };
        pool.close();
        assert_eq!(submitter.join().unwrap(), owning.join().unwrap());
    });
}

#[test]
fn an_owner_that_ends_early_drops_its_session_after_the_caller_on_its_slot() {
    explore(3, || {
        let (pool, mut owners, _) = pool(1);
        let owner = owners.remove(0);
        let mut claim = pool.claim().unwrap();
        let owning = thread::spawn(move || drop(owner));
        claim.with_session(|session| session.owner = Some(owning.thread().id()));
        drop(claim);
        owning.join().unwrap();
        assert!(pool.is_closed() && pool.claim().is_none());
    });
}
