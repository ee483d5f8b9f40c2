//! Publishing, and those who publish at the same time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fake::Answer;
use super::*;
use crate::registry::{PublishError, PublishRequest, PublishTarget};
use crate::source::{NoProgress, Progress};
use crate::testing::request;

fn digits(dir: &Path, version: Option<u64>, files: &[(&str, &[u8])]) -> PublishRequest {
    request(dir, "digits", version, files)
}

#[derive(Default)]
struct Recorder(Mutex<BTreeMap<String, Vec<(u64, u64)>>>);

impl Progress for Recorder {
    fn advance(&self, file: &str, done: u64, total: u64) {
        self.0.lock().unwrap().entry(file.to_owned()).or_default().push((done, total));
    }
}

#[tokio::test]
async fn a_version_is_published_whole_and_read_back() {
    let (fake, dir) = (Fake::start().await, tempfile::tempdir().unwrap());
    let (registry, _) = open(&fake.place("team/digits"));
    let large = vec![7; (17 << 20) + 5];
    let files: &[(&str, &[u8])] = &[("model.onnx", b"the model"), ("data/weights.bin", &large), ("empty", b"")];
    let mut request = digits(dir.path(), None, files);
    request.metrics.insert("accuracy".into(), 0.97);
    request.lineage.code = Some("abc123".into());
    let progress = Recorder::default();
    let target: &dyn PublishTarget = &registry;
    let published = target.publish(request, &progress).await.unwrap();
    assert_eq!((published.key.to_string().as_str(), published.reused_bytes), ("digits@1", 0));
    let told = progress.0.into_inner().unwrap();
    let pieces = [(0, 8 << 20), (0, 16 << 20), (0, large.len() as u64)].map(|(_, done)| done);
    let weights: Vec<u64> = told["data/weights.bin"].iter().map(|(done, _)| *done).collect();
    assert_eq!(weights, [&[0][..], &pieces, &pieces[2..]].concat(), "in pieces, and progress ends at the size");
    let listing = list(&registry).await;
    let version = &listing.models[&name("digits")].versions[&1];
    assert_eq!((version.digest, version.bytes), (published.digest, published.bytes));
    assert_eq!((version.manifest.metrics["accuracy"], version.manifest.publisher.as_str()), (0.97, "tester"));
    let stored = fake.change(|content| content.manifests[&("team/digits".into(), "1".into())].clone());
    let stored: serde_json::Value = serde_json::from_slice(&stored).unwrap();
    assert_eq!(stored["artifactType"], "application/vnd.bascule.model.v1");
    assert_eq!(stored["annotations"]["org.opencontainers.image.revision"], "abc123");
    let dest = tempfile::tempdir().unwrap();
    registry.fetch(version, dest.path(), &NoProgress).await.unwrap();
    assert!(std::fs::read(dest.path().join("data/weights.bin")).unwrap() == large);

    fake.asked();
    let again = registry.publish(digits(dir.path(), None, files), &NoProgress).await.unwrap();
    assert_eq!((again.key.version, again.reused_bytes), (2, again.bytes));
    let uploads = fake.asked().iter().filter(|request| request.method == "POST").count();
    assert_eq!(uploads, 1, "the manifest alone");
}

#[tokio::test]
async fn numbers_that_are_taken_and_names_that_can_not_be_are_refused() {
    let (fake, dir) = (Fake::start().await, tempfile::tempdir().unwrap());
    let (registry, _) = open(&fake.place("models"));
    fake.push("models/digits", "7", MODEL);
    fake.push("models/digits", "latest", MODEL);
    let taken = registry.publish(digits(dir.path(), Some(7), MODEL), &NoProgress).await.unwrap_err();
    assert!(matches!(taken, PublishError::AlreadyExists { .. }), "{taken}");
    assert!(fake.asked().iter().all(|request| request.method == "HEAD"), "nothing was uploaded");
    let published = registry.publish(digits(dir.path(), None, MODEL), &NoProgress).await.unwrap();
    assert_eq!(published.key.version, 8);
    let capital = registry.publish(request(dir.path(), "Digits", None, MODEL), &NoProgress).await.unwrap_err();
    assert!(whole(&capital).contains("`model` should be lower-case"), "{}", whole(&capital));
}

