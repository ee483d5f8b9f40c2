//! One history: who does what, and what has to hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::time::{sleep, timeout};

use super::Chance;
use super::store::Unreliable;
use crate::cache::{Cache, Lease};
use crate::clock::ManualClock;
use crate::digest::Digest;
use crate::listing::{Generation, Listing};
use crate::manifest::Manifest;
use crate::name::VersionKey;
use crate::registry::{PublishError, PublishRequest, REPAIR_INTERVAL, Registry};
use crate::source::{NoProgress, VersionSource as _};
use crate::testing::model;
use crate::transfer::{TransferLimits, Transfers};

const RANGE_BYTES: u64 = 64;
const PART_BYTES: u64 = 128;
const PUBLISHERS: usize = 3;
const PUBLISHES: usize = 4;
const READERS: usize = 2;
const LOOKS: usize = 8;
/// Sizes of the files that versions are made of: none, one byte, around one range and several, around parts.
const SIZES: [usize; 12] = [0, 1, 63, 64, 65, 127, 128, 129, 192, 300, 511, 513];

/// How eventful histories were.
#[derive(Debug, Default)]
pub(super) struct Tally {
    published: u64,
    taken: u64,
    publish_failed: u64,
    fetched: u64,
    fetch_failed: u64,
    cancelled: u64,
    looks_failed: u64,
    faults: u64,
    corrupted: u64,
    lies: u64,
}

impl Tally {
    pub(super) fn and(mut self, other: Self) -> Self {
        self.published += other.published;
        self.taken += other.taken;
        self.publish_failed += other.publish_failed;
        self.fetched += other.fetched;
        self.fetch_failed += other.fetch_failed;
        self.cancelled += other.cancelled;
        self.looks_failed += other.looks_failed;
        self.faults += other.faults;
        self.corrupted += other.corrupted;
        self.lies += other.lies;
        self
    }

    pub(super) fn counts(&self) -> [(&'static str, u64); 10] {
        [
            ("publishes", self.published),
            ("numbers that were taken", self.taken),
            ("publishes that failed", self.publish_failed),
            ("fetches", self.fetched),
            ("fetches that failed", self.fetch_failed),
            ("fetches that were given up", self.cancelled),
            ("looks that failed", self.looks_failed),
            ("faults", self.faults),
            ("corrupted answers", self.corrupted),
            ("listings that were not true", self.lies),
        ]
    }
}

struct History {
    seed: u64,
    dir: tempfile::TempDir,
    store: Unreliable,
    cache: Cache,
    transfers: Arc<Transfers>,
    clock: Arc<ManualClock>,
    tally: Mutex<Tally>,
    /// What publishers were told is theirs, with what they called themselves.
    won: Mutex<BTreeMap<VersionKey, (Digest, String)>>,
    /// What publishers were told is somebody else's.
    lost: Mutex<Vec<(VersionKey, String)>>,
    /// All that was ever listed.
    listed: Mutex<BTreeMap<VersionKey, BTreeSet<Digest>>>,
}

pub(super) async fn run(seed: u64) -> Tally {
    let history = History::new(seed);
    let publishers = (0..PUBLISHERS).map(|who| history.publisher(who));
    let readers = (0..READERS).map(|who| history.reader(who));
    tokio::join!(futures::future::join_all(publishers), futures::future::join_all(readers));
    history.store.stop_failing();
    history.check().await;
    let History { store, tally, .. } = history;
    let mut tally = tally.into_inner().unwrap();
    (tally.faults, tally.corrupted, tally.lies) = (store.faults(), store.corrupted(), store.lies());
    tally
}

impl History {
    fn new(seed: u64) -> Self {
        let mut chance = Chance::of(seed, "history", 0);
        // Memory where there is such a place: nothing here is about the disk.
        let shm = FsPath::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        for size in SIZES {
            std::fs::write(dir.path().join(format!("files/{size}")), content(size)).unwrap();
        }
        let limits = TransferLimits {
            sync_bytes: 512,
            range_bytes: RANGE_BYTES,
            ranges: 3,
            files: 2,
            stall: Duration::from_secs(5),
            tries: 3,
            backoff: Duration::from_millis(10),
            max_backoff: Duration::from_secs(1),
        };
        Self {
            seed,
            store: Unreliable::new(seed, chance.pick(&[0, 2, 5, 10, 20]), RANGE_BYTES),
            cache: Cache::open(dir.path().join("cache")).unwrap(),
            dir,
            transfers: Arc::new(Transfers::new(limits, seed)),
            clock: Arc::default(),
            tally: Mutex::default(),
            won: Mutex::default(),
            lost: Mutex::default(),
            listed: Mutex::default(),
        }
    }

