//! Files that several versions have.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Mutex;

use object_store::memory::InMemory;
use object_store::path::Path as StorePath;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::*;
use crate::registry::Registry;
use crate::testing::{CountingStore, registry_over, request};

/// Files of one version, by path and content.
type Files<'a> = &'a [(&'a str, &'a [u8])];

struct World {
    dir: tempfile::TempDir,
    store: Arc<CountingStore>,
    registry: Registry,
}

impl World {
    fn new() -> Self {
        let store = Arc::new(CountingStore::new(Arc::new(InMemory::new())));
        let counted: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&store);
        Self { dir: tempfile::tempdir().unwrap(), registry: registry_over(&counted), store }
    }

    fn cache(&self) -> Cache {
        Cache::open(self.dir.path().join("cache")).unwrap()
    }

    async fn publish(&self, files: Files<'_>) -> Arc<Generation> {
        let from = tempfile::tempdir().unwrap();
        let published = self.registry.publish(request(from.path(), "m", None, files), &NoProgress).await.unwrap();
        Arc::clone(&self.registry.versions(&model("m")).await.unwrap()[&published.key.version])
    }

    async fn ensure(&self, cache: &Cache, generation: &Generation) -> Lease {
        let lease = cache.ensure(&self.registry, generation, &NoProgress).await.unwrap();
        cache.verify(&generation.digest).unwrap();
        lease
    }

    /// How often the blob with this content was asked for.
    fn reads(&self, content: &[u8]) -> usize {
        self.store.gets(&format!("m/blobs/{}", Digest::of(content)))
    }
}

fn inode(lease: &Lease, path: &str) -> u64 {
    std::fs::metadata(lease.dir().join(path)).unwrap().ino()
}

#[tokio::test]
async fn a_file_of_two_versions_is_fetched_and_stored_once() {
    let world = World::new();
    let (one, two) = (
        world.publish(&[("model.onnx", b"one"), ("weights.bin", b"shared weights")]).await,
        world.publish(&[("model.onnx", b"two"), ("data/w.bin", b"shared weights")]).await,
    );
    let cache = world.cache();
    let first = world.ensure(&cache, &one).await;
    assert_eq!(cache.bytes(), 17);
    let second = world.ensure(&cache, &two).await;
    assert_eq!(cache.bytes(), 20, "a file counts once");
    assert_eq!(world.reads(b"shared weights"), 1);
    assert_eq!(inode(&first, "weights.bin"), inode(&second, "data/w.bin"));
    drop((first, second));
    assert_eq!(cache.evict_unleased(17), Evicted { trees: 1, bytes: 3 }, "what the other tree has stays");
    drop(cache);
    let cache = world.cache();
    assert_eq!(cache.bytes(), 17);
    world.ensure(&cache, &one).await;
    assert_eq!((world.reads(b"shared weights"), cache.bytes()), (1, 20));
    assert_eq!(cache.evict_unleased(0), Evicted { trees: 2, bytes: 20 });
    assert_eq!(cache.bytes(), 0);
}

#[tokio::test]
async fn two_versions_that_are_fetched_at_once_share_what_both_lack() {
    let world = World::new();
    let weights = vec![7_u8; 3 << 20];
    let one = world.publish(&[("model.onnx", b"one"), ("w.bin", &weights)]).await;
    let two = world.publish(&[("model.onnx", b"two"), ("w.bin", &weights)]).await;
    let cache = world.cache();
    let (first, second) = tokio::join!(world.ensure(&cache, &one), world.ensure(&cache, &two));
    assert_eq!(world.reads(&weights), 1);
    assert_eq!(inode(&first, "w.bin"), inode(&second, "w.bin"));
}

#[tokio::test]
async fn who_waits_for_a_fetch_that_fails_fetches_itself() {
    let world = World::new();
    let weights = vec![7_u8; 3 << 20];
    let one = world.publish(&[("a", b"one"), ("w.bin", &weights)]).await;
    let two = world.publish(&[("b", b"two"), ("w.bin", &weights)]).await;
    let gone = StorePath::from(format!("m/blobs/{}", Digest::of(b"one")));
    world.store.delete(&gone).await.unwrap();
    let cache = world.cache();
    let (first, second) = tokio::join!(cache.ensure(&world.registry, &one, &NoProgress), world.ensure(&cache, &two));
    assert!(matches!(first.unwrap_err(), FetchError::NotFound { .. }));
    assert_eq!(second.files().len(), 2);
}

#[tokio::test]
async fn what_a_failed_fetch_completed_is_not_fetched_again() {
    let world = World::new();
    let wanted = world.publish(&[("model.onnx", b"the model"), ("weights.bin", b"its weights")]).await;
    let blob = StorePath::from(format!("m/blobs/{}", Digest::of(b"its weights")));
    let content = world.store.get(&blob).await.unwrap().bytes().await.unwrap();
    world.store.delete(&blob).await.unwrap();
    let cache = world.cache();
    let mut failures = 0;
    // Files come side by side: the one that is there has come once a try finds it.
    while world.reads(b"the model") < 1 || cache.bytes() < 9 {
        cache.ensure(&world.registry, &wanted, &NoProgress).await.unwrap_err();
        failures += 1;
        assert!(failures < 100, "the file that is there is never kept");
    }
    assert!(cache.generations().is_empty() && left_in_tmp(cache.dir()) == 0);
    let tries = world.reads(b"the model");
    drop(cache);
    let cache = world.cache();
    assert_eq!(cache.bytes(), 9, "the next process knows it too");
    world.store.put(&blob, content.into()).await.unwrap();
    drop(world.ensure(&cache, &wanted).await);
    assert_eq!(world.reads(b"the model"), tries);
    assert_eq!((cache.bytes(), std::fs::read_dir(cache.dir().join("loose")).unwrap().count()), (20, 0));
    assert_eq!(cache.evict_unleased(0), Evicted { trees: 1, bytes: 20 });
}

