//! How far each journal was seen to go, kept on local disk across restarts.
//!
//! A journal only grows, so one that ends before that is not the one that was read: a share that is not mounted, a bucket that was
//! emptied. Kept for one place: another one begins anew.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::name::ModelName;

const SCHEMA: u32 = 1;

/// The numbers of the last entries.
#[derive(Debug)]
pub(super) struct Floors {
    /// Where the journals are.
    place: String,
    /// Where this is kept; nowhere for whoever only writes an entry and ends.
    file: Option<PathBuf>,
    known: Mutex<Known>,
    /// Held while the file is written, so that what is written last is what is known last.
    saving: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Known {
    entries: BTreeMap<ModelName, u64>,
    /// It says more than the file does.
    unsaved: bool,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    schema: u32,
    journal: String,
    entries: BTreeMap<ModelName, u64>,
}

impl Floors {
    /// Reads what is kept. A file that can't be read is a warning and counts as absent. Blocks.
    pub(super) fn open(place: &str, file: Option<&Path>) -> Self {
        let entries = file.and_then(|file| match read(file) {
            Ok(kept) if kept.schema == SCHEMA && kept.journal == place => Some(kept.entries),
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "how far journals went can't be read and is ignored");
                None
            }
        });
        let known = Known { entries: entries.unwrap_or_default(), unsaved: false };
        Self { place: place.to_owned(), file: file.map(Path::to_owned), known: Mutex::new(known), saving: Arc::default() }
    }

    /// The last entry of a journal that is known to be there.
    pub(super) fn of(&self, model: &ModelName) -> u64 {
        self.lock().entries.get(model).copied().unwrap_or(0)
    }

    /// Whether no journal is known to have an entry.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().entries.is_empty()
    }

    /// Takes note of an entry that is there.
    pub(super) fn raise(&self, model: &ModelName, seq: u64) {
        let mut known = self.lock();
        if seq > known.entries.get(model).copied().unwrap_or(0) {
            known.entries.insert(model.clone(), seq);
            known.unsaved = true;
        }
    }

    /// Writes what is new. One that can't be written is tried again at the next call: it protects from a second failure only.
    pub(super) async fn save(&self) {
        let Some(file) = self.file.clone() else { return };
        let saving = Arc::clone(&self.saving).lock_owned().await;
        let entries = {
            let mut known = self.lock();
            if !std::mem::take(&mut known.unsaved) {
                return;
            }
            known.entries.clone()
        };
        let kept = Kept { schema: SCHEMA, journal: self.place.clone(), entries };
        let written = tokio::task::spawn_blocking(move || {
            // Until it is written, also where nobody waits for it any more.
            let _saving = saving;
            let json = serde_json::to_vec_pretty(&kept)?;
            crate::durable::write_file(&file, &json)
        });
        if let Err(error) = written.await.map_err(io::Error::other).and_then(|written| written) {
            tracing::warn!(%error, "how far journals went can't be kept on disk");
            self.lock().unsaved = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(file: &Path) -> io::Result<Kept> {
    Ok(serde_json::from_slice(&std::fs::read(file)?)?)
}
