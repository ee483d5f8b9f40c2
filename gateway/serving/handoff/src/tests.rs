//! The pool without loom: what one thread can see.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Next, Pool, Refusal, Turn, Waiting};

#[derive(Debug, Default)]
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

fn take_all(queue: &mut Fifo, _closing: bool) -> Turn<Vec<u32>> {
    Turn::Run(queue.0.drain(..).collect())
}

#[test]
fn a_full_pool_and_a_closed_one_hand_the_entry_back() {
    let (pool, _owners) = Pool::new(vec!["session"], Fifo::default(), 2);
    assert_eq!(pool.submit(1), Ok(()));
    assert_eq!(pool.submit(2), Ok(()));
    assert_eq!(pool.submit(3), Err((3, Refusal::Full)));
    assert!(pool.claim().is_none(), "queued work goes first");
    pool.close();
    assert_eq!(pool.submit(4), Err((4, Refusal::Closed)));
    assert_eq!(pool.queued(), 2);
}

#[test]
fn queued_work_is_run_before_a_closed_pool_gives_the_session_back() {
    let (pool, mut owners) = Pool::new(vec!["session"], Fifo::default(), 8);
    let mut owner = owners.remove(0);
    pool.submit(1).unwrap();
    pool.submit(2).unwrap();
    pool.close();
    assert!(matches!(owner.next(take_all), Next::Run(batch) if batch == [1, 2]));
    assert_eq!(owner.with_session(|session| *session), Some("session"));
    assert!(matches!(owner.next(take_all), Next::Closed("session")));
    assert!(owner.with_session(|_| ()).is_none());
}

#[test]
fn a_claim_keeps_the_owner_off_and_wakes_it_afterwards() {
    let (pool, mut owners) = Pool::new(vec![0u32], Fifo::default(), 8);
    let mut owner = owners.remove(0);
    let mut claim = pool.claim().unwrap();
    assert!(pool.claim().is_none(), "the only slot runs");
    pool.submit(7).unwrap();
    let runner = thread::spawn(move || match owner.next(take_all) {
        Next::Run(batch) => {
            let seen = owner.with_session(|session| *session);
            (batch, seen)
        }
        Next::Closed(_) => unreachable!("the pool is open"),
    });
    claim.with_session(|session| *session = 42);
    drop(claim);
    assert_eq!(runner.join().unwrap(), (vec![7], Some(42)));
}

#[test]
fn gathering_ends_when_enough_entries_wait() {
    let (pool, mut owners) = Pool::new(vec![()], Fifo::default(), 8);
    let mut owner = owners.remove(0);
    let (asked, rule_was_asked) = mpsc::sync_channel(8);
    pool.submit(1).unwrap();
    let runner = thread::spawn(move || {
        owner.next(|queue: &mut Fifo, _| {
            asked.send(queue.len()).unwrap();
            if queue.len() < 3 {
                Turn::Gather { at: Instant::now() + Duration::from_secs(3600), len: 3 }
            } else {
                Turn::Run(queue.0.drain(..).collect::<Vec<_>>())
            }
        })
    });
    assert_eq!(rule_was_asked.recv().unwrap(), 1);
    pool.submit(2).unwrap();
    pool.submit(3).unwrap();
    assert!(matches!(runner.join().unwrap(), Next::Run(batch) if batch == [1, 2, 3]));
}

#[test]
fn every_entry_is_run_once_by_many_owners_beside_claims() {
    const ENTRIES: usize = 2_000;
    let (pool, owners) = Pool::new(vec![(); 3], Fifo::default(), ENTRIES);
    let ran = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = owners
        .into_iter()
        .map(|mut owner| {
            let ran = Arc::clone(&ran);
            thread::spawn(move || {
                while let Next::Run(batch) = owner.next(|queue: &mut Fifo, _| match queue.0.pop_front() {
                    Some(entry) => Turn::Run(entry),
                    None => Turn::Nothing,
                }) {
                    ran.fetch_add(usize::from(batch > 0), Ordering::SeqCst);
                }
            })
        })
        .collect();
    for entry in 0..ENTRIES {
        match pool.claim() {
            Some(mut claim) => {
                claim.with_session(|()| ran.fetch_add(1, Ordering::SeqCst));
            }
            None => pool.submit(entry as u32 + 1).unwrap(),
        }
    }
    pool.close();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(ran.load(Ordering::SeqCst), ENTRIES);
}

