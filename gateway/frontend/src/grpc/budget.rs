//! What the requests under way may take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bascule_serving::InferError;

/// A number of bytes that all requests of a port share.
#[derive(Debug)]
pub(crate) struct Budget {
    used_bytes: AtomicUsize,
    limit_bytes: usize,
}

impl Budget {
    pub(crate) fn new(limit_bytes: usize) -> Arc<Budget> {
        Arc::new(Budget { used_bytes: AtomicUsize::new(0), limit_bytes })
    }

    /// A share that is empty at first.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), bytes: AtomicUsize::new(0) }
    }
}

/// What one request takes of a budget; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Share {
    /// Takes some more.
    ///
    /// # Errors
    /// [`InferError::Overloaded`] where not so much is left.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), InferError> {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let before = self.budget.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) <= self.budget.limit_bytes {
            return Ok(());
        }
        let what = format!("the memory for requests under way ({} bytes)", self.budget.limit_bytes);
        Err(InferError::Overloaded { what, retry_after: Duration::from_secs(1) })
    }

    /// Counts what is there already, however much is left: an answer is not thrown away, it makes the next request wait.
    pub(crate) fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.budget.used_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back a part of what was taken.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_limit_is_refused_and_given_back() {
        let budget = Budget::new(10);
        let (first, second) = (budget.share(), budget.share());
        assert!(first.take(6).is_ok());
        assert!(second.take(5).is_err());
        drop(second);
        assert!(first.take(4).is_ok());
        assert!(budget.share().take(1).is_err());
        drop(first);
        assert!(budget.share().take(10).is_ok());
    }

    #[test]
    fn what_is_there_is_counted_and_may_be_given_back_in_parts() {
        let budget = Budget::new(10);
        let answer = budget.share();
        answer.count(12);
        assert!(budget.share().take(1).is_err());
        answer.give_back(3);
        assert!(budget.share().take(1).is_ok());
        drop(answer);
        assert!(budget.share().take(10).is_ok());
    }
}
