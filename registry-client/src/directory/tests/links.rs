use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;

use super::*;
use crate::source::NoProgress;
use crate::testing::request;

#[tokio::test]
async fn links_that_stay_inside_are_followed() {
    let sandbox = Sandbox::new();
    sandbox.write("shared/files/model.onnx", b"shared");
    sandbox.write("a/1/model.onnx", b"own");
    std::fs::create_dir_all(sandbox.root.join("b/2")).unwrap();
    symlink("../a/1", sandbox.root.join("b/1")).unwrap();
    symlink("../../shared/files/model.onnx", sandbox.root.join("b/2/model.onnx")).unwrap();
    symlink("a", sandbox.root.join("c")).unwrap();
    // As mounted configuration looks: data behind a hidden link.
    sandbox.write("d/1/..data/model.onnx", b"mounted");
    symlink("..data/model.onnx", sandbox.root.join("d/1/model.onnx")).unwrap();
    let listing = sandbox.settled().await;
    assert_eq!(versions(&listing), ["a@1", "b@1", "b@2", "c@1", "d@1"], "{}", problems(&listing));
    for (key, content) in [("b@1", "own"), ("b@2", "shared"), ("c@1", "own"), ("d@1", "mounted")] {
        let (name, version) = key.split_once('@').unwrap();
        let key = VersionKey::new(model(name), version.parse().unwrap());
        let dest = tempfile::tempdir().unwrap();
        sandbox.source.fetch(listing.generation(&key).unwrap(), dest.path(), &NoProgress).await.unwrap();
        let copied = dest.path().join("model.onnx");
        assert!(!copied.is_symlink());
        assert_eq!(std::fs::read_to_string(copied).unwrap(), content, "{key}");
    }
}

#[tokio::test]
async fn links_that_lead_out_are_not() {
    let sandbox = Sandbox::new();
    let outside = tempfile::tempdir().unwrap();
    let source = request(outside.path(), "m", None, &[("1/model.onnx", b"secret"), ("model.onnx", b"secret")]);
    Registry::open_dir(outside.path()).unwrap().publish(source, &NoProgress).await.unwrap();
    sandbox.write("good/1/model.onnx", b"good");
    for folder in ["file/1", "version", "ours"] {
        std::fs::create_dir_all(sandbox.root.join(folder)).unwrap();
    }
    symlink(outside.path(), sandbox.root.join("model")).unwrap();
    symlink(outside.path().join("1"), sandbox.root.join("version/1")).unwrap();
    symlink(outside.path().join("model.onnx"), sandbox.root.join("file/1/model.onnx")).unwrap();
    symlink(outside.path().join("m/versions"), sandbox.root.join("ours/versions")).unwrap();
    symlink("nowhere", sandbox.root.join("dangling")).unwrap();
    symlink("loop", sandbox.root.join("loop")).unwrap();
    sandbox.write("looping/1/model.onnx", b"x");
    symlink("..", sandbox.root.join("looping/1/up")).unwrap();
    let listing = sandbox.settled().await;
    assert_eq!(versions(&listing), ["good@1"]);
    let problems = problems(&listing);
    for expected in [
        "`model` is ignored: it is a symbolic link",
        "`dangling` is ignored",
        "`loop` is ignored",
        "version is no model",
        "ours is no model",
        "file: version 1 is ignored: \"model.onnx\" is a symbolic link",
        "looping: version 1 is ignored",
    ] {
        assert!(problems.contains(expected), "{problems}\nshould say {expected}");
    }
}

#[tokio::test]
async fn a_file_that_becomes_a_link_is_not_copied() {
    let sandbox = Sandbox::new();
    let outside = tempfile::NamedTempFile::new().unwrap();
    sandbox.write("m/1/model.onnx", b"x");
    let listing = sandbox.settled().await;
    let place = sandbox.root.join("m/1/model.onnx");
    std::fs::remove_file(&place).unwrap();
    symlink(outside.path(), &place).unwrap();
    let dest = tempfile::tempdir().unwrap();
    let generation = listing.models["m"].versions[&1].clone();
    assert!(sandbox.source.fetch(&generation, dest.path(), &NoProgress).await.is_err());
    assert_eq!(std::fs::read_dir(dest.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_version_directory_that_leads_out_is_not_fetched_from() {
    let sandbox = Sandbox::new();
    sandbox.write("m/1/model.onnx", b"x");
    let generation = sandbox.settled().await.models["m"].versions[&1].clone();
    let outside = tempfile::tempdir().unwrap();
    std::fs::rename(sandbox.root.join("m/1"), outside.path().join("1")).unwrap();
    symlink(outside.path().join("1"), sandbox.root.join("m/1")).unwrap();
    let dest = tempfile::tempdir().unwrap();
    let error = sandbox.source.fetch(&generation, dest.path(), &NoProgress).await.unwrap_err();
    assert!(matches!(error, FetchError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn names_that_no_model_or_file_can_have() {
    let sandbox = Sandbox::new();
    sandbox.write("good/1/model.onnx", b"x");
    sandbox.write("with space/1/model.onnx", b"x");
    sandbox.write("bytes/1/model.onnx", b"x");
    std::fs::write(sandbox.root.join("bytes/1").join(std::ffi::OsStr::from_bytes(b"\xff")), b"").unwrap();
    sandbox.write("back/1/a\\b.onnx", b"x");
    sandbox.write("line/1/a\nb.onnx", b"x");
    std::fs::create_dir_all(sandbox.root.join(std::ffi::OsStr::from_bytes(b"mo\xffdel/1"))).unwrap();
    std::fs::create_dir_all(sandbox.root.join("socket/1")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(sandbox.root.join("socket/1/model.onnx")).unwrap();
    let listing = sandbox.settled().await;
    assert_eq!(versions(&listing), ["good@1"]);
    let problems = problems(&listing);
    for expected in
        ["\"with space\"", "not UTF-8", "backslash", "control character", "mo\u{fffd}del", "neither a file nor a directory"]
    {
        assert!(problems.contains(expected), "{problems}\nshould say {expected}");
    }
    assert!(!problems.contains('\u{1b}') && listing.complete);
}

#[tokio::test]
async fn a_root_that_is_a_link_may_be_turned() {
    let sandbox = Sandbox::new();
    let link = sandbox.root.with_file_name("current");
    for (release, name) in [("release-1", "a"), ("release-2", "b")] {
        let root = sandbox.root.join(release);
        std::fs::create_dir(&root).unwrap();
        let files = tempfile::tempdir().unwrap();
        let wanted = request(files.path(), name, None, &[("model.onnx", name.as_bytes())]);
        Registry::open_dir(&root).unwrap().publish(wanted, &NoProgress).await.unwrap();
    }
    symlink(sandbox.root.join("release-1"), &link).unwrap();
    let source = DirectorySource::new(&link, DirectoryOptions::default());
    assert_eq!(versions(&source.list(None).await.unwrap().unwrap()), ["a@1"]);
    std::fs::remove_file(&link).unwrap();
    symlink(sandbox.root.join("release-2"), &link).unwrap();
    let listing = source.list(None).await.unwrap().unwrap();
    assert_eq!(versions(&listing), ["b@1"]);
    let dest = tempfile::tempdir().unwrap();
    source.fetch(&listing.models["b"].versions[&1], dest.path(), &NoProgress).await.unwrap();
}
