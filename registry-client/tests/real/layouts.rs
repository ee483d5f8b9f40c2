//! The conformance suite on registries over object stores, in both layouts; and on those that need no server.

use std::path::Path as FsPath;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bascule_registry::conformance::{Fixture, check};
use bascule_registry::{ManualClock, ModelName, NoProgress, PublishRequest, Registry, SETTLE_INTERVAL, VersionKey, VersionSource};
use futures::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::servers::Server;

/// A registry that is read, and the store that it lies in, which is written to.
pub struct Place {
    pub source: Registry,
    pub store: Arc<dyn ObjectStore>,
    pub prefix: Path,
    clock: Arc<ManualClock>,
    /// What is ended to break the source off.
    server: Mutex<Option<Server>>,
}

impl Place {
    pub fn new(source: Registry, store: Arc<dyn ObjectStore>, prefix: &str) -> Place {
        let clock = Arc::new(ManualClock::new(chrono_now()));
        let source = source.with_clock(Arc::<ManualClock>::clone(&clock));
        Place { source, store, prefix: Path::from(prefix), clock, server: Mutex::default() }
    }

    /// The suite will end this server at last.
    pub fn ended_by(self, server: Server) -> Place {
        Place { server: Mutex::new(Some(server)), ..self }
    }

    fn break_off(&self) -> bool {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    async fn damage(&self, object: Path) {
        let size = self.store.head(&object).await.unwrap().size;
        self.store.put(&object, vec![b'#'; usize::try_from(size).unwrap()].into()).await.unwrap();
    }
}

/// Objects get the calendar's time.
fn chrono_now() -> chrono::DateTime<chrono::Utc> {
    chrono::Utc::now()
}

/// Our layout: published by another registry over the same place.
pub struct Ours {
    pub place: Place,
    pub writer: Registry,
    files: tempfile::TempDir,
}

impl Ours {
    pub fn new(place: Place, writer: Registry) -> Ours {
        Ours { place, writer, files: tempfile::tempdir().unwrap() }
    }
}

/// These files as a version, written below a folder. The first is the entrypoint.
pub fn request(folder: &FsPath, key: &VersionKey, files: &[(&str, &[u8])]) -> PublishRequest {
    let folder = folder.join(key.to_string());
    let written = files.iter().map(|(path, content)| {
        let place = folder.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, content).unwrap();
        ((*path).to_owned(), place)
    });
    let files_on_disk = written.collect();
    PublishRequest {
        version: Some(key.version),
        publisher: "tester".to_owned(),
        ..PublishRequest::new(key.model.clone(), "onnx", files[0].0, files_on_disk)
    }
}

pub fn key(model: &str, version: u64) -> VersionKey {
    VersionKey::new(ModelName::new(model).unwrap(), version)
}

#[async_trait]
impl Fixture for Ours {
    fn source(&self) -> &dyn VersionSource {
        &self.place.source
    }

    async fn add(&self, key: &VersionKey, files: &[(&str, &[u8])]) {
        self.writer.publish(request(self.files.path(), key, files), &NoProgress).await.unwrap();
    }

    async fn withdraw(&self, key: &VersionKey) {
        self.writer.tombstone(key, "tester", "withdrawn").await.unwrap();
    }

    fn pass_time(&self) {
        self.place.clock.advance(SETTLE_INTERVAL);
    }

    async fn damage(&self, key: &VersionKey, path: &str) {
        let manifest = self.writer.manifest(key).await.unwrap();
        let file = manifest.files.iter().find(|file| file.path == path).unwrap();
        let blob = self.place.prefix.clone().join(key.model.as_str()).join("blobs").join(file.sha256.unwrap().to_string());
        self.place.damage(blob).await;
    }

    async fn break_off(&self) -> bool {
        self.place.break_off()
    }
}

/// `<model>/<n>/…`.
pub struct Plain(pub Place);

impl Plain {
    fn folder(&self, key: &VersionKey) -> Path {
        self.0.prefix.clone().join(key.model.as_str()).join(key.version.to_string())
    }
}

#[async_trait]
impl Fixture for Plain {
    fn source(&self) -> &dyn VersionSource {
        &self.0.source
    }

    async fn add(&self, key: &VersionKey, files: &[(&str, &[u8])]) {
        for (path, content) in files {
            let object = Path::parse(format!("{}/{path}", self.folder(key))).unwrap();
            self.0.store.put(&object, content.to_vec().into()).await.unwrap();
        }
        // The first of the two looks.
        self.0.source.list(None).await.unwrap();
    }

    async fn withdraw(&self, key: &VersionKey) {
        let objects: Vec<_> = self.0.store.list(Some(&self.folder(key))).try_collect().await.unwrap();
        for object in objects {
            self.0.store.delete(&object.location).await.unwrap();
        }
    }

    fn pass_time(&self) {
        self.0.clock.advance(SETTLE_INTERVAL + Duration::from_millis(1));
    }

    async fn damage(&self, key: &VersionKey, path: &str) {
        self.0.damage(Path::parse(format!("{}/{path}", self.folder(key))).unwrap()).await;
    }

    async fn break_off(&self) -> bool {
        self.0.break_off()
    }
}

#[tokio::test]
async fn our_layout_in_memory() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let open = || Registry::over(Arc::clone(&store), Path::from("team/models"), "memory");
    check(&Ours::new(Place::new(open(), Arc::clone(&store), "team/models"), open())).await;
}

#[tokio::test]
async fn the_plain_layout_in_memory() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let source = Registry::over(Arc::clone(&store), Path::from("team/models"), "memory");
    check(&Plain(Place::new(source, Arc::clone(&store), "team/models"))).await;
}

#[tokio::test]
async fn the_plain_layout_of_a_file_url() {
    let dir = tempfile::tempdir().unwrap();
    let source = Registry::open(&format!("file://{}", dir.path().display())).unwrap();
    let store = object_store::local::LocalFileSystem::new_with_prefix(dir.path()).unwrap();
    check(&Plain(Place::new(source, Arc::new(store), ""))).await;
}
