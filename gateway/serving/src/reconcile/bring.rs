//! Bringing a version's files to local disk: what lies there is compared once with what was fetched, what is not there is fetched, and
//! what nobody uses makes room first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use bascule_registry::{Cache, Digest, FetchError, Generation, Lease, Progress, VersionSource};
use futures::FutureExt as _;

use super::event::Files;
use crate::engine::Admit;
use crate::error::{panicked, with_causes};

/// How far a fetch is.
#[derive(Debug, Default)]
pub(crate) struct FetchProgress(Mutex<BTreeMap<String, u64>>);

impl FetchProgress {
    /// Bytes of all files that are there.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

impl Progress for FetchProgress {
    fn advance(&self, file: &str, done: u64, _total: u64) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = files.get_mut(file) {
            *bytes = done;
        } else {
            files.insert(file.to_owned(), done);
        }
    }
}

/// Why the files of a version can't be had, for people.
#[derive(Debug)]
pub(crate) enum NotBrought {
    /// It may not be loaded as things stand now.
    Refused(String),
    /// They are not to be had.
    Failed(String),
}

/// The cache and what it is filled from.
pub(crate) struct Stock {
    source: Arc<dyn VersionSource>,
    cache: Cache,
    max_bytes: u64,
    /// Whether a version may be loaded, as things stand now.
    admit: Admit,
    /// Trees that were fetched by this process, or read again by it and found whole.
    verified: Mutex<HashSet<Digest>>,
    /// Trees of what served before the restart, each until it is brought or the start is over: nothing else makes room at their cost.
    kept: Mutex<HashMap<Digest, Lease>>,
}

impl Stock {
    /// Keeps the trees of what served. Blocks.
    pub(crate) fn new(
        source: Arc<dyn VersionSource>,
        cache: Cache,
        max_bytes: u64,
        served: impl Iterator<Item = Digest>,
        admit: Admit,
    ) -> Stock {
        let kept = served.filter_map(|digest| Some((digest, cache.find(&digest)?))).collect();
        Stock { source, cache, max_bytes, admit, verified: Mutex::default(), kept: Mutex::new(kept) }
    }

    /// What the start loads is loaded, or has failed: from now on what nobody uses makes room, whatever it was before.
    pub(crate) fn end_start(&self) {
        lock(&self.kept).clear();
    }

    /// The files of a version.
    ///
    /// # Errors
    /// Why they can't be had.
    pub(crate) async fn bring(self: Arc<Self>, generation: &Generation, progress: &FetchProgress) -> Result<Files, NotBrought> {
        let digest = generation.digest;
        // What lies on local disk was judged when it came, and that may be long ago.
        admitted(&self.admit, generation).map_err(NotBrought::Refused)?;
        let (stock, wanted) = (Arc::clone(&self), generation.clone());
        // A cancelled runtime is the only way to fail: then nobody waits for the answer.
        drop(tokio::task::spawn_blocking(move || stock.prepare(&wanted)).await);
        let fetched = AssertUnwindSafe(self.cache.ensure(self.source.as_ref(), generation, progress)).catch_unwind().await;
        let fetched = fetched.map_err(|panic| NotBrought::Failed(format!("the source {}", panicked(panic.as_ref()))))?;
        let lease = fetched.map_err(|error| NotBrought::Failed(with_causes(&error)))?;
        lock(&self.verified).insert(digest);
        lock(&self.kept).remove(&digest);
        Ok(Files::leased(lease))
    }

    /// Throws away a tree that is not what was fetched, or makes room for one that is not there. Blocks.
    fn prepare(&self, wanted: &Generation) {
        let digest = &wanted.digest;
        if lock(&self.verified).contains(digest) && self.cache.find(digest).is_some() {
            return;
        }
        match self.cache.verify(digest) {
            Ok(()) if self.is_as_named(wanted) => {}
            Ok(()) => {
                tracing::warn!(%digest, "a version on local disk is not what its manifest names and is fetched again");
                self.cache.discard(digest);
            }
            Err(FetchError::NotFound { .. }) => drop(self.cache.evict_unleased(self.max_bytes.saturating_sub(wanted.bytes))),
            Err(error) => {
                tracing::warn!(%digest, error = with_causes(&error), "a version on local disk is not whole and is fetched again");
                self.cache.discard(digest);
            }
        }
    }

    /// Whether a tree holds the files that the manifest names. What was recorded of them lies beside them, and is as easily altered.
    fn is_as_named(&self, wanted: &Generation) -> bool {
        let Some(lease) = self.cache.find(&wanted.digest) else { return false };
        wanted.manifest.files.iter().all(|file| {
            let lies = lease.files().iter().find(|lies| lies.path == file.path);
            lies.is_some_and(|lies| lies.bytes == file.bytes && file.sha256.is_none_or(|expected| expected == lies.sha256))
        })
    }
}

/// # Errors
/// Why a version may not be loaded, for people.
pub(crate) fn admitted(admit: &Admit, generation: &Generation) -> Result<(), String> {
    admit(generation).map_err(|why| format!("refused: {why}"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
