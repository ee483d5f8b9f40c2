//! What only directories have: settling, links, both layouts side by side.

mod layouts;
mod links;
mod settings;
mod settling;
mod trust;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::ManualClock;
use crate::testing::model;

/// A directory of models, a source over it and the clock that the source goes by.
struct Sandbox {
    _dir: tempfile::TempDir,
    root: PathBuf,
    source: DirectorySource,
    clock: Arc<ManualClock>,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("models");
        std::fs::create_dir(&root).unwrap();
        let clock = Arc::new(ManualClock::default());
        let options = DirectoryOptions { clock: Arc::<ManualClock>::clone(&clock), ..DirectoryOptions::default() };
        Self { source: DirectorySource::new(&root, options), _dir: dir, root, clock }
    }

    fn write(&self, path: &str, content: &[u8]) {
        let place = self.root.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, content).unwrap();
    }

    /// Writes a file anew, with a time that differs however coarse the file system's clock is.
    fn rewrite(&self, path: &str, content: &[u8], second: u64) {
        self.write(path, content);
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        std::fs::File::options().write(true).open(self.root.join(path)).unwrap().set_modified(time).unwrap();
    }

    async fn look(&self) -> Listing {
        self.source.list(None).await.unwrap().unwrap()
    }

    /// Two looks, a settle interval apart.
    async fn settled(&self) -> Listing {
        self.look().await;
        self.clock.advance(SETTLE_INTERVAL);
        let listing = self.look().await;
        assert_eq!(listing.recheck_after, None);
        listing
    }
}

/// The versions that count, as text.
fn versions(listing: &Listing) -> Vec<String> {
    listing.models.values().flat_map(|model| model.versions.values().map(|one| one.key.to_string())).collect()
}

/// Everything that is wrong, in one text.
fn problems(listing: &Listing) -> String {
    let of_models = listing.models.values().flat_map(|model| model.problems.iter().map(|text| format!("{}: {text}", model.name)));
    listing.problems.iter().cloned().chain(of_models).collect::<Vec<_>>().join("\n")
}
