//! When files count: they are the same at two looks, a settle interval apart.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Digest;

/// Remembers what the looks have seen at each place `K`, and what `V` came of it once it had settled. Time is an argument.
pub(crate) struct Settler<K, V> {
    interval: Duration,
    watched: BTreeMap<K, Watched<V>>,
}

struct Watched<V> {
    /// What the last look saw, and since when it has been so.
    digest: Digest,
    since: Duration,
    /// The last content that counted, and its digest.
    settled: Option<(Digest, Arc<V>)>,
}

/// When a look was taken: the files were seen some time between.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LookTime {
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
}

/// What counts now.
#[derive(Debug, PartialEq)]
pub(crate) enum Settled<V> {
    /// What lies there.
    Now(Arc<V>),
    /// Not what lies there; maybe what lay there before. Worth another look after this time.
    Not { before: Option<Arc<V>>, again_after: Duration },
}

impl<K: Ord + Clone, V> Settler<K, V> {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, watched: BTreeMap::new() }
    }

    /// Lets what a look has seen count at once, where nothing was seen there before.
    pub(crate) fn trust(&mut self, key: &K, digest: Digest, look: &LookTime, make: impl FnOnce() -> V) {
        if let Entry::Vacant(vacant) = self.watched.entry(key.clone()) {
            vacant.insert(Watched { digest, since: look.ended, settled: Some((digest, Arc::new(make()))) });
        }
    }

    /// Takes note of what a look has seen. `make` says what it is, once it counts.
    pub(crate) fn observe(&mut self, key: &K, digest: Digest, look: &LookTime, make: impl FnOnce() -> V) -> Settled<V> {
        let first = || Watched { digest, since: look.ended, settled: None };
        let watched = match self.watched.entry(key.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(first());
                return Settled::Not { before: None, again_after: self.interval };
            }
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        let same = watched.digest == digest;
        if !same {
            (watched.digest, watched.since) = (digest, look.ended);
        }
        if let Some((_, settled)) = watched.settled.as_ref().filter(|(settled, _)| *settled == digest) {
            return Settled::Now(Arc::clone(settled));
        }
        let before = watched.settled.as_ref().map(|(_, before)| Arc::clone(before));
        if !same {
            return Settled::Not { before, again_after: self.interval };
        }
        let kept = look.began.saturating_sub(watched.since);
        if kept < self.interval {
            return Settled::Not { before, again_after: self.interval - kept };
        }
        let made = Arc::new(make());
        watched.settled = Some((digest, Arc::clone(&made)));
        Settled::Now(made)
    }

    /// What last counted, where it can't be read now.
    pub(crate) fn last(&self, key: &K) -> Option<Arc<V>> {
        self.watched.get(key)?.settled.as_ref().map(|(_, last)| Arc::clone(last))
    }

    /// Forgets places that are not there any more.
    pub(crate) fn keep_only(&mut self, there: &BTreeSet<K>) {
        self.watched.retain(|key, _| there.contains(key));
    }
}
