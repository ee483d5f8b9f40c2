use uuid::Uuid;

use super::*;
use crate::journal::Op;
use crate::manifest::FORMAT_UNKNOWN;
use crate::source::NoProgress;
use crate::testing::request;

pub(super) async fn publish(sandbox: &Sandbox, name: &str) -> VersionKey {
    let files = tempfile::tempdir().unwrap();
    let registry = Registry::open_dir(&sandbox.root).unwrap();
    let request = request(files.path(), name, None, &[("model.onnx", b"published")]);
    registry.publish(request, &NoProgress).await.unwrap().key
}

#[tokio::test]
async fn both_layouts_are_listed_side_by_side() {
    let sandbox = Sandbox::new();
    publish(&sandbox, "ours").await;
    sandbox.write("ours/7/model.onnx", b"shadowed");
    sandbox.write("ours/8/model.onnx", b"shadowed");
    sandbox.write("ours/model.toml", b"device = \"cpu\"");
    sandbox.write("plain/3/model.onnx", b"plain");
    sandbox.write("plain/config.pbtxt", b"output { label_filename: \"labels.txt\" }");
    sandbox.write("plain/labels.txt", b"zero\none\n");
    sandbox.write("notes/readme.txt", b"no model");
    sandbox.write("readme.txt", b"no model");
    let listing = sandbox.settled().await;
    assert_eq!(versions(&listing), ["ours@1", "plain@3"]);
    assert_eq!((listing.models["ours"].layout, listing.models["plain"].layout), (Layout::Registry, Layout::Plain));
    assert_eq!(&listing.models["ours"].settings["model.toml"][..], b"device = \"cpu\"");
    assert_eq!(listing.models["plain"].settings.keys().collect::<Vec<_>>(), ["config.pbtxt", "labels.txt"]);
    let expected = "ours: directory `7` and 1 more is ignored: a model with `versions/` has its versions there";
    assert_eq!(problems(&listing), expected);
    for generation in listing.models.values().flat_map(|model| model.versions.values()) {
        let dest = tempfile::tempdir().unwrap();
        sandbox.source.fetch(generation, dest.path(), &NoProgress).await.unwrap();
        assert!(dest.path().join("model.onnx").exists());
    }
}

#[tokio::test]
async fn our_layout_is_followed_by_change_log_and_by_what_lies_there() {
    let sandbox = Sandbox::new();
    let first = publish(&sandbox, "m").await;
    let registry = Registry::open_dir(&sandbox.root).unwrap();
    let mut cursor = sandbox.look().await.cursor;
    let mut next = async || {
        let listing = sandbox.source.list(Some(&cursor)).await.unwrap().expect("something has changed");
        cursor = listing.cursor.clone();
        listing
    };
    publish(&sandbox, "m").await;
    assert_eq!(versions(&next().await), ["m@1", "m@2"]);
    registry.append(&first.model, Op::Pin { version: 1 }, "me", "", Uuid::new_v4()).await.unwrap();
    assert_eq!(next().await.models["m"].rollout.pinned, Some(1));
    registry.tombstone(&first, "me", "").await.unwrap();
    assert!(next().await.generation(&first).unwrap().tombstoned);

    // Copied in by hand, without a word in the change log.
    let copy = std::process::Command::new("cp").arg("-r").args(["m", "copied"]).current_dir(&sandbox.root).status().unwrap();
    assert!(copy.success());
    let listing = next().await;
    assert!(listing.models["copied"].versions.is_empty(), "the manifests are those of another model");
    assert!(problems(&listing).contains("m@1, but it lies under copied@1"), "{}", problems(&listing));
    std::fs::remove_dir_all(sandbox.root.join("copied")).unwrap();
    std::fs::remove_dir_all(sandbox.root.join("m/versions/1")).unwrap();
    assert_eq!(versions(&next().await), ["m@2"]);
}

#[tokio::test]
async fn what_is_still_copied_is_read_again_at_each_look() {
    let sandbox = Sandbox::new();
    let key = publish(&sandbox, "m").await;
    let registry = Registry::open_dir(&sandbox.root).unwrap();
    registry.append(&key.model, Op::Pin { version: 1 }, "me", "", Uuid::new_v4()).await.unwrap();
    for (file, expected) in [
        ("m/versions/1/manifest.json", "version 1: manifest is not valid"),
        // Its directory's time does not tell when an entry is completed.
        ("m/rollout/00000000000000000001.json", "the journal is frozen"),
    ] {
        let place = sandbox.root.join(file);
        let whole = std::fs::read(&place).unwrap();
        std::fs::remove_file(&place).unwrap();
        std::fs::write(&place, &whole[..20]).unwrap();
        assert!(problems(&sandbox.look().await).contains(expected));
        std::fs::write(&place, &whole).unwrap();
        let listing = sandbox.look().await;
        assert_eq!((versions(&listing), problems(&listing)), (vec!["m@1".to_owned()], String::new()));
        assert_eq!(listing.models["m"].rollout.pinned, Some(1));
    }
}

