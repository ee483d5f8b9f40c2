use super::*;
use crate::signing::{SecretKey, Trust, Trusted};
use crate::source::NoProgress;
use crate::testing::request;

/// Both layouts under trust: what is signed is listed; plain models can't be, and say so.
#[tokio::test]
async fn what_a_directory_holds_has_to_be_signed() {
    let sandbox = Sandbox::new();
    let key = SecretKey::generate().unwrap();
    let trust = Arc::new(Trust::new([key.public()]));
    let options = DirectoryOptions {
        clock: Arc::<ManualClock>::clone(&sandbox.clock),
        signatures_of: Some(Arc::clone(&trust)),
        ..DirectoryOptions::default()
    };
    let source = Trusted::new(Arc::new(DirectorySource::new(&sandbox.root, options)), trust);
    let files = tempfile::tempdir().unwrap();
    let registry = Registry::open_dir(&sandbox.root).unwrap();
    let mut keys = Vec::new();
    for signers in [vec![key.clone()], Vec::new()] {
        let mut wanted = request(files.path(), "ours", None, &[("model.onnx", b"published")]);
        wanted.signers = signers;
        keys.push(registry.publish(wanted, &NoProgress).await.unwrap().key);
    }
    sandbox.write("plain/3/model.onnx", b"plain");
    source.list(None).await.unwrap();
    sandbox.clock.advance(SETTLE_INTERVAL);
    let listing = source.list(None).await.unwrap().unwrap();
    assert_eq!(listing.models["ours"].versions.keys().collect::<Vec<_>>(), [&1]);
    assert_eq!(listing.models["ours"].problems, ["version 2 is refused: it is not signed"]);
    assert!(listing.models["plain"].versions.is_empty());
    assert_eq!(listing.models["plain"].problems, ["version 3 is refused: it is in the plain layout, which can't be signed"]);
    assert!(source.list(Some(&listing.cursor)).await.unwrap().is_none(), "nothing has changed");
    registry.sign(&keys[1], &key).await.unwrap();
    let listing = source.list(Some(&listing.cursor)).await.unwrap().unwrap();
    assert_eq!(listing.models["ours"].versions.keys().collect::<Vec<_>>(), [&1, &2]);
    let dest = tempfile::tempdir().unwrap();
    source.fetch(&listing.models["ours"].versions[&2], dest.path(), &NoProgress).await.unwrap();
}

/// A signature that was among too many to be read counts as soon as its key does.
#[tokio::test]
async fn keys_that_are_replaced_count_at_the_next_look() {
    let sandbox = Sandbox::new();
    let keys: Vec<_> = (0..70).map(|_| SecretKey::generate().unwrap()).collect();
    let trust = Arc::new(Trust::new([keys[0].public()]));
    let options = DirectoryOptions { signatures_of: Some(Arc::clone(&trust)), ..DirectoryOptions::default() };
    let source = Trusted::new(Arc::new(DirectorySource::new(&sandbox.root, options)), Arc::clone(&trust));
    let files = tempfile::tempdir().unwrap();
    let registry = Registry::open_dir(&sandbox.root).unwrap();
    let mut wanted = request(files.path(), "m", None, &[("model.onnx", b"published")]);
    wanted.signers = keys.clone();
    registry.publish(wanted, &NoProgress).await.unwrap();
    let mut listing = source.list(None).await.unwrap().unwrap();
    for key in &keys[1..] {
        trust.replace([key.public()]);
        listing = source.list(Some(&listing.cursor)).await.unwrap().expect("another key is trusted");
        assert!(listing.models["m"].versions.contains_key(&1), "{:?}", listing.models["m"].problems);
    }
    trust.replace([SecretKey::generate().unwrap().public()]);
    let refused = source.list(Some(&listing.cursor)).await.unwrap().unwrap();
    assert!(refused.models["m"].versions.is_empty() && refused.models["m"].problems[0].starts_with("version 1 is refused"));
}

/// A folder that was put back to an older state.
#[tokio::test]
async fn a_directory_that_was_restored_is_followed_on_and_says_so() {
    let sandbox = Sandbox::new();
    let files = tempfile::tempdir().unwrap();
    let registry = Registry::open_dir(&sandbox.root).unwrap();
    let publish = async |content: &str| {
        let wanted = request(files.path(), "m", None, &[("model.onnx", content.as_bytes())]);
        registry.publish(wanted, &NoProgress).await.unwrap().key.version
    };
    for content in ["one", "two", "three"] {
        publish(content).await;
    }
    assert_eq!(sandbox.look().await.models["m"].versions.len(), 3);
    for version in [2, 3] {
        std::fs::remove_dir_all(sandbox.root.join(format!("m/versions/{version}"))).unwrap();
        std::fs::remove_file(sandbox.root.join(format!("_changes/{version:020}.json"))).unwrap();
    }
    sandbox.clock.advance(REPAIR_INTERVAL);
    let restored = sandbox.look().await;
    assert_eq!(restored.models["m"].versions.len(), 1);
    assert!(restored.problems[0].starts_with("its change log ends at entry 1, and had 3"), "{:?}", restored.problems);
    assert_eq!(publish("another two").await, 2);
    assert_eq!(sandbox.look().await.models["m"].versions.len(), 2);
    sandbox.clock.advance(REPAIR_INTERVAL);
    assert!(sandbox.look().await.problems.is_empty());
}
