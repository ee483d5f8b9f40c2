//! Fetched versions on local disk, by the digest of their content.
//!
//! A tree is there whole and verified, or not at all: it is fetched into `tmp/`, checked, synced and renamed to
//! `trees/<digest>`. Files that are there already, in another tree or from a fetch that failed, are linked into it, verified, and
//! not fetched again; each counts once. Whoever uses a tree holds a [`Lease`], which keeps it from eviction. One process owns a cache
//! directory at a time; what a killed one left behind is cleaned when the next opens it.
//!
//! Deliberately absent: which trees are worth keeping (the engine evicts), and links to anything outside the directory.

mod claims;
mod shared;
mod staged;
mod trees;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::digest::Digest;
use crate::listing::Generation;
use crate::source::{FetchError, Fetched, FetchedFile, Progress, VersionSource};
use crate::transfer::free_bytes;

use claims::{Claim, Claims};
use staged::Staged;
pub use trees::Lease;
use trees::Trees;

/// Two versions that are fetched at a time wait for each other where they share a file of this size that is not there yet.
const WORTH_WAITING_BYTES: u64 = 1 << 20;

/// A cache directory. Clones share it.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    trees: Arc<Trees>,
    claims: Claims,
    flights: Mutex<HashMap<Digest, Arc<Flight>>>,
    /// Locked as long as this process uses the directory.
    _lock: std::fs::File,
}

/// A fetch that is under way, for all who want the same digest.
#[derive(Default)]
struct Flight {
    last: tokio::sync::Mutex<Attempts>,
    /// The same as `Attempts::ended`, readable while an attempt runs.
    ended: std::sync::atomic::AtomicU64,
}

#[derive(Default)]
struct Attempts {
    ended: u64,
    error: Option<FetchError>,
}

