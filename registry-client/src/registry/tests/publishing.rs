use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::Stores;
use crate::digest::Digest;
use crate::journal::Op;
use crate::name::{MAX_VERSION, VersionKey};
use crate::registry::{PublishError, RegistryError};
use crate::source::{NoProgress, VersionSource as _};
use crate::testing::{Failure, FaultyStore, model, registry_over, request};

const FILES: &[(&str, &[u8])] = &[("model.onnx", b"a model"), ("data/weights.bin", b"its weights")];

#[tokio::test]
async fn what_is_published_is_there_whole() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        let mut wanted = request(files.path(), "digits", None, FILES);
        wanted.metrics.insert("accuracy".into(), 0.5);
        wanted.signature = Some(serde_json::json!({"inputs": []}));
        let published = registry.publish(wanted, &NoProgress).await.unwrap();
        assert_eq!(published.key.to_string(), "digits@1");
        assert_eq!((published.bytes, published.reused_bytes), (18, 0));
        let manifest = registry.manifest(&published.key).await.unwrap();
        assert_eq!(manifest.files[0].sha256, Some(Digest::of(b"a model")));
        assert_eq!((manifest.metrics["accuracy"], manifest.publisher.as_str()), (0.5, "tester"));
        let stored = store.get(&Path::from("digits/versions/1/manifest.json")).await.unwrap().bytes().await.unwrap();
        assert_eq!(Digest::of(&stored), published.digest, "the digest is that of the stored bytes");
        let dest = tempfile::tempdir().unwrap();
        let versions = registry.versions(&model("digits")).await.unwrap();
        registry.fetch(&versions[&1], dest.path(), &NoProgress).await.unwrap();
        assert_eq!(std::fs::read(dest.path().join("data/weights.bin")).unwrap(), b"its weights");
    }
}

#[tokio::test]
async fn numbers_follow_the_highest_and_content_is_stored_once() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        let mut keys = Vec::new();
        for version in [None, Some(7), None] {
            let published = registry.publish(request(files.path(), "m", version, FILES), &NoProgress).await.unwrap();
            keys.push((published.key.version, published.reused_bytes));
        }
        assert_eq!(keys, [(1, 0), (7, 18), (8, 18)]);
        registry.publish(request(files.path(), "m", Some(MAX_VERSION), FILES), &NoProgress).await.unwrap();
        let full = registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap_err();
        assert!(matches!(full, PublishError::Contended(_)), "{full}");
    }
}

#[tokio::test]
async fn an_existing_version_is_refused_and_stays() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        let first = registry.publish(request(files.path(), "m", Some(3), FILES), &NoProgress).await.unwrap();
        let other = request(files.path(), "m", Some(3), &[("other.onnx", b"other")]);
        let error = registry.publish(other, &NoProgress).await.unwrap_err();
        assert!(matches!(&error, PublishError::AlreadyExists { key } if *key == first.key), "{error}");
        assert!(error.hint().is_some());
        assert_eq!(registry.versions(&model("m")).await.unwrap()[&3].digest, first.digest);
    }
}

#[tokio::test]
async fn of_two_publishers_of_one_version_exactly_one_wins_whole() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for inner in stores.each() {
        // Both have uploaded everything and stand before the commit.
        let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::reliable(inner).meeting_at("manifest.json", 2));
        let (one, two) = (registry_over(&store), registry_over(&store));
        let first = request(&files.path().join("1"), "m", Some(1), &[("model.onnx", b"first"), ("same", b"same")]);
        let second = request(&files.path().join("2"), "m", Some(1), &[("model.onnx", b"second"), ("same", b"same")]);
        let outcomes = tokio::join!(one.publish(first, &NoProgress), two.publish(second, &NoProgress));
        let (winner, loser, content) = match outcomes {
            (Ok(winner), Err(loser)) => (winner, loser, "first"),
            (Err(loser), Ok(winner)) => (winner, loser, "second"),
            both => panic!("exactly one should win: {both:?}"),
        };
        assert!(matches!(loser, PublishError::AlreadyExists { .. }), "{loser}");
        let generation = one.versions(&model("m")).await.unwrap()[&1].clone();
        assert_eq!(generation.digest, winner.digest);
        let dest = tempfile::tempdir().unwrap();
        two.fetch(&generation, dest.path(), &NoProgress).await.unwrap();
        assert_eq!(std::fs::read_to_string(dest.path().join("model.onnx")).unwrap(), content);
    }
}

