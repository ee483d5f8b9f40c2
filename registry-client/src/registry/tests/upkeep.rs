//! Garbage, and reading everything again.

use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::Stores;
use crate::digest::Digest;
use crate::name::VersionKey;
use crate::registry::contained::ContainedDirectory;
use crate::registry::{GC_GRACE, Garbage, PublishRequest, Registry};
use crate::signing::{SecretKey, Trust};
use crate::source::NoProgress;
use crate::testing::{model, registry_over, request};

const FILES: &[(&str, &[u8])] = &[("model.onnx", b"a model"), ("weights.bin", b"its weights")];

fn blob(content: &[u8]) -> String {
    format!("m/blobs/{}", Digest::of(content))
}

async fn put(store: &Arc<dyn ObjectStore>, path: &str, content: &str) {
    store.put(&Path::from(path), content.to_owned().into()).await.unwrap();
}

async fn is_there(store: &Arc<dyn ObjectStore>, path: &str) -> bool {
    store.head(&Path::from(path)).await.is_ok()
}

async fn publish(registry: &Registry) -> VersionKey {
    let files = tempfile::tempdir().unwrap();
    registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap().key
}

fn paths(garbage: &[Garbage]) -> Vec<&str> {
    let mut paths: Vec<_> = garbage.iter().flat_map(|one| one.old.iter().map(|left| left.path.as_str())).collect();
    paths.sort_unstable();
    paths
}

/// A registry in a directory, whose objects can be made old.
fn directory() -> (tempfile::TempDir, Arc<dyn ObjectStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(ContainedDirectory::open(dir.path()).unwrap());
    (dir, store)
}

