//! Signed versions, and a source that lists only what trusted keys have signed.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::Stores;
use super::listless::Listless;
use crate::clock::ManualClock;
use crate::listing::{Generation, Layout, Listing};
use crate::name::VersionKey;
use crate::registry::{PublishRequest, REPAIR_INTERVAL, Registry};
use crate::signing::{SecretKey, Trust, Trusted, Untrusted};
use crate::source::{FetchError, NoProgress, VersionSource};
use crate::testing::{FaultyStore, model, registry_over, request};

const FILES: &[(&str, &[u8])] = &[("model.onnx", b"a model")];

fn keys<const N: usize>() -> [SecretKey; N] {
    std::array::from_fn(|_| SecretKey::generate().unwrap())
}

fn trust(keys: &[&SecretKey]) -> Arc<Trust> {
    Arc::new(Trust::new(keys.iter().map(|key| key.public())))
}

/// A gateway's view of the store, with these keys trusted.
fn trusted(store: &Arc<dyn ObjectStore>, keys: &[&SecretKey]) -> Trusted {
    let registry = registry_over(store).reading_signatures(trust(keys));
    Trusted::new(Arc::new(registry), trust(keys))
}

async fn listed(source: &dyn VersionSource) -> Listing {
    source.list(None).await.unwrap().unwrap()
}

/// The versions that are listed, and what is said of the others.
fn versions(listing: &Listing) -> (Vec<u64>, Vec<String>) {
    let model = &listing.models["m"];
    (model.versions.keys().copied().collect(), model.problems.clone())
}

fn signed(dir: &std::path::Path, by: &[&SecretKey]) -> PublishRequest {
    PublishRequest { signers: by.iter().map(|key| (*key).clone()).collect(), ..request(dir, "m", None, FILES) }
}

async fn publish(store: &Arc<dyn ObjectStore>, by: &[&SecretKey]) -> VersionKey {
    let files = tempfile::tempdir().unwrap();
    registry_over(store).publish(signed(files.path(), by), &NoProgress).await.unwrap().key
}