#[tokio::test]
async fn a_directory_without_versions_is_no_model_and_a_likely_mistake_is_named() {
    let sandbox = Sandbox::new();
    sandbox.write("forgotten/model.onnx", b"without a number");
    sandbox.write("settings/model.toml", b"");
    sandbox.write("blobs/blobs/abc", b"a killed publish of a first version");
    std::fs::create_dir_all(sandbox.root.join("begun/versions/1")).unwrap();
    std::fs::create_dir_all(sandbox.root.join("hollow/1")).unwrap();
    sandbox.write("leading/01/model.onnx", b"x");
    sandbox.write("_changes/readme", b"");
    sandbox.write(".git/1/model.onnx", b"");
    let listing = sandbox.look().await;
    assert!(listing.complete && listing.models.is_empty(), "{listing:?}");
    let expected = ["forgotten is no model", "leading is no model", "settings is no model"];
    assert_eq!(listing.problems.len(), expected.len(), "{:?}", listing.problems);
    for (problem, expected) in listing.problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem}");
    }
}

#[tokio::test]
async fn format_and_entrypoint_are_guessed_from_names() {
    let check = async |files: &[&str], expected: (&str, &str)| {
        let sandbox = Sandbox::new();
        for file in files {
            sandbox.write(&format!("m/1/{file}"), b"x");
        }
        let listing = sandbox.settled().await;
        let manifest = &listing.models["m"].versions[&1].manifest;
        assert_eq!((manifest.format.as_str(), manifest.entrypoint.as_str()), expected, "{files:?}");
        assert_eq!(manifest.validate(), Ok(()));
        assert!(manifest.files.iter().all(|file| file.sha256.is_none()));
    };
    check(&["model.onnx"], ("onnx", "model.onnx")).await;
    check(&["model.onnx", "other.onnx", "weights.bin"], ("onnx", "model.onnx")).await;
    check(&["model.onnx/model.onnx", "model.onnx/weights"], ("onnx", "model.onnx/model.onnx")).await;
    check(&["model.pt"], ("torchscript", "model.pt")).await;
    check(&["model.fake.json"], ("fake", "model.fake.json")).await;
    check(&["densenet.onnx", "labels.txt"], ("onnx", "densenet.onnx")).await;
    check(&["a.onnx", "b.onnx"], (FORMAT_UNKNOWN, "a.onnx")).await;
    check(&["model.plan"], (FORMAT_UNKNOWN, "model.plan")).await;
    check(&["model.savedmodel/saved_model.pb"], (FORMAT_UNKNOWN, "model.savedmodel/saved_model.pb")).await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_until_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("later");
    let source = DirectorySource::new(&root, DirectoryOptions::default());
    let error = source.list(None).await.unwrap_err();
    assert!(error.to_string().contains("later"), "{error}");
    std::fs::create_dir(&root).unwrap();
    assert!(source.list(None).await.unwrap().unwrap().models.is_empty());
    std::fs::remove_dir(&root).unwrap();
    std::fs::write(&root, b"a file").unwrap();
    assert!(source.list(None).await.is_err());
}

#[tokio::test]
async fn a_model_that_can_not_be_read_stays_as_it_was() {
    let sandbox = Sandbox::new();
    publish(&sandbox, "m").await;
    sandbox.write("other/1/model.onnx", b"x");
    let before = sandbox.settled().await;
    let manifest = sandbox.root.join("m/versions/1/manifest.json");
    let aside = sandbox.root.with_file_name("aside.json");
    std::fs::rename(&manifest, &aside).unwrap();
    // A manifest outside is not read, and nobody knows what it says.
    std::os::unix::fs::symlink(&aside, &manifest).unwrap();
    std::fs::remove_dir_all(sandbox.root.join("other")).unwrap();
    for _ in 0..2 {
        let listing = sandbox.look().await;
        assert!(!listing.complete, "such a listing removes nothing");
        assert_eq!(listing.models["m"].versions, before.models["m"].versions);
        assert!(problems(&listing).contains("model m can't be read"), "{}", problems(&listing));
    }
    std::fs::remove_file(&manifest).unwrap();
    std::fs::rename(&aside, &manifest).unwrap();
    let listing = sandbox.look().await;
    assert!(listing.complete);
    assert_eq!(versions(&listing), ["m@1"]);
}

#[tokio::test]
async fn a_directory_in_place_of_a_manifest_is_no_version() {
    let sandbox = Sandbox::new();
    publish(&sandbox, "m").await;
    std::fs::create_dir_all(sandbox.root.join("m/versions/2/manifest.json")).unwrap();
    let listing = sandbox.look().await;
    assert!(listing.complete);
    assert_eq!(versions(&listing), ["m@1"]);
}

#[tokio::test]
async fn a_watch_hints_and_a_look_does_not() {
    let sandbox = Sandbox::new();
    sandbox.write("m/1/model.onnx", b"x");
    let mut watch = sandbox.source.watch().await.unwrap();
    for _ in 0..3 {
        sandbox.look().await;
    }
    sandbox.write("m/2/model.onnx", b"x");
    assert_eq!(watch.changed().await, Some(()));
}
