use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use uuid::Uuid;

use super::Stores;
use crate::clock::ManualClock;
use crate::journal::Op;
use crate::name::VersionKey;
use crate::registry::REPAIR_INTERVAL;
use crate::source::{NoProgress, VersionSource as _};
use crate::testing::{Failure, FaultyStore, model, registry_over, request};

const FILES: &[(&str, &[u8])] = &[("model.onnx", b"a model")];

#[tokio::test]
async fn a_poll_without_change_is_one_get() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for inner in stores.each() {
        let counting = Arc::new(FaultyStore::reliable(inner));
        let store: Arc<dyn ObjectStore> = Arc::<FaultyStore>::clone(&counting);
        let registry = registry_over(&store);
        for _ in 0..3 {
            registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        }
        let listing = registry.list(None).await.unwrap().unwrap();
        let before = counting.calls();
        assert!(registry.list(Some(&listing.cursor)).await.unwrap().is_none());
        assert_eq!(counting.calls() - before, 1);
        registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        let listing = registry.list(Some(&listing.cursor)).await.unwrap().unwrap();
        let before = counting.calls();
        assert!(registry.list(Some(&listing.cursor)).await.unwrap().is_none());
        assert_eq!(counting.calls() - before, 1, "a change is followed once");
    }
}

#[tokio::test]
async fn changes_of_others_are_seen_through_the_change_log() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let (reader, writer) = (registry_over(&store), registry_over(&store));
        let mut cursor = reader.list(None).await.unwrap().unwrap().cursor;
        let mut next = async || {
            let listing = reader.list(Some(&cursor)).await.unwrap().expect("something has changed");
            cursor = serde_json::from_slice(&serde_json::to_vec(&listing.cursor).unwrap()).unwrap();
            listing
        };
        let key = writer.publish(request(files.path(), "a", None, FILES), &NoProgress).await.unwrap().key;
        assert!(next().await.generation(&key).is_some());
        writer.publish(request(files.path(), "b", None, FILES), &NoProgress).await.unwrap();
        assert_eq!(next().await.models.len(), 2);
        let pin = Op::Pin { version: 1 };
        writer.append(&model("a"), pin, "me", "trust", Uuid::new_v4()).await.unwrap();
        assert_eq!(next().await.models["a"].rollout.pinned, Some(1));
        let alias = Op::Alias { name: "prod".into(), version: Some(1) };
        writer.append(&model("a"), alias, "me", "", Uuid::new_v4()).await.unwrap();
        assert_eq!(next().await.models["a"].aliases["prod"], 1);
        writer.tombstone(&key, "me", "").await.unwrap();
        assert!(next().await.generation(&key).unwrap().tombstoned);
    }
}

#[tokio::test]
async fn a_lost_change_is_found_by_the_repair() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let clock = Arc::new(ManualClock::default());
        let reader = registry_over(&store).with_clock(Arc::<ManualClock>::clone(&clock));
        let writer = registry_over(&store);
        writer.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        let cursor = reader.list(None).await.unwrap().unwrap().cursor;
        writer.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        store.delete(&Path::from("_changes/00000000000000000002.json")).await.unwrap();
        // It comes up to a tenth earlier, by chance.
        let early = REPAIR_INTERVAL.mul_f64(0.9) - Duration::from_millis(1);
        clock.advance(early);
        assert!(reader.list(Some(&cursor)).await.unwrap().is_none());
        clock.advance(REPAIR_INTERVAL - early);
        assert_eq!(reader.list(Some(&cursor)).await.unwrap().unwrap().models["m"].versions.len(), 2);
    }
}

#[tokio::test]
async fn an_unreadable_change_makes_a_full_look() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let (reader, writer) = (registry_over(&store), registry_over(&store));
        let cursor = reader.list(None).await.unwrap().unwrap().cursor;
        store.put(&Path::from("_changes/00000000000000000001.json"), "{\"model\":\"../x\"".into()).await.unwrap();
        writer.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        assert_eq!(reader.list(Some(&cursor)).await.unwrap().unwrap().models.len(), 1);
    }
}

/// Every call of a look fails once: the look is an error or incomplete, and nothing that was listed is lost.
#[tokio::test]
async fn a_store_that_fails_removes_nothing() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for inner in stores.each() {
        let writer = registry_over(&inner);
        writer.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        let mut complete = false;
        let mut partial = 0;
        for calls in 0.. {
            let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Arc::clone(&inner), calls, Failure::Refused));
            match registry_over(&store).list(None).await {
                Ok(Some(listing)) if listing.complete => {
                    assert!(listing.models.contains_key("m"));
                    complete = true;
                    break;
                }
                Ok(Some(listing)) => {
                    partial += 1;
                    assert!(!listing.problems.is_empty());
                }
                Ok(None) => panic!("nothing was asked since"),
                Err(error) => assert!(error.to_string().contains("test"), "{error}"),
            }
        }
        assert!(complete && partial > 0);
    }
}

