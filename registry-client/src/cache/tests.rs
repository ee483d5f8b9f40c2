mod disk;
mod sharing;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use chrono::DateTime;
use tokio::sync::Semaphore;

use super::*;
use crate::listing::{Cursor, Layout, Listing};
use crate::manifest::{Manifest, ManifestFile};
use crate::name::VersionKey;
use crate::source::{NoProgress, SourceError};
use crate::testing::model;
use crate::transfer::{Content, bring};

/// A source of one version per number, whose fetches wait until they are let through.
struct Gated {
    gate: Semaphore,
    started: Semaphore,
    fetches: AtomicUsize,
    /// What the next fetches do instead of succeeding, the last first.
    failures: Mutex<Vec<Failure>>,
}

#[derive(Clone, Copy)]
enum Failure {
    Error,
    LeavesOut,
    Lies,
}

impl Gated {
    fn open() -> Self {
        Self {
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            started: Semaphore::new(0),
            fetches: AtomicUsize::new(0),
            failures: Mutex::default(),
        }
    }

    fn closed() -> Self {
        Self { gate: Semaphore::new(0), ..Self::open() }
    }

    fn failing(failures: impl Into<Vec<Failure>>) -> Self {
        Self { failures: Mutex::new(failures.into()), ..Self::open() }
    }

    async fn wait_until_started(&self, fetches: usize) {
        while self.fetches.load(Ordering::SeqCst) < fetches {
            self.started.acquire().await.unwrap().forget();
        }
    }
}

#[async_trait]
impl VersionSource for Gated {
    fn describe(&self) -> String {
        "gated".into()
    }

    async fn list(&self, _since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        Ok(None)
    }

    async fn fetch(&self, generation: &Generation, dest: &Path, progress: &dyn Progress) -> Result<Fetched, FetchError> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        self.started.add_permits(1);
        std::fs::write(dest.join("half"), b"written before the gate").unwrap();
        self.gate.acquire().await.unwrap().forget();
        std::fs::remove_file(dest.join("half")).unwrap();
        let failure = self.failures.lock().unwrap().pop();
        if matches!(failure, Some(Failure::Error)) {
            return Err(FetchError::NotFound { what: "everything".into() });
        }
        let mut files = Vec::new();
        for file in &generation.manifest.files {
            let content = content(generation.key.version, &file.path);
            let pieces = futures::stream::iter([Ok(content.into())]);
            files.push(bring(Content::Stream(Box::pin(pieces)), file, dest, progress).await?);
        }
        match failure {
            Some(Failure::LeavesOut) => drop(files.pop()),
            Some(Failure::Lies) => std::fs::write(dest.join("model.onnx"), b"something else").unwrap(),
            _ => {}
        }
        Ok(Fetched { files })
    }
}

fn content(version: u64, path: &str) -> Vec<u8> {
    format!("{path} of version {version:04}").into_bytes()
}

const BYTES: u64 = 52;

fn generation(version: u64) -> Generation {
    let file = |path: &str| {
        let content = content(version, path);
        ManifestFile { path: path.into(), sha256: Some(Digest::of(&content)), bytes: content.len() as u64 }
    };
    let key = VersionKey::new(model("m"), version);
    let manifest = Manifest {
        schema: 1,
        model: key.model.clone(),
        version,
        format: "onnx".into(),
        entrypoint: "model.onnx".into(),
        files: vec![file("model.onnx"), file("data/w.bin")],
        signature: None,
        golden: None,
        lineage: Default::default(),
        metrics: BTreeMap::new(),
        tags: BTreeMap::new(),
        created: DateTime::UNIX_EPOCH,
        publisher: String::new(),
        hold: false,
        extra: BTreeMap::new(),
    };
    let digest = Digest::of(&version.to_le_bytes());
    Generation {
        key,
        digest,
        bytes: manifest.bytes(),
        layout: Layout::Registry,
        manifest: manifest.into(),
        tombstoned: false,
        signatures: Vec::new(),
        stored: None,
    }
}

fn left_in_tmp(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("tmp")).unwrap().count()
}

