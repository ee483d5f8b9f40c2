//! The board on which sessions mark that they run: a file that is mapped, so that the system keeps what is written when the process
//! crashes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bascule_registry::{Digest, Generation};
use bascule_serving::{Mark, Marks};
use memmap2::{MmapOptions, MmapRaw};

/// Sessions that can be marked. Those beyond are not, and never suspected.
const SLOTS: usize = 4096;

/// Bytes of a slot, a cache line: how often it ran and whether it runs, the digest of its version, and the beginning of its model's name.
const SLOT_BYTES: usize = 64;
const BYTES: usize = SLOTS * SLOT_BYTES;
const DIGEST_AT: usize = 8;
const NAME_AT: usize = DIGEST_AT + 32;

/// Bytes of a model's name for which there is room.
pub(super) const NAME_BYTES: usize = SLOT_BYTES - NAME_AT;

/// A version that was marked when the process ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Running {
    pub(super) digest: String,
    /// The beginning of the model's name.
    pub(super) model: String,
    /// Runs that it survived, of all its sessions.
    pub(super) runs: u64,
}

/// The board of this process.
pub(crate) struct Board {
    shared: Arc<Shared>,
}

struct Shared {
    map: MmapRaw,
    free: Mutex<Vec<usize>>,
}

impl Board {
    /// Reads what the process before this one left on the board, wipes it, and opens it.
    ///
    /// # Errors
    /// The file can't be read or mapped, or the disk has no room for it.
    pub(super) fn open(path: &Path) -> std::io::Result<(Board, Vec<Running>)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let left = running(&mut file)?;
        // Written, so that its room is taken now: a mark for which the disk has none would end the process as a crash does.
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&vec![0; BYTES])?;
        file.set_len(BYTES as u64)?;
        let map = MmapOptions::new().len(BYTES).map_raw(&file)?;
        // The last one first, so that the lowest slots are taken first.
        let shared = Shared { map, free: Mutex::new((0..SLOTS).rev().collect()) };
        Ok((Board { shared: Arc::new(shared) }, left))
    }
}

/// The versions that are marked, each once.
fn running(file: &mut File) -> std::io::Result<Vec<Running>> {
    let mut bytes = Vec::new();
    file.take(BYTES as u64).read_to_end(&mut bytes)?;
    // By digest, with whether any of its sessions runs.
    let mut versions: BTreeMap<&[u8], (bool, Running)> = BTreeMap::new();
    for slot in bytes.chunks_exact(SLOT_BYTES) {
        let cell = u64::from_ne_bytes(slot[..DIGEST_AT].try_into().unwrap_or_default());
        let (name, digest) = (&slot[NAME_AT..], &slot[DIGEST_AT..NAME_AT]);
        let (runs, version) = versions.entry(digest).or_insert_with(|| {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            (false, Running { digest, model: String::from_utf8_lossy(&name[..end]).into_owned(), runs: 0 })
        });
        *runs |= cell % 2 == 1;
        version.runs = version.runs.saturating_add(cell / 2);
    }
    Ok(versions.into_values().filter_map(|(runs, version)| runs.then_some(version)).collect())
}

impl Shared {
    #[expect(unsafe_code, reason = "a mapped file is memory that the compiler knows nothing of")]
    fn cell(&self, slot: usize) -> &AtomicU64 {
        // SAFETY: the map has SLOTS slots and lives as long as this; each begins at a multiple of 64 bytes, and its first eight are
        // only ever used as this cell.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(slot * SLOT_BYTES).cast()) }
    }

    #[expect(unsafe_code, reason = "a mapped file is memory that the compiler knows nothing of")]
    fn write_version(&self, slot: usize, digest: &Digest, model: &str) {
        let mut about = [0_u8; SLOT_BYTES - DIGEST_AT];
        let (digest_part, name_part) = about.split_at_mut(NAME_AT - DIGEST_AT);
        digest_part.copy_from_slice(digest.as_bytes());
        let mut end = model.len().min(name_part.len());
        while !model.is_char_boundary(end) {
            end -= 1;
        }
        name_part[..end].copy_from_slice(&model.as_bytes()[..end]);
        // SAFETY: as above; these bytes belong to whoever took the slot, and nobody of this process reads them.
        unsafe {
            let to = self.map.as_mut_ptr().add(slot * SLOT_BYTES + DIGEST_AT);
            std::ptr::copy_nonoverlapping(about.as_ptr(), to, about.len());
        }
    }
}

impl Marks for Board {
    fn mark(&self, generation: &Generation) -> Option<Box<dyn Mark>> {
        let slot = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        self.shared.cell(slot).store(0, Ordering::Relaxed);
        self.shared.write_version(slot, &generation.digest, generation.key.model.as_str());
        Some(Box::new(Slot { shared: Arc::clone(&self.shared), slot }))
    }
}

struct Slot {
    shared: Arc<Shared>,
    slot: usize,
}

impl Mark for Slot {
    fn set(&self, is_running: bool) {
        // Odd while it runs, and half of it is how often it did. What is stored stays in the file's pages whatever becomes of the process;
        // nobody else writes to this cell, and no other memory depends on it.
        let cell = self.shared.cell(self.slot);
        let before = cell.load(Ordering::Relaxed);
        if (before % 2 == 1) != is_running {
            cell.store(before.wrapping_add(1), Ordering::Relaxed);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.set(false);
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::tests::generation;

    #[test]
    fn what_ran_is_found_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marks");
        let name = "a-model-whose-name-is-longer-than-its-room";
        let (board, left) = Board::open(&path).unwrap();
        assert_eq!(left, []);
        let [idle, ran, runs, twin] = [("idle", 1), ("ran", 2), (name, 3), (name, 3)]
            .map(|(model, version)| board.mark(&generation(model, version)).unwrap());
        [&ran, &runs, &twin].into_iter().for_each(|mark| mark.set(true));
        for is_running in [false, false, true, true, false, true] {
            twin.set(is_running);
        }
        ran.set(false);
        // As a crash leaves it.
        [idle, ran, runs, twin].into_iter().for_each(std::mem::forget);
        std::mem::forget(board);
        let (_board, left) = Board::open(&path).unwrap();
        let expected = Running { digest: generation(name, 3).digest.to_string(), model: name[..NAME_BYTES].to_owned(), runs: 2 };
        assert_eq!(left, [expected]);
        assert_eq!(Board::open(&path).unwrap().1, [], "it is wiped");
    }

    #[test]
    fn room_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let (board, _) = Board::open(&folder.path().join("marks")).unwrap();
        let generation = generation("m", 1);
        let all: Vec<_> = (0..SLOTS).map(|_| board.mark(&generation).unwrap()).collect();
        assert!(board.mark(&generation).is_none());
        all[7].set(true);
        drop(all);
        assert_eq!(board.shared.cell(7).load(Ordering::Relaxed) % 2, 0, "it does not run");
        assert!(board.mark(&generation).is_some());
        let all: Vec<_> = (0..SLOTS).filter_map(|_| board.mark(&generation)).collect();
        assert_eq!(board.shared.cell(7).load(Ordering::Relaxed), 0, "whoever has it next begins anew");
        drop(all);
    }

    #[test]
    fn a_disk_without_room_is_found_when_the_board_is_opened() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marks");
        for _ in 0..2 {
            let _board = Board::open(&path).unwrap();
            let taken = std::fs::metadata(&path).unwrap().blocks() * 512;
            assert!(taken >= BYTES as u64, "{taken} bytes of it have room on the disk, expected all {BYTES}");
        }
    }
}
