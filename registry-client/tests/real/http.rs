//! Registries at `http://`: read through WebDAV where the server has it, else through the change log alone.

use std::process::Command;
use std::sync::Arc;

use bascule_registry::conformance::check;
use bascule_registry::{
    JournalError, NoProgress, Op, PublishError, Registry, SecretKey, StoreEnvironment, Trust, VersionSource as _,
};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use uuid::Uuid;

use crate::layouts::{Ours, Place, Plain, key, request};
use crate::s3::told;
use crate::seaweedfs::SeaweedFs;
use crate::servers::{Server, free_port, listens, skip};

fn open(place: &str) -> Registry {
    Registry::open_in(place, &StoreEnvironment::default()).unwrap()
}

/// A server that can't list says nothing of a registry that was never written to: this one was, and is empty again.
async fn begin_log(store: &dyn ObjectStore, prefix: &str) {
    let first = Path::from(format!("{prefix}/_changes/00000000000000000001.json"));
    store.put(&first, r#"{"seq":1,"model":"gone","what":"publish","version":1}"#.into()).await.unwrap();
}

#[tokio::test]
async fn conformance_through_webdav() {
    let Some((server, weed)) = SeaweedFs::start().await else { return };
    weed.make_bucket("models").await;
    let place = |prefix: &str| {
        let source = open(&format!("http://127.0.0.1:{}/buckets/models/{prefix}", weed.webdav));
        Place::new(source, Arc::new(weed.store("models")), prefix)
    };
    let writer = Registry::open_in("s3://models/ours", &weed.environment()).unwrap();
    check(&Ours::new(place("ours"), writer)).await;
    check(&Plain(place("plain").ended_by(server))).await;
}

#[tokio::test]
async fn conformance_through_the_change_log_of_a_file_server() {
    let Some((server, weed)) = SeaweedFs::start().await else { return };
    weed.make_bucket("models").await;
    let store = Arc::new(weed.store("models"));
    begin_log(store.as_ref(), "ours").await;
    let source = open(&format!("http://127.0.0.1:{}/buckets/models/ours", weed.files));
    let writer = Registry::open_in("s3://models/ours", &weed.environment()).unwrap();
    check(&Ours::new(Place::new(source, store, "ours").ended_by(server), writer)).await;
}

/// Python's own server: no lists, no ranges, no tags.
fn serve_folder(folder: &std::path::Path) -> Option<(Server, u16)> {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        skip("there is no python3");
        return None;
    }
    let port = free_port();
    let start = |_: &std::path::Path| {
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]).arg(folder).arg(port.to_string());
        command
    };
    Some((Server::start(start, || listens(port)), port))
}

#[tokio::test]
async fn conformance_through_the_change_log_of_the_simplest_server() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, port)) = serve_folder(folder.path()) else { return };
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    begin_log(store.as_ref(), "models").await;
    let writer = Registry::open_dir(&folder.path().join("models")).unwrap();
    let source = open(&format!("http://127.0.0.1:{port}/models"));
    check(&Ours::new(Place::new(source, store, "models").ended_by(server), writer)).await;
}

#[tokio::test]
async fn a_web_server_is_read_and_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_server, port)) = serve_folder(folder.path()) else { return };
    let root = folder.path().join("models");
    std::fs::create_dir(&root).unwrap();
    let place = format!("http://127.0.0.1:{port}/models");
    let nothing = told(&open(&place).list(None).await.unwrap_err());
    assert!(nothing.contains("neither WebDAV nor a change log (models/_changes/00000000000000000001.json)"), "{nothing}");

    let (writer, files) = (Registry::open_dir(&root).unwrap(), tempfile::tempdir().unwrap());
    writer.publish(request(files.path(), &key("m", 1), &[("model.onnx", b"x")]), &NoProgress).await.unwrap();
    writer.publish(request(files.path(), &key("m", 2), &[("model.onnx", b"y")]), &NoProgress).await.unwrap();
    std::fs::write(root.join("m/model.toml"), "[labels]\ny = \"labels.txt\"").unwrap();
    std::fs::write(root.join("m/labels.txt"), "zero\none").unwrap();
    let alias = |version| Op::Alias { name: "prod".into(), version: Some(version) };
    writer.append(&key("m", 1).model, alias(1), "me", "", Uuid::new_v4()).await.unwrap();

    let source = open(&place);
    let first = source.list(None).await.unwrap().unwrap();
    let model = &first.models["m"];
    assert_eq!(model.versions.keys().collect::<Vec<_>>(), [&1, &2]);
    assert_eq!(model.settings.keys().collect::<Vec<_>>(), ["labels.txt", "model.toml"]);
    assert_eq!(model.aliases["prod"], 1);
    writer.append(&key("m", 1).model, alias(2), "me", "", Uuid::new_v4()).await.unwrap();
    let next = source.list(Some(&first.cursor)).await.unwrap().unwrap();
    assert_eq!(next.models["m"].aliases["prod"], 2);

    let (mine, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    let trusting = open(&place).reading_signatures(Arc::new(Trust::new([mine.public()])));
    let unsigned = trusting.list(None).await.unwrap().unwrap();
    assert!(unsigned.models["m"].versions.values().all(|version| version.signatures.is_empty()));
    writer.sign(&key("m", 2), &other).await.unwrap();
    writer.sign(&key("m", 2), &mine).await.unwrap();
    let signed = trusting.list(Some(&unsigned.cursor)).await.unwrap().expect("a signature was added");
    let by = |version: u64| signed.models["m"].versions[&version].signatures.iter().map(|one| one.key.clone()).collect::<Vec<_>>();
    assert_eq!((by(1), by(2)), (vec![], vec![mine.public().to_string()]));

    let error = source.publish(request(files.path(), &key("m", 3), &[("model.onnx", b"z")]), &NoProgress).await.unwrap_err();
    assert!(matches!(error, PublishError::NoPutIfAbsent { .. }), "{error}");
    assert!(error.to_string().contains(&place) && error.to_string().contains("put-if-absent"), "{error}");
    let error = source.append(&key("m", 1).model, alias(1), "me", "", Uuid::new_v4()).await.unwrap_err();
    assert!(matches!(error, JournalError::NoPutIfAbsent { .. }), "{error}");
}
