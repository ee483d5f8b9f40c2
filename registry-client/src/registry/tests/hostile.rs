use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::Stores;
use crate::digest::Digest;
use crate::journal::Op;
use crate::source::{FetchError, NoProgress, VersionSource as _};
use crate::testing::{model, registry_over, request};

const FILES: &[(&str, &[u8])] = &[("model.onnx", b"a model"), ("second.bin", b"second")];

#[tokio::test]
async fn a_corrupt_blob_is_named_with_both_digests() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        let generation = registry.versions(&model("m")).await.unwrap()[&1].clone();
        let blob = Path::from(format!("m/blobs/{}", Digest::of(b"second")));
        store.put(&blob, "SECOND".into()).await.unwrap();
        let dest = tempfile::tempdir().unwrap();
        let error = registry.fetch(&generation, dest.path(), &NoProgress).await.unwrap_err();
        let FetchError::Corrupt { file, expected, actual } = &error else { panic!("{error}") };
        assert_eq!((file.as_str(), *expected, *actual), ("second.bin", Digest::of(b"second"), Digest::of(b"SECOND")));
        store.put(&blob, "seconds".into()).await.unwrap();
        let dest = tempfile::tempdir().unwrap();
        let error = registry.fetch(&generation, dest.path(), &NoProgress).await.unwrap_err();
        assert!(matches!(error, FetchError::Size { expected: 6, .. }), "{error}");
        store.delete(&blob).await.unwrap();
        let dest = tempfile::tempdir().unwrap();
        let error = registry.fetch(&generation, dest.path(), &NoProgress).await.unwrap_err();
        assert!(matches!(error, FetchError::NotFound { .. }) && error.to_string().contains("second.bin"), "{error}");
    }
}

/// Manifests that are not good leave their version out, say so, and disturb nothing else.
#[tokio::test]
async fn bad_manifests_are_left_out_by_name() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        let key = registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap().key;
        let good = store.get(&Path::from("m/versions/1/manifest.json")).await.unwrap().bytes().await.unwrap();
        let good: serde_json::Value = serde_json::from_slice(&good).unwrap();
        let put = async |version: &str, content: String| {
            store.put(&Path::from(format!("m/versions/{version}/manifest.json")), content.into()).await.unwrap();
        };
        put("2", good.to_string()).await;
        put("3", "{ half".into()).await;
        put("4", good.to_string().replace("\"schema\":1", "\"schema\":9")).await;
        put("5", good.to_string().replace("model.onnx", "../../../../etc/passwd")).await;
        put("6", format!("{good}{}", " ".repeat(16 << 20))).await;
        put("0", good.to_string()).await;
        put("latest", good.to_string()).await;
        let listing = registry.list(None).await.unwrap().unwrap();
        let listed = &listing.models["m"];
        assert_eq!(listed.versions.keys().collect::<Vec<_>>(), [&key.version]);
        let problems = listed.problems.join("\n");
        for expected in [
            "m@1, but it lies under m@2",
            "version 3: manifest is not valid",
            "schema 9",
            "`..`",
            "the limit is",
            "\"0\"",
            "\"latest\"",
        ] {
            assert!(problems.contains(expected), "{problems}\nshould say {expected}");
        }
        assert!(listing.complete, "a bad manifest is no failure to read");
        let next = registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
        assert_eq!(next.key.version, 7, "a number with a bad manifest is taken");
    }
}

#[tokio::test]
async fn odd_directories_are_no_models() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    for store in stores.each() {
        let registry = registry_over(&store);
        registry.publish(request(files.path(), "good", None, FILES), &NoProgress).await.unwrap();
        for odd in ["a b/versions/1/manifest.json", ".hidden/versions/1/manifest.json", "empty/readme.txt", "plain/1/model.onnx"] {
            store.put(&Path::from(odd), "x".into()).await.unwrap();
        }
        let listing = registry.list(None).await.unwrap().unwrap();
        let names: Vec<_> = listing.models.keys().map(crate::ModelName::as_str).collect();
        assert_eq!(names, ["good", "plain"]);
        assert!(listing.models["plain"].unsettled.contains(&1) && listing.models["plain"].problems[0].contains("settled"));
        assert!(listing.problems.iter().any(|problem| problem.contains("\"a b\"")), "{:?}", listing.problems);
    }
}

#[tokio::test]
async fn a_journal_that_is_not_understood_is_frozen_and_said_so() {
    let (stores, files) = (Stores::new(), tempfile::tempdir().unwrap());
    let huge = " ".repeat((1 << 20) + 1);
    let wrong = "{\"schema\":1,\"seq\":9}";
    for (content, expected) in
        [("{ half", "unreadable"), (wrong, "unreadable"), ("\u{0}", "unreadable"), (&huge, "it has 1048577 bytes")]
    {
        for store in stores.each() {
            let registry = registry_over(&store);
            registry.publish(request(files.path(), "m", None, FILES), &NoProgress).await.unwrap();
            registry.append(&model("m"), Op::Pin { version: 1 }, "me", "", uuid::Uuid::new_v4()).await.unwrap();
            store.put(&Path::from("m/rollout/00000000000000000002.json"), content.to_owned().into()).await.unwrap();
            let listing = registry_over(&store).list(None).await.unwrap().unwrap();
            let listed = &listing.models["m"];
            assert_eq!(listed.rollout.pinned, Some(1), "the route stays as it was");
            assert!(listed.problems.iter().any(|problem| problem.contains(expected)), "{:?}", listed.problems);
            let refused = registry.append(&model("m"), Op::Unpin, "me", "", uuid::Uuid::new_v4()).await.unwrap_err();
            assert!(matches!(refused, crate::JournalError::Frozen(_)), "{refused}");
        }
    }
}
