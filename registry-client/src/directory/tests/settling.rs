use super::*;
use crate::source::NoProgress;
use plain::{PlainFiles, scan};

fn key(version: u64) -> VersionKey {
    VersionKey::new(model("m"), version)
}

/// Files whose digest is that of this word.
fn files(word: &str) -> PlainFiles {
    PlainFiles { files: Vec::new(), digest: Digest::of(word.as_bytes()) }
}

fn see(settler: &mut Settler<VersionKey, Generation>, key: VersionKey, word: &str, look: &LookTime) -> Settled<Generation> {
    let files = files(word);
    settler.observe(&key, files.digest, look, || plain::generation(&key, &files))
}

/// Shows one version to a settler at each (time in ms, content), and expects what counts after it: the content, or in
/// brackets the one before and how long to wait.
fn check(looks: &[(u64, &str, &str)]) {
    let mut settler = Settler::new(Duration::from_millis(1_000));
    let shown = |generation: &Generation| {
        let words = ["a", "b", "c"];
        words.into_iter().find(|word| Digest::of(word.as_bytes()) == generation.digest).unwrap()
    };
    for (step, (at, content, expected)) in looks.iter().enumerate() {
        let at = Duration::from_millis(*at);
        let found = match see(&mut settler, key(1), content, &LookTime { began: at, ended: at }) {
            Settled::Now(generation) => shown(&generation).to_owned(),
            Settled::Not { before, again_after } => {
                format!("({} {})", before.as_deref().map_or("-", shown), again_after.as_millis())
            }
        };
        assert_eq!(found, *expected, "step {step} of {looks:?}");
    }
}

#[test]
fn when_a_version_counts() {
    check(&[(0, "a", "(- 1000)"), (1_000, "a", "a"), (1_001, "a", "a")]);
    check(&[(0, "a", "(- 1000)"), (999, "a", "(- 1)"), (1_000, "a", "a")]);
    // One look is never enough, however late.
    check(&[(50_000, "a", "(- 1000)"), (50_000, "a", "(- 1000)")]);
    // Each change starts the wait anew.
    check(&[(0, "a", "(- 1000)"), (900, "b", "(- 1000)"), (1_800, "b", "(- 100)"), (1_900, "b", "b")]);
    // What counted still does while new content settles.
    check(&[(0, "a", "(- 1000)"), (1_000, "a", "a"), (2_000, "b", "(a 1000)"), (2_999, "b", "(a 1)"), (3_000, "b", "b")]);
    // Back to what counted: at once; and the content between has to settle as if it were new.
    check(&[(0, "a", "(- 1000)"), (1_000, "a", "a"), (2_000, "b", "(a 1000)"), (2_500, "a", "a"), (3_500, "b", "(a 1000)")]);
    check(&[(0, "a", "(- 1000)"), (1_000, "a", "a"), (2_000, "b", "(a 1000)"), (2_500, "c", "(a 1000)"), (3_500, "c", "c")]);
}

#[test]
fn a_look_that_takes_long_does_not_count_as_waiting() {
    let mut settler = Settler::new(Duration::from_millis(1_000));
    let look = |began, ended| LookTime { began: Duration::from_millis(began), ended: Duration::from_millis(ended) };
    assert!(matches!(see(&mut settler, key(1), "a", &look(0, 5_000)), Settled::Not { .. }));
    assert!(matches!(see(&mut settler, key(1), "a", &look(5_500, 9_000)), Settled::Not { .. }));
    assert!(matches!(see(&mut settler, key(1), "a", &look(6_000, 6_000)), Settled::Now(_)));
}

#[test]
fn what_has_gone_is_forgotten() {
    let mut settler = Settler::new(Duration::ZERO);
    let look = LookTime { began: Duration::ZERO, ended: Duration::ZERO };
    see(&mut settler, key(1), "a", &look);
    assert!(matches!(see(&mut settler, key(1), "a", &look), Settled::Now(_)));
    assert!(settler.last(&key(1)).is_some());
    settler.keep_only(&BTreeSet::from([key(2)]));
    assert!(settler.last(&key(1)).is_none());
    assert!(matches!(see(&mut settler, key(1), "a", &look), Settled::Not { before: None, .. }));
}

#[tokio::test]
async fn a_file_that_is_still_copied_is_never_listed() {
    let sandbox = Sandbox::new();
    for size in 1..20 {
        sandbox.write("m/1/model.onnx", &vec![b'x'; size]);
        let listing = sandbox.look().await;
        assert!(versions(&listing).is_empty(), "at {size} bytes");
        assert!(listing.models["m"].unsettled.contains(&1) && problems(&listing).contains("settled"));
        assert!(listing.complete && listing.recheck_after == Some(SETTLE_INTERVAL));
        sandbox.clock.advance(SETTLE_INTERVAL);
    }
    assert_eq!(versions(&sandbox.look().await), ["m@1"]);
}

