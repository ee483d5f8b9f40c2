//! The trees of a cache: an index in memory over `trees/<digest>/{tree.json, files/}` and `loose/<sha256>`. All of it blocks.
//!
//! Files of several trees that have the same content are one file under hard links, made when a tree is fetched whose files are there
//! already. `loose/` has the files that fetches completed before they failed, until a tree has them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Evicted;
use super::shared::{Inode, SharedFiles};
use super::staged::{self, Staged, remove};
use crate::digest::Digest;
use crate::durable;
use crate::listing::Generation;
use crate::source::{FetchError, Fetched, FetchedFile};

const RECORD: &str = "tree.json";
const FILES: &str = "files";

pub(super) struct Trees {
    root: PathBuf,
    loose: PathBuf,
    tmp: PathBuf,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    trees: BTreeMap<Digest, Tree>,
    loose: BTreeMap<Digest, Loose>,
    files: SharedFiles,
}

struct Tree {
    files_dir: PathBuf,
    record: Arc<Record>,
    /// Of the record's files, in their order.
    inodes: Vec<Inode>,
    /// Alive while somebody leases it.
    lease: Weak<Leased>,
    used: Arc<Used>,
}

/// When a tree was last leased, or given back.
struct Used(Mutex<SystemTime>);

impl Used {
    fn new(when: SystemTime) -> Arc<Self> {
        Arc::new(Self(Mutex::new(when)))
    }

    fn when(&self) -> SystemTime {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is used now. The record's time of change says so too, for the next process.
    fn mark(&self, files_dir: &Path) {
        let now = SystemTime::now();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
        let record = files_dir.with_file_name(RECORD);
        let marked = fs::File::options().write(true).open(&record).and_then(|file| file.set_modified(now));
        if let Err(error) = marked {
            tracing::debug!(record = %record.display(), %error, "cannot mark a tree as used");
        }
    }
}

/// `tree.json`: what the tree is, and what its files were when they were verified.
#[derive(Serialize, Deserialize)]
struct Record {
    generation: Arc<Generation>,
    files: Vec<FetchedFile>,
}

/// A file that no tree has yet.
struct Loose {
    inode: Inode,
    used: SystemTime,
}

impl Tree {
    /// Its files: what they are on disk, and where they lie.
    fn files(&self) -> impl Iterator<Item = (Inode, &FetchedFile, PathBuf)> {
        let files = self.inodes.iter().zip(&self.record.files);
        files.map(|(inode, file)| (*inode, file, self.files_dir.join(&file.path)))
    }
}

impl Index {
    fn insert(&mut self, tree: Tree) {
        let digest = tree.record.generation.digest;
        self.remove(&digest);
        for (inode, file, place) in tree.files() {
            self.files.add(inode, file.sha256, file.bytes, place);
        }
        self.trees.insert(digest, tree);
    }

    /// Returns also how many bytes are given back: those that no other tree has.
    fn remove(&mut self, digest: &Digest) -> Option<(Tree, u64)> {
        let tree = self.trees.remove(digest)?;
        let freed = tree.files().map(|(inode, _, place)| self.files.remove(inode, &place)).sum();
        Some((tree, freed))
    }

    fn add_loose(&mut self, sha256: Digest, meta: &fs::Metadata, place: PathBuf) {
        let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        self.files.add(meta.ino(), sha256, meta.len(), place);
        self.loose.insert(sha256, Loose { inode: meta.ino(), used });
    }

    fn remove_loose(&mut self, sha256: &Digest, place: &Path) -> u64 {
        self.loose.remove(sha256).map_or(0, |loose| self.files.remove(loose.inode, place))
    }
}

/// Keeps a tree in the cache as long as it, or a clone of it, lives.
#[derive(Clone)]
pub struct Lease(Arc<Leased>);

struct Leased {
    files_dir: PathBuf,
    record: Arc<Record>,
    used: Arc<Used>,
}

impl Drop for Leased {
    /// What served until now is not the first to be evicted.
    fn drop(&mut self) {
        self.used.mark(&self.files_dir);
    }
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

impl Trees {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let (root, loose, tmp) = (dir.join("trees"), dir.join("loose"), dir.join("tmp"));
        if tmp.exists() {
            fs::remove_dir_all(&tmp)?;
        }
        for dir in [&root, &loose, &tmp] {
            durable::create_dir(dir)?;
        }
        let trees = Self { root, loose, tmp, index: Mutex::default() };
        for entry in fs::read_dir(&trees.root)? {
            let path = entry?.path();
            match read_tree(&path) {
                Ok(tree) => trees.lock().insert(tree),
                Err(error) => {
                    tracing::warn!(tree = %path.display(), %error, "a tree of the cache is not whole and is removed");
                    trees.move_aside(&path).iter().for_each(|aside| remove(aside));
                }
            }
        }
        trees.open_loose()?;
        Ok(trees)
    }