#[tokio::test]
async fn what_is_left_of_a_failure_goes_like_everything_that_nobody_uses() {
    let world = World::new();
    let cache = world.cache();
    let loose = |content: &[u8]| cache.dir().join("loose").join(Digest::of(content).to_string());
    let from = cache.dir().join("tmp/complete");
    std::fs::write(&from, b"complete").unwrap();
    cache.inner.trees.keep_loose(&from, Digest::of(b"complete"), 8);
    assert!(loose(b"complete").exists() && cache.bytes() == 8);
    std::fs::write(loose(b"x").with_file_name("no digest"), b"x").unwrap();
    drop(cache);
    let cache = world.cache();
    assert_eq!((cache.bytes(), std::fs::read_dir(cache.dir().join("loose")).unwrap().count()), (8, 1));
    assert_eq!(cache.evict_unleased(7), Evicted { trees: 0, bytes: 8 });
    assert_eq!(std::fs::read_dir(cache.dir().join("loose")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_damaged_file_is_noticed_in_every_version_that_has_it_and_never_used_again() {
    let world = World::new();
    let one = world.publish(&[("model.onnx", b"one"), ("w.bin", b"shared weights")]).await;
    let two = world.publish(&[("model.onnx", b"two"), ("w.bin", b"shared weights")]).await;
    let three = world.publish(&[("model.onnx", b"three"), ("w.bin", b"shared weights")]).await;
    for found_by in ["verify", "fetch"] {
        let cache = world.cache();
        assert_eq!(cache.bytes(), 0);
        let before = world.reads(b"shared weights");
        let (first, second) = (world.ensure(&cache, &one).await, world.ensure(&cache, &two).await);
        std::fs::write(first.dir().join("w.bin"), b"SHARED weights").unwrap();
        if found_by == "verify" {
            assert!(matches!(cache.verify(&one.digest).unwrap_err(), FetchError::Corrupt { .. }));
            assert!(cache.discard(&one.digest));
            world.ensure(&cache, &one).await;
        } else {
            world.ensure(&cache, &three).await;
        }
        assert_eq!(world.reads(b"shared weights") - before, 2, "it is fetched again once");
        assert!(cache.find(&two.digest).is_none(), "the other version has the same damage");
        assert_eq!(std::fs::read(second.dir().join("w.bin")).ok(), None);
        for wanted in [&one, &two, &three] {
            let lease = world.ensure(&cache, wanted).await;
            assert_eq!(std::fs::read(lease.dir().join("w.bin")).unwrap(), b"shared weights");
        }
        assert_eq!(world.reads(b"shared weights") - before, 2, "and then shared again");
        drop((first, second));
        cache.evict_unleased(0);
    }
}

/// A cache of a build that knew nothing of shared files: a tree has all of its own.
#[tokio::test]
async fn an_older_cache_serves_and_shares_from_then_on() {
    let world = World::new();
    let one = world.publish(&[("model.onnx", b"one"), ("w.bin", b"shared weights")]).await;
    let two = world.publish(&[("model.onnx", b"two"), ("w.bin", b"shared weights")]).await;
    let three = world.publish(&[("model.onnx", b"three"), ("w.bin", b"shared weights")]).await;
    let cache = world.cache();
    for wanted in [&one, &two] {
        let place = world.ensure(&cache, wanted).await.dir().join("w.bin");
        std::fs::remove_file(&place).unwrap();
        std::fs::write(&place, b"shared weights").unwrap();
    }
    let dir = cache.dir().to_owned();
    drop(cache);
    std::fs::remove_dir(dir.join("loose")).unwrap();
    let (cache, before) = (world.cache(), world.reads(b"shared weights"));
    assert_eq!(cache.bytes(), 2 * 17, "each has its own");
    for wanted in [&one, &two, &three] {
        world.ensure(&cache, wanted).await;
    }
    assert_eq!((world.reads(b"shared weights"), cache.bytes()), (before, 2 * 17 + 5));
}

#[tokio::test]
async fn a_source_never_writes_to_a_shared_file() {
    struct Watching(Mutex<Vec<u64>>, Registry);

    #[async_trait]
    impl VersionSource for Watching {
        fn describe(&self) -> String {
            "watching".into()
        }

        async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
            self.1.list(since).await
        }

        async fn fetch(&self, generation: &Generation, dest: &Path, progress: &dyn Progress) -> Result<Fetched, FetchError> {
            if let Ok(meta) = std::fs::metadata(dest.join("w.bin")) {
                self.0.lock().unwrap().push(meta.ino());
                assert_eq!(std::fs::read(dest.join("w.bin")).unwrap(), b"shared weights");
            }
            self.1.fetch(generation, dest, progress).await
        }
    }

    let world = World::new();
    let one = world.publish(&[("model.onnx", b"one"), ("w.bin", b"shared weights")]).await;
    let two = world.publish(&[("model.onnx", b"two"), ("w.bin", b"shared weights")]).await;
    let counted: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&world.store);
    let (cache, source) = (world.cache(), Watching(Mutex::default(), registry_over(&counted)));
    let lease = cache.ensure(&source, &one, &NoProgress).await.unwrap();
    cache.ensure(&source, &two, &NoProgress).await.unwrap();
    assert_eq!(source.0.into_inner().unwrap(), [inode(&lease, "w.bin")], "the second finds it in its place");
}