#[tokio::test]
async fn a_tree_is_fetched_once_and_found_again_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let (source, wanted) = (Gated::open(), generation(1));
    let cache = Cache::open(dir.path()).unwrap();
    assert!(cache.find(&wanted.digest).is_none());
    let lease = cache.ensure(&source, &wanted, &NoProgress).await.unwrap();
    assert_eq!(std::fs::read(lease.dir().join("data/w.bin")).unwrap(), content(1, "data/w.bin"));
    assert_eq!((lease.digest(), lease.generation().as_ref()), (wanted.digest, &wanted));
    cache.ensure(&source, &wanted, &NoProgress).await.unwrap();
    assert_eq!((source.fetches.load(Ordering::SeqCst), cache.bytes(), left_in_tmp(dir.path())), (1, BYTES, 0));
    drop((lease, cache));
    let cache = Cache::open(dir.path()).unwrap();
    assert_eq!(cache.generations()[..], [Arc::new(wanted.clone())], "what was served is known without its source");
    assert!(cache.find(&wanted.digest).is_some());
    assert!(cache.verify(&wanted.digest).is_ok());
}

#[tokio::test]
async fn those_who_want_the_same_share_one_fetch() {
    let dir = tempfile::tempdir().unwrap();
    let (source, cache, wanted) = (Gated::closed(), Cache::open(dir.path()).unwrap(), generation(1));
    let (other, other_source) = (generation(2), Gated::open());
    let all = futures::future::join_all((0..10).map(|_| cache.ensure(&source, &wanted, &NoProgress)));
    let meanwhile = async {
        source.wait_until_started(1).await;
        cache.ensure(&other_source, &other, &NoProgress).await.unwrap();
        source.gate.add_permits(100);
    };
    let (leases, ()) = tokio::join!(all, meanwhile);
    assert!(leases.iter().all(|lease| lease.as_ref().is_ok_and(|lease| lease.digest() == wanted.digest)));
    assert_eq!(source.fetches.load(Ordering::SeqCst), 1);
    assert!(cache.inner.flights.lock().unwrap().is_empty(), "flights that have landed are forgotten");
}

#[tokio::test]
async fn a_failure_is_shared_by_those_who_waited_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (source, cache, wanted) = (Gated::closed(), Cache::open(dir.path()).unwrap(), generation(1));
    source.failures.lock().unwrap().push(Failure::Error);
    let all = futures::future::join_all((0..10).map(|_| cache.ensure(&source, &wanted, &NoProgress)));
    let open = async {
        source.wait_until_started(1).await;
        // All the others are waiting by now: a current-thread runtime has polled each of them.
        while Arc::strong_count(&cache.inner.flights.lock().unwrap()[&wanted.digest]) < 11 {
            tokio::task::yield_now().await;
        }
        source.gate.add_permits(100);
    };
    let (outcomes, ()) = tokio::join!(all, open);
    assert!(outcomes.iter().all(Result::is_err));
    assert_eq!(source.fetches.load(Ordering::SeqCst), 1);
    assert_eq!(left_in_tmp(dir.path()), 0);
    assert!(cache.ensure(&source, &wanted, &NoProgress).await.is_ok(), "who asks later tries again");
}

#[tokio::test]
async fn when_the_one_that_fetches_goes_away_another_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let (source, cache, wanted) = (Arc::new(Gated::closed()), Cache::open(dir.path()).unwrap(), Arc::new(generation(1)));
    let ask = || {
        let (source, cache, wanted) = (Arc::clone(&source), cache.clone(), Arc::clone(&wanted));
        tokio::spawn(async move { cache.ensure(source.as_ref(), &wanted, &NoProgress).await.map(|lease| lease.digest()) })
    };
    let first = ask();
    source.wait_until_started(1).await;
    let second = ask();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    source.wait_until_started(2).await;
    source.gate.add_permits(100);
    assert_eq!(second.await.unwrap().unwrap(), wanted.digest);
    assert_eq!(left_in_tmp(dir.path()), 0);
}

#[tokio::test]
async fn a_fetch_that_is_not_complete_or_not_true_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    for (failure, expected) in
        [(Failure::LeavesOut, "file `data/w.bin` of m@1 does not exist"), (Failure::Lies, "can't be written")]
    {
        let error = cache.ensure(&Gated::failing([failure]), &generation(1), &NoProgress).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(cache.find(&generation(1).digest).is_none());
        // What was complete and true is kept for the next try, and counts.
        assert_eq!(left_in_tmp(dir.path()), 0);
        assert_eq!(cache.evict_unleased(0).trees, 0);
        assert_eq!(cache.bytes(), 0);
    }
}