    fn open_loose(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.loose)? {
            let entry = entry?;
            let (path, meta) = (entry.path(), entry.metadata()?);
            let named = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
            match named.filter(|_| meta.is_file()) {
                Some(sha256) => self.lock().add_loose(sha256, &meta, path),
                None => self.move_aside(&path).iter().for_each(|aside| remove_any(aside)),
            }
        }
        Ok(())
    }

    /// A directory for a tree that is fetched, with the files that are there already.
    pub(super) fn stage(self: &Arc<Self>, generation: &Arc<Generation>) -> Result<Staged, FetchError> {
        let dir = self.tmp.join(Uuid::new_v4().to_string());
        let files = dir.join(FILES);
        Staged::prepare(self, generation, dir, files.clone()).map_err(|error| FetchError::disk(&files, error))
    }

    /// Which of these files nobody has yet.
    pub(super) fn missing(&self, generation: &Generation, at_least: u64) -> Vec<Digest> {
        let index = self.lock();
        let large = generation.manifest.files.iter().filter(|file| file.bytes >= at_least).filter_map(|file| file.sha256);
        let mut missing: Vec<_> = large.filter(|sha256| index.files.find(sha256).is_none()).collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }

    /// Puts a file with this content there, where one is in the cache. It is the same file, so it must not be written to.
    pub(super) fn link(&self, sha256: &Digest, bytes: u64, target: &Path) -> Option<Inode> {
        let (inode, place) = self.lock().files.find(sha256).map(|(inode, place)| (inode, place.to_owned()))?;
        match fs::symlink_metadata(&place) {
            Ok(meta) if meta.is_file() && meta.ino() == inode && meta.len() == bytes => {}
            // Changed from outside, or taken away meanwhile.
            _ => return None,
        }
        match staged::link(&place, target) {
            Ok(()) => Some(inode),
            Err(error) => {
                tracing::debug!(file = %place.display(), %error, "a file of the cache can't be shared and is fetched again");
                None
            }
        }
    }

    /// Keeps a complete file of a tree that has failed, unless one like it is there.
    pub(super) fn keep_loose(&self, from: &Path, sha256: Digest, bytes: u64) {
        let place = self.loose.join(sha256.to_string());
        let mut index = self.lock();
        let Ok(meta) = fs::symlink_metadata(from) else { return };
        if !meta.is_file() || meta.len() != bytes || index.files.find(&sha256).is_some() {
            return;
        }
        index.remove_loose(&sha256, &place);
        match fs::rename(from, &place) {
            Ok(()) => index.add_loose(sha256, &meta, place),
            Err(error) => tracing::debug!(file = %from.display(), %error, "a file can't be kept for the next try"),
        }
    }

    /// Reads files that a source did not want to share. Where one is damaged no tree that has it counts any more, and it is not used
    /// for others.
    pub(super) fn check_replaced(&self, inodes: &[Inode]) {
        for inode in inodes {
            let place = self.lock().files.place_of(*inode).map(|(sha256, place)| (sha256, place.to_owned()));
            let Some((sha256, place)) = place else { continue };
            if crate::transfer::hash_file(&place).is_ok_and(|(actual, _)| actual != sha256) {
                self.lock().files.mark_damaged(*inode);
            }
        }
    }

    /// The same for one file of a tree that is known to be damaged.
    pub(super) fn mark_file_damaged(&self, digest: &Digest, path: &str) {
        let mut index = self.lock();
        let tree = index.trees.get(digest);
        let inode = tree.and_then(|tree| tree.files().find(|(_, file, _)| file.path == path).map(|(inode, _, _)| inode));
        inode.into_iter().for_each(|inode| index.files.mark_damaged(inode));
    }

    /// Makes a staged tree durable and visible. What was there under the same digest goes.
    pub(super) fn keep(&self, mut staged: Staged, fetched: Fetched) -> Result<Lease, FetchError> {
        self.check_replaced(&staged.replaced());
        let kept = self.take_in(&staged, fetched);
        match kept {
            Ok(_) => staged.kept(),
            Err(_) => staged.give_up(),
        }
        kept
    }

    fn take_in(&self, staged: &Staged, fetched: Fetched) -> Result<Lease, FetchError> {
        let digest = staged.generation().digest;
        let record = Record { generation: Arc::clone(staged.generation()), files: fetched.files };
        let inodes = check_sizes(staged.files(), &record.files).map_err(|error| FetchError::disk(staged.files(), error))?;
        let place = self.root.join(digest.to_string());
        let disk = |error| FetchError::disk(&place, error);
        let write_record = || {
            durable::sync_dirs_below(staged.files())?;
            durable::write_file(&staged.dir().join(RECORD), &serde_json::to_vec_pretty(&record)?)
        };
        write_record().map_err(disk)?;
        let mut index = self.lock();
        let replaced = self.move_aside(&place);
        fs::rename(staged.dir(), &place).map_err(disk)?;
        let record = Arc::new(record);
        let used = Used::new(SystemTime::now());
        index.insert(Tree { files_dir: place.join(FILES), record: Arc::clone(&record), inodes, lease: Weak::new(), used });
        for file in &record.files {
            let loose = self.loose.join(file.sha256.to_string());
            if index.loose.contains_key(&file.sha256) {
                index.remove_loose(&file.sha256, &loose);
                remove_any(&loose);
            }
        }
        let lease = lease(&mut index, &digest);
        drop(index);
        replaced.iter().for_each(|aside| remove(aside));
        durable::sync_dir(&self.root).map_err(disk)?;
        lease.ok_or_else(|| FetchError::NotFound { what: format!("tree {digest} in the cache") })
    }