/// Why a cache directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process uses it.
    #[error("cache directory {} is used by another process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The disk refuses.
    #[error("cache directory {} can't be used", dir.display())]
    Disk {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What an eviction gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Trees that are gone.
    pub trees: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Cache {
    /// Opens a cache directory, makes it where it is not there, and removes what is not whole. Blocks.
    ///
    /// # Errors
    /// [`CacheError::InUse`] where another process has it open.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let dir = dir.into();
        let disk = |source| CacheError::Disk { dir: dir.clone(), source };
        crate::durable::create_dir(&dir).map_err(disk)?;
        let lock = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("lock")).map_err(disk)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(CacheError::InUse { dir }),
            Err(std::fs::TryLockError::Error(error)) => return Err(disk(error)),
        }
        let trees = Arc::new(Trees::open(&dir).map_err(disk)?);
        let inner = Inner { dir, trees, claims: Claims::default(), flights: Mutex::default(), _lock: lock };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// A tree that is there. Files whose size is not the recorded one make the whole tree count as absent.
    pub fn find(&self, digest: &Digest) -> Option<Lease> {
        self.inner.trees.lease(digest)
    }

    /// What is there.
    pub fn generations(&self) -> Vec<Arc<Generation>> {
        self.inner.trees.generations()
    }

    /// All trees together, and what failed fetches have left for the next try. A file that lies in several trees counts once.
    pub fn bytes(&self) -> u64 {
        self.inner.trees.bytes()
    }

    /// The tree of this generation; fetched where it is not there. All who ask for the same digest meanwhile wait for the
    /// same fetch and get its outcome. Where the one that fetches goes away, one of those that wait takes over.
    ///
    /// # Errors
    /// Of a fetch that fails nothing is seen; files that it completed are not fetched again. Where the disk has not enough room
    /// even without what nobody leases, [`FetchError::NoSpace`].
    pub async fn ensure(
        &self,
        source: &dyn VersionSource,
        generation: &Generation,
        progress: &dyn Progress,
    ) -> Result<Lease, FetchError> {
        use std::sync::atomic::Ordering;

        let digest = generation.digest;
        if let Some(lease) = self.find_off_thread(digest).await {
            return Ok(lease);
        }
        let pass = self.board(digest);
        let ended_before = pass.flight.ended.load(Ordering::Acquire);
        let mut attempts = pass.flight.last.lock().await;
        if let Some(lease) = self.find_off_thread(digest).await {
            return Ok(lease);
        }
        if let Some(error) = attempts.error.clone().filter(|_| attempts.ended > ended_before) {
            return Err(error);
        }
        let outcome = self.fetch(source, generation, progress).await;
        attempts.ended += 1;
        attempts.error = outcome.as_ref().err().cloned();
        pass.flight.ended.store(attempts.ended, Ordering::Release);
        outcome
    }

    /// Reads a tree again and compares every file with what was recorded when it was fetched. Blocks, as long as reading
    /// takes. A file that differs is not used for other trees any more, and those that share it count as absent.
    ///
    /// # Errors
    /// The first file that differs.
    pub fn verify(&self, digest: &Digest) -> Result<(), FetchError> {
        let lease = self.find(digest).ok_or_else(|| FetchError::NotFound { what: format!("tree {digest} in the cache") })?;
        for FetchedFile { path, sha256, bytes } in lease.files() {
            let (actual, size) =
                crate::transfer::hash_file(&lease.dir().join(path)).map_err(|error| FetchError::unavailable(path, error))?;
            if size == *bytes && actual == *sha256 {
                continue;
            }
            self.inner.trees.mark_file_damaged(digest, path);
            return Err(if size == *bytes {
                FetchError::Corrupt { file: path.clone(), expected: *sha256, actual }
            } else {
                FetchError::Size { file: path.clone(), expected: *bytes, actual: size }
            });
        }
        Ok(())
    }

    /// Removes a tree, leased or not, so that the next [`Cache::ensure`] fetches it anew. Files that are open stay readable.
    /// False where it was not there. Blocks.
    pub fn discard(&self, digest: &Digest) -> bool {
        self.inner.trees.discard(digest)
    }

    /// Removes trees that nobody leases, the least recently leased first, until all together have at most `max_bytes`. Blocks.
    pub fn evict_unleased(&self, max_bytes: u64) -> Evicted {
        self.inner.trees.evict_unleased(max_bytes)
    }

    async fn find_off_thread(&self, digest: Digest) -> Option<Lease> {
        let cache = self.clone();
        // A cancelled runtime is the only way to fail: then nobody waits for the answer.
        tokio::task::spawn_blocking(move || cache.find(&digest)).await.ok().flatten()
    }

    async fn fetch(
        &self,
        source: &dyn VersionSource,
        generation: &Generation,
        progress: &dyn Progress,
    ) -> Result<Lease, FetchError> {
        let generation = Arc::new(generation.clone());
        let _claim = self.claim(&generation).await;
        // A disk that fills up meanwhile gets a second try, if something that nobody leases can make room for it.
        for last_try in [false, true] {
            let staged = self.stage(&generation).await?;
            let fetched = source.fetch(&generation, staged.files(), progress).await;
            let error = match fetched.and_then(|fetched| check_complete(&generation, &fetched).map(|()| fetched)) {
                Ok(fetched) => {
                    let trees = Arc::clone(&self.inner.trees);
                    return off_thread(move || trees.keep(staged, fetched)).await;
                }
                Err(error) => error,
            };
            staged.give_up_off_thread().await;
            let FetchError::NoSpace { needed, .. } = error else { return Err(error) };
            if last_try || !self.give_back(needed).await {
                return Err(error);
            }
        }
        Err(FetchError::NotFound { what: generation.key.to_string() })
    }

    /// Waits until nobody else fetches a large file of this version.
    async fn claim(&self, generation: &Generation) -> Claim<'_> {
        loop {
            match self.inner.claims.claim(self.inner.trees.missing(generation, WORTH_WAITING_BYTES)) {
                Ok(claim) => return claim,
                // It is closed, never given: that is what ends the wait.
                Err(others) => drop(others.acquire().await),
            }
        }
    }

    /// A place to fetch to, with room for what is missing.
    async fn stage(&self, generation: &Arc<Generation>) -> Result<Staged, FetchError> {
        let (cache, generation) = (self.clone(), Arc::clone(generation));
        off_thread(move || {
            let mut staged = cache.inner.trees.stage(&generation)?;
            let room = cache.make_room(staged.missing_bytes());
            if room.is_err() {
                staged.give_up();
            }
            room.map(|()| staged)
        })
        .await
    }

    /// Makes sure that so many bytes can be written, at the cost of what nobody leases. Blocks.
    fn make_room(&self, needed: u64) -> Result<(), FetchError> {
        let free = || free_bytes(&self.inner.dir).map_err(|error| FetchError::disk(&self.inner.dir, error));
        let mut now = free()?;
        if now < needed {
            let evicted = self.evict_unleased(self.bytes().saturating_sub(needed - now));
            tracing::info!(dir = %self.inner.dir.display(), needed, free = now, ?evicted, "the disk is full: making room");
            now = free()?;
        }
        if now < needed {
            return Err(FetchError::NoSpace { path: self.inner.dir.clone(), needed, free: now });
        }
        Ok(())
    }

    /// Whether anything was given back of so many bytes.
    async fn give_back(&self, bytes: u64) -> bool {
        let cache = self.clone();
        let evicted = tokio::task::spawn_blocking(move || cache.evict_unleased(cache.bytes().saturating_sub(bytes.max(1))));
        evicted.await.is_ok_and(|evicted| evicted.bytes > 0)
    }

    fn board(&self, digest: Digest) -> Pass<'_> {
        let mut flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        Pass { flights: &self.inner.flights, digest, flight: Arc::clone(flights.entry(digest).or_default()) }
    }
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, FetchError> + Send + 'static) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(FetchError::unavailable("the blocking thread", error)))
}

/// One caller's part in a flight, which is forgotten with the last of them, cancelled or not.
struct Pass<'a> {
    flights: &'a Mutex<HashMap<Digest, Arc<Flight>>>,
    digest: Digest,
    flight: Arc<Flight>,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // Boarding takes the same lock: with only the map's and ours nobody else is on the way.
        if Arc::strong_count(&self.flight) == 2 {
            flights.remove(&self.digest);
        }
    }
}

/// A source that says it is done has brought every file of the manifest, as the manifest has it.
fn check_complete(generation: &Generation, fetched: &Fetched) -> Result<(), FetchError> {
    for file in &generation.manifest.files {
        let Some(brought) = fetched.files.iter().find(|brought| brought.path == file.path) else {
            return Err(FetchError::NotFound { what: format!("file `{}` of {}", file.path, generation.key) });
        };
        if brought.bytes != file.bytes {
            return Err(FetchError::Size { file: file.path.clone(), expected: file.bytes, actual: brought.bytes });
        }
        if let Some(expected) = file.sha256.filter(|expected| *expected != brought.sha256) {
            return Err(FetchError::Corrupt { file: file.path.clone(), expected, actual: brought.sha256 });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
