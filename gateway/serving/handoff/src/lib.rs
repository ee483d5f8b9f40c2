//! The hand-off between the threads that bring work and the instances that run it.
//!
//! A [`Pool`] is one bounded queue and a fixed number of slots. A slot holds one session and belongs to one owner thread. Work
//! reaches a session in two ways: it is queued by [`Pool::submit`] and taken by an owner in [`Owner::next`], or a caller
//! claims an idle slot with [`Pool::claim`] while nothing is queued, and runs on its own thread.
//!
//! Invariants, each checked by the loom tests of this crate:
//! - A slot is used by one thread at a time.
//! - Work that `submit` took is handed to exactly one owner, also when the pool is closed right after.
//! - `submit` on a closed or full pool hands the work back, with the reason.
//! - Only the owner of a slot ever drops the session in it, and only after the pool was closed.
//! - No wake-up is lost: work never waits while an idle slot's owner sleeps.
//!
//! Deliberately absent: time-outs of work, batching rules, replies. They belong to what is queued and to the rule that
//! [`Owner::next`] is given.

#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod pool;
mod slot;
mod sync;

#[cfg(all(loom, test))]
mod loom_tests;
#[cfg(all(not(loom), test))]
mod tests;

pub use pool::{Claim, Next, Owner, Pool, Refusal, Turn, Waiting};
