//! What a look costs, and what becomes of what can't be read.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use uuid::Uuid;

use crate::clock::ManualClock;
use crate::journal::Op;
use crate::listing::{Cursor, Listing};
use crate::name::VersionKey;
use crate::registry::{REPAIR_INTERVAL, Registry};
use crate::source::{NoProgress, VersionSource as _};
use crate::testing::{FaultyStore, model, registry_over, request};

const FILES: &[(&str, &[u8])] = &[("model.onnx", b"a model")];

/// A store that counts, a registry over it that is read, and another over the same objects that writes.
struct Watched {
    store: Arc<FaultyStore>,
    objects: Arc<dyn ObjectStore>,
    clock: Arc<ManualClock>,
    reader: Registry,
    writer: Registry,
    files: tempfile::TempDir,
}

impl Watched {
    fn new() -> Self {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = Arc::new(FaultyStore::reliable(Arc::clone(&objects)));
        let clock = Arc::new(ManualClock::default());
        let reader = registry_over(&(Arc::<FaultyStore>::clone(&store) as Arc<dyn ObjectStore>));
        Self {
            reader: reader.with_clock(Arc::<ManualClock>::clone(&clock)),
            writer: registry_over(&objects),
            files: tempfile::tempdir().unwrap(),
            store,
            objects,
            clock,
        }
    }

    async fn publish(&self, name: &str) {
        self.writer.publish(request(self.files.path(), name, None, FILES), &NoProgress).await.unwrap();
    }

    async fn look(&self) -> Listing {
        self.reader.list(None).await.unwrap().unwrap()
    }

    /// The calls that a poll makes, and whether it has news.
    async fn poll(&self, since: &Cursor) -> (usize, bool) {
        let before = self.store.calls();
        let news = self.reader.list(Some(since)).await.unwrap().is_some();
        (self.store.calls() - before, news)
    }
}

#[tokio::test]
async fn a_poll_of_a_thousand_models_is_one_get_and_a_repair_reads_no_manifest_again() {
    let watched = Watched::new();
    let put = async |path: String, content: String| watched.objects.put(&Path::from(path), content.into()).await.unwrap();
    for number in 0..1_000 {
        for version in 1..=10 {
            let manifest = format!(
                r#"{{"schema":1,"model":"m{number}","version":{version},"format":"onnx","entrypoint":"model.onnx",
                "files":[{{"path":"model.onnx","sha256":"{:064x}","bytes":1}}],"created":"2026-01-01T00:00:00Z"}}"#,
                number * 10 + version
            );
            put(format!("m{number}/versions/{version}/manifest.json"), manifest).await;
        }
    }
    put("_changes/00000000000000000001.json".to_owned(), r#"{"seq":1,"model":"m0","what":"publish","version":1}"#.to_owned()).await;
    let cursor = watched.look().await.cursor;
    assert_eq!(watched.poll(&cursor).await, (1, false), "one GET of the next number in the change log");
    assert_eq!(watched.poll(&cursor).await, (1, false));
    watched.clock.advance(REPAIR_INTERVAL);
    assert_eq!(watched.poll(&cursor).await, (3, false), "the end of the log, which is looked for on both sides, and one listing");
    assert_eq!(watched.poll(&cursor).await, (1, false), "the repair is rare");
    watched.publish("m7").await;
    assert_eq!(watched.poll(&cursor).await, (4, true), "the log twice, one listing of the model, one manifest");
    let listing = watched.look().await;
    assert!(listing.complete && listing.models.len() == 1_000);
    assert_eq!(listing.models["m7"].versions.len(), 11);
}

#[tokio::test]
async fn of_a_journal_only_what_is_new_is_read() {
    let watched = Watched::new();
    watched.publish("m").await;
    let decide = async |share| {
        let op = Op::Alias { name: "prod".into(), version: Some(1) };
        watched.writer.append(&model("m"), op, "me", share, Uuid::new_v4()).await.unwrap();
    };
    for _ in 0..150 {
        decide("").await;
    }
    let first = watched.look().await;
    assert_eq!(first.models["m"].rollout.seq, 150);
    decide("").await;
    assert_eq!(watched.poll(&first.cursor).await, (5, true), "the log twice, one listing, one entry and the one before it");
    assert_eq!(watched.look().await.models["m"].rollout.seq, 151);
    // Names that nobody gave to entries are not believed.
    let forged = Path::from("m/rollout/09999999999999999999.json");
    watched.objects.put(&forged, "{}".into()).await.unwrap();
    watched.clock.advance(REPAIR_INTERVAL);
    let listing = watched.look().await;
    assert!(listing.complete && listing.models["m"].rollout.frozen.is_none());
}