async fn read(store: &Arc<dyn ObjectStore>, path: &str) -> String {
    let bytes = store.get(&Path::from(path)).await.unwrap().bytes().await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn only_what_a_trusted_key_has_signed_is_listed_and_fetched() {
    let stores = Stores::new();
    for store in stores.each() {
        let [mine, other, stranger] = keys();
        publish(&store, &[]).await;
        publish(&store, &[&mine]).await;
        publish(&store, &[&stranger]).await;
        publish(&store, &[&stranger, &other]).await;
        let source = trusted(&store, &[&mine, &other]);
        let (listed_versions, problems) = versions(&listed(&source).await);
        assert_eq!(listed_versions, [2, 4]);
        assert_eq!(problems[0], "version 1 is refused: it is not signed");
        let (start, end) = ("version 3 is refused: it is signed by ", " only, which `registry.trust` does not name");
        assert_eq!(problems[1], format!("{start}{}{end}", stranger.public()));
        assert_eq!(problems.len(), 2);
        let all = registry_over(&store).reading_signatures(Arc::default()).versions(&model("m")).await.unwrap();
        let dest = tempfile::tempdir().unwrap();
        let refused = source.fetch(&all[&3], dest.path(), &NoProgress).await.unwrap_err();
        assert!(matches!(&refused, FetchError::Refused { .. }) && !refused.is_transient(), "{refused}");
        source.fetch(&all[&4], dest.path(), &NoProgress).await.unwrap();
        assert_eq!(versions(&listed(&trusted(&store, &[])).await).0, [0; 0], "nobody is trusted");
    }
}

#[tokio::test]
async fn a_signature_may_be_added_and_is_seen_at_the_next_poll() {
    let stores = Stores::new();
    for store in stores.each() {
        let [mine] = keys();
        let key = publish(&store, &[]).await;
        let source = trusted(&store, &[&mine]);
        let before = listed(&source).await;
        assert_eq!(versions(&before).0, [0; 0]);
        let writer = registry_over(&store);
        let digest = writer.sign(&key, &mine).await.unwrap();
        let after = source.list(Some(&before.cursor)).await.unwrap().expect("a signature is a change");
        assert_eq!((versions(&after), after.generation(&key).unwrap().digest), ((vec![1], Vec::new()), digest));
        // What does not belong in its place is replaced by the next that signs.
        let path = format!("m/signatures/{digest}/{}.json", mine.public().id());
        store.put(&Path::from(path.as_str()), "{}".into()).await.unwrap();
        assert_eq!(versions(&listed(&trusted(&store, &[&mine])).await).0, [0; 0]);
        writer.sign(&key, &mine).await.unwrap();
        assert_eq!(versions(&listed(&trusted(&store, &[&mine])).await).0, [1]);
        assert!(writer.sign(&VersionKey::new(model("m"), 9), &mine).await.is_err(), "there is no such version");
    }
}

#[tokio::test]
async fn what_was_altered_is_refused_and_named() {
    let stores = Stores::new();
    for store in stores.each() {
        let [mine] = keys();
        for _ in 0..3 {
            publish(&store, &[&mine]).await;
        }
        let registry = registry_over(&store).reading_signatures(trust(&[&mine]));
        let all = registry.versions(&model("m")).await.unwrap();
        // Version 1: another publisher, as if somebody had edited the manifest. Its signature lies by the old digest.
        let manifest = read(&store, "m/versions/1/manifest.json").await;
        store.put(&"m/versions/1/manifest.json".into(), manifest.replace("tester", "nobody").into()).await.unwrap();
        // Version 2: a signature that is none, by that key.
        let signature = format!("m/signatures/{}/{}.json", all[&2].digest, mine.public().id());
        let stored = read(&store, &signature).await;
        let other = read(&store, &format!("m/signatures/{}/{}.json", all[&3].digest, mine.public().id())).await;
        assert_ne!(stored, other);
        store.put(&signature.into(), other.into()).await.unwrap();
        let (versions, problems) = versions(&listed(&trusted(&store, &[&mine])).await);
        assert_eq!(versions, [3]);
        assert_eq!(problems[0], "version 1 is refused: it is not signed");
        assert!(problems[1].starts_with("version 2 is refused: its signature by the trusted key ed25519:"), "{problems:?}");
        assert!(problems[1].ends_with("does not verify: the manifest or the signature was altered"), "{problems:?}");
        // A signed manifest in the place of another is not that version.
        store.put(&"m/versions/7/manifest.json".into(), manifest.into()).await.unwrap();
        let (versions, problems) = self::versions(&listed(&trusted(&store, &[&mine])).await);
        assert!(versions == [3] && problems.iter().any(|problem| problem.contains("lies under m@7")), "{problems:?}");
    }
}

/// What a state directory or cache holds was signed once; whoever edits it has to be found out without the registry.
#[tokio::test]
async fn a_generation_that_was_kept_is_judged_by_its_own_bytes() {
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let [mine, other] = keys();
    let key = publish(&store, &[&mine]).await;
    let registry = registry_over(&store).reading_signatures(trust(&[&mine]));
    let kept = serde_json::to_string(&registry.version(&key).await.unwrap()).unwrap();
    let kept: Generation = serde_json::from_str(&kept).unwrap();
    let judge = |change: &dyn Fn(&mut Generation)| {
        let mut changed = kept.clone();
        change(&mut changed);
        trust(&[&mine]).judge(&changed)
    };
    assert_eq!(judge(&|_| {}), Ok(()));
    assert_eq!(trust(&[&other]).judge(&kept), Err(Untrusted::Strangers(mine.public().to_string())), "trust of today");
    let other_file = |one: &mut Generation| Arc::make_mut(&mut one.manifest).files[0].sha256 = None;
    assert_eq!(judge(&other_file), Err(Untrusted::OtherManifest));
    assert_eq!(judge(&|one| one.stored = None), Err(Untrusted::OtherManifest));
    assert_eq!(judge(&|one| one.key.version = 2), Err(Untrusted::OtherManifest));
    let rewritten = |one: &mut Generation| {
        let text = one.stored.as_deref().unwrap().replace("tester", "nobody");
        let (manifest, digest) = crate::manifest::Manifest::parse(text.as_bytes()).unwrap();
        (one.manifest, one.stored) = (Arc::new(manifest), Some(text.into()));
        one.digest = digest;
    };
    assert!(matches!(judge(&rewritten), Err(Untrusted::Altered(_))));
    assert!(matches!(judge(&|one| (rewritten(one), one.digest = kept.digest).1), Err(Untrusted::OtherManifest)));
    assert_eq!(judge(&|one| one.signatures.clear()), Err(Untrusted::Unsigned));
    assert_eq!(judge(&|one| one.layout = Layout::Plain), Err(Untrusted::Layout(Layout::Plain)));
}

#[tokio::test]
async fn a_tombstone_counts_whoever_signed_the_version() {
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let [mine] = keys();
    let key = publish(&store, &[]).await;
    registry_over(&store).tombstone(&key, "me", "").await.unwrap();
    assert!(listed(&trusted(&store, &[&mine])).await.generation(&key).unwrap().tombstoned);
}

#[tokio::test]
async fn a_publisher_that_loses_its_number_leaves_signatures_that_name_nothing() {
    let stores = Stores::new();
    for inner in stores.each() {
        let [mine, other] = keys();
        let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::reliable(inner).meeting_at("manifest.json", 2));
        let (one, two) = (registry_over(&store), registry_over(&store));
        let files = tempfile::tempdir().unwrap();
        let fixed = |by: &SecretKey, name: &str| {
            let dir = files.path().join(name);
            PublishRequest { version: Some(1), ..signed(&dir, &[by]) }
        };
        let outcomes = tokio::join!(one.publish(fixed(&mine, "1"), &NoProgress), two.publish(fixed(&other, "2"), &NoProgress));
        let winner = if outcomes.0.is_ok() { &mine } else { &other };
        assert!(outcomes.0.is_ok() != outcomes.1.is_ok());
        let reading = registry_over(&store).reading_signatures(Arc::default());
        let version = reading.version(&VersionKey::new(model("m"), 1)).await.unwrap();
        let by: Vec<&str> = version.signatures.iter().map(|signature| signature.key.as_str()).collect();
        assert_eq!(by, [winner.public().to_string()]);
    }
}

