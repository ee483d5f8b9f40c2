//! The suite that every [`VersionSource`] passes.
//!
//! [`check`] fills a source through a [`Fixture`] and panics with a sentence where the source differs from what the trait
//! promises. It belongs into the tests of each source. It never waits: time passes only through [`Fixture::pass_time`].
//!
//! Deliberately absent: what only one source has (its layout, its links, its settings, its journal).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use crate::digest::Digest;
use crate::listing::{Cursor, Generation, Listing};
use crate::name::{ModelName, VersionKey, VersionNumber};
use crate::source::{FetchError, NoProgress, Progress, VersionSource};

/// Fills a source, which is empty at first.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The source; the same at each call.
    fn source(&self) -> &dyn VersionSource;

    /// Makes a version exist, made of these files. The first is `model.onnx`.
    async fn add(&self, key: &VersionKey, files: &[(&str, &[u8])]);

    /// Takes a version out of service: it is tombstoned, or gone.
    async fn withdraw(&self, key: &VersionKey);

    /// Lets pass as much time as the source needs to believe its eyes.
    fn pass_time(&self);

    /// Changes what is stored for one file of a version: without a change of its size, but for sources that know files by nothing else.
    /// Whatever the source notices later, a fetch of what was listed before has to fail.
    async fn damage(&self, key: &VersionKey, path: &str);

    /// Makes the whole source unreadable, for good. False where that can't be arranged.
    async fn break_off(&self) -> bool;
}

/// Runs the suite.
///
/// # Panics
/// At the first promise that the source does not keep.
pub async fn check(fixture: &dyn Fixture) {
    empty(fixture).await;
    let first = appearing(fixture).await;
    unchanged(fixture, &first).await;
    fetching(fixture, &first).await;
    growing(fixture, &first).await;
    unknown(fixture, &first).await;
    withdrawing(fixture).await;
    damaging(fixture).await;
    breaking(fixture).await;
}

const FILES: &[(&str, &[u8])] = &[("model.onnx", b"the model"), ("data/weights.bin", b"its weights"), ("empty.txt", b"")];

#[expect(clippy::expect_used, reason = "the suite's own names follow the rule")]
fn key(model: &str, version: VersionNumber) -> VersionKey {
    VersionKey::new(ModelName::new(model).expect("a valid name"), version)
}

async fn list(fixture: &dyn Fixture, since: Option<&Cursor>) -> Option<Listing> {
    match fixture.source().list(since).await {
        Ok(listing) => listing,
        Err(error) => panic!("{} can't be listed: {error}", fixture.source().describe()),
    }
}

/// A listing in which everything has settled.
async fn settled(fixture: &dyn Fixture) -> Listing {
    for _ in 0..3 {
        let listing = list(fixture, None).await.expect_listing("a listing without a cursor is always given");
        if listing.recheck_after.is_none() {
            return listing;
        }
        fixture.pass_time();
    }
    panic!("nothing settles, however much time passes");
}

trait ExpectListing {
    fn expect_listing(self, why: &str) -> Listing;
}

impl ExpectListing for Option<Listing> {
    fn expect_listing(self, why: &str) -> Listing {
        match self {
            Some(listing) => listing,
            None => panic!("{why}"),
        }
    }
}

fn generation(listing: &Listing, key: &VersionKey) -> Generation {
    match listing.generation(key) {
        Some(generation) => generation.as_ref().clone(),
        None => panic!("{key} is not listed: {:?}", listing.models),
    }
}

async fn fetch_into_new(
    fixture: &dyn Fixture,
    wanted: &Generation,
    progress: &dyn Progress,
) -> Result<tempfile::TempDir, FetchError> {
    let dest = match tempfile::tempdir() {
        Ok(dest) => dest,
        Err(error) => panic!("no directory to fetch into: {error}"),
    };
    let fetched = fixture.source().fetch(wanted, dest.path(), progress).await?;
    let mut paths: Vec<_> = fetched.files.iter().map(|file| file.path.clone()).collect();
    paths.sort_unstable();
    let mut wanted_paths: Vec<_> = wanted.manifest.files.iter().map(|file| file.path.clone()).collect();
    wanted_paths.sort_unstable();
    assert_eq!(paths, wanted_paths, "a fetch tells of every file once");
    assert_eq!(fetched.bytes(), wanted.bytes);
    for file in &fetched.files {
        let content = read(dest.path(), &file.path);
        assert_eq!((Digest::of(&content), content.len() as u64), (file.sha256, file.bytes), "{} is as it is told", file.path);
    }
    Ok(dest)
}

fn read(dir: &Path, path: &str) -> Vec<u8> {
    match std::fs::read(dir.join(path)) {
        Ok(content) => content,
        Err(error) => panic!("{path} was not fetched: {error}"),
    }
}

async fn empty(fixture: &dyn Fixture) {
    assert!(!fixture.source().describe().is_empty(), "a source has a name for people");
    let listing = settled(fixture).await;
    assert!(listing.complete && listing.models.is_empty(), "an empty source is read whole: {listing:?}");
    assert!(list(fixture, Some(&listing.cursor)).await.is_none(), "an empty source has not changed");
}