    fn registry(&self) -> Registry {
        let store: Arc<dyn ObjectStore> = Arc::new(self.store.clone());
        let registry = Registry::over(store, Path::default(), "unreliable").with_clock(Arc::<ManualClock>::clone(&self.clock));
        registry.with_transfers(Arc::clone(&self.transfers)).with_part_bytes(PART_BYTES)
    }

    async fn publisher(&self, who: usize) {
        let mut chance = Chance::of(self.seed, "publisher", who);
        let mut registry = self.registry();
        if chance.percent(60) {
            let store: Arc<dyn MultipartStore> = Arc::new(self.store.clone());
            registry = registry.with_multipart(store);
        }
        for nth in 0..PUBLISHES {
            sleep(chance.wait(300)).await;
            let name = format!("publisher {who}, version {nth}");
            let mut request = self.request(&mut chance);
            request.resume_dir = chance.percent(50).then(|| self.dir.path().join("uploads"));
            for nth in 0..=chance.below(3) {
                // What failed may have been committed all the same: then it is another's.
                request.publisher = format!("{name}, try {nth}");
                if self.publish(&registry, request.clone()).await {
                    break;
                }
            }
        }
    }

    /// Whether there is nothing more to try.
    async fn publish(&self, registry: &Registry, request: PublishRequest) -> bool {
        let name = request.publisher.clone();
        let fixed = request.version.map(|version| VersionKey::new(request.model.clone(), version));
        let outcome = registry.publish(request, &NoProgress).await;
        let mut tally = self.tally.lock().unwrap();
        match outcome {
            Ok(published) => {
                tally.published += 1;
                let won = (published.digest, name);
                let before = self.won.lock().unwrap().insert(published.key.clone(), won);
                assert_eq!(before, None, "{} was given to two publishers", published.key);
                true
            }
            Err(PublishError::AlreadyExists { key }) => {
                tally.taken += 1;
                assert_eq!(Some(&key), fixed.as_ref(), "a number that nobody asked for is taken");
                self.lost.lock().unwrap().push((key, name));
                true
            }
            Err(error) => {
                tally.publish_failed += 1;
                assert!(!matches!(error, PublishError::FileChanged { .. } | PublishError::Invalid(_)), "{error}");
                false
            }
        }
    }

    fn request(&self, chance: &mut Chance) -> PublishRequest {
        let count = 1 + chance.below(3);
        let mut files = Vec::new();
        for nth in 0..count {
            let path = if nth == 0 { "model.onnx".to_owned() } else { format!("data/{nth}.bin") };
            files.push((path, self.file(chance.pick(&SIZES))));
        }
        let model = model(chance.pick(&["a", "b"]));
        let version = chance.percent(50).then(|| 1 + chance.below(5) as u64);
        PublishRequest { version, ..PublishRequest::new(model, "onnx", "model.onnx", files) }
    }

    fn file(&self, size: usize) -> PathBuf {
        self.dir.path().join(format!("files/{size}"))
    }

    async fn reader(&self, who: usize) {
        let mut chance = Chance::of(self.seed, "reader", who);
        let registry = self.registry();
        let (mut before, mut lies_before): (Option<Listing>, _) = (None, 0);
        for _ in 0..LOOKS {
            sleep(chance.wait(300)).await;
            if chance.percent(20) {
                self.clock.advance(REPAIR_INTERVAL);
            }
            match registry.list(None).await {
                Ok(Some(listing)) => {
                    if self.store.lies() == lies_before {
                        nothing_vanished(before.as_ref(), &listing);
                    }
                    lies_before = self.store.lies();
                    self.note(&listing);
                    self.use_cache(&registry, &listing, &mut chance).await;
                    before = Some(listing);
                }
                Ok(None) => panic!("a listing without a cursor is always given"),
                Err(_) => self.tally.lock().unwrap().looks_failed += 1,
            }
        }
    }

    fn note(&self, listing: &Listing) {
        let mut listed = self.listed.lock().unwrap();
        for generation in generations(listing) {
            assert!(!generation.tombstoned, "nobody has yanked {}", generation.key);
            listed.entry(generation.key.clone()).or_default().insert(generation.digest);
        }
    }

