//! Fetches from servers that do it their own way, and from a store behind one.

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::json;

use super::super::artifacts::{Artifacts, Stamp, Stored};
use super::answers::{MLMODEL, files};
use super::fake::{Answer, Asked, Fake};
use super::*;
use crate::source::NoProgress;

/// A server with one version whose file is answered so.
fn answer(asked: &Asked, file: &Answer, bytes: u64) -> Answer {
    let path = asked.path.as_str();
    match path.rsplit('/').next().unwrap_or_default() {
        "search" if path.contains("registered-models") => Answer::json(&json!({ "registered_models": [{ "name": "a" }] })),
        "search" => Answer::json(&json!({ "model_versions": [{ "version": "1", "source": "models:/m-1" }] })),
        "get-download-uri" => Answer::json(&json!({ "artifact_uri": "mlflow-artifacts:/m" })),
        "artifacts" => Answer::json(&json!({ "files": files(bytes) })),
        "MLmodel" => Answer::with(200, "", MLMODEL.as_bytes()),
        _ => file.clone(),
    }
}

async fn fetch(file: Answer) -> Result<Vec<u8>, FetchError> {
    let fake = Fake::start(move |asked| answer(asked, &file, 5)).await;
    let source = fake.source(MlflowOptions::default());
    let listing = source.list(None).await.unwrap().unwrap();
    let generation = Arc::clone(&model_of(&listing, "a").versions[&1]);
    assert_eq!(generation.manifest.files.len(), 1, "MLmodel is not served");
    let dest = tempfile::tempdir().unwrap();
    source.fetch(&generation, dest.path(), &NoProgress).await?;
    Ok(std::fs::read(dest.path().join("model.onnx")).unwrap())
}

#[tokio::test]
async fn servers_with_ranges_and_without() {
    let part = |range: &str, body: &[u8]| Answer::with(206, &format!("content-range: bytes {range}\r\n"), body);
    assert_eq!(fetch(part("0-4/5", b"hello")).await.unwrap(), b"hello");
    assert_eq!(fetch(Answer::with(200, "", b"hello")).await.unwrap(), b"hello");
    let check = async |file: Answer, expected: fn(&FetchError) -> bool| {
        let error = fetch(file).await.unwrap_err();
        assert!(expected(&error), "{error:?}");
    };
    let changed = |error: &FetchError| matches!(error, FetchError::Changed { .. });
    let unavailable = |error: &FetchError| matches!(error, FetchError::Unavailable { .. });
    check(part("0-4/9", b"hello"), changed).await;
    check(Answer::with(200, "", b"hello world"), changed).await;
    check(Answer::with(416, "", b""), changed).await;
    check(Answer::with(206, "", b"hello"), unavailable).await;
    check(part("1-5/5", b"hello"), unavailable).await;
    check(Answer::with(500, "", b""), unavailable).await;
    check(Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel"), unavailable).await;
    check(Answer::with(404, "", b""), |error| matches!(error, FetchError::NotFound { .. })).await;
}

#[tokio::test]
async fn what_was_replaced_since_it_was_listed_is_not_fetched() {
    let file = || Answer::with(200, "", b"hello");
    let fake = Fake::start(move |asked| answer(asked, &file(), 5)).await;
    let source = fake.source(MlflowOptions::default());
    let listing = source.list(None).await.unwrap().unwrap();
    let generation = Arc::clone(&model_of(&listing, "a").versions[&1]);
    fake.change(move |asked| answer(asked, &file(), 6));
    fake.asked();
    let dest = tempfile::tempdir().unwrap();
    let error = source.fetch(&generation, dest.path(), &NoProgress).await.unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. }) && error.is_transient(), "{error:?}");
    assert!(fake.asked().iter().all(|asked| !asked.path.ends_with("model.onnx")), "not a byte of it was asked for");
    // The next look reads it anew, although the searches say what they said before.
    let replaced = || Answer::with(200, "", b"hello!");
    fake.change(move |asked| match asked.path.ends_with("/artifacts") {
        true => Answer::with(500, "", b""),
        false => answer(asked, &replaced(), 6),
    });
    let failed = source.list(None).await.unwrap().unwrap();
    assert!(!failed.complete && model_of(&failed, "a").unsettled.contains(&1), "{failed:?}");
    fake.change(move |asked| answer(asked, &replaced(), 6));
    let listing = source.list(Some(&failed.cursor)).await.unwrap().unwrap();
    let generation = Arc::clone(&model_of(&listing, "a").versions[&1]);
    source.fetch(&generation, dest.path(), &NoProgress).await.unwrap();
    assert_eq!(std::fs::read(dest.path().join("model.onnx")).unwrap(), b"hello!");
    fake.asked();
    assert!(source.list(Some(&listing.cursor)).await.unwrap().is_none());
    assert_eq!(fake.asked().len(), 1, "and no look after it does");
}

#[tokio::test]
async fn a_store_behind_the_server() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let put = async |path: &str, content: &'static str| store.put(&Path::from(path), content.into()).await.unwrap();
    put("runs/1/MLmodel", MLMODEL).await;
    put("runs/1/data/weights.bin", "weights").await;
    put("runs/12/other", "of another version").await;
    let artifacts = Artifacts::Stored(Stored { store: Arc::clone(&store), folder: "runs/1".into() });
    let listed = artifacts.list("it").await.unwrap();
    assert_eq!(listed.keys().collect::<Vec<_>>(), ["MLmodel", "data/weights.bin"]);
    assert_eq!(artifacts.read_small("it", "MLmodel", 1 << 20).await.unwrap(), MLMODEL.as_bytes());
    let stamp: &Stamp = &listed["data/weights.bin"];
    assert!(stamp.bytes == 7 && stamp.e_tag.is_some(), "{stamp:?}");
    let file = ManifestFile { path: "data/weights.bin".into(), sha256: None, bytes: 7 };
    let bring = async |dest: &std::path::Path| {
        let content = Content::Ranged(artifacts.ranged("it".into(), "data/weights.bin", stamp));
        crate::transfer::bring(content, &file, dest, &NoProgress).await
    };
    let dest = tempfile::tempdir().unwrap();
    assert_eq!(bring(dest.path()).await.unwrap().sha256, crate::digest::Digest::of(b"weights"));
    put("runs/1/data/weights.bin", "WEIGHTS").await;
    let dest = tempfile::tempdir().unwrap();
    let error = bring(dest.path()).await.unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. }), "of the same size, and still told: {error:?}");
}