#[tokio::test]
async fn a_model_that_can_not_be_read_stays_as_it_was() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for inner in stores.each() {
        registry_over(&inner).publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        let counting = Arc::new(FaultyStore::reliable(Arc::clone(&inner)));
        let store: Arc<dyn ObjectStore> = Arc::<FaultyStore>::clone(&counting);
        registry_over(&store).list(None).await.unwrap();
        let first_look = counting.calls();
        // The first look works; the next finds a change, and fails while it reads the model.
        let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Arc::clone(&inner), first_look + 3, Failure::Refused));
        let reader = registry_over(&store);
        let cursor = reader.list(None).await.unwrap().unwrap().cursor;
        registry_over(&inner).publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        let listing = reader.list(Some(&cursor)).await.unwrap().unwrap();
        assert!(!listing.complete);
        assert_eq!(listing.models["m"].versions.keys().collect::<Vec<_>>(), [&1]);
    }
}

#[tokio::test]
async fn held_versions_are_held_until_an_entry_releases_them() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        let mut wanted = request(files.path(), "m", None, FILES);
        wanted.hold = true;
        registry.publish(wanted, &NoProgress).await.unwrap();
        let held = registry.list(None).await.unwrap().unwrap().models["m"].rollout.held.clone();
        assert!(held.contains(&1));
        let weight = Op::Weight { version: 1, weight_bp: 1_000 };
        registry.append(&model("m"), weight, "me", "", Uuid::new_v4()).await.unwrap();
        assert!(registry.list(None).await.unwrap().unwrap().models["m"].rollout.held.is_empty());
    }
}

#[tokio::test]
async fn clearing_all_releases_what_its_publisher_held_and_not_what_comes_later() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        let held = || crate::PublishRequest { hold: true, ..request(files.path(), "m", None, FILES) };
        registry.publish(held(), &NoProgress).await.unwrap();
        registry.publish(held(), &NoProgress).await.unwrap();
        registry.append(&model("m"), Op::Clear { version: None }, "me", "", Uuid::new_v4()).await.unwrap();
        registry.publish(held(), &NoProgress).await.unwrap();
        let rollout = registry.list(None).await.unwrap().unwrap().models["m"].rollout.clone();
        assert_eq!(rollout.held, [3].into());
        registry.append(&model("m"), Op::Hold { version: 1 }, "me", "", Uuid::new_v4()).await.unwrap();
        let rollout = registry.list(None).await.unwrap().unwrap().models["m"].rollout.clone();
        assert_eq!(rollout.held, [1, 3].into(), "a hold after it counts");
        assert_eq!(
            registry.journal(&model("m")).await.unwrap().iter().map(|entry| entry.highest).collect::<Vec<_>>(),
            [Some(2), Some(3)]
        );
    }
}

#[tokio::test]
async fn what_an_entry_names_has_to_exist() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        let append = async |name: &str, op| registry.append(&model(name), op, "me", "", Uuid::new_v4()).await;
        let missing = append("m", Op::Weight { version: 2, weight_bp: 1 }).await.unwrap_err();
        assert_eq!(missing.to_string(), "version 2 of m does not exist");
        let missing = append("other", Op::Disable).await.unwrap_err();
        assert_eq!(missing.to_string(), "model other is not in this registry");
        assert_eq!(append("m", Op::Clear { version: Some(2) }).await.unwrap(), 1, "what is gone can be cleared");
        let id = Uuid::new_v4();
        for _ in 0..3 {
            let seq = registry.append(&model("m"), Op::Pin { version: 1 }, "me", "", id).await.unwrap();
            assert_eq!(seq, 2, "a retry with the same id is the same append");
        }
        assert_eq!(registry.journal(&model("m")).await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn settings_lie_at_the_root_of_the_model() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        let key = registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap().key;
        store.put(&Path::from("m/model.toml"), "device = \"cpu\"\nlabels.y = \"labels.txt\"".into()).await.unwrap();
        store.put(&Path::from("m/notes.txt"), "nobody's business".into()).await.unwrap();
        store.put(&Path::from("m/labels.txt"), vec![b'x'; (1 << 20) + 1].into()).await.unwrap();
        store.put(&Path::from("m/3/model.onnx"), "shadowed".into()).await.unwrap();
        let listing = registry.list(None).await.unwrap().unwrap();
        let listed = &listing.models["m"];
        assert_eq!(listed.settings.keys().collect::<Vec<_>>(), ["model.toml"]);
        assert_eq!(&listed.settings["model.toml"][..], b"device = \"cpu\"\nlabels.y = \"labels.txt\"");
        assert_eq!(listed.versions.keys().collect::<Vec<_>>(), [&key.version], "numeric siblings do not count");
        let problems = listed.problems.join("\n");
        assert!(problems.contains("labels.txt") && problems.contains("directory `3`"), "{problems}");
    }
}

#[tokio::test]
async fn a_prefix_keeps_two_registries_of_one_store_apart() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let at = |prefix: &str| crate::Registry::over(Arc::clone(&store), Path::from(prefix), prefix);
        let (a, b) = (at("team/a"), at("team/b"));
        let key = a.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap().key;
        assert!(b.list(None).await.unwrap().unwrap().models.is_empty());
        assert!(at("team/a").list(None).await.unwrap().unwrap().generation(&key).is_some());
        assert!(a.manifest(&VersionKey::new(model("m"), 2)).await.is_err());
    }
}