#[tokio::test]
async fn of_two_publishers_without_a_number_each_gets_one() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let (one, two) = (registry_over(&store), registry_over(&store));
        let publish = async |registry: &super::super::Registry, name: &str| {
            let mut numbers = Vec::new();
            for n in 0..5 {
                let files = request(&files.path().join(format!("{name}{n}")), "m", None, &[("model.onnx", name.as_bytes())]);
                numbers.push(registry.publish(files, &NoProgress).await.unwrap().key.version);
            }
            numbers
        };
        let (mut numbers, more) = tokio::join!(publish(&one, "one"), publish(&two, "two"));
        numbers.extend(more);
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=10).collect::<Vec<_>>());
    }
}

/// A publisher that is killed at its k-th operation, for every k, and by both ways of dying at it: nothing is seen of it
/// unless it had committed, and publishing again works.
#[tokio::test]
async fn a_killed_publish_leaves_nothing_that_is_seen() {
    let files = tempfile::tempdir().unwrap();
    let large = vec![7; (8 << 20) + 1];
    let content: &[(&str, &[u8])] = &[("model.onnx", b"a model"), ("large.bin", &large)];
    for failure in [Failure::Refused, Failure::AnswerLost] {
        let mut killed = 0;
        for calls in 0.. {
            let stores = Stores::new();
            for inner in stores.each() {
                let healthy = registry_over(&inner);
                let faulty: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Arc::clone(&inner), calls, failure));
                let outcome = registry_over(&faulty).publish(request(files.path(), "m", Some(1), content), &NoProgress).await;
                let listing = healthy.list(None).await.unwrap().unwrap();
                let committed = listing.models.contains_key("m");
                if outcome.is_ok() {
                    assert!(committed, "{failure:?} at {calls}: done, and not there");
                } else {
                    killed += 1;
                    assert!(listing.complete && listing.problems.is_empty(), "{failure:?} at {calls}: {:?}", listing.problems);
                    assert!(!committed || failure == Failure::AnswerLost, "{failure:?} at {calls}: refused, and there");
                    let again = healthy.publish(request(files.path(), "m", None, content), &NoProgress).await.unwrap();
                    assert_eq!(again.key.version, 1 + u64::from(committed));
                }
                let listing = registry_over(&inner).list(None).await.unwrap().unwrap();
                for generation in listing.models["m"].versions.values() {
                    let dest = tempfile::tempdir().unwrap();
                    healthy.fetch(generation, dest.path(), &NoProgress).await.unwrap();
                }
            }
            let probe = Arc::new(FaultyStore::reliable(Arc::new(InMemory::new())));
            let store: Arc<dyn ObjectStore> = Arc::<FaultyStore>::clone(&probe);
            registry_over(&store).publish(request(files.path(), "m", Some(1), content), &NoProgress).await.unwrap();
            if calls > probe.calls() {
                break;
            }
        }
        assert!(killed > 10, "only {killed} publishes were killed");
    }
}

/// Writes to a file as soon as its upload begins.
struct Meddler(std::path::PathBuf, Vec<u8>);

