//! Every interleaving of claim, submit and close, explored by loom. Run with `RUSTFLAGS="--cfg loom"`.

use std::collections::VecDeque;

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
