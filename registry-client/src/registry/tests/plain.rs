//! The plain layout on object stores.

use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::clock::ManualClock;
use crate::directory::SETTLE_INTERVAL;
use crate::listing::{Layout, Listing};
use crate::name::VersionKey;
use crate::registry::{PublishError, Registry};
use crate::source::{FetchError, NoProgress, VersionSource as _};
use crate::testing::{FaultyStore, model, registry_over, request};

/// Objects, a registry that reads them, and its clock, which stands at the calendar's time: objects get that.
struct Plain {
    store: Arc<dyn ObjectStore>,
    counting: Arc<FaultyStore>,
    clock: Arc<ManualClock>,
    source: Registry,
}

impl Plain {
    fn new() -> Self {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let counting = Arc::new(FaultyStore::reliable(Arc::clone(&store)));
        let clock = Arc::new(ManualClock::new(chrono::Utc::now()));
        let source = registry_over(&(Arc::<FaultyStore>::clone(&counting) as Arc<dyn ObjectStore>));
        Self { source: source.with_clock(Arc::<ManualClock>::clone(&clock)), store, counting, clock }
    }

    async fn put(&self, path: &str, content: &str) {
        self.store.put(&Path::parse(path).unwrap(), content.to_owned().into()).await.unwrap();
    }

    async fn look(&self) -> Listing {
        self.source.list(None).await.unwrap().unwrap()
    }

    async fn settled(&self) -> Listing {
        self.look().await;
        self.clock.advance(SETTLE_INTERVAL);
        self.look().await
    }
}

fn key(version: u64) -> VersionKey {
    VersionKey::new(model("m"), version)
}

#[tokio::test]
async fn a_version_counts_once_two_looks_have_seen_the_same() {
    let plain = Plain::new();
    plain.put("m/1/model.onnx", "half").await;
    let first = plain.look().await;
    assert!(first.complete && first.models["m"].versions.is_empty() && first.models["m"].unsettled.contains(&1));
    assert_eq!(first.recheck_after, Some(SETTLE_INTERVAL));
    plain.put("m/1/weights.bin", "more").await;
    plain.clock.advance(SETTLE_INTERVAL);
    assert!(plain.look().await.models["m"].versions.is_empty(), "it has grown between the looks");
    plain.clock.advance(SETTLE_INTERVAL - Duration::from_millis(1));
    assert!(plain.look().await.models["m"].versions.is_empty());
    plain.clock.advance(Duration::from_millis(1));
    let settled = plain.look().await;
    let generation = settled.generation(&key(1)).unwrap();
    assert_eq!((generation.layout, generation.bytes), (Layout::Plain, 8));
    assert_eq!((generation.manifest.format.as_str(), generation.manifest.entrypoint.as_str()), ("onnx", "model.onnx"));
    assert_eq!(settled.recheck_after, None);
}

#[tokio::test]
async fn changed_content_is_a_new_generation_and_the_old_one_can_not_be_fetched() {
    let plain = Plain::new();
    plain.put("m/1/model.onnx", "old").await;
    let old = plain.settled().await.generation(&key(1)).unwrap().clone();
    plain.put("m/1/model.onnx", "new").await;
    let between = plain.look().await;
    assert_eq!(between.generation(&key(1)), Some(&old), "the old content counts until the new has settled");
    let dest = tempfile::tempdir().unwrap();
    let error = plain.source.fetch(&old, dest.path(), &NoProgress).await.unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. }), "{error}");
    plain.clock.advance(SETTLE_INTERVAL);
    let new = plain.look().await.generation(&key(1)).unwrap().clone();
    assert_ne!(new.digest, old.digest);
    let dest = tempfile::tempdir().unwrap();
    plain.source.fetch(&new, dest.path(), &NoProgress).await.unwrap();
    assert_eq!(std::fs::read(dest.path().join("model.onnx")).unwrap(), b"new");
    let again = registry_over(&plain.store).with_clock(Arc::<ManualClock>::clone(&plain.clock));
    again.list(None).await.unwrap();
    plain.clock.advance(SETTLE_INTERVAL);
    let again = again.list(None).await.unwrap().unwrap();
    assert_eq!(again.generation(&key(1)), Some(&new), "a restart finds its cache by digest");
}