#[tokio::test]
async fn a_model_that_can_not_be_read_is_tried_again_ever_less_often() {
    let watched = Watched::new();
    watched.publish("m").await;
    watched.publish("n").await;
    let cursor = watched.look().await.cursor;
    watched.store.refuse(Some("m/versions/2/manifest.json"));
    watched.publish("m").await;
    watched.publish("n").await;
    let listing = watched.reader.list(Some(&cursor)).await.unwrap().unwrap();
    assert!(!listing.complete && listing.problems[0].contains("m/versions/2/manifest.json"), "{:?}", listing.problems);
    assert_eq!((listing.models["m"].versions.len(), listing.models["n"].versions.len()), (1, 2), "the other goes on");
    assert_eq!(watched.poll(&listing.cursor).await, (1, false), "not at every poll");
    watched.clock.advance(Duration::from_secs(1));
    assert_eq!(watched.poll(&listing.cursor).await, (3, false), "the log, one listing, the manifest");
    watched.store.refuse(None);
    watched.clock.advance(Duration::from_secs(1));
    assert_eq!(watched.poll(&listing.cursor).await, (1, false), "the second pause is longer");
    watched.clock.advance(Duration::from_secs(1));
    assert_eq!(watched.poll(&listing.cursor).await, (3, true));
    let mended = watched.look().await;
    assert!(mended.complete && mended.problems.is_empty() && mended.models["m"].versions.len() == 2, "{mended:?}");
}

/// One object that can't be read hinders neither a new replica nor what happens to the other versions.
#[tokio::test]
async fn a_manifest_that_can_not_be_read_hides_neither_tombstones_nor_decisions() {
    let watched = Watched::new();
    for _ in 0..3 {
        watched.publish("m").await;
    }
    watched.store.refuse(Some("m/versions/2/manifest.json"));
    let first = watched.look().await;
    assert!(!first.complete && first.problems[0].contains("m/versions/2/manifest.json"), "{:?}", first.problems);
    assert_eq!(first.models["m"].versions.keys().collect::<Vec<_>>(), [&1, &3]);
    assert!(first.models["m"].unsettled.contains(&2), "it is there, whatever it is");
    watched.writer.tombstone(&VersionKey::new(model("m"), 1), "me", "").await.unwrap();
    watched.writer.append(&model("m"), Op::Pin { version: 3 }, "me", "", Uuid::new_v4()).await.unwrap();
    watched.objects.put(&Path::from("m/model.toml"), "device = \"cpu\"".into()).await.unwrap();
    watched.clock.advance(Duration::from_secs(1));
    let second = watched.reader.list(Some(&first.cursor)).await.unwrap().unwrap();
    let listed = &second.models["m"];
    assert!(!second.complete && listed.versions[&1].tombstoned && !listed.versions[&3].tombstoned, "{second:?}");
    assert_eq!((listed.rollout.pinned, listed.settings.len()), (Some(3), 1));
    watched.store.refuse(None);
    watched.clock.advance(Duration::from_secs(2));
    let mended = watched.look().await;
    assert!(mended.complete && mended.models["m"].versions.len() == 3, "{:?}", mended.problems);
}

#[tokio::test]
async fn before_decisions_and_settings_were_read_no_version_counts_but_what_was_yanked_is_told() {
    for refused in ["m/rollout/00000000000000000001.json", "m/model.toml"] {
        let watched = Watched::new();
        for _ in 0..3 {
            watched.publish("m").await;
        }
        watched.writer.tombstone(&VersionKey::new(model("m"), 3), "me", "").await.unwrap();
        watched.writer.append(&model("m"), Op::Pin { version: 1 }, "me", "", Uuid::new_v4()).await.unwrap();
        watched.objects.put(&Path::from("m/model.toml"), "device = \"cpu\"".into()).await.unwrap();
        watched.store.refuse(Some(refused));
        let first = watched.look().await;
        let listed = &first.models["m"];
        assert!(!first.complete && listed.versions.len() == 1 && listed.versions[&3].tombstoned, "{refused}: {listed:?}");
        assert_eq!(listed.unsettled.iter().collect::<Vec<_>>(), [&1, &2, &3], "{refused}: they are there all the same");
        watched.store.refuse(None);
        watched.clock.advance(Duration::from_secs(2));
        let mended = watched.look().await;
        let listed = &mended.models["m"];
        assert!(mended.complete && listed.unsettled.is_empty(), "{refused}: {:?}", mended.problems);
        assert_eq!((listed.versions.len(), listed.rollout.pinned, listed.settings.len()), (3, Some(1), 1));
    }
}

