//! When a plain version counts: its files are the same at two looks, a settle interval apart.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::plain::{self, PlainFiles};
use crate::digest::Digest;
use crate::listing::Generation;
use crate::name::VersionKey;

/// Remembers what the looks have seen. Time is an argument.
pub(super) struct Settler {
    interval: Duration,
    watched: BTreeMap<VersionKey, Watched>,
}

struct Watched {
    /// What the last look saw, and since when it has been so.
    digest: Digest,
    since: Duration,
    /// The last content that counted.
    settled: Option<Arc<Generation>>,
}

/// When a look was taken: the files were seen some time between.
#[derive(Debug, Clone, Copy)]
pub(super) struct LookTime {
    pub(super) began: Duration,
    pub(super) ended: Duration,
}

/// What counts now.
#[derive(Debug, PartialEq)]
pub(super) enum Settled {
    /// What lies there.
    Now(Arc<Generation>),
    /// Not what lies there; maybe what lay there before. Worth another look after this time.
    Not { before: Option<Arc<Generation>>, again_after: Duration },
}

impl Settler {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, watched: BTreeMap::new() }
    }

    /// Takes note of what a look has seen.
    pub(super) fn observe(&mut self, key: &VersionKey, files: &PlainFiles, look: &LookTime) -> Settled {
        let first = || Watched { digest: files.digest, since: look.ended, settled: None };
        let watched = match self.watched.entry(key.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(first());
                return Settled::Not { before: None, again_after: self.interval };
            }
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        let same = watched.digest == files.digest;
        if !same {
            (watched.digest, watched.since) = (files.digest, look.ended);
        }
        if let Some(settled) = watched.settled.as_ref().filter(|settled| settled.digest == files.digest) {
            return Settled::Now(Arc::clone(settled));
        }
        if !same {
            return Settled::Not { before: watched.settled.clone(), again_after: self.interval };
        }
        let kept = look.began.saturating_sub(watched.since);
        if kept < self.interval {
            return Settled::Not { before: watched.settled.clone(), again_after: self.interval - kept };
        }
        let generation = Arc::new(plain::generation(key, files));
        watched.settled = Some(Arc::clone(&generation));
        Settled::Now(generation)
    }

    /// What last counted, for a version that can't be read now.
    pub(super) fn last(&self, key: &VersionKey) -> Option<Arc<Generation>> {
        self.watched.get(key)?.settled.clone()
    }

    /// Forgets versions that are not there any more.
    pub(super) fn keep_only(&mut self, there: &BTreeSet<VersionKey>) {
        self.watched.retain(|key, _| there.contains(key));
    }
}
