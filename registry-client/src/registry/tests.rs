//! Publishing and reading, over a store in memory and over a directory.

mod hostile;
mod listless;
mod plain;
mod polling;
mod publishing;
mod reading;
mod restored;
mod resuming;
mod signing;
mod upkeep;

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::contained::ContainedDirectory;

/// Stores that hold a registry, each empty. The directory lives as long as what is returned.
struct Stores {
    dir: tempfile::TempDir,
}

impl Stores {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn each(&self) -> Vec<Arc<dyn ObjectStore>> {
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        vec![Arc::new(InMemory::new()), Arc::new(ContainedDirectory::open(&dir).unwrap())]
    }
}
