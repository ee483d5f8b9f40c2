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
