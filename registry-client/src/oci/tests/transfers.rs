//! Bytes that come otherwise than they should.

use futures::TryStreamExt as _;

use super::blobs::Blob;
use super::fake::Answer;
use super::*;
use crate::digest::Digest;
use crate::source::{FetchError, NoProgress};
use crate::transfer::Ranges as _;

const DIGITS: &[u8] = b"0123456789";

async fn read(fake: &Fake, range: std::ops::Range<u64>) -> Result<Vec<u8>, FetchError> {
    let (registry, _) = open(&fake.place("digits"));
    let (client, what) = (Arc::clone(&registry.client), "a file".to_owned());
    let blob = Blob { client, repository: "digits".into(), digest: Digest::of(DIGITS), what };
    let pieces: Vec<_> = blob.read(range).await?.try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn parts_are_read_whether_the_registry_knows_ranges_or_not() {
    let fake = Fake::start().await;
    fake.push("digits", "1", &[("model.onnx", DIGITS)]);
    for knows in [true, false] {
        if !knows {
            fake.bend(|request| request.path().contains("/blobs/").then(|| Answer::of(200, DIGITS)));
        }
        assert_eq!(read(&fake, 3..6).await.unwrap(), b"345");
        assert_eq!(read(&fake, 0..10).await.unwrap(), DIGITS);
        assert_eq!(read(&fake, 9..10).await.unwrap(), b"9");
        assert_eq!(read(&fake, 8..20).await.unwrap(), b"89", "fewer where the file ends before");
        assert_eq!(read(&fake, 10..20).await.unwrap(), b"");
        assert_eq!(read(&fake, 4..4).await.unwrap(), b"");
    }
    fake.bend(|_| Some(Answer::of(206, "0123").with("content-range", "bytes 0-3/10")));
    assert!(whole(&read(&fake, 3..6).await.unwrap_err()).contains("another part"));
}

#[tokio::test]
async fn what_differs_from_the_manifest_is_told_by_its_kind() {
    let fake = Fake::start().await;
    fake.push("digits", "1", &[("model.onnx", DIGITS)]);
    let (registry, _) = open(&fake.place("digits"));
    let listing = list(&registry).await;
    let version = &listing.models[&name("digits")].versions[&1];
    let fetch = async |answer: Answer| {
        fake.bend(move |_| Some(answer.clone()));
        let dest = tempfile::tempdir().unwrap();
        registry.fetch(version, dest.path(), &NoProgress).await.unwrap_err()
    };
    let corrupt = fetch(Answer::of(200, "012345678x")).await;
    assert!(matches!(&corrupt, FetchError::Corrupt { file, .. } if file == "model.onnx"), "{corrupt}");
    let truncated = fetch(Answer { claimed: Some(10), ..Answer::of(200, "0123") }).await;
    assert!(truncated.is_transient(), "{truncated}");
    let short = fetch(Answer::of(200, "0123")).await;
    assert!(matches!(short, FetchError::Size { expected: 10, actual: 4, .. }), "{short}");
    let gone = fetch(Answer::of(404, "")).await;
    assert!(matches!(gone, FetchError::NotFound { .. }) && !gone.is_transient(), "{gone}");
    let broken = fetch(Answer::of(500, "")).await;
    assert!(broken.is_transient() && whole(&broken).contains("500"), "{}", whole(&broken));
}
