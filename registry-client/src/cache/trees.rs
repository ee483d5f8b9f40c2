//! The trees of a cache: an index in memory over `trees/<digest>/{tree.json, files/}`. All of it blocks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Evicted;
use crate::digest::Digest;
use crate::durable;
use crate::listing::Generation;
use crate::source::{FetchError, Fetched, FetchedFile};

const RECORD: &str = "tree.json";
const FILES: &str = "files";

pub(super) struct Trees {
    root: PathBuf,
    tmp: PathBuf,
    index: Mutex<BTreeMap<Digest, Tree>>,
}

struct Tree {
    files_dir: PathBuf,
    record: Arc<Record>,
    /// Alive while somebody leases it.
    lease: Weak<Leased>,
    used: SystemTime,
}

/// `tree.json`: what the tree is, and what its files were when they were verified.
#[derive(Serialize, Deserialize)]
struct Record {
    generation: Arc<Generation>,
    files: Vec<FetchedFile>,
}

impl Record {
    fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

/// Keeps a tree in the cache as long as it, or a clone of it, lives.
#[derive(Clone)]
pub struct Lease(Arc<Leased>);

struct Leased {
    files_dir: PathBuf,
    record: Arc<Record>,
}

impl Lease {
    /// The directory with the version's files.
    pub fn dir(&self) -> &Path {
        &self.0.files_dir
    }

    /// The digest of the content.
    pub fn digest(&self) -> Digest {
        self.0.record.generation.digest
    }

    /// What it is, as it was listed when it was fetched.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.0.record.generation
    }

    /// The files with their digests.
    pub fn files(&self) -> &[FetchedFile] {
        &self.0.record.files
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("key", &self.generation().key).field("digest", &self.digest()).finish()
    }
}

/// A tree on its way. Removed when it is dropped without having been kept.
pub(super) struct Staged {
    dir: PathBuf,
    files: PathBuf,
}

impl Staged {
    pub(super) fn files(&self) -> &Path {
        &self.files
    }

    /// Removes it at once.
    fn discard(mut self) {
        remove(&std::mem::take(&mut self.dir));
    }

    /// The same on a thread that may block.
    pub(super) async fn discard_off_thread(self) {
        // A runtime that ends meanwhile leaves it to the next start.
        drop(tokio::task::spawn_blocking(|| self.discard()).await);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let dir = std::mem::take(&mut self.dir);
        if dir.as_os_str().is_empty() {
            return;
        }
        // A fetch that is cancelled is dropped by a thread that has requests to answer; what is there may be many files.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove(&dir))),
            Err(_) => remove(&dir),
        }
    }
}

/// What can't be removed now is removed when the cache is opened again.
fn remove(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove a directory of the cache");
        }
        _ => {}
    }
}