impl crate::Progress for Meddler {
    fn advance(&self, _file: &str, done: u64, _total: u64) {
        if done == 0 {
            std::fs::write(&self.0, &self.1).unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_that_changes_meanwhile_is_not_published() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        for size in [100, (8 << 20) + 100] {
            for other in [size - 1, size, size + 1] {
                let registry = registry_over(&store);
                let wanted = request(files.path(), "m", None, &[("model.onnx", &vec![1; size])]);
                let meddler = Meddler(files.path().join("model.onnx"), vec![2; other]);
                let error = registry.publish(wanted, &meddler).await.unwrap_err();
                assert!(matches!(error, PublishError::FileChanged { .. }), "{size} to {other}: {error}");
            }
        }
        let names = store.list_with_delimiter(Some(&Path::from("m/blobs"))).await.unwrap();
        assert!(names.objects.is_empty(), "nothing was uploaded under a name that is not its own");
        assert!(registry_over(&store).list(None).await.unwrap().unwrap().models.is_empty());
    }
}

#[tokio::test]
async fn a_plain_model_is_not_published_into() {
    let (root, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir_all(root.path().join("m/1")).unwrap();
    std::fs::write(root.path().join("m/1/model.onnx"), b"plain").unwrap();
    let registry = crate::Registry::open_dir(root.path()).unwrap();
    let error = registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap_err();
    assert!(matches!(error, PublishError::PlainLayout { .. }) && error.hint().unwrap().contains("copy"), "{error}");
    assert!(!root.path().join("m/blobs").exists() && !root.path().join("m/versions").exists());
    let error = registry.append(&model("m"), Op::Disable, "me", "", uuid::Uuid::new_v4()).await.unwrap_err();
    assert!(error.to_string().contains("plain layout"), "{error}");
    assert!(!root.path().join("m/rollout").exists());
}

#[tokio::test]
async fn a_store_without_put_if_absent_is_refused_by_name() {
    let files = tempfile::tempdir().unwrap();
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    registry_over(&memory).publish(request(files.path(), "m", Some(1), FILES), &NoProgress).await.unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::reliable(memory).without_create());
    let registry = registry_over(&store);
    // The blobs are there already: it is the commit that is refused.
    let publish = registry.publish(request(files.path(), "m", Some(2), FILES), &NoProgress).await.unwrap_err();
    let journal = registry.append(&model("m"), Op::Disable, "me", "", uuid::Uuid::new_v4()).await.unwrap_err();
    let tombstone = registry.tombstone(&VersionKey::new(model("m"), 1), "me", "").await.unwrap_err();
    for text in [publish.to_string(), journal.to_string(), tombstone.to_string()] {
        assert!(text.contains("faulty store") && text.contains("put-if-absent"), "{text}");
    }
}

#[tokio::test]
async fn requests_that_break_a_rule_upload_nothing() {
    let files = tempfile::tempdir().unwrap();
    let check = async |change: fn(&mut crate::PublishRequest), expected: &str| {
        let store = Arc::new(FaultyStore::reliable(Arc::new(InMemory::new())));
        let registry = registry_over(&(Arc::<FaultyStore>::clone(&store) as Arc<dyn ObjectStore>));
        let mut wanted = request(files.path(), "m", None, FILES);
        change(&mut wanted);
        let error = registry.publish(wanted, &NoProgress).await.unwrap_err();
        let text = crate::registry::versions::with_causes(&error);
        assert!(text.contains(expected), "{text} should say {expected}");
        let level = store.list_with_delimiter(None).await.unwrap();
        assert!(level.common_prefixes.is_empty(), "{expected}: {level:?}");
    };
    check(|wanted| wanted.files.clear(), "1 to 10000 files").await;
    check(|wanted| wanted.version = Some(0), "field `version`").await;
    check(|wanted| wanted.entrypoint = "other".into(), "field `entrypoint`").await;
    check(|wanted| wanted.format.clear(), "field `format`").await;
    check(|wanted| wanted.files[0].0 = "../escape".into(), "field `files`").await;
    check(|wanted| wanted.files[0].1 = "/no/such/file".into(), "/no/such/file can't be read").await;
    check(|wanted| wanted.files[0].1 = "/dev/null".into(), "not a regular file").await;
    check(|wanted| wanted.metrics.extend([("loss".into(), f64::NAN)]), "field `metrics`").await;
    check(|wanted| wanted.golden = Some("none".into()), "field `golden`").await;
}

#[tokio::test]
async fn a_tombstone_is_seen_and_kept() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        let key = registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap().key;
        registry.tombstone(&key, "me", "it is wrong").await.unwrap();
        registry.tombstone(&key, "me", "a second time").await.unwrap();
        let listing = registry.list(None).await.unwrap().unwrap();
        assert!(listing.generation(&key).unwrap().tombstoned);
        let next = registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        assert_eq!(next.key.version, 2, "a yanked number is not used again");
        let none = registry.tombstone(&VersionKey::new(model("m"), 9), "me", "").await.unwrap_err();
        assert!(matches!(none, RegistryError::NotFound { .. }), "{none}");
        let weight = Op::Weight { version: 1, weight_bp: 500 };
        let refused = registry.append(&model("m"), weight, "me", "", uuid::Uuid::new_v4()).await.unwrap_err();
        assert!(refused.to_string().contains("is tombstoned"), "{refused}");
    }
}

