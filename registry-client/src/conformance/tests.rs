//! The suite on the sources of this crate.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::*;
use crate::clock::ManualClock;
use crate::directory::{DirectoryOptions, DirectorySource, SETTLE_INTERVAL};
use crate::registries::{NamedSource, Registries};
use crate::registry::Registry;
use crate::testing::{registry_over, request};

/// Publishes through one registry and reads through another source over the same place.
struct Published {
    source: Box<dyn VersionSource>,
    writer: Registry,
    store: Arc<dyn ObjectStore>,
    root: Option<PathBuf>,
    clock: Arc<ManualClock>,
    files: tempfile::TempDir,
}

#[async_trait]
impl Fixture for Published {
    fn source(&self) -> &dyn VersionSource {
        self.source.as_ref()
    }

    async fn add(&self, key: &VersionKey, files: &[(&str, &[u8])]) {
        let dir = self.files.path().join(key.to_string());
        self.writer.publish(request(&dir, key.model.as_str(), Some(key.version), files), &NoProgress).await.unwrap();
    }

    async fn withdraw(&self, key: &VersionKey) {
        self.writer.tombstone(key, "tester", "withdrawn").await.unwrap();
    }

    fn pass_time(&self) {
        self.clock.advance(SETTLE_INTERVAL);
    }

    async fn damage(&self, key: &VersionKey, path: &str) {
        let manifest = self.writer.manifest(key).await.unwrap();
        let file = manifest.files.iter().find(|file| file.path == path).unwrap();
        let blob = format!("{}/blobs/{}", key.model, file.sha256.unwrap());
        let damaged = vec![b'#'; usize::try_from(file.bytes).unwrap()];
        self.store.put(&blob.as_str().into(), damaged.into()).await.unwrap();
    }

    async fn break_off(&self) -> bool {
        self.root.as_ref().is_some_and(|root| std::fs::remove_dir_all(root).is_ok())
    }
}

fn published_in(root: PathBuf, source: impl FnOnce(&Path, Arc<ManualClock>) -> Box<dyn VersionSource>) -> Published {
    std::fs::create_dir(&root).unwrap();
    let store = Arc::new(crate::registry::contained::ContainedDirectory::open(&root).unwrap());
    let clock = Arc::new(ManualClock::default());
    Published {
        source: source(&root, Arc::clone(&clock)),
        writer: registry_over(&(Arc::clone(&store) as Arc<dyn ObjectStore>)),
        store,
        root: Some(root),
        clock,
        files: tempfile::tempdir().unwrap(),
    }
}

fn directory_source(root: &Path, clock: Arc<ManualClock>) -> DirectorySource {
    DirectorySource::new(root, DirectoryOptions { clock, ..DirectoryOptions::default() })
}

#[tokio::test]
async fn a_registry_in_memory() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let clock = Arc::new(ManualClock::default());
    let (source, writer) = (registry_over(&store).with_clock(Arc::<ManualClock>::clone(&clock)), registry_over(&store));
    let files = tempfile::tempdir().unwrap();
    check(&Published { source: Box::new(source), writer, store, root: None, clock, files }).await;
}

#[tokio::test]
async fn a_registry_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let fixture =
        published_in(dir.path().join("models"), |root, clock| Box::new(Registry::open_dir(root).unwrap().with_clock(clock)));
    check(&fixture).await;
}

#[tokio::test]
async fn our_layout_in_a_directory_source() {
    let dir = tempfile::tempdir().unwrap();
    check(&published_in(dir.path().join("models"), |root, clock| Box::new(directory_source(root, clock)))).await;
}

/// `<model>/<n>/…` in a directory.
struct Plain {
    source: DirectorySource,
    clock: Arc<ManualClock>,
}

#[async_trait]
impl Fixture for Plain {
    fn source(&self) -> &dyn VersionSource {
        &self.source
    }

    async fn add(&self, key: &VersionKey, files: &[(&str, &[u8])]) {
        for (path, content) in files {
            let place = self.place(key).join(path);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, content).unwrap();
        }
        // The first of the two looks.
        self.source.list(None).await.unwrap();
    }

    async fn withdraw(&self, key: &VersionKey) {
        std::fs::remove_dir_all(self.place(key)).unwrap();
    }

    fn pass_time(&self) {
        self.clock.advance(SETTLE_INTERVAL + Duration::from_millis(1));
    }

    async fn damage(&self, key: &VersionKey, path: &str) {
        let place = self.place(key).join(path);
        let meta = std::fs::metadata(&place).unwrap();
        std::fs::write(&place, vec![b'#'; usize::try_from(meta.len()).unwrap()]).unwrap();
        // Another time of writing, however coarse the clock of the file system is.
        let later = meta.modified().unwrap() + Duration::from_secs(1);
        std::fs::File::options().write(true).open(&place).unwrap().set_modified(later).unwrap();
    }

    async fn break_off(&self) -> bool {
        std::fs::remove_dir_all(self.source.root()).is_ok()
    }
}

impl Plain {
    fn place(&self, key: &VersionKey) -> PathBuf {
        self.source.root().join(key.model.as_str()).join(key.version.to_string())
    }
}

#[tokio::test]
async fn the_plain_layout() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    std::fs::create_dir(&root).unwrap();
    let clock = Arc::new(ManualClock::default());
    check(&Plain { source: directory_source(&root, Arc::clone(&clock)), clock }).await;
}

#[tokio::test]
async fn a_registry_among_several() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let clock = Arc::new(ManualClock::default());
    let over = |store: &Arc<dyn ObjectStore>| registry_over(store).with_clock(Arc::<ManualClock>::clone(&clock));
    let member = |name: &str, store: &Arc<dyn ObjectStore>| NamedSource {
        name: Some(name.to_owned()),
        place: name.into(),
        source: Arc::new(over(store)),
    };
    let members = vec![member("empty", &(Arc::new(InMemory::new()) as Arc<dyn ObjectStore>)), member("full", &store)];
    let fixture = Published {
        source: Box::new(Registries::new(members).with_clock(Arc::<ManualClock>::clone(&clock))),
        writer: registry_over(&store),
        store,
        root: None,
        clock,
        files: tempfile::tempdir().unwrap(),
    };
    check(&fixture).await;
}
