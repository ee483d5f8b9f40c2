//! Registries at `s3://`, against SeaweedFS and, as a second opinion, moto.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::conformance::check;
use bascule_registry::{
    GC_GRACE, ManualClock, NoProgress, Op, PublishError, REPAIR_INTERVAL, Registry, StoreEnvironment, VersionSource as _,
};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::journals::{check_refused, check_shared};
use crate::layouts::{Ours, Place, Plain, key, request};
use crate::seaweedfs::{ACCESS_KEY, SECRET_KEY, SeaweedFs};
use crate::servers::{Server, find_or_skip, free_port, listens, until};

/// Far more than what bounds a look, and far less than what the store's client would take by itself.
const SOON: Duration = Duration::from_secs(60);

/// An error with all that caused it.
pub fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn conformance_on_seaweedfs() {
    let Some((server, weed)) = SeaweedFs::start().await else { return };
    weed.make_bucket("models").await;
    check_shared("s3://models/team/decisions", &weed.environment()).await;
    let wrong = weed.environment_with(ACCESS_KEY, "wrong-secret");
    let parts = ["rollout.journal s3://models/team/decisions", "SignatureDoesNotMatch", "AKIA…7Q"];
    check_refused("s3://models/team/decisions", &wrong, &parts, "wrong-secret").await;
    let open = |place: &str| Registry::open_in(place, &weed.environment()).unwrap();
    let place = |at: &str, prefix: &str| Place::new(open(at), Arc::new(weed.store("models")), prefix);
    check(&Ours::new(place("s3://models/team/ours", "team/ours"), open("s3://models/team/ours"))).await;
    check(&Plain(place("s3://models/plain", "plain").ended_by(server))).await;
}

#[tokio::test]
async fn what_is_refused_says_what_was_tried() {
    let Some((server, weed)) = SeaweedFs::start().await else { return };
    weed.make_bucket("models").await;
    let refused = async |place: &str, environment: &StoreEnvironment| {
        let error = Registry::open_in(place, environment).unwrap().list(None).await.unwrap_err();
        let told = told(&error);
        assert!(!told.contains(SECRET_KEY) && !told.contains("wrong-secret") && !told.contains("<"), "{told}");
        told
    };
    let check = |told: &str, parts: &[&str]| {
        for part in parts {
            assert!(told.contains(part), "{told}\nshould say {part}");
        }
    };
    let endpoint = format!("endpoint http://127.0.0.1:{}", weed.s3);
    let wrong = refused("s3://models/prod", &weed.environment_with(ACCESS_KEY, "wrong-secret")).await;
    check(
        &wrong,
        &["s3://models/prod refused (403 SignatureDoesNotMatch", "the access key AKIA…7Q from AWS_ACCESS_KEY_ID", &endpoint],
    );
    let unknown = refused("s3://models/prod", &weed.environment_with("AKIANOBODYKNOWSTHIS0", "wrong-secret")).await;
    check(&unknown, &["refused (403 InvalidAccessKeyId", "AKIA…S0", "region us-east-1"]);
    let missing = refused("s3://no-such-bucket/prod", &weed.environment()).await;
    check(&missing, &["bucket `no-such-bucket` does not exist (404 NoSuchBucket"]);

    // A publisher is told the same.
    let registry = Registry::open_in("s3://models/prod", &weed.environment_with(ACCESS_KEY, "wrong-secret")).unwrap();
    let files = tempfile::tempdir().unwrap();
    let error = registry.publish(request(files.path(), &key("m", 1), &[("model.onnx", b"x")]), &NoProgress).await.unwrap_err();
    check(&told(&error), &["refused (403 SignatureDoesNotMatch", "AKIA…7Q"]);

    // A server that is gone is found out soon, and is no empty registry.
    drop(server);
    let environment = weed.environment();
    let gone = tokio::time::timeout(SOON, refused("s3://models/prod", &environment))
        .await
        .expect("an answer long before a client's usual 3 minutes");
    check(&gone, &["s3://models/prod can't be reached (", "AKIA…7Q", &endpoint]);
}

#[tokio::test]
async fn of_two_publishers_of_a_version_one_wins() {
    let Some((_server, weed)) = SeaweedFs::start().await else { return };
    weed.make_bucket("models").await;
    let files = tempfile::tempdir().unwrap();
    let publish = async |content: &[u8], folder: &str| {
        let registry = Registry::open_in("s3://models", &weed.environment()).unwrap();
        registry.publish(request(&files.path().join(folder), &key("m", 1), &[("model.onnx", content)]), &NoProgress).await
    };
    let (a, b) = tokio::join!(publish(b"one", "a"), publish(b"two", "b"));
    let (won, lost) = if a.is_ok() { (a, b) } else { (b, a) };
    let lost = lost.unwrap_err();
    assert!(matches!(lost, PublishError::AlreadyExists { .. }), "{lost}");
    let source = Registry::open_in("s3://models", &weed.environment()).unwrap();
    let listing = source.list(None).await.unwrap().unwrap();
    assert_eq!(listing.generation(&key("m", 1)).unwrap().digest, won.unwrap().digest);
}