fn make_old(dir: &FsPath, path: &str, by: Duration) {
    let file = std::fs::File::options().write(true).open(dir.join(path)).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

#[tokio::test]
async fn what_no_manifest_names_goes_and_all_else_stays() {
    let stores = Stores::new();
    for store in stores.each() {
        let registry = registry_over(&store);
        let key = SecretKey::generate().unwrap();
        let version = publish(&registry).await;
        let digest = registry.sign(&version, &key).await.unwrap();
        registry.tombstone(&publish(&registry).await, "me", "").await.unwrap();
        let (stray, orphan) = (blob(b"stray"), format!("m/signatures/{}/x.json", Digest::of(b"no manifest")));
        put(&store, &stray, "stray").await;
        put(&store, &orphan, "{}").await;
        put(&store, "m/blobs/README", "no blob").await;
        let (old_enough, grace) = (Duration::ZERO, GC_GRACE);
        let young = registry.collect_garbage(grace, true).await.unwrap();
        assert_eq!((paths(&young).len(), young[0].young.len()), (0, 2), "{young:?}");
        assert!(is_there(&store, &stray).await && is_there(&store, &orphan).await, "they may belong to a publish");
        let dry = registry.collect_garbage(old_enough, false).await.unwrap();
        assert_eq!(paths(&dry), [stray.as_str(), &orphan]);
        assert!(is_there(&store, &stray).await, "nothing goes unless it is asked for");
        let gone = registry.collect_garbage(old_enough, true).await.unwrap();
        assert_eq!(paths(&gone), [stray.as_str(), &orphan]);
        assert!(!is_there(&store, &stray).await && !is_there(&store, &orphan).await);
        assert_eq!(registry.collect_garbage(old_enough, true).await.unwrap(), [], "the second time there is none");
        let signature = format!("m/signatures/{digest}/{}.json", key.public().id());
        for stays in [blob(b"a model"), blob(b"its weights"), signature, "m/blobs/README".into()] {
            assert!(is_there(&store, &stays).await, "{stays}");
        }
        let survey = registry.survey(None).await.unwrap();
        assert_eq!(registry.verify(&survey, None, &NoProgress).await.findings, []);
    }
}

#[tokio::test]
async fn a_manifest_that_can_not_be_read_keeps_everything() {
    let stores = Stores::new();
    for store in stores.each() {
        let registry = registry_over(&store);
        publish(&registry).await;
        put(&store, &blob(b"stray"), "stray").await;
        put(&store, "m/versions/1000/manifest.json", "{\"schema\": 2}").await;
        let check = async |reason: &str| {
            let found = registry.collect_garbage(Duration::ZERO, true).await.unwrap();
            let why = found[0].left_alone.as_deref().unwrap();
            assert!(why.contains(reason) && found[0].old.is_empty(), "{found:?}");
            assert!(is_there(&store, &blob(b"stray")).await, "{reason}");
        };
        check("the manifest of version 1000 can't be read: manifest has schema 2").await;
        store.delete(&"m/versions/1000/manifest.json".into()).await.unwrap();
        put(&store, "m/versions/newest/manifest.json", "{}").await;
        check("\"newest\" lies between its versions").await;
        store.delete(&"m/versions/newest/manifest.json".into()).await.unwrap();
        let dir = store.list_with_delimiter(Some(&"m/versions".into())).await.unwrap();
        if dir.common_prefixes.len() == 1 {
            registry.collect_garbage(Duration::ZERO, true).await.unwrap();
            assert!(!is_there(&store, &blob(b"stray")).await);
        }
    }
}

/// A listing that is short, and what tells so: the blobs of the version that it leaves out look like garbage, and stay.
#[tokio::test]
async fn a_version_that_is_not_listed_keeps_its_blobs() {
    let stores = Stores::new();
    for store in stores.each() {
        let registry = registry_over(&store);
        let files = tempfile::tempdir().unwrap();
        for content in ["one", "two"] {
            registry.publish(request(files.path(), "m", None, &[("model.onnx", content.as_bytes())]), &NoProgress).await.unwrap();
        }
        let check = async |hides: usize, reason: &str| {
            let with = Meddling::Hides(std::sync::atomic::AtomicUsize::new(hides));
            let short: Arc<dyn ObjectStore> = Arc::new(Busy { store: Arc::clone(&store), with });
            let found = registry_over(&short).collect_garbage(Duration::ZERO, true).await.unwrap();
            assert!(found[0].left_alone.as_deref().unwrap().contains(reason) && found[0].old.is_empty(), "{found:?}");
            assert!(is_there(&store, &blob(b"two")).await, "{reason}");
        };
        // The change log names it, and then the journal alone.
        check(usize::MAX, "version 2 is there and was not listed").await;
        let hold = crate::journal::Op::Hold { version: 1 };
        let id = uuid::Uuid::new_v4();
        registry.append(&model("m"), hold, "me", "", id).await.unwrap();
        let (log, entry) = (Path::from("_changes/00000000000000000002.json"), Path::from("m/rollout/00000000000000000001.json"));
        let said = store.get(&log).await.unwrap().bytes().await.unwrap();
        let decided = store.get(&entry).await.unwrap().bytes().await.unwrap();
        put(&store, log.as_ref(), "{}").await;
        check(usize::MAX, "version 2 is there and was not listed").await;
        store.delete(&entry).await.unwrap();
        check(1, "a second listing").await;
        store.put(&log, said.into()).await.unwrap();
        store.put(&entry, decided.into()).await.unwrap();
        let manifest = Path::from("m/versions/2/manifest.json");
        store.delete(&manifest).await.unwrap();
        put(&store, "m/versions/2/tombstone.json", "{}").await;
        let found = registry.collect_garbage(Duration::ZERO, true).await.unwrap();
        assert!(found[0].left_alone.as_deref().unwrap().contains("version 2 has files and no manifest"), "{found:?}");
        store.delete(&Path::from("m/versions/2/tombstone.json")).await.unwrap();
        // An operator has deleted it: whatever still names it, it is gone.
        assert_eq!(paths(&registry.collect_garbage(Duration::ZERO, true).await.unwrap()), [blob(b"two").as_str()]);
    }
}

/// Manifests are read side by side, so many at a time, and what is found stays in order.
#[tokio::test]
async fn manifests_are_read_in_parallel_within_a_bound() {
    const VERSIONS: u64 = 32;
    let inner: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let registry = registry_over(&inner);
    for _ in 0..VERSIONS {
        publish(&registry).await;
    }
    for (name, stray) in [("a", "x"), ("m", "y"), ("z", "z")] {
        put(&inner, &format!("{name}/blobs/{}", Digest::of(stray.as_bytes())), stray).await;
        put(&inner, &format!("{name}/versions/1/notes.txt"), "").await;
    }
    let meets = Arc::new(Meets { barrier: tokio::sync::Barrier::new(16), now: 0.into(), most: 0.into() });
    let busy: Arc<dyn ObjectStore> = Arc::new(Busy { store: inner, with: Meddling::Meets(Arc::clone(&meets)) });
    let collected = registry_over(&busy);
    let found = tokio::time::timeout(Duration::from_secs(60), collected.collect_garbage(GC_GRACE, false)).await;
    let found = found.expect("sixteen manifests are read at a time").unwrap();
    assert_eq!(found.iter().map(|one| one.model.as_str()).collect::<Vec<_>>(), ["a", "m", "z"]);
    assert!(found.iter().all(|one| one.young.len() == 1 && one.left_alone.is_none()), "{found:?}");
    assert_eq!(meets.most.load(std::sync::atomic::Ordering::SeqCst), 16);
}

#[tokio::test]
async fn a_folder_of_blobs_in_a_plain_model_is_the_user_s() {
    let (dir, store) = directory();
    std::fs::create_dir_all(dir.path().join("m/1")).unwrap();
    std::fs::write(dir.path().join("m/1/model.onnx"), b"x").unwrap();
    put(&store, &blob(b"mine"), "mine").await;
    let found = registry_over(&store).collect_garbage(Duration::ZERO, true).await.unwrap();
    assert_eq!(found[0].left_alone.as_deref(), Some("it is in the plain layout"));
    assert!(is_there(&store, &blob(b"mine")).await);
}

/// A blob that nobody names any more, and that a new version wants: publishing makes it young, so that who collects leaves it.
#[tokio::test]
async fn a_publish_makes_what_it_re_uses_young() {
    let (dir, store) = directory();
    let registry = registry_over(&store);
    let files = tempfile::tempdir().unwrap();
    let large = vec![7; (8 << 20) + 1];
    let wanted = || request(files.path(), "m", None, &[("model.onnx", b"a model"), ("large", &large)]);
    let blobs = [blob(b"a model"), blob(&large)];
    put(&store, &blobs[0], "a model").await;
    store.put(&Path::from(blobs[1].as_str()), large.clone().into()).await.unwrap();
    for path in &blobs {
        make_old(dir.path(), path, GC_GRACE / 2 - Duration::from_secs(60));
    }
    let total = 7 + large.len() as u64;
    assert_eq!(registry.publish(wanted(), &NoProgress).await.unwrap().reused_bytes, total, "young enough to be re-used");
    for path in &blobs {
        make_old(dir.path(), path, GC_GRACE * 2);
    }
    let named = registry.publish(wanted(), &NoProgress).await.unwrap();
    assert_eq!(named.reused_bytes, total, "nobody takes away what a version names, however old it is");
    for version in 1..=named.key.version {
        store.delete(&Path::from(format!("m/versions/{version}/manifest.json"))).await.unwrap();
    }
    assert_eq!(registry.publish(wanted(), &NoProgress).await.unwrap().reused_bytes, 0);
    for path in &blobs {
        let written = store.head(&Path::from(path.as_str())).await.unwrap().last_modified;
        assert!((chrono::Utc::now() - written).num_seconds() < 3_600, "{path} is young again");
    }
}

/// Whoever collects looks at each object once more: what was put again since it was listed stays.
#[tokio::test]
async fn what_was_put_again_since_it_was_listed_stays() {
    let (dir, inner) = directory();
    let stray = blob(b"stray");
    put(&inner, &stray, "stray").await;
    make_old(dir.path(), &stray, GC_GRACE * 2);
    put(&inner, &blob(b"other"), "other").await;
    make_old(dir.path(), &blob(b"other"), GC_GRACE * 2);
    let toucher: Arc<dyn ObjectStore> =
        Arc::new(Busy { store: Arc::clone(&inner), with: Meddling::Touches(Path::from(stray.as_str())) });
    let found = registry_over(&toucher).collect_garbage(GC_GRACE, true).await.unwrap();
    assert_eq!(paths(&found), [blob(b"other").as_str()], "{found:?}");
    assert_eq!(found[0].young.iter().map(|left| left.path.as_str()).collect::<Vec<_>>(), [stray.as_str()]);
    assert!(is_there(&inner, &stray).await && !is_there(&inner, &blob(b"other")).await);
}

/// Somebody who removes without looking at times: after its commit a publisher finds out, and the version is whole.
#[tokio::test]
async fn a_blob_that_goes_while_it_is_published_is_put_again() {
    let (_dir, inner) = directory();
    let files = tempfile::tempdir().unwrap();
    let wanted = request(files.path(), "m", Some(1), FILES);
    let thief: Arc<dyn ObjectStore> = Arc::new(Busy { store: Arc::clone(&inner), with: Meddling::Steals });
    let published = registry_over(&thief).publish(wanted, &NoProgress).await.unwrap();
    let registry = registry_over(&inner);
    let survey = registry.survey(Some(&published.key.model)).await.unwrap();
    let verification = registry.verify(&survey, None, &NoProgress).await;
    assert_eq!((verification.findings.as_slice(), verification.files, verification.bytes), (&[][..], 2, 18));
}

#[tokio::test]
async fn reading_again_finds_each_kind_of_damage() {
    let stores = Stores::new();
    for store in stores.each() {
        let key = SecretKey::generate().unwrap();
        let trust = Arc::new(Trust::new([key.public()]));
        let registry = registry_over(&store).reading_signatures(Arc::clone(&trust));
        let files = tempfile::tempdir().unwrap();
        let contents: [&[(&str, &[u8])]; 4] = [
            &[("model.onnx", b"sound"), ("shared", b"shared")],
            &[("model.onnx", b"corrupt"), ("shared", b"shared")],
            &[("model.onnx", b"missing")],
            &[("model.onnx", b"longer")],
        ];
        for content in contents {
            let wanted = PublishRequest { signers: vec![key.clone()], ..request(files.path(), "m", None, content) };
            registry.publish(wanted, &NoProgress).await.unwrap();
        }
        let check = async |expected: &[(Option<u64>, &str)]| {
            let survey = registry.survey(Some(&model("m"))).await.unwrap();
            let found = registry.verify(&survey, Some(&trust), &NoProgress).await.findings;
            let found: Vec<_> = found.iter().map(|finding| (finding.version, finding.problem.as_str())).collect();
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for ((version, problem), (expected_version, part)) in found.iter().zip(expected) {
                assert!(version == expected_version && problem.contains(part), "{version:?} {problem} should say {part}");
            }
        };
        check(&[]).await;
        put(&store, &blob(b"corrupt"), "CORRUPT").await;
        store.delete(&Path::from(blob(b"missing"))).await.unwrap();
        put(&store, &blob(b"longer"), "longer than that").await;
        put(&store, "m/versions/9/manifest.json", "{}").await;
        check(&[
            (None, "version 9: manifest is not valid"),
            (Some(2), "file \"model.onnx\" is corrupt: its sha256 is"),
            (Some(3), "file \"model.onnx\" is missing (m/blobs/"),
            (Some(4), "file \"model.onnx\" has 16 bytes, its manifest says 6"),
        ])
        .await;
        let shared = blob(b"shared");
        put(&store, &shared, "SHARED").await;
        let version = registry.version(&VersionKey::new(model("m"), 1)).await.unwrap();
        let signature = format!("m/signatures/{}/{}.json", version.digest, key.public().id());
        put(&store, &signature, "no JSON").await;
        check(&[
            (None, "version 9: manifest is not valid"),
            (Some(1), "a gateway refuses it: it is signed by"),
            (Some(1), "file \"shared\" is corrupt"),
            (Some(1), "signature \""),
            (Some(2), "file \"model.onnx\" is corrupt"),
            (Some(2), "file \"shared\" is corrupt"),
            (Some(3), "is missing"),
            (Some(4), "has 16 bytes"),
        ])
        .await;
    }
}

/// A store in which something happens beside what is asked for.
#[derive(Debug)]
struct Busy {
    store: Arc<dyn ObjectStore>,
    /// What happens.
    with: Meddling,
}

#[derive(Debug)]
enum Meddling {
    /// Every blob goes when a manifest is put.
    Steals,
    /// So many listings of versions leave version 2 out.
    Hides(std::sync::atomic::AtomicUsize),
    /// This object is put again after each listing of versions.
    Touches(Path),
    /// Those who read manifests wait for one another.
    Meets(Arc<Meets>),
}

#[derive(Debug)]
struct Meets {
    barrier: tokio::sync::Barrier,
    /// How many read now, and how many did at the most.
    now: std::sync::atomic::AtomicUsize,
    most: std::sync::atomic::AtomicUsize,
}

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a busy store")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Busy {
    async fn put_opts(
        &self,
        location: &Path,
        payload: object_store::PutPayload,
        options: object_store::PutOptions,
    ) -> object_store::Result<object_store::PutResult> {
        let put = self.store.put_opts(location, payload, options).await?;
        if matches!(self.with, Meddling::Steals) && location.filename() == Some("manifest.json") {
            for object in self.store.list_with_delimiter(Some(&"m/blobs".into())).await?.objects {
                self.store.delete(&object.location).await?;
            }
        }
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: object_store::PutMultipartOptions,
    ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: object_store::GetOptions) -> object_store::Result<object_store::GetResult> {
        use std::sync::atomic::Ordering::SeqCst;
        let got = self.store.get_opts(location, options).await?;
        if let Meddling::Meets(meets) = &self.with
            && location.filename() == Some("manifest.json")
        {
            meets.most.fetch_max(meets.now.fetch_add(1, SeqCst) + 1, SeqCst);
            meets.barrier.wait().await;
            meets.now.fetch_sub(1, SeqCst);
        }
        Ok(got)
    }

    fn delete_stream(
        &self,
        locations: futures::stream::BoxStream<'static, object_store::Result<Path>>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> futures::stream::BoxStream<'static, object_store::Result<object_store::ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<object_store::ListResult> {
        use std::sync::atomic::Ordering::SeqCst;
        let mut level = self.store.list_with_delimiter(prefix).await?;
        if let Meddling::Hides(times) = &self.with
            && prefix.is_some_and(|prefix| prefix.as_ref().ends_with("versions"))
            && times.fetch_update(SeqCst, SeqCst, |times| times.checked_sub(1)).is_ok()
        {
            level.common_prefixes.retain(|dir| dir.filename() != Some("2"));
        }
        if let Meddling::Touches(path) = &self.with
            && prefix.is_some_and(|prefix| prefix.as_ref().ends_with("versions"))
        {
            self.store.put(path, "stray".into()).await?;
        }
        Ok(level)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: object_store::CopyOptions) -> object_store::Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}