#[tokio::test]
async fn a_listing_with_less_of_a_journal_takes_no_decision_back() {
    let watched = Watched::new();
    watched.publish("m").await;
    watched.publish("m").await;
    for version in [1, 2] {
        watched.writer.append(&model("m"), Op::Pin { version }, "me", "", Uuid::new_v4()).await.unwrap();
    }
    let first = watched.look().await;
    assert_eq!(first.models["m"].rollout.pinned, Some(2));
    let last = Path::from("m/rollout/00000000000000000002.json");
    let entry = watched.objects.get(&last).await.unwrap().bytes().await.unwrap();
    watched.objects.delete(&last).await.unwrap();
    watched.publish("m").await;
    let short = watched.look().await;
    assert!(!short.complete && short.problems[0].contains("it ends at entry 1, but entry 2 was there"), "{:?}", short.problems);
    assert_eq!(short.models["m"].rollout.pinned, Some(2));
    watched.objects.put(&last, entry.into()).await.unwrap();
    watched.clock.advance(Duration::from_secs(1));
    let mended = watched.look().await;
    assert!(mended.complete && mended.models["m"].rollout.pinned == Some(2), "{:?}", mended.problems);
}

#[tokio::test]
async fn of_many_manifests_that_can_not_be_read_all_have_their_turn() {
    let watched = Watched::new();
    for _ in 0..40 {
        watched.publish("m").await;
    }
    watched.store.refuse(Some("manifest.json"));
    let before = watched.store.calls();
    assert!(!watched.look().await.complete);
    let calls = watched.store.calls() - before;
    assert!(calls < 40, "{calls} calls, although 8 failures were enough");
    watched.store.refuse(None);
    watched.clock.advance(Duration::from_secs(1));
    let mended = watched.look().await;
    assert!(mended.complete && mended.models["m"].versions.len() == 40, "{:?}", mended.problems);
}

#[tokio::test]
async fn a_store_that_fails_for_all_is_not_asked_for_each() {
    let watched = Watched::new();
    for number in 0..40 {
        watched.publish(&format!("m{number}")).await;
    }
    watched.store.refuse(Some("manifest.json"));
    let before = watched.store.calls();
    let listing = watched.look().await;
    let calls = watched.store.calls() - before;
    assert!(!listing.complete && listing.models.is_empty());
    assert!(listing.problems.iter().any(|problem| problem.contains("were not read")), "{:?}", listing.problems);
    assert!(calls < 40, "{calls} calls, although 8 failures were enough");
    watched.store.refuse(None);
    watched.clock.advance(Duration::from_secs(1));
    let listing = watched.look().await;
    assert!(listing.complete && listing.models.len() == 40, "{:?}", listing.problems);
}

#[tokio::test]
async fn versions_that_are_not_listed_any_more_stay_until_the_repair_finds_the_same() {
    let watched = Watched::new();
    watched.publish("m").await;
    let first = watched.look().await;
    let objects: Vec<_> = watched.objects.list(Some(&Path::from("m"))).try_collect().await.unwrap();
    for object in objects {
        watched.objects.delete(&object.location).await.unwrap();
    }
    let change = r#"{"seq":2,"model":"m","what":"journal"}"#;
    watched.objects.put(&Path::from("_changes/00000000000000000002.json"), change.into()).await.unwrap();
    let listing = watched.reader.list(Some(&first.cursor)).await.unwrap().unwrap();
    assert!(!listing.complete && listing.models["m"].versions.len() == 1);
    watched.clock.advance(REPAIR_INTERVAL);
    let listing = watched.look().await;
    assert!(listing.complete && listing.models.is_empty(), "{listing:?}");
}

#[tokio::test]
async fn a_log_that_makes_no_sense_is_an_error_and_has_an_end() {
    let watched = Watched::new();
    watched.publish("m").await;
    let cursor = watched.look().await.cursor;
    for seq in 2..200 {
        watched.objects.put(&Path::from(format!("_changes/{seq:020}.json")), "<html>".into()).await.unwrap();
    }
    let error = watched.reader.list(Some(&cursor)).await.unwrap_err();
    assert!(crate::registry::versions::with_causes(&error).contains("not readable"), "{error}");
}

#[tokio::test]
async fn whoever_is_far_behind_catches_up_in_large_steps() {
    let watched = Watched::new();
    watched.publish("m").await;
    let cursor = watched.look().await.cursor;
    for _ in 0..300 {
        watched.publish("m").await;
    }
    let (calls, news) = watched.poll(&cursor).await;
    assert!(news && calls < 300 + 300 + 80, "{calls} calls");
    assert_eq!(watched.look().await.models["m"].versions.len(), 301);
}