#[tokio::test]
async fn the_engine_is_told_when_to_look_again() {
    let sandbox = Sandbox::new();
    sandbox.write("m/1/model.onnx", b"x");
    let first = sandbox.look().await;
    sandbox.clock.advance(Duration::from_millis(400));
    assert!(sandbox.source.list(Some(&first.cursor)).await.unwrap().is_none(), "waiting is no news");
    assert_eq!(sandbox.look().await.recheck_after, Some(Duration::from_millis(600)));
    sandbox.clock.advance(Duration::from_millis(600));
    let settled = sandbox.source.list(Some(&first.cursor)).await.unwrap().unwrap();
    assert_eq!((versions(&settled), settled.recheck_after), (vec!["m@1".to_owned()], None));
    assert_eq!(settled.models["m"].unsettled, BTreeSet::new());
}

#[tokio::test]
async fn changed_content_is_a_new_generation_of_the_same_number() {
    let sandbox = Sandbox::new();
    sandbox.rewrite("m/1/model.onnx", b"old", 1_000);
    let old = sandbox.settled().await.generation(&key(1)).unwrap().clone();
    assert_eq!(old.manifest.created.timestamp(), 1_000);
    sandbox.rewrite("m/1/model.onnx", b"new", 2_000);
    let between = sandbox.look().await;
    assert_eq!(between.generation(&key(1)), Some(&old), "the old content counts until the new has settled");
    assert!(between.models["m"].unsettled.contains(&1));
    let dest = tempfile::tempdir().unwrap();
    let error = sandbox.source.fetch(&old, dest.path(), &NoProgress).await.unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. }) && error.is_transient(), "{error}");
    sandbox.clock.advance(SETTLE_INTERVAL);
    let new = sandbox.look().await.generation(&key(1)).unwrap().clone();
    assert_eq!(new.key, old.key);
    assert_ne!(new.digest, old.digest, "same size, another time");
    let dest = tempfile::tempdir().unwrap();
    sandbox.source.fetch(&new, dest.path(), &NoProgress).await.unwrap();
    assert_eq!(std::fs::read(dest.path().join("model.onnx")).unwrap(), b"new");
}

#[tokio::test]
async fn another_source_over_the_same_files_names_them_the_same() {
    let sandbox = Sandbox::new();
    sandbox.write("m/1/model.onnx", b"x");
    let first = sandbox.settled().await;
    let options = DirectoryOptions { clock: Arc::<ManualClock>::clone(&sandbox.clock), ..DirectoryOptions::default() };
    let again = DirectorySource::new(&sandbox.root, options);
    again.list(None).await.unwrap();
    sandbox.clock.advance(SETTLE_INTERVAL);
    let second = again.list(None).await.unwrap().unwrap();
    assert_eq!(first.generation(&key(1)), second.generation(&key(1)), "a restart finds its cache by digest");
    assert_eq!(first.cursor.state, second.cursor.state);
}

#[tokio::test]
async fn a_version_that_went_is_gone_and_settles_anew() {
    let sandbox = Sandbox::new();
    sandbox.write("m/1/model.onnx", b"one");
    sandbox.write("m/2/model.onnx", b"two");
    let listing = sandbox.settled().await;
    let second = listing.generation(&key(2)).unwrap().clone();
    std::fs::rename(sandbox.root.join("m/2"), sandbox.root.join("aside")).unwrap();
    let without = sandbox.look().await;
    assert!(without.complete);
    assert_eq!(versions(&without), ["m@1"]);
    let dest = tempfile::tempdir().unwrap();
    let error = sandbox.source.fetch(&second, dest.path(), &NoProgress).await.unwrap_err();
    assert!(matches!(error, FetchError::NotFound { .. }), "{error}");
    std::fs::rename(sandbox.root.join("aside"), sandbox.root.join("m/2")).unwrap();
    assert_eq!(versions(&sandbox.look().await), ["m@1"]);
    sandbox.clock.advance(SETTLE_INTERVAL);
    assert_eq!(versions(&sandbox.look().await), ["m@1", "m@2"]);
}

#[test]
fn the_digest_of_a_scan_follows_paths_sizes_and_times() {
    let sandbox = Sandbox::new();
    let root = sandbox.root.canonicalize().unwrap();
    let digest = || scan(&root, &root.join("m/1"), &key(1)).unwrap().unwrap().digest;
    sandbox.rewrite("m/1/model.onnx", b"content", 1_000);
    let first = digest();
    assert_eq!(digest(), first);
    sandbox.rewrite("m/1/model.onnx", b"contents", 1_000);
    let longer = digest();
    sandbox.rewrite("m/1/model.onnx", b"contents", 1_001);
    let later = digest();
    sandbox.write("m/1/.hidden", b"ignored");
    assert_eq!(digest(), later);
    sandbox.write("m/1/labels.txt", b"");
    let more = digest();
    let as_other = scan(&root, &root.join("m/1"), &key(2)).unwrap().unwrap().digest;
    let all = BTreeSet::from([first, longer, later, more, as_other]);
    assert_eq!(all.len(), 5);
    std::fs::create_dir(root.join("m/3")).unwrap();
    assert_eq!(scan(&root, &root.join("m/3"), &key(3)).unwrap(), None, "a directory without files is no version");
}
