//! `bascule diff`: what differs between two versions of a model.

use std::collections::{BTreeMap, BTreeSet};

use bascule_registry::{Generation, ModelName, VersionNumber};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::env::Environment;

use super::args::ConfigArgs;
use super::output::{bytes, print, print_json, rows, table};
use super::{Outcome, in_background, versions_of};

/// Compare two versions of a model: signature, files by content, size, metrics, lineage, tags, and who signed them.
///
/// Only what differs is shown. Nothing is downloaded: manifests are compared.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule diff digits 2 3 --registry ./models")]
pub(super) struct Diff {
    /// The model.
    model: ModelName,
    /// The version to compare.
    #[arg(value_parser = versions_of::number)]
    a: VersionNumber,
    /// The version to compare it with.
    #[arg(value_parser = versions_of::number)]
    b: VersionNumber,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Something that differs. What only one of both has is absent in the other.
#[derive(Debug, PartialEq, Serialize)]
struct Difference {
    /// `metric accuracy`, `file model.onnx`, `input x`.
    field: String,
    a: Option<String>,
    b: Option<String>,
    /// Of numbers, how much more there is in `b`.
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<f64>,
}

impl Diff {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let config = self.config.load([], environment)?.config;
        in_background(async {
            let model = versions_of::listed(&config, &self.model).await?;
            let (a, b) = (versions_of::pick(&model, self.a)?, versions_of::pick(&model, self.b)?);
            let (differences, same) = (differences(a, b), same_files(a, b));
            if self.json {
                return print_json(&json!({
                    "model": self.model, "a": self.a, "b": self.b, "differences": differences, "same_files": same,
                }));
            }
            print(&text(&differences, same, [self.a, self.b]))
        })
    }
}

/// The texts of a version, by what they are.
fn texts(version: &Generation) -> BTreeMap<String, String> {
    let manifest = &version.manifest;
    let mut texts = BTreeMap::from([
        ("created".to_owned(), manifest.created.to_rfc3339()),
        ("digest".to_owned(), version.digest.to_string()),
        ("entrypoint".to_owned(), manifest.entrypoint.clone()),
        ("format".to_owned(), manifest.format.clone()),
        ("publisher".to_owned(), manifest.publisher.clone()),
    ]);
    let lineage = &manifest.lineage;
    let known = [("run_id", &lineage.run_id), ("code", &lineage.code), ("data", &lineage.data), ("parent", &lineage.parent)];
    let known = known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
    let unknown = lineage.extra.iter().map(|(name, value)| (name.clone(), value.to_string()));
    texts.extend(known.chain(unknown).map(|(name, value)| (format!("lineage {name}"), value)));
    texts.extend(manifest.tags.iter().map(|(name, value)| (format!("tag {name}"), value.clone())));
    texts.extend(manifest.golden.clone().map(|golden| ("golden".to_owned(), golden)));
    texts.extend(manifest.hold.then(|| ("hold".to_owned(), "true".to_owned())));
    texts.extend(version.tombstoned.then(|| ("tombstoned".to_owned(), "true".to_owned())));
    let signers = versions_of::signers(version).join(" ");
    texts.extend((!signers.is_empty()).then(|| ("signed by".to_owned(), signers)));
    let signature = manifest.signature.as_ref().and_then(Value::as_object);
    for (name, value) in signature.into_iter().flatten() {
        match (name.as_str(), value.as_array()) {
            ("inputs" | "outputs", Some(tensors)) => texts.extend(tensors.iter().map(|tensor| spec(name, tensor))),
            _ => drop(texts.insert(format!("signature {name}"), value.to_string())),
        }
    }
    let digest = |file: &bascule_registry::ManifestFile| file.sha256.map_or_else(|| "-".to_owned(), |sha256| sha256.short());
    let file = |file| (format!("file {}", file_path(file)), format!("{}, sha256 {}", bytes(file.bytes), digest(file)));
    texts.extend(manifest.files.iter().map(file));
    texts
}

fn file_path(file: &bascule_registry::ManifestFile) -> &str {
    &file.path
}

/// A tensor of a signature: `input x` and `FP32 [-1,4]`.
fn spec(list: &str, tensor: &Value) -> (String, String) {
    let name = tensor["name"].as_str().unwrap_or("?");
    let text = match tensor["datatype"].as_str() {
        Some(datatype) => format!("{datatype} {}", tensor["shape"]),
        None => tensor.to_string(),
    };
    (format!("{} {name}", list.trim_end_matches('s')), text)
}

/// The numbers of a version.
fn numbers(version: &Generation) -> BTreeMap<String, f64> {
    let metrics = version.manifest.metrics.iter().map(|(name, value)| (format!("metric {name}"), *value));
    metrics.chain([("size".to_owned(), version.bytes as f64)]).collect()
}