async fn appearing(fixture: &dyn Fixture) -> Listing {
    let before = settled(fixture).await;
    let wanted = key("digits", 1);
    fixture.add(&wanted, FILES).await;
    fixture.pass_time();
    let listing = settled(fixture).await;
    assert_ne!(listing.cursor, before.cursor, "another listing has another cursor");
    assert!(listing.complete);
    let found = generation(&listing, &wanted);
    assert_eq!(found.key, wanted);
    assert!(!found.tombstoned);
    assert_eq!(found.bytes, FILES.iter().map(|(_, content)| content.len() as u64).sum::<u64>());
    assert_eq!((found.manifest.format.as_str(), found.manifest.entrypoint.as_str()), ("onnx", "model.onnx"));
    assert_eq!(found.manifest.validate(), Ok(()));
    assert_eq!(found.manifest.key(), wanted);
    assert_eq!(listing.models.len(), 1);
    for (name, model) in &listing.models {
        assert!(model.problems.is_empty(), "{name}: {:?}", model.problems);
        assert_eq!(name, &model.name);
    }
    listing
}

async fn unchanged(fixture: &dyn Fixture, listing: &Listing) {
    for _ in 0..2 {
        assert!(list(fixture, Some(&listing.cursor)).await.is_none(), "nothing has changed");
    }
    let kept = serde_json::to_vec(&listing.cursor).and_then(|text| serde_json::from_slice::<Cursor>(&text));
    assert_eq!(kept.ok().as_ref(), Some(&listing.cursor), "a cursor can be kept on disk");
    fixture.pass_time();
    assert!(list(fixture, Some(&listing.cursor)).await.is_none(), "time alone changes nothing");
    let again = list(fixture, None).await.expect_listing("a listing without a cursor is always given");
    assert_eq!(generation(&again, &key("digits", 1)), generation(listing, &key("digits", 1)));
}

async fn fetching(fixture: &dyn Fixture, listing: &Listing) {
    let progress = Recorder::default();
    let dest = match fetch_into_new(fixture, &generation(listing, &key("digits", 1)), &progress).await {
        Ok(dest) => dest,
        Err(error) => panic!("the fetch failed: {error}"),
    };
    for (path, content) in FILES {
        assert_eq!(read(dest.path(), path), *content, "{path}");
    }
    let told = progress.0.lock().unwrap_or_else(PoisonError::into_inner);
    for (path, content) in FILES {
        let size = content.len() as u64;
        let steps = told.get(*path).map(Vec::as_slice).unwrap_or_default();
        assert!(steps.is_sorted() && steps.last() == Some(&(size, size)), "progress of {path} ends at its size: {steps:?}");
    }
}

#[derive(Default)]
struct Recorder(Mutex<BTreeMap<String, Vec<(u64, u64)>>>);

impl Progress for Recorder {
    fn advance(&self, file: &str, done: u64, total: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(file.to_owned()).or_default().push((done, total));
    }
}

async fn growing(fixture: &dyn Fixture, before: &Listing) {
    fixture.add(&key("digits", 12), &[("model.onnx", b"the next")]).await;
    fixture.add(&key("other", 3), &[("model.onnx", b"another")]).await;
    fixture.pass_time();
    let changed = list(fixture, Some(&before.cursor)).await.expect_listing("two versions are new");
    assert!(changed.complete);
    let listing = settled(fixture).await;
    let versions: Vec<_> = listing.models.values().flat_map(|model| model.versions.values().map(|one| one.key.clone())).collect();
    assert_eq!(versions, [key("digits", 1), key("digits", 12), key("other", 3)]);
    let digests: std::collections::BTreeSet<_> =
        listing.models.values().flat_map(|model| model.versions.values().map(|one| one.digest)).collect();
    assert_eq!(digests.len(), 3, "each content has its own digest");
    assert_eq!(generation(&listing, &key("digits", 1)), generation(before, &key("digits", 1)), "what was there stays as it was");
}

async fn unknown(fixture: &dyn Fixture, listing: &Listing) {
    let real = generation(listing, &key("digits", 1));
    let mut manifest = real.manifest.as_ref().clone();
    manifest.version = 77;
    manifest.files.iter_mut().for_each(|file| file.sha256 = file.sha256.map(|_| Digest::of(b"nowhere")));
    let forged = Generation { key: key("digits", 77), digest: Digest::of(b"nobody"), manifest: manifest.into(), ..real };
    assert!(fetch_into_new(fixture, &forged, &NoProgress).await.is_err(), "a version that is not there can't be fetched");
}

async fn withdrawing(fixture: &dyn Fixture) {
    let before = settled(fixture).await;
    fixture.withdraw(&key("other", 3)).await;
    let listing = list(fixture, Some(&before.cursor)).await.expect_listing("a version has left");
    assert!(listing.complete, "what is gone is gone, and not a failure to read");
    assert!(listing.generation(&key("other", 3)).is_none_or(|left| left.tombstoned));
    assert!(listing.generation(&key("digits", 12)).is_some_and(|stayed| !stayed.tombstoned));
}

async fn damaging(fixture: &dyn Fixture) {
    let wanted = key("digits", 12);
    let listed = generation(&settled(fixture).await, &wanted);
    fixture.damage(&wanted, "model.onnx").await;
    match fetch_into_new(fixture, &listed, &NoProgress).await {
        Ok(_) => panic!("a damaged file was taken for what was listed"),
        Err(FetchError::Corrupt { file, expected, actual }) => {
            assert_eq!((file.as_str(), expected), ("model.onnx", Digest::of(b"the next")));
            assert_ne!(expected, actual);
        }
        Err(error) => assert!(matches!(error, FetchError::Changed { .. }), "neither corrupt nor changed: {error}"),
    }
}

async fn breaking(fixture: &dyn Fixture) {
    let before = settled(fixture).await;
    if fixture.break_off().await {
        let outcome = fixture.source().list(Some(&before.cursor)).await;
        assert!(outcome.is_err(), "a source that can't be read is an error, and neither empty nor unchanged: {outcome:?}");
    }
}

#[cfg(test)]
mod tests;
