//! The board on which sessions mark that they run: a file that is mapped, so that the system keeps what is written when the process
//! crashes.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bascule_registry::{Digest, Generation};
use bascule_serving::{Mark, Marks};
use memmap2::{MmapOptions, MmapRaw};

/// Sessions that can be marked. Those beyond are not, and never suspected.
const SLOTS: usize = 4096;

/// Bytes of a slot, a cache line: whether it runs, the digest of its version, and the beginning of its model's name.
const SLOT_BYTES: usize = 64;
const DIGEST_AT: usize = 8;
const NAME_AT: usize = DIGEST_AT + 32;

/// A version that was marked when the process ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Running {
    pub(super) digest: String,
    /// The beginning of the model's name.
    pub(super) model: String,
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
    /// The file can't be read or mapped.
    pub(super) fn open(path: &Path) -> std::io::Result<(Board, Vec<Running>)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let left = running(&mut file)?;
        file.set_len(0)?;
        file.set_len((SLOTS * SLOT_BYTES) as u64)?;
        let map = MmapOptions::new().len(SLOTS * SLOT_BYTES).map_raw(&file)?;
        // The last one first, so that the lowest slots are taken first.
        let shared = Shared { map, free: Mutex::new((0..SLOTS).rev().collect()) };
        Ok((Board { shared: Arc::new(shared) }, left))
    }
}

/// The versions that are marked, each once.
fn running(file: &mut File) -> std::io::Result<Vec<Running>> {
    let mut bytes = Vec::new();
    file.take((SLOTS * SLOT_BYTES) as u64).read_to_end(&mut bytes)?;
    let marked = bytes.chunks_exact(SLOT_BYTES).filter(|slot| slot[..DIGEST_AT].iter().any(|byte| *byte != 0));
    let mut running: Vec<Running> = marked
        .map(|slot| {
            let name = &slot[NAME_AT..];
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            let digest = slot[DIGEST_AT..NAME_AT].iter().map(|byte| format!("{byte:02x}")).collect();
            Running { digest, model: String::from_utf8_lossy(&name[..end]).into_owned() }
        })
        .collect();
    running.sort_unstable();
    running.dedup();
    Ok(running)
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
        // What is stored stays in the file's pages whatever becomes of the process; no other memory depends on it.
        self.shared.cell(self.slot).store(u64::from(is_running), Ordering::Relaxed);
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
        ran.set(false);
        // As a crash leaves it.
        [idle, ran, runs, twin].into_iter().for_each(std::mem::forget);
        std::mem::forget(board);
        let (_board, left) = Board::open(&path).unwrap();
        let expected = Running { digest: generation(name, 3).digest.to_string(), model: name[..24].to_owned() };
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
        assert_eq!(board.shared.cell(7).load(Ordering::Relaxed), 0);
        assert!(board.mark(&generation).is_some());
    }
}
