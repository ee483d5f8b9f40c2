use serde_json::{Value, json};

use super::*;

fn sample() -> Value {
    json!({
        "schema": 1, "model": "digits", "version": 3, "format": "onnx", "entrypoint": "model.onnx",
        "files": [
            {"path": "model.onnx", "sha256": Digest::of(b"model").to_string(), "bytes": 5},
            {"path": "golden/samples.json", "sha256": Digest::of(b"golden").to_string(), "bytes": 6},
        ],
        "signature": {"inputs": [], "outputs": [], "batch_axis": null},
        "golden": "golden/samples.json",
        "lineage": {"run_id": "r1", "parent": 2, "branch": "main"},
        "metrics": {"accuracy": 0.97}, "tags": {"stage": "test"},
        "created": "2026-11-01T12:00:00Z", "publisher": "trainer", "colour": {"any": ["thing"]},
    })
}

fn parse(value: &Value) -> Result<Manifest, ManifestError> {
    Manifest::parse(value.to_string().as_bytes()).map(|(manifest, _)| manifest)
}

#[test]
fn everything_is_read_and_unknown_keys_are_kept() {
    let text = sample().to_string();
    let (manifest, digest) = Manifest::parse(text.as_bytes()).unwrap();
    assert_eq!(digest, Digest::of(text.as_bytes()), "the digest is that of the stored bytes");
    assert_eq!(manifest.key().to_string(), "digits@3");
    assert_eq!(manifest.bytes(), 11);
    assert_eq!(manifest.lineage.parent.as_deref(), Some("2"), "a number is taken where trackers write one");
    assert_eq!(manifest.extra["colour"], json!({"any": ["thing"]}));
    assert_eq!(manifest.lineage.extra["branch"], json!("main"));
    let again: Manifest = serde_json::from_slice(&serde_json::to_vec(&manifest).unwrap()).unwrap();
    assert_eq!(again, manifest);
}

#[test]
fn numbers_are_written_as_they_were_read() {
    // Found by fuzzing: read to the nearest double, and not to one beside it.
    let text = serde_json::to_string(&sample()).unwrap().replacen(
        "{",
        r#"{"x":111111111111111111111111111211111111110,"y":8.988465674311579e307,"#,
        1,
    );
    let (read, _) = Manifest::parse(text.as_bytes()).unwrap();
    assert_eq!(read.extra["x"].as_f64(), Some(111_111_111_111_111_111_111_111_111_211_111_111_110.0));
    let (again, _) = Manifest::parse(&serde_json::to_vec(&read).unwrap()).unwrap();
    assert_eq!(again, read);
}

#[test]
fn the_least_manifest() {
    let mut least = sample();
    for optional in ["signature", "golden", "lineage", "metrics", "tags", "publisher", "colour"] {
        least.as_object_mut().unwrap().remove(optional);
    }
    let manifest = parse(&least).unwrap();
    assert!(manifest.signature.is_none() && manifest.golden.is_none() && !manifest.hold);
}

/// Sets the member at `pointer`, or removes it for null, and expects an error that says `expected`.
fn check(pointer: &str, value: Value, expected: &str) {
    let mut manifest = sample();
    let (parent, member) = pointer.rsplit_once('/').unwrap();
    let parent = manifest.pointer_mut(parent).unwrap();
    match parent {
        Value::Object(members) if value.is_null() => drop(members.remove(member)),
        Value::Object(members) => drop(members.insert(member.into(), value.clone())),
        Value::Array(elements) => elements[member.parse::<usize>().unwrap()] = value.clone(),
        other => panic!("{other} has no members"),
    }
    let error = parse(&manifest).expect_err(pointer);
    let text = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    assert!(text.contains(expected), "{pointer} = {value}: {text:?} should say {expected:?}");
}

#[test]
fn what_breaks_a_rule_is_refused_by_field() {
    check("/schema", json!(2), "schema 2, this build reads up to 1");
    check("/schema", json!(0), "schema 0");
    check("/schema", json!(u64::MAX), "schema 18446744073709551615");
    check("/schema", Value::Null, "missing field `schema`");
    check("/model", json!("../x"), "model name");
    check("/model", Value::Null, "missing field `model`");
    check("/version", json!(0), "field `version` is not valid");
    check("/version", json!(u64::MAX), "field `version` is not valid");
    check("/version", json!(-1), "invalid value");
    check("/version", json!(1.5), "invalid type");
    check("/format", json!(""), "field `format`");
    check("/format", json!("x".repeat(65)), "field `format`");
    check("/entrypoint", json!("other.onnx"), "field `entrypoint` names \"other.onnx\", which is not among the files");
    check("/golden", json!("other.json"), "field `golden` names");
    check("/files", json!([]), "should name 1 to 10000 files, not 0");
    check("/files", json!({}), "invalid type");
    check("/files/0/path", json!("/etc/passwd"), "is absolute");
    check("/files/0/path", json!("../../etc/passwd"), "`..`");
    check("/files/0/path", json!("a\\..\\b"), "backslash");
    check("/files/0/path", json!("a\u{0}b"), "control character");
    check("/files/0/path", json!("golden/samples.json"), "names \"golden/samples.json\" twice");
    check("/files/0/path", json!("golden"), "both as a file and as a folder");
    check("/files/0/sha256", json!("../../../etc/passwd"), "64 lower-case hexadecimal digits");
    check("/files/0/sha256", Value::Null, "no sha256 for \"model.onnx\"");
    check("/files/0/bytes", json!(-1), "invalid value");
    check("/files/0/bytes", json!(u64::MAX), "add up to more");
    check("/files/0/bytes", json!(i64::MAX), "add up to more");
    check("/metrics", json!({"accuracy": "high"}), "invalid type");
    check("/lineage", json!({"run_id": []}), "lineage should hold strings or numbers");
    check("/created", json!("yesterday"), "manifest is not valid");
}

#[test]
fn hostile_bytes_are_errors_and_never_panics() {
    let deep = "[".repeat(100_000);
    let nested = format!("{{\"schema\":1,\"x\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for text in ["", "{", "null", "[]", "\"\"", "{\"schema\":1}", "\u{feff}{}", "{\"schema\":1e400}", &deep, &nested] {
        assert!(Manifest::parse(text.as_bytes()).is_err());
    }
    assert!(Manifest::parse(&[0xff, 0xfe, 0x00]).is_err());
    let many = json!(
        (0..=MAX_FILES)
            .map(|n| json!({"path": format!("f{n}"), "sha256": Digest::of(b"").to_string(), "bytes": 0}))
            .collect::<Vec<_>>()
    );
    check("/files", many, "not 10001");
}

proptest::proptest! {
    /// Whatever is cut out of or written into a manifest: an answer or an error, and what is accepted keeps the rules.
    #[test]
    fn damaged_manifests_never_panic(at in 0_usize..700, cut in 0_usize..40, put in ".{0,8}") {
        let mut bytes = sample().to_string().into_bytes();
        let start = at.min(bytes.len());
        let end = (start + cut).min(bytes.len());
        bytes.splice(start..end, put.bytes());
        if let Ok((manifest, _)) = Manifest::parse(&bytes) {
            proptest::prop_assert!(manifest.files.iter().all(|file| check_file_path(&file.path).is_ok()));
            proptest::prop_assert!(check_version(manifest.version).is_ok());
        }
    }
}