#[tokio::test]
async fn a_listing_is_made_at_each_poll_only_where_it_is_needed() {
    let plain = Plain::new();
    let poll = async || {
        let before = plain.counting.calls();
        plain.source.list(None).await.unwrap();
        plain.counting.calls() - before
    };
    poll().await;
    assert_eq!(poll().await, 2, "nothing is there: the log, and a listing, for a plain model may come");
    let files = tempfile::tempdir().unwrap();
    let writer = registry_over(&plain.store);
    writer.publish(request(files.path(), "ours", None, &[("model.onnx", b"x")]), &NoProgress).await.unwrap();
    poll().await;
    assert_eq!(poll().await, 1, "there is a change log and nothing plain");
    plain.put("m/1/model.onnx", "x").await;
    plain.clock.advance(crate::REPAIR_INTERVAL);
    poll().await;
    assert_eq!(poll().await, 2, "something is plain");
}

#[tokio::test]
async fn settings_settle_and_new_versions_wait_for_them() {
    let plain = Plain::new();
    plain.put("m/1/model.onnx", "one").await;
    plain.put("m/config.pbtxt", "label_filename: \"labels.txt\"").await;
    plain.put("m/labels.txt", "zero").await;
    plain.put("m/notes.txt", "nobody's business").await;
    plain.put("m/warmup/data", "named without its folder").await;
    let first = plain.settled().await;
    let listed = &first.models["m"];
    assert_eq!(listed.settings.keys().collect::<Vec<_>>(), ["config.pbtxt", "labels.txt"]);
    plain.put("m/config.pbtxt", "label_filename: \"labels.txt\" input_data_file: \"data\"").await;
    plain.put("m/2/model.onnx", "two").await;
    plain.look().await;
    plain.clock.advance(SETTLE_INTERVAL / 2);
    plain.put("m/labels.txt", "zero\none").await;
    plain.look().await;
    plain.clock.advance(SETTLE_INTERVAL / 2);
    let waiting = plain.look().await;
    let listed = &waiting.models["m"];
    assert_eq!(listed.versions.keys().collect::<Vec<_>>(), [&1], "version 2 has settled, and waits for the settings");
    assert!(listed.unsettled.contains(&2) && listed.problems.iter().any(|problem| problem.contains("new settings wait")));
    assert_eq!(&listed.settings["labels.txt"][..], b"zero");
    plain.clock.advance(SETTLE_INTERVAL);
    let settled = plain.look().await;
    let listed = &settled.models["m"];
    assert_eq!(listed.versions.keys().collect::<Vec<_>>(), [&1, &2]);
    assert_eq!(listed.settings.keys().collect::<Vec<_>>(), ["config.pbtxt", "labels.txt", "warmup/data"]);
    assert_eq!(&listed.settings["labels.txt"][..], b"zero\none");
}

#[tokio::test]
async fn odd_objects_take_out_their_version_alone_and_odd_names_are_read_as_they_are() {
    let plain = Plain::new();
    plain.put("m/1/model.onnx", "good").await;
    plain.put("m/1/a b#c%20d.txt", "odd and allowed").await;
    plain.put("m/1/.hidden", "left out").await;
    plain.put("m/2/back\\slash", "refused").await;
    plain.put("m/07/model.onnx", "no version").await;
    plain.put("a b/1/model.onnx", "no model").await;
    let listing = plain.settled().await;
    let listed = &listing.models["m"];
    assert!(listing.complete && listing.models.len() == 1);
    assert_eq!(listed.versions.keys().collect::<Vec<_>>(), [&1]);
    assert!(
        listed.problems.iter().any(|problem| problem.contains("version 2") && problem.contains("backslash")),
        "{:?}",
        listed.problems
    );
    assert!(listing.problems[0].contains("a b"));
    let dest = tempfile::tempdir().unwrap();
    let fetched = plain.source.fetch(listing.generation(&key(1)).unwrap(), dest.path(), &NoProgress).await.unwrap();
    assert_eq!(fetched.files.len(), 2);
    assert_eq!(std::fs::read(dest.path().join("a b#c%20d.txt")).unwrap(), b"odd and allowed");
}

#[tokio::test]
async fn a_plain_model_is_not_published_into() {
    let plain = Plain::new();
    plain.put("m/1/model.onnx", "x").await;
    let files = tempfile::tempdir().unwrap();
    let error = plain.source.publish(request(files.path(), "m", None, &[("model.onnx", b"y")]), &NoProgress).await.unwrap_err();
    assert!(matches!(error, PublishError::PlainLayout { .. }), "{error}");
}