#[tokio::test]
async fn what_a_killed_process_left_is_cleaned() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    for version in 1..=4 {
        cache.ensure(&Gated::open(), &generation(version), &NoProgress).await.unwrap();
    }
    drop(cache);
    let tree = |version| dir.path().join("trees").join(generation(version).digest.to_string());
    std::fs::create_dir_all(dir.path().join("tmp/half/files")).unwrap();
    std::fs::write(dir.path().join("tmp/half/files/model.onnx"), b"half a").unwrap();
    std::fs::remove_file(tree(1).join("tree.json")).unwrap();
    std::fs::write(tree(2).join("files/model.onnx"), b"cut").unwrap();
    std::fs::rename(tree(3), dir.path().join("trees/another")).unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    assert_eq!(cache.generations().iter().map(|kept| kept.key.version).collect::<Vec<_>>(), [4]);
    assert_eq!((left_in_tmp(dir.path()), std::fs::read_dir(dir.path().join("trees")).unwrap().count()), (0, 1));
    for version in 1..=4 {
        cache.ensure(&Gated::open(), &generation(version), &NoProgress).await.unwrap();
    }
    assert_eq!(cache.bytes(), 4 * BYTES);
}

#[tokio::test]
async fn a_directory_belongs_to_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let second = Cache::open(dir.path()).err().unwrap();
    assert!(matches!(second, CacheError::InUse { .. }), "{second}");
    drop(cache);
    assert!(Cache::open(dir.path()).is_ok());
    std::fs::write(dir.path().join("file"), b"").unwrap();
    assert!(matches!(Cache::open(dir.path().join("file")), Err(CacheError::Disk { .. })));
}

#[tokio::test]
async fn damage_is_found_by_size_at_once_and_by_digest_when_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, source, wanted) = (Cache::open(dir.path()).unwrap(), Gated::open(), generation(1));
    let path = cache.ensure(&source, &wanted, &NoProgress).await.unwrap().dir().join("model.onnx");
    let flipped = vec![b'#'; content(1, "model.onnx").len()];
    std::fs::write(&path, &flipped).unwrap();
    assert!(cache.find(&wanted.digest).is_some(), "the cheap look sees sizes only");
    let error = cache.verify(&wanted.digest).unwrap_err();
    let FetchError::Corrupt { file, actual, .. } = &error else { panic!("{error}") };
    assert_eq!((file.as_str(), *actual), ("model.onnx", Digest::of(&flipped)));
    assert!(cache.discard(&wanted.digest) && !cache.discard(&wanted.digest));
    cache.ensure(&source, &wanted, &NoProgress).await.unwrap();
    assert!(cache.verify(&wanted.digest).is_ok());
    std::fs::write(&path, b"cut").unwrap();
    assert!(cache.find(&wanted.digest).is_none());
    let lease = cache.ensure(&source, &wanted, &NoProgress).await.unwrap();
    assert_eq!(std::fs::read(lease.dir().join("model.onnx")).unwrap(), content(1, "model.onnx"));
    assert_eq!(source.fetches.load(Ordering::SeqCst), 3);
    assert!(matches!(cache.verify(&generation(9).digest), Err(FetchError::NotFound { .. })));
}

#[tokio::test]
async fn the_least_recently_leased_goes_first_and_leased_trees_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, source) = (Cache::open(dir.path()).unwrap(), Gated::open());
    let mut leases = Vec::new();
    for version in 1..=4 {
        leases.push(cache.ensure(&source, &generation(version), &NoProgress).await.unwrap());
    }
    let there = |cache: &Cache| {
        let mut versions: Vec<_> = cache.generations().iter().map(|kept| kept.key.version).collect();
        versions.sort_unstable();
        versions
    };
    assert_eq!(cache.evict_unleased(0), Evicted::default(), "everything is leased");
    let second = leases.swap_remove(1).clone();
    // Given back in this order, whatever was leased first: 1, 4, 3.
    drop(leases);
    // Version 1 is used again, so 4 is the one that has waited longest.
    assert!(cache.find(&generation(1).digest).is_some());
    assert_eq!(cache.evict_unleased(4 * BYTES), Evicted::default());
    assert_eq!(cache.evict_unleased(3 * BYTES), Evicted { trees: 1, bytes: BYTES });
    assert_eq!(there(&cache), [1, 2, 3]);
    assert_eq!(cache.evict_unleased(0), Evicted { trees: 2, bytes: 2 * BYTES });
    assert_eq!(there(&cache), [2]);
    assert_eq!(std::fs::read(second.dir().join("model.onnx")).unwrap(), content(2, "model.onnx"));
    let also = second.clone();
    drop(second);
    assert_eq!(cache.evict_unleased(0), Evicted::default(), "a clone of a lease is a lease");
    drop(also);
    assert_eq!(cache.evict_unleased(0), Evicted { trees: 1, bytes: BYTES });
    assert_eq!((cache.bytes(), left_in_tmp(dir.path())), (0, 0));
}