/// A bucket that is put back to an older state while somebody follows it; and a folder with more pages than one.
#[tokio::test]
async fn a_bucket_that_was_restored_is_followed_on() {
    let Some((_server, weed)) = SeaweedFs::start().await else { return };
    weed.make_bucket("models").await;
    let (files, clock, store) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::default()), weed.store("models"));
    let writer = Registry::open_in("s3://models", &weed.environment()).unwrap();
    let reader = Registry::open_in("s3://models", &weed.environment()).unwrap();
    let reader = reader.with_clock(Arc::<ManualClock>::clone(&clock));
    let publish = async |version: u64, content: &str| {
        let wanted = request(&files.path().join(content), &key("m", version), &[("model.onnx", content.as_bytes())]);
        writer.publish(wanted, &NoProgress).await.unwrap().digest
    };
    let pin = async |version| {
        let op = Op::Pin { version };
        writer.append(&key("m", 1).model, op, "me", "", uuid::Uuid::new_v4()).await.unwrap();
    };
    publish(1, "one").await;
    pin(1).await;
    let all = async || -> BTreeMap<Path, bytes::Bytes> {
        let mut objects = BTreeMap::new();
        for object in store.list(None).try_collect::<Vec<_>>().await.unwrap() {
            let content = store.get(&object.location).await.unwrap().bytes().await.unwrap();
            objects.insert(object.location, content);
        }
        objects
    };
    let backup = all().await;
    let lost = publish(2, "two").await;
    pin(2).await;
    let before = reader.list(None).await.unwrap().unwrap();
    assert_eq!((before.models["m"].versions.len(), before.models["m"].rollout.pinned), (2, Some(2)));
    for path in all().await.into_keys() {
        store.delete(&path).await.unwrap();
    }
    for (path, content) in backup {
        store.put(&path, content.into()).await.unwrap();
    }
    clock.advance(REPAIR_INTERVAL);
    let repaired = reader.list(None).await.unwrap().unwrap();
    assert!(repaired.complete && repaired.problems[0].contains("restored from an older backup"), "{:?}", repaired.problems);
    assert_eq!((repaired.models["m"].versions.len(), repaired.models["m"].rollout.pinned), (1, Some(1)));
    let published = publish(2, "another two").await;
    pin(2).await;
    let after = reader.list(None).await.unwrap().unwrap();
    assert_eq!((after.generation(&key("m", 2)).unwrap().digest, after.models["m"].rollout.pinned), (published, Some(2)));
    assert_ne!(published, lost);

    // A folder is listed in pages of a thousand.
    let blobs = (0..2_500).map(|nth| Path::from(format!("m/blobs/{nth:064x}")));
    let puts = futures::stream::iter(blobs).map(async |path| store.put(&path, "x".into()).await);
    puts.buffer_unordered(16).try_collect::<Vec<_>>().await.unwrap();
    let found = writer.collect_garbage(GC_GRACE, false).await.unwrap();
    assert_eq!((found.len(), found[0].young.len()), (1, 2_500));
}

/// Moto takes any credentials.
fn moto_environment(port: u16) -> StoreEnvironment {
    let endpoint = format!("http://127.0.0.1:{port}");
    let variables = [("AWS_ACCESS_KEY_ID", "anybody"), ("AWS_SECRET_ACCESS_KEY", "anything"), ("AWS_ENDPOINT_URL_S3", &endpoint)];
    variables.into_iter().collect()
}

#[tokio::test]
#[ignore = "long: needs moto"]
async fn conformance_on_moto() {
    let Some(program) = find_or_skip("moto/bin/moto_server") else { return };
    let port = free_port();
    let start = |_: &std::path::Path| {
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command
    };
    let server = Server::start(start, || listens(port));
    until("the bucket is made", async || {
        let made = reqwest::Client::new().put(format!("http://127.0.0.1:{port}/models")).send().await;
        made.is_ok_and(|made| made.status().is_success())
    })
    .await;
    let store = AmazonS3Builder::new().with_bucket_name("models").with_endpoint(format!("http://127.0.0.1:{port}"));
    let store = store.with_allow_http(true).with_access_key_id("anybody").with_secret_access_key("anything").build().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    store.put(&"unrelated".into(), "x".into()).await.unwrap();
    let open = |place: &str| Registry::open_in(place, &moto_environment(port)).unwrap();
    let missing = open("s3://no-such-bucket").list(None).await.unwrap_err();
    assert!(told(&missing).contains("bucket `no-such-bucket` does not exist"), "{}", told(&missing));
    check_shared("s3://models/decisions", &moto_environment(port)).await;
    let place = |at: &str, prefix: &str| Place::new(open(at), Arc::clone(&store), prefix);
    check(&Ours::new(place("s3://models/ours", "ours"), open("s3://models/ours"))).await;
    check(&Plain(place("s3://models/plain", "plain").ended_by(server))).await;
}