/// Only a failure waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A session that tells which thread drops it.
struct Told(mpsc::SyncSender<thread::ThreadId>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.send(thread::current().id()).unwrap();
    }
}

#[test]
fn a_batch_that_another_owner_took_is_not_waited_for() {
    let (pool, mut owners) = Pool::new(vec![(), ()], Fifo::default(), 8);
    let (mut first, mut second) = (owners.remove(0), owners.remove(0));
    pool.submit(1).unwrap();
    pool.submit(2).unwrap();
    let (asked, rule_was_asked) = mpsc::sync_channel(8);
    let gatherer = thread::spawn(move || {
        first.next(|queue: &mut Fifo, closing| {
            asked.send(queue.len()).unwrap();
            if closing {
                return Turn::Run(queue.0.drain(..).collect::<Vec<_>>());
            }
            Turn::Gather { at: Instant::now() + Duration::from_secs(3600), len: queue.len() + 1 }
        })
    });
    assert_eq!(rule_was_asked.recv_timeout(PATIENCE), Ok(2));
    assert!(matches!(second.next(take_all), Next::Run(batch) if batch == [1, 2]));
    pool.submit(3).unwrap();
    assert_eq!(rule_was_asked.recv_timeout(PATIENCE), Ok(1), "it gathers what is queued, not what was");
    pool.close();
    assert!(matches!(gatherer.join().unwrap(), Next::Run(batch) if batch == [3]));
}

#[test]
fn an_owner_that_panics_drops_its_own_session_and_strands_nothing() {
    let (dropped, dropper) = mpsc::sync_channel(8);
    let (pool, mut owners) = Pool::new(vec![Told(dropped)], Fifo::default(), 8);
    let mut owner = owners.remove(0);
    pool.submit(1).unwrap();
    let owning = thread::spawn(move || match owner.next::<()>(|_, _| panic!("a rule that is wrong")) {
        Next::Run(()) | Next::Closed(_) => unreachable!("the rule panics"),
    });
    let id = owning.thread().id();
    assert!(owning.join().is_err());
    assert_eq!(dropper.recv_timeout(PATIENCE), Ok(id));
    assert_eq!(pool.submit(2), Err((2, Refusal::Closed)), "nobody is left to run it");
    assert_eq!(pool.queued(), 0, "what nobody will run is not kept");
    assert!(pool.claim().is_none());
}

#[test]
fn an_owner_that_ends_early_waits_for_the_caller_on_its_slot_and_leaves_work_to_the_others() {
    let (dropped, dropper) = mpsc::sync_channel(8);
    let (pool, mut owners) = Pool::new(vec![Told(dropped.clone()), Told(dropped)], Fifo::default(), 8);
    let (first, mut second) = (owners.remove(0), owners.remove(0));
    let claim = pool.claim().unwrap();
    assert_eq!(claim.index(), 0);
    let ending = thread::spawn(move || drop(first));
    let id = ending.thread().id();
    pool.submit(1).unwrap();
    drop(claim);
    ending.join().unwrap();
    assert_eq!(dropper.recv_timeout(PATIENCE), Ok(id), "its own thread, not that of the caller");
    assert!(matches!(second.next(take_all), Next::Run(batch) if batch == [1]));
    drop(second);
    assert_eq!(dropper.recv_timeout(PATIENCE), Ok(thread::current().id()));
    assert!(pool.is_closed());
}

#[test]
fn an_aborted_pool_hands_back_what_is_queued() {
    let (pool, mut owners) = Pool::new(vec!["session"], Fifo::default(), 8);
    pool.submit(1).unwrap();
    pool.submit(2).unwrap();
    assert_eq!(pool.abort(), [1, 2]);
    assert_eq!(pool.submit(3), Err((3, Refusal::Closed)));
    assert!(matches!(owners.remove(0).next(take_all), Next::Closed("session")));
}