fn differences(a: &Generation, b: &Generation) -> Vec<Difference> {
    let (a_texts, b_texts) = (texts(a), texts(b));
    let fields: BTreeSet<&String> = a_texts.keys().chain(b_texts.keys()).collect();
    let of_texts = fields.into_iter().map(|field| Difference {
        field: field.clone(),
        a: a_texts.get(field).cloned(),
        b: b_texts.get(field).cloned(),
        delta: None,
    });
    let (a_numbers, b_numbers) = (numbers(a), numbers(b));
    let fields: BTreeSet<&String> = a_numbers.keys().chain(b_numbers.keys()).collect();
    let of_numbers = fields.into_iter().map(|field| {
        let (a, b) = (a_numbers.get(field), b_numbers.get(field));
        let shown = |value: &f64| if field == "size" { bytes(*value as u64) } else { value.to_string() };
        let delta = a.zip(b).map(|(a, b)| b - a).filter(|delta| *delta != 0.0);
        // Sizes that differ by little look the same.
        let (shown_a, shown_b) = match (a.map(shown), b.map(shown)) {
            (Some(one), Some(other)) if one == other && delta.is_some() => (a.map(f64::to_string), b.map(f64::to_string)),
            shown => shown,
        };
        Difference { field: field.clone(), a: shown_a, b: shown_b, delta }
    });
    of_texts.chain(of_numbers).filter(|difference| difference.a != difference.b).collect()
}

/// How many files both have, under the same path with the same content.
fn same_files(a: &Generation, b: &Generation) -> usize {
    a.manifest.files.iter().filter(|file| b.manifest.files.contains(file)).count()
}

fn text(differences: &[Difference], same: usize, [a, b]: [VersionNumber; 2]) -> String {
    if differences.is_empty() {
        return format!("version {a} and version {b} are the same");
    }
    let mut table = table(
        ["FIELD".to_owned(), format!("VERSION {a}"), format!("VERSION {b}"), "DIFFERENCE".to_owned()]
            .each_ref()
            .map(String::as_str),
    );
    for difference in differences {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let how = match (difference.delta, &difference.a, &difference.b) {
            (Some(delta), _, _) => format!("{delta:+}"),
            (None, None, _) => "added".to_owned(),
            (None, _, None) => "removed".to_owned(),
            _ => "changed".to_owned(),
        };
        table.add_row([difference.field.clone(), or_dash(&difference.a), or_dash(&difference.b), how]);
    }
    let files = if same == 1 { "1 file is".to_owned() } else { format!("{same} files are") };
    format!("{}\n{files} the same", rows(&table))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bascule_registry::{Digest, Layout, Manifest};

    use super::*;

    fn version(number: u64, change: impl FnOnce(&mut Value)) -> Generation {
        let mut manifest = json!({
            "schema": 1, "model": "m", "version": number, "format": "onnx", "entrypoint": "model.onnx",
            "files": [{ "path": "model.onnx", "sha256": Digest::of(b"one"), "bytes": 1000 },
                      { "path": "labels.txt", "sha256": Digest::of(b"labels"), "bytes": 10 }],
            "signature": { "inputs": [{ "name": "x", "datatype": "FP32", "shape": [-1, 4] }], "outputs": [], "batch_axis": 0 },
            "metrics": { "accuracy": 0.5, "loss": 2.0 }, "tags": { "team": "a" }, "lineage": { "run_id": "r1" },
            "created": "2026-01-02T03:04:05Z", "publisher": "ann",
        });
        change(&mut manifest);
        let (manifest, _) = Manifest::parse(manifest.to_string().as_bytes()).unwrap();
        Generation {
            key: manifest.key(),
            digest: Digest::of(b"the same"),
            bytes: manifest.bytes(),
            layout: Layout::Registry,
            manifest: Arc::new(manifest),
            tombstoned: false,
            signatures: Vec::new(),
            stored: None,
        }
    }

    #[test]
    fn only_what_differs_is_shown() {
        let a = version(1, |_| {});
        assert_eq!(differences(&a, &version(2, |_| {})), []);
        assert_eq!(text(&[], 2, [1, 2]), "version 1 and version 2 are the same");
        let b = version(2, |manifest| {
            manifest["metrics"] = json!({ "accuracy": 0.75, "f1": 1.0 });
            manifest["files"][0] = json!({ "path": "model.onnx", "sha256": Digest::of(b"two"), "bytes": 1001 });
            manifest["signature"]["inputs"][0]["shape"] = json!([-1, 5]);
            manifest["lineage"] = json!({ "run_id": "r2", "parent": "1" });
            manifest["tags"] = json!({});
        });
        let found = differences(&a, &b);
        let found: Vec<_> = found.iter().map(|one| (one.field.as_str(), one.a.as_deref(), one.b.as_deref(), one.delta)).collect();
        let (one, two) = (Digest::of(b"one").short(), Digest::of(b"two").short());
        assert_eq!(
            found,
            [
                ("file model.onnx", Some(format!("1000 B, sha256 {one}").as_str()), Some(&*format!("1001 B, sha256 {two}")), None),
                ("input x", Some("FP32 [-1,4]"), Some("FP32 [-1,5]"), None),
                ("lineage parent", None, Some("1"), None),
                ("lineage run_id", Some("r1"), Some("r2"), None),
                ("tag team", Some("a"), None, None),
                ("metric accuracy", Some("0.5"), Some("0.75"), Some(0.25)),
                ("metric f1", None, Some("1"), None),
                ("metric loss", Some("2"), None, None),
                ("size", Some("1010 B"), Some("1011 B"), Some(1.0)),
            ]
        );
        let shown = text(&differences(&a, &b), same_files(&a, &b), [1, 2]);
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["FIELD", "VERSION", "1", "VERSION", "2", "DIFFERENCE"]);
        assert_eq!(lines[6], ["metric", "accuracy", "0.5", "0.75", "+0.25"]);
        assert_eq!(lines[5], ["tag", "team", "a", "-", "removed"]);
        assert!(shown.ends_with("\n1 file is the same"), "{shown}");
    }
}