/// Signatures cost one read for each version that is new, which was listed with it, and nothing while nothing changes.
#[tokio::test]
async fn unchanged_polls_read_no_signatures() {
    let counting = Arc::new(FaultyStore::reliable(Arc::new(object_store::memory::InMemory::new())));
    let store: Arc<dyn ObjectStore> = Arc::<FaultyStore>::clone(&counting);
    let [mine] = keys();
    publish(&store, &[&mine]).await;
    let cost = async |source: &dyn VersionSource| {
        let before = counting.calls();
        drop(source.list(None).await.unwrap().unwrap());
        counting.calls() - before
    };
    let plain: Registry = registry_over(&store);
    let (source, without) = (trusted(&store, &[&mine]), cost(&plain).await);
    assert_eq!(cost(&source).await, without + 1, "a read");
    let listing = listed(&source).await;
    let before = counting.calls();
    assert!(source.list(Some(&listing.cursor)).await.unwrap().is_none());
    assert_eq!(counting.calls() - before, 1);
}

/// So many others may sign that not all are read: those of trusted keys are.
#[tokio::test]
async fn a_flood_of_signatures_hides_none_that_counts() {
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let [mine] = keys();
    let key = publish(&store, &[&mine]).await;
    let digest = registry_over(&store).version(&key).await.unwrap().digest;
    for name in 0..200 {
        store.put(&format!("m/signatures/{digest}/{name:016x}.json").into(), "{}".into()).await.unwrap();
    }
    store.put(&format!("m/signatures/{digest}/large.json").into(), vec![b' '; 1 << 20].into()).await.unwrap();
    assert_eq!(versions(&listed(&trusted(&store, &[&mine])).await), (vec![1], Vec::new()));
}