impl Trees {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let (root, tmp) = (dir.join("trees"), dir.join("tmp"));
        if tmp.exists() {
            fs::remove_dir_all(&tmp)?;
        }
        durable::create_dir(&root)?;
        durable::create_dir(&tmp)?;
        let trees = Self { root, tmp, index: Mutex::default() };
        for entry in fs::read_dir(&trees.root)? {
            let path = entry?.path();
            match read_tree(&path) {
                Ok(tree) => drop(trees.lock().insert(tree.record.generation.digest, tree)),
                Err(error) => {
                    tracing::warn!(tree = %path.display(), %error, "a tree of the cache is not whole and is removed");
                    trees.move_aside(&path).iter().for_each(|aside| remove(aside));
                }
            }
        }
        Ok(trees)
    }

    pub(super) fn stage(&self, name: Uuid) -> Result<Staged, FetchError> {
        let dir = self.tmp.join(name.to_string());
        let files = dir.join(FILES);
        fs::create_dir_all(&files).map_err(|error| FetchError::disk(&files, error))?;
        Ok(Staged { dir, files })
    }

    /// Makes a staged tree durable and visible. What was there under the same digest goes.
    pub(super) fn keep(&self, mut staged: Staged, generation: &Arc<Generation>, fetched: Fetched) -> Result<Lease, FetchError> {
        let kept = self.take_in(&staged, generation, fetched);
        match kept {
            // It lies at its place now.
            Ok(_) => staged.dir = PathBuf::new(),
            Err(_) => staged.discard(),
        }
        kept
    }

    fn take_in(&self, staged: &Staged, generation: &Arc<Generation>, fetched: Fetched) -> Result<Lease, FetchError> {
        let digest = generation.digest;
        let record = Record { generation: Arc::clone(generation), files: fetched.files };
        check_sizes(&staged.files, &record.files).map_err(|error| FetchError::disk(&staged.files, error))?;
        let place = self.root.join(digest.to_string());
        let disk = |error| FetchError::disk(&place, error);
        let write_record = || {
            durable::sync_dirs_below(&staged.files)?;
            durable::write_file(&staged.dir.join(RECORD), &serde_json::to_vec_pretty(&record)?)
        };
        write_record().map_err(disk)?;
        let mut index = self.lock();
        let replaced = self.move_aside(&place);
        fs::rename(&staged.dir, &place).map_err(disk)?;
        let tree = Tree { files_dir: place.join(FILES), record: Arc::new(record), lease: Weak::new(), used: SystemTime::now() };
        index.insert(digest, tree);
        let lease = lease(&mut index, &digest);
        drop(index);
        replaced.iter().for_each(|aside| remove(aside));
        durable::sync_dir(&self.root).map_err(disk)?;
        lease.ok_or_else(|| FetchError::NotFound { what: format!("tree {digest} in the cache") })
    }

    pub(super) fn lease(&self, digest: &Digest) -> Option<Lease> {
        // The lease comes before the look at the files, so that no eviction comes between.
        let lease = lease(&mut self.lock(), digest)?;
        match check_sizes(lease.dir(), lease.files()) {
            Ok(()) => {
                self.mark_used(digest);
                Some(lease)
            }
            Err(error) => {
                tracing::warn!(%digest, %error, "a tree of the cache was changed from outside and counts as absent");
                drop(lease);
                self.discard(digest);
                None
            }
        }
    }

    pub(super) fn generations(&self) -> Vec<Arc<Generation>> {
        self.lock().values().map(|tree| Arc::clone(&tree.record.generation)).collect()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lock().values().fold(0, |sum, tree| sum.saturating_add(tree.record.bytes()))
    }

    pub(super) fn discard(&self, digest: &Digest) -> bool {
        let mut index = self.lock();
        let Some(tree) = index.remove(digest) else { return false };
        let aside = self.move_tree_aside(&tree);
        drop(index);
        aside.iter().for_each(|aside| remove(aside));
        true
    }

    pub(super) fn evict_unleased(&self, max_bytes: u64) -> Evicted {
        let mut index = self.lock();
        let mut left = index.values().fold(0_u64, |sum, tree| sum.saturating_add(tree.record.bytes()));
        let mut idle: Vec<_> =
            index.iter().filter(|(_, tree)| tree.lease.strong_count() == 0).map(|(digest, tree)| (tree.used, *digest)).collect();
        idle.sort_unstable();
        let (mut evicted, mut asides) = (Evicted::default(), Vec::new());
        for (_, digest) in idle {
            if left <= max_bytes {
                break;
            }
            if let Some(tree) = index.remove(&digest) {
                let bytes = tree.record.bytes();
                left = left.saturating_sub(bytes);
                evicted.trees += 1;
                evicted.bytes += bytes;
                asides.extend(self.move_tree_aside(&tree));
            }
        }
        drop(index);
        asides.iter().for_each(|aside| remove(aside));
        evicted
    }

    fn move_tree_aside(&self, tree: &Tree) -> Option<PathBuf> {
        self.move_aside(tree.files_dir.parent()?)
    }

    /// Makes a tree disappear at once; removing its files may take long, or be cut short. Called under the lock of the index,
    /// so that nobody takes away what somebody else has just put in its place.
    fn move_aside(&self, tree: &Path) -> Option<PathBuf> {
        let aside = self.tmp.join(Uuid::new_v4().to_string());
        match fs::rename(tree, &aside) {
            Ok(()) => return Some(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(tree = %tree.display(), %error, "cannot move a tree out of the cache"),
        }
        None
    }

    /// The record's time of change is when the tree was last leased, also for the next process.
    fn mark_used(&self, digest: &Digest) {
        let now = SystemTime::now();
        let record = match self.lock().get_mut(digest) {
            Some(tree) => {
                tree.used = now;
                tree.files_dir.with_file_name(RECORD)
            }
            None => return,
        };
        let marked = fs::File::options().write(true).open(&record).and_then(|file| file.set_modified(now));
        if let Err(error) = marked {
            tracing::debug!(%digest, %error, "cannot mark a tree as used");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Tree>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lease(index: &mut BTreeMap<Digest, Tree>, digest: &Digest) -> Option<Lease> {
    let tree = index.get_mut(digest)?;
    if let Some(leased) = tree.lease.upgrade() {
        return Some(Lease(leased));
    }
    let leased = Arc::new(Leased { files_dir: tree.files_dir.clone(), record: Arc::clone(&tree.record) });
    tree.lease = Arc::downgrade(&leased);
    Some(Lease(leased))
}

fn read_tree(dir: &Path) -> io::Result<Tree> {
    let path = dir.join(RECORD);
    let record: Record = serde_json::from_slice(&fs::read(&path)?)?;
    let digest = record.generation.digest.to_string();
    if dir.file_name().is_none_or(|name| name != digest.as_str()) {
        return Err(io::Error::other(format!("its record is that of {digest}")));
    }
    let files_dir = dir.join(FILES);
    check_sizes(&files_dir, &record.files)?;
    let used = fs::metadata(&path)?.modified()?;
    Ok(Tree { files_dir, record: Arc::new(record), lease: Weak::new(), used })
}

fn check_sizes(dir: &Path, files: &[FetchedFile]) -> io::Result<()> {
    for file in files {
        // Symbolic links are not followed: nothing here makes any.
        let found = fs::symlink_metadata(dir.join(&file.path))?;
        if !found.is_file() || found.len() != file.bytes {
            return Err(io::Error::other(format!("file `{}` is not as it was recorded", file.path)));
        }
    }
    Ok(())
}