#[tokio::test]
async fn a_damaged_blob_is_mended_by_publishing_again() {
    let (root, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let registry = crate::Registry::open_dir(root.path()).unwrap();
    let large = vec![7; 9 << 20];
    let wanted = || request(files.path(), "m", None, &[("model.onnx", b"a model"), ("large.bin", &large)]);
    registry.publish(wanted(), &NoProgress).await.unwrap();
    let blob = |content: &[u8]| root.path().join(format!("m/blobs/{}", Digest::of(content)));
    let mut flipped = large.clone();
    flipped[5] ^= 1;
    for (content, damaged) in [(&b"a model"[..], &b"a m0del"[..]), (&large, &flipped)] {
        std::fs::write(blob(content), damaged).unwrap();
        let again = registry.publish(wanted(), &NoProgress).await.unwrap();
        assert_eq!(again.reused_bytes + content.len() as u64, again.bytes, "the damaged one is written again");
        assert!(std::fs::read(blob(content)).unwrap() == content);
        let dest = tempfile::tempdir().unwrap();
        let generation = registry.versions(&model("m")).await.unwrap()[&1].clone();
        registry.fetch(&generation, dest.path(), &NoProgress).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_killed_upload_left_goes_with_the_next_and_a_running_one_stays() {
    let (root, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let registry = crate::Registry::open_dir(root.path()).unwrap();
    let staged = |n: u32| root.path().join(format!("m/blobs/{}#{n}", Digest::of(b"a model")));
    std::fs::create_dir_all(root.path().join("m/blobs")).unwrap();
    for n in 1..=3 {
        std::fs::write(staged(n), b"half").unwrap();
    }
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3_600);
    for n in [1, 3] {
        std::fs::File::options().write(true).open(staged(n)).unwrap().set_modified(old).unwrap();
    }
    registry.publish(request(files.path(), "m", None, &[("model.onnx", b"a model")]), &NoProgress).await.unwrap();
    let left: Vec<bool> = (1..=3).map(|n| staged(n).exists()).collect();
    assert_eq!(left, [false, true, false]);
}

#[tokio::test]
async fn a_damaged_blob_of_the_wrong_size_is_mended_by_publishing_again() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        let blob = Path::from(format!("m/blobs/{}", Digest::of(b"a model")));
        store.put(&blob, "cut".into()).await.unwrap();
        let again = registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        assert_eq!(again.reused_bytes, 11);
        assert_eq!(store.get(&blob).await.unwrap().bytes().await.unwrap(), "a model");
    }
}

#[test]
fn a_file_or_a_directory_is_collected() {
    let dir = tempfile::tempdir().unwrap();
    request(dir.path(), "m", None, &[("model.onnx", b""), ("b/c.bin", b""), (".hidden", b""), ("a.txt", b"")]);
    let collected = crate::collect_files(dir.path()).unwrap();
    assert_eq!(collected.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["a.txt", "b/c.bin", "model.onnx"]);
    let one = crate::collect_files(&dir.path().join("model.onnx")).unwrap();
    assert_eq!(one[0].0, "model.onnx");
    assert!(crate::collect_files(&dir.path().join("nothing")).is_err());
    std::os::unix::fs::symlink(".", dir.path().join("loop")).unwrap();
    assert!(crate::collect_files(dir.path()).unwrap_err().to_string().contains("too deep"));
}