#[tokio::test]
async fn keys_that_are_replaced_count_at_the_next_look() {
    let stores = Stores::new();
    for store in stores.each() {
        let [mine, other, late] = keys();
        publish(&store, &[&mine]).await;
        publish(&store, &[&other]).await;
        let strangers = keys::<70>();
        let signers: Vec<_> = strangers.iter().chain([&mine, &late]).collect();
        publish(&store, &signers).await;
        let trust = trust(&[&mine]);
        let registry = registry_over(&store).reading_signatures(Arc::clone(&trust));
        let source = Trusted::new(Arc::new(registry), Arc::clone(&trust));
        let first = listed(&source).await;
        assert_eq!(versions(&first).0, [1, 3]);
        assert!(source.list(Some(&first.cursor)).await.unwrap().is_none());

        assert_eq!(trust.replace([mine.public(), other.public()]), (vec![], vec![other.public().id()]));
        let added = source.list(Some(&first.cursor)).await.unwrap().expect("other keys are trusted");
        assert_eq!(versions(&added), (vec![1, 2, 3], vec![]));
        assert_eq!(trust.replace([other.public()]), (vec![mine.public().id()], vec![]));
        let withdrawn = source.list(Some(&added.cursor)).await.unwrap().expect("other keys are trusted");
        let (left, problems) = versions(&withdrawn);
        assert_eq!((left, problems.len()), (vec![2], 2));
        assert!(problems[0].starts_with("version 1 is refused: it is signed by"), "{problems:?}");
        let dest = tempfile::tempdir().unwrap();
        let refused = source.fetch(added.generation(&VersionKey::new(model("m"), 1)).unwrap(), dest.path(), &NoProgress).await;
        assert!(matches!(refused, Err(FetchError::Refused { .. })));

        // One whose signature was among too many to be read.
        trust.replace([late.public()]);
        let late = source.list(Some(&withdrawn.cursor)).await.unwrap().expect("other keys are trusted");
        assert_eq!(versions(&late).0, [3]);
        trust.note_trouble("a file is gone");
        let troubled = source.list(Some(&late.cursor)).await.unwrap().expect("that is told");
        assert_eq!((versions(&troubled).0, troubled.problems), (vec![3], vec!["a file is gone".to_owned()]));
        assert!(source.list(Some(&troubled.cursor)).await.unwrap().is_none());
    }
}

/// Without listings each signature is asked for by the keys that count. What a look has found by itself, the next one does not read again.
#[tokio::test]
async fn signed_versions_of_a_store_that_can_not_list_are_read_once() {
    let objects: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let ([mine, other], clock) = (keys(), Arc::new(ManualClock::default()));
    let mut signatures = Vec::new();
    for _ in 0..3 {
        let key = publish(&objects, &[&mine]).await;
        let digest = registry_over(&objects).version(&key).await.unwrap().digest;
        signatures.push(format!("m/signatures/{digest}/{}.json", mine.public().id()));
    }
    let trust = trust(&[&mine]);
    let (registry, counting) = Listless::registry(&objects, &clock);
    let registry = registry.reading_signatures(Arc::clone(&trust));
    let first = listed(&registry).await;
    assert!(first.models["m"].versions.values().all(|version| version.signatures.len() == 1), "{first:?}");
    for _ in 0..2 {
        clock.advance(REPAIR_INTERVAL);
        assert!(registry.list(Some(&first.cursor)).await.unwrap().is_none(), "nothing has changed");
    }
    let manifests = (1..=3).map(|version| format!("m/versions/{version}/manifest.json"));
    for path in manifests.chain(signatures) {
        assert_eq!(counting.gets(&path), 1, "{path}");
    }
    // What is added is seen all the same, and so are other keys.
    registry_over(&objects).sign(&VersionKey::new(model("m"), 2), &other).await.unwrap();
    trust.replace([mine.public(), other.public()]);
    let signed = registry.list(Some(&first.cursor)).await.unwrap().expect("a signature was added");
    let by = |version: u64| signed.models["m"].versions[&version].signatures.len();
    assert_eq!((by(1), by(2), by(3)), (1, 2, 1));
    assert_eq!(counting.gets("m/versions/1/manifest.json"), 1);
}
