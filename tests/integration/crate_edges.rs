//! Which crate may depend on which: arrows point down only.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// Every allowed edge between crates of this workspace, beside those of tests and benches.
const ALLOWED: [(&str, &[&str]); 11] = [
    (
        "bascule",
        &[
            "bascule-frontend",
            "bascule-proto",
            "bascule-registry",
            "bascule-runtime-api",
            "bascule-runtime-fake",
            "bascule-runtime-onnx",
            "bascule-runtime-plugin",
            "bascule-serving",
        ],
    ),
    ("bascule-frontend", &["bascule-proto", "bascule-registry", "bascule-runtime-api", "bascule-serving"]),
    ("bascule-serving", &["bascule-handoff", "bascule-registry", "bascule-runtime-api"]),
    ("bascule-handoff", &[]),
    ("bascule-registry", &[]),
    ("bascule-proto", &[]),
    ("bascule-runtime-api", &[]),
    ("bascule-runtime-fake", &["bascule-runtime-api"]),
    ("bascule-runtime-onnx", &["bascule-runtime-api"]),
    ("bascule-runtime-plugin", &["bascule-runtime-api"]),
    ("bascule-runtime-torch", &["bascule-runtime-api"]),
];

/// Third-party crates that belong to one crate of ours, or to none.
const CONFINED: [(&str, &[&str]); 5] = [
    ("tch", &["bascule-runtime-torch"]),
    ("ort", &["bascule-runtime-onnx"]),
    ("tonic", &["bascule", "bascule-frontend", "bascule-proto", "bascule-benches"]),
    ("hyper", &["bascule-frontend", "bascule-benches"]),
    ("clap", &["bascule", "bascule-benches"]),
];

/// Normal dependencies by package of the workspace.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output =
        Command::new(env!("CARGO")).args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let names = |package: &Value| {
        let normal = package["dependencies"].as_array().unwrap().iter().filter(|dependency| dependency["kind"].is_null());
        normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
    };
    packages.iter().map(|package| (package["name"].as_str().unwrap().to_owned(), names(package))).collect()
}

#[test]
fn arrows_point_down_only() {
    let found = dependencies();
    for (name, allowed) in ALLOWED {
        let dependencies = found.get(name).unwrap_or_else(|| panic!("{name} is not in the workspace"));
        for dependency in dependencies.iter().filter(|dependency| dependency.starts_with("bascule")) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
    for (confined, owners) in CONFINED {
        for (name, dependencies) in &found {
            let uses = dependencies.iter().any(|dependency| dependency == confined);
            assert!(!uses || owners.contains(&name.as_str()), "{name} must not depend on {confined}");
        }
    }
}

#[test]
fn concrete_runtimes_are_named_in_one_file() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                // Tests may load what they like.
                folders.extend((!path.ends_with("tests")).then_some(path));
            } else if !path.ends_with("compose.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                // `doctor` asks whether a place is that of a tracking server, and opens none.
                let opens =
                    ["DirectorySource::new", "MlflowSource::new", "OciRegistry::open"].iter().any(|open| text.contains(open));
                assert!(!opens || path.ends_with("compose/sources.rs"), "{}", path.display());
                assert!(!text.contains("bascule_runtime_onnx") && !text.contains("bascule_runtime_fake"), "{}", path.display());
            }
        }
    }
}