    async fn use_cache(&self, registry: &Registry, listing: &Listing, chance: &mut Chance) {
        let all: Vec<_> = generations(listing).collect();
        if all.is_empty() {
            return;
        }
        let wanted = chance.pick(&all);
        match chance.below(10) {
            0 => drop(self.cache.evict_unleased(chance.below(1_500) as u64)),
            1 => drop(self.cache.discard(&wanted.digest)),
            _ => {}
        }
        // Some go away while they wait.
        let patience = if chance.percent(20) { chance.wait(200) } else { Duration::from_secs(3_600) };
        let outcome = timeout(patience, self.cache.ensure(registry, wanted, &NoProgress)).await;
        let mut tally = self.tally.lock().unwrap();
        match outcome {
            Ok(Ok(lease)) => {
                tally.fetched += 1;
                check_lease(&lease);
            }
            Ok(Err(_)) => tally.fetch_failed += 1,
            Err(_) => tally.cancelled += 1,
        }
    }

    /// What holds in the end.
    async fn check(self: &History) {
        let truth = self.truth().await;
        for (key, (digest, name)) in self.won.lock().unwrap().iter() {
            let (stored, manifest) = truth.get(key).unwrap_or_else(|| panic!("{key} was committed and is lost"));
            assert_eq!((stored, &manifest.publisher), (digest, name), "{key} is not what its publisher was told");
        }
        for (key, name) in self.lost.lock().unwrap().iter() {
            let (_, manifest) = truth.get(key).unwrap_or_else(|| panic!("{key} was taken by nobody"));
            assert_ne!(manifest.publisher, *name, "{key} is the publisher's own");
        }
        for (key, digests) in self.listed.lock().unwrap().iter() {
            let real = truth.get(key).map(|(digest, _)| *digest);
            assert!(digests.iter().all(|digest| Some(*digest) == real), "{key} was listed with {digests:?}, it is {real:?}");
        }
        let registry = self.registry();
        self.clock.advance(REPAIR_INTERVAL);
        let listing = registry.list(None).await.unwrap().unwrap();
        assert!(listing.complete && listing.problems.is_empty(), "{:?}", listing.problems);
        let seen: BTreeMap<_, _> = generations(&listing).map(|one| (one.key.clone(), one.digest)).collect();
        assert_eq!(seen, truth.iter().map(|(key, (digest, _))| (key.clone(), *digest)).collect());
        self.check_cache(&truth);
        for generation in generations(&listing) {
            check_lease(&self.cache.ensure(&registry, generation, &NoProgress).await.unwrap());
        }
        self.check_cache(&truth);
    }

    /// What the store really holds: every manifest, as it was when it was put.
    async fn truth(&self) -> BTreeMap<VersionKey, (Digest, Manifest)> {
        let mut truth = BTreeMap::new();
        for (path, content) in self.store.committed() {
            let stored = self.store.truth().get(&path).await.unwrap().bytes().await.unwrap();
            assert_eq!(stored, content, "{path} has changed");
            let (manifest, digest) = Manifest::parse(&stored).unwrap();
            truth.insert(manifest.key(), (digest, manifest));
        }
        truth
    }

    fn check_cache(&self, truth: &BTreeMap<VersionKey, (Digest, Manifest)>) {
        for kept in self.cache.generations() {
            let (digest, manifest) = &truth[&kept.key];
            assert_eq!((kept.digest, kept.manifest.as_ref()), (*digest, manifest), "{} is kept as another", kept.key);
            self.cache.verify(&kept.digest).unwrap();
        }
        assert_eq!(self.transfers.free_slots(), 3, "everything that was begun has ended");
    }
}

fn generations(listing: &Listing) -> impl Iterator<Item = &Arc<Generation>> {
    listing.models.values().flat_map(|model| model.versions.values())
}

/// A store that said nothing untrue meanwhile takes nothing away, whatever else it did, and neither does a look that failed.
fn nothing_vanished(before: Option<&Listing>, now: &Listing) {
    for generation in before.into_iter().flat_map(generations) {
        assert!(now.generation(&generation.key).is_some(), "{} has vanished: {now:?}", generation.key);
    }
}

fn content(size: usize) -> Vec<u8> {
    let mut chance = Chance::of(0, "content", size);
    (0..size).map(|_| (chance.next() & 0xff) as u8).collect()
}

/// What lies in a tree is what its manifest says, byte for byte.
fn check_lease(lease: &Lease) {
    for file in &lease.generation().manifest.files {
        let actual = std::fs::read(lease.dir().join(&file.path)).unwrap();
        let expected = content(usize::try_from(file.bytes).unwrap());
        assert!(actual == expected, "file {} of {} is not what was published", file.path, lease.generation().key);
        assert_eq!(file.sha256, Some(Digest::of(&actual)));
    }
}