/// Two publishers of one number, whose puts of the manifest come at the same moment.
async fn race(fake: &Fake) -> [Result<crate::registry::Published, PublishError>; 2] {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (one, _) = open(&fake.place("digits"));
    let (other, _) = open(&fake.place("digits"));
    let requests = [b"one", b"two"].map(|content| content.as_slice());
    let [first, second] = [0, 1].map(|nth| digits(dirs[nth].path(), Some(1), &[("model.onnx", requests[nth])]));
    let (first, second) = tokio::join!(one.publish(first, &NoProgress), other.publish(second, &NoProgress));
    [first, second]
}

#[tokio::test]
async fn of_two_publishers_of_one_number_one_wins_and_the_other_is_told() {
    for conditional in [true, false] {
        let fake = Fake::start_as(conditional, Some(2)).await;
        let outcomes = race(&fake).await;
        let lost: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(matches!(lost[..], [PublishError::AlreadyExists { .. }]), "conditional: {conditional}: {outcomes:?}");
        let won = outcomes.iter().find_map(|outcome| outcome.as_ref().ok()).unwrap();
        let (reader, _) = open(&fake.place("digits"));
        let listing = list(&reader).await;
        assert_eq!(listing.models[&name("digits")].versions[&1].digest, won.digest, "what was told is what is there");
    }
}

#[tokio::test]
async fn an_answer_that_is_lost_or_lies_is_noticed() {
    let (fake, dir) = (Fake::start().await, tempfile::tempdir().unwrap());
    let (registry, _) = open(&fake.place("digits"));
    // Uploads break off twice, and are begun again.
    let broken = Arc::new(AtomicUsize::new(0));
    fake.bend(move |request| {
        let breaks = request.method == "PUT" && request.path().contains("/uploads/") && broken.fetch_add(1, Ordering::SeqCst) < 2;
        breaks.then(|| Answer { claimed: Some(10), ..Answer::of(500, "") })
    });
    registry.publish(digits(dir.path(), None, MODEL), &NoProgress).await.unwrap();

    let lie = format!("sha256:{}", crate::digest::Digest::of(b"another"));
    fake.bend(move |request| {
        let lies = request.method == "PUT" && request.path().contains("/uploads/");
        lies.then(|| Answer::of(201, "").with("docker-content-digest", lie.clone()))
    });
    let another: &[(&str, &[u8])] = &[("model.onnx", b"another model")];
    let error = registry.publish(digits(dir.path(), None, another), &NoProgress).await.unwrap_err();
    assert!(whole(&error).contains("whose sha256 is"), "{}", whole(&error));

    // A put that fails and leaves no tag is a failure.
    fake.bend(|request| {
        let put = request.method == "PUT" && request.path().contains("/manifests/");
        put.then(|| Answer::of(502, "bad gateway"))
    });
    let error = registry.publish(digits(dir.path(), None, another), &NoProgress).await.unwrap_err();
    assert!(matches!(error, PublishError::Unavailable { .. }) && whole(&error).contains("502"), "{}", whole(&error));
    fake.straighten();
    assert!(list(&registry).await.models[&name("digits")].versions.keys().eq(&[1]));
}

#[tokio::test]
async fn a_registry_that_fails_to_read_for_a_moment_is_asked_again() {
    let (fake, dir) = (Fake::start().await, tempfile::tempdir().unwrap());
    let (registry, _) = open(&fake.place("digits"));
    let failures = AtomicUsize::new(2);
    let fails = move || failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
    fake.bend(move |request| (request.path().ends_with("/manifests/1") && fails()).then(|| Answer::of(500, "")));
    let published = registry.publish(digits(dir.path(), Some(1), &[("model.onnx", b"m")]), &NoProgress).await.unwrap();
    assert_eq!(published.key.version, 1);
    fake.bend(|request| (request.method != "PUT").then(|| Answer::of(502, "")));
    let error = registry.publish(digits(dir.path(), Some(2), &[("model.onnx", b"m")]), &NoProgress).await.unwrap_err();
    assert!(whole(&error).contains("502"), "{}", whole(&error));
}
