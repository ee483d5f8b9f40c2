//! The files of a cache by what they are on disk: one that lies in several trees, under hard links, is there once and counts once.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// What names a file on disk, whatever its paths. A cache lies in one file system.
pub(super) type Inode = u64;

/// All files of a cache.
#[derive(Default)]
pub(super) struct SharedFiles {
    by_inode: HashMap<Inode, SharedFile>,
    by_digest: HashMap<Digest, BTreeSet<Inode>>,
    bytes: u64,
}

struct SharedFile {
    sha256: Digest,
    bytes: u64,
    places: Vec<PathBuf>,
    /// Its content was read, and is not what it is named after.
    damaged: bool,
}

impl SharedFiles {
    /// A file lies at this place now.
    pub(super) fn add(&mut self, inode: Inode, sha256: Digest, bytes: u64, place: PathBuf) {
        let file = self.by_inode.entry(inode).or_insert_with(|| {
            self.bytes = self.bytes.saturating_add(bytes);
            SharedFile { sha256, bytes, places: Vec::new(), damaged: false }
        });
        file.places.push(place);
        if !file.damaged {
            self.by_digest.entry(sha256).or_default().insert(inode);
        }
    }

    /// It does not lie there any more. Returns how many bytes that gives back.
    pub(super) fn remove(&mut self, inode: Inode, place: &Path) -> u64 {
        let Some(file) = self.by_inode.get_mut(&inode) else { return 0 };
        file.places.retain(|other| other != place);
        if !file.places.is_empty() {
            return 0;
        }
        let (sha256, bytes) = (file.sha256, file.bytes);
        self.by_inode.remove(&inode);
        self.forget_digest(inode, &sha256);
        self.bytes = self.bytes.saturating_sub(bytes);
        bytes
    }

    /// A place of a file with this content, which nobody has found damaged.
    pub(super) fn find(&self, sha256: &Digest) -> Option<(Inode, &Path)> {
        let inodes = self.by_digest.get(sha256)?;
        inodes.iter().find_map(|inode| Some((*inode, self.by_inode.get(inode)?.places.first()?.as_path())))
    }

    /// Where a file lies, and what it should have in it.
    pub(super) fn place_of(&self, inode: Inode) -> Option<(Digest, &Path)> {
        let file = self.by_inode.get(&inode)?;
        Some((file.sha256, file.places.first()?.as_path()))
    }

    /// It is not used again, and no tree that has it counts.
    pub(super) fn mark_damaged(&mut self, inode: Inode) {
        let Some(file) = self.by_inode.get_mut(&inode) else { return };
        file.damaged = true;
        let sha256 = file.sha256;
        self.forget_digest(inode, &sha256);
    }

    pub(super) fn is_damaged(&self, inode: Inode) -> bool {
        self.by_inode.get(&inode).is_some_and(|file| file.damaged)
    }

    /// All files, each once.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn forget_digest(&mut self, inode: Inode, sha256: &Digest) {
        if let Some(inodes) = self.by_digest.get_mut(sha256) {
            inodes.remove(&inode);
            if inodes.is_empty() {
                self.by_digest.remove(sha256);
            }
        }
    }
}
