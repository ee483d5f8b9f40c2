//! A tree on its way: what is there of it, what is missing, and what is left of it when it fails.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::shared::Inode;
use super::trees::Trees;
use crate::listing::Generation;

/// A tree on its way. Dropped without having been kept it leaves the files that are complete, for the next try.
pub(super) struct Staged {
    trees: Arc<Trees>,
    generation: Arc<Generation>,
    /// Empty once there is nothing more to remove.
    dir: PathBuf,
    files: PathBuf,
    /// Files of other trees that lie in it.
    linked: Vec<Linked>,
    missing_bytes: u64,
}

/// A file that was not brought, because it was there.
struct Linked {
    path: String,
    inode: Inode,
}

impl Staged {
    /// Makes the directory, with the files that are there already. Blocks.
    pub(super) fn prepare(trees: &Arc<Trees>, generation: &Arc<Generation>, dir: PathBuf, files: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&files)?;
        let (trees, generation) = (Arc::clone(trees), Arc::clone(generation));
        let mut staged = Self { trees, generation, dir, files, linked: Vec::new(), missing_bytes: 0 };
        let generation = Arc::clone(&staged.generation);
        for file in &generation.manifest.files {
            let linked = file.sha256.and_then(|sha256| {
                let target = staged.files.join(&file.path);
                staged.trees.link(&sha256, file.bytes, &target)
            });
            match linked {
                Some(inode) => staged.linked.push(Linked { path: file.path.clone(), inode }),
                None => staged.missing_bytes = staged.missing_bytes.saturating_add(file.bytes),
            }
        }
        Ok(staged)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn files(&self) -> &Path {
        &self.files
    }

    pub(super) fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    /// What the source has to bring.
    pub(super) fn missing_bytes(&self) -> u64 {
        self.missing_bytes
    }

    /// Files of other trees that the source has read and replaced: most likely because they are damaged. Blocks.
    pub(super) fn replaced(&self) -> Vec<Inode> {
        let replaced = self.linked.iter().filter(|linked| match fs::symlink_metadata(self.files.join(&linked.path)) {
            Ok(meta) => meta.ino() != linked.inode,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        });
        replaced.map(|linked| linked.inode).collect()
    }

    /// It lies at its place now.
    pub(super) fn kept(&mut self) {
        self.dir = PathBuf::new();
    }

    /// Removes it at once, but for the files that are complete. Blocks.
    pub(super) fn give_up(&mut self) {
        let dir = std::mem::take(&mut self.dir);
        if !dir.as_os_str().is_empty() {
            give_up(&self.trees, &self.generation, &dir, &self.files, &self.replaced());
        }
    }

    /// The same on a thread that may block.
    pub(super) async fn give_up_off_thread(mut self) {
        // A runtime that ends meanwhile leaves it to the next start.
        drop(tokio::task::spawn_blocking(move || self.give_up()).await);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.dir.as_os_str().is_empty() {
            return;
        }
        // A fetch that is cancelled is dropped by a thread that has requests to answer; what is there may be many files.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let (trees, generation) = (Arc::clone(&self.trees), Arc::clone(&self.generation));
                let (dir, files) = (std::mem::take(&mut self.dir), std::mem::take(&mut self.files));
                drop(runtime.spawn_blocking(move || give_up(&trees, &generation, &dir, &files, &[])));
            }
            Err(_) => self.give_up(),
        }
    }
}

fn give_up(trees: &Trees, generation: &Generation, dir: &Path, files: &Path, replaced: &[Inode]) {
    trees.check_replaced(replaced);
    for file in &generation.manifest.files {
        if let Some(sha256) = file.sha256 {
            trees.keep_loose(&files.join(&file.path), sha256, file.bytes);
        }
    }
    remove(dir);
}

/// What can't be removed now is removed when the cache is opened again.
pub(super) fn remove(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove a directory of the cache");
        }
        _ => {}
    }
}

/// Links a file of the cache to a place in a tree that is on its way. Blocks.
pub(super) fn link(from: &Path, target: &Path) -> io::Result<()> {
    if let Some(dir) = target.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::hard_link(from, target)
}