    pub(super) fn lease(&self, digest: &Digest) -> Option<Lease> {
        // The lease comes before the look at the files, so that no eviction comes between.
        let (lease, damaged) = {
            let mut index = self.lock();
            let lease = lease(&mut index, digest)?;
            let tree = index.trees.get(digest)?;
            (lease, tree.inodes.iter().any(|inode| index.files.is_damaged(*inode)))
        };
        let whole = match check_sizes(lease.dir(), lease.files()) {
            Ok(_) if damaged => Err(io::Error::other("it shares a file with one that was found damaged")),
            checked => checked,
        };
        match whole {
            Ok(_) => {
                lease.0.used.mark(lease.dir());
                Some(lease)
            }
            Err(error) => {
                tracing::warn!(%digest, %error, "a tree of the cache is not as it was fetched and counts as absent");
                drop(lease);
                self.discard(digest);
                None
            }
        }
    }

    pub(super) fn generations(&self) -> Vec<Arc<Generation>> {
        self.lock().trees.values().map(|tree| Arc::clone(&tree.record.generation)).collect()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lock().files.bytes()
    }

    pub(super) fn discard(&self, digest: &Digest) -> bool {
        let mut index = self.lock();
        let Some((tree, _)) = index.remove(digest) else { return false };
        let aside = self.move_tree_aside(&tree);
        drop(index);
        aside.iter().for_each(|aside| remove(aside));
        true
    }

    pub(super) fn evict_unleased(&self, max_bytes: u64) -> Evicted {
        /// What goes, in the order of its last use.
        #[derive(PartialEq, Eq, PartialOrd, Ord)]
        enum Idle {
            Loose(Digest),
            Tree(Digest),
        }
        let mut index = self.lock();
        let trees = index.trees.iter().filter(|(_, tree)| tree.lease.strong_count() == 0);
        let mut idle: Vec<_> = trees.map(|(digest, tree)| (tree.used.when(), Idle::Tree(*digest))).collect();
        idle.extend(index.loose.iter().map(|(sha256, loose)| (loose.used, Idle::Loose(*sha256))));
        idle.sort_unstable();
        let (mut evicted, mut asides) = (Evicted::default(), Vec::new());
        for (_, idle) in idle {
            if index.files.bytes() <= max_bytes {
                break;
            }
            match idle {
                Idle::Tree(digest) => {
                    let Some((tree, freed)) = index.remove(&digest) else { continue };
                    evicted.trees += 1;
                    evicted.bytes += freed;
                    asides.extend(self.move_tree_aside(&tree));
                }
                Idle::Loose(sha256) => {
                    let place = self.loose.join(sha256.to_string());
                    evicted.bytes += index.remove_loose(&sha256, &place);
                    asides.extend(self.move_aside(&place));
                }
            }
        }
        drop(index);
        asides.iter().for_each(|aside| remove_any(aside));
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

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file or a directory.
fn remove_any(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        match error.kind() {
            io::ErrorKind::NotFound => {}
            _ => remove(path),
        }
    }
}

fn lease(index: &mut Index, digest: &Digest) -> Option<Lease> {
    let tree = index.trees.get_mut(digest)?;
    if let Some(leased) = tree.lease.upgrade() {
        return Some(Lease(leased));
    }
    let leased =
        Arc::new(Leased { files_dir: tree.files_dir.clone(), record: Arc::clone(&tree.record), used: Arc::clone(&tree.used) });
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
    let inodes = check_sizes(&files_dir, &record.files)?;
    let used = Used::new(fs::metadata(&path)?.modified()?);
    Ok(Tree { files_dir, record: Arc::new(record), inodes, lease: Weak::new(), used })
}

/// What the files are on disk, where they are as they were recorded.
fn check_sizes(dir: &Path, files: &[FetchedFile]) -> io::Result<Vec<Inode>> {
    let inodes = files.iter().map(|file| {
        // Symbolic links are not followed: nothing here makes any.
        let found = fs::symlink_metadata(dir.join(&file.path))?;
        if !found.is_file() || found.len() != file.bytes {
            return Err(io::Error::other(format!("file `{}` is not as it was recorded", file.path)));
        }
        Ok(found.ino())
    });
    inodes.collect()
}
