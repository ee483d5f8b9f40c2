//! `manifest.json`: what one version is made of.
//!
//! Manifests come from outside: [`Manifest::parse`] checks all of it once. Signature and golden samples are carried unread,
//! since a registry does not know what a tensor is. Unknown keys are kept.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::name::{ModelName, NameError, VersionKey, VersionNumber, check_file_path, check_version, quoted};

/// The schema that this build writes, and the highest that it reads.
pub const MANIFEST_SCHEMA: u32 = 1;
/// The largest manifest that is read.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 16 << 20;
/// The most files of one version.
pub const MAX_FILES: usize = 10_000;
/// The format of a plain version in which no model file is recognised.
pub const FORMAT_UNKNOWN: &str = "unknown";

/// The format of a model file, by the ending of its name.
pub fn format_of(path: &str) -> Option<&'static str> {
    const ENDINGS: [(&str, &str); 3] = [(".onnx", "onnx"), (".pt", "torchscript"), (".fake.json", "fake")];
    ENDINGS.into_iter().find(|(ending, _)| path.ends_with(ending)).map(|(_, format)| format)
}

/// Format and entrypoint by name: the usual ones, else the only file with a known ending. Where nothing is recognised the
/// format is [`FORMAT_UNKNOWN`], so that whoever wonders why it is not served finds it listed.
pub(crate) fn guess_format<'a>(paths: impl Iterator<Item = &'a str> + Clone) -> (&'static str, &'a str) {
    const USUAL: [(&str, &str); 4] =
        [("model.onnx", "onnx"), ("model.onnx/model.onnx", "onnx"), ("model.pt", "torchscript"), ("model.fake.json", "fake")];
    for (usual, format) in USUAL {
        if let Some(path) = paths.clone().find(|path| *path == usual) {
            return (format, path);
        }
    }
    let known: Vec<_> = paths.clone().filter_map(|path| Some((format_of(path)?, path))).collect();
    match known[..] {
        [only] => only,
        _ => (FORMAT_UNKNOWN, paths.clone().next().unwrap_or("")),
    }
}

/// What one version is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_SCHEMA`].
    pub schema: u32,
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: VersionNumber,
    /// Which runtime executes it: `onnx`, `torchscript`.
    pub format: String,
    /// The file that the runtime opens, one of `files`.
    pub entrypoint: String,
    /// All files.
    pub files: Vec<ManifestFile>,
    /// Inputs and outputs, unread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<serde_json::Value>,
    /// The file of golden samples, one of `files`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden: Option<String>,
    /// What it was made from.
    #[serde(default)]
    pub lineage: Lineage,
    /// What its training measured.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// The user's own marks.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// When it was published; for a plain directory when its newest file was written.
    pub created: DateTime<Utc>,
    /// Who published it.
    #[serde(default)]
    pub publisher: String,
    /// Published to be loaded and to take no traffic until a rollout says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
    /// Keys that this build does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its path inside the version, `/` between the parts.
    pub path: String,
    /// The digest of its content. `None` only in a manifest made up for a plain directory: known once it is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// Its size.
    pub bytes: u64,
}

/// What a version was made from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// The training run.
    #[serde(default, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The code: a commit, an image.
    #[serde(default, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The data that it was trained on.
    #[serde(default, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The version that it continues.
    #[serde(default, deserialize_with = "text_or_number", skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Keys that this build does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or a field has another type than it should.
    #[error("manifest is not valid: {0}")]
    Syntax(String),
    /// Too long to be read.
    #[error("manifest has {0} bytes, the limit is {MAX_MANIFEST_BYTES}")]
    TooLarge(u64),
    /// Written by a newer build.
    #[error("manifest has schema {0}, this build reads up to {MANIFEST_SCHEMA}")]
    Schema(u64),
    /// A name, version or path breaks its rule.
    #[error("manifest field `{field}` is not valid")]
    Name {
        /// Which field.
        field: &'static str,
        /// The rule.
        source: NameError,
    },
    /// The fields do not fit together.
    #[error("manifest field `{field}` {problem}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Manifest {
    /// Reads and checks a stored manifest. The digest is that of the bytes, and names the version's content.
    ///
    /// # Errors
    /// The first rule that it breaks, by field.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Digest), ManifestError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u64,
        }
        // Read on its own first: a newer schema may differ in anything else.
        let Schema { schema } = serde_json::from_slice(bytes).map_err(|error| syntax(&error))?;
        if schema != u64::from(MANIFEST_SCHEMA) {
            return Err(ManifestError::Schema(schema));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| syntax(&error))?;
        manifest.validate()?;
        if let Some(file) = manifest.files.iter().find(|file| file.sha256.is_none()) {
            return Err(ManifestError::Field { field: "files", problem: format!("has no sha256 for {}", quoted(&file.path)) });
        }
        Ok((manifest, Digest::of(bytes)))
    }

    /// Checks all rules but that of the digests' presence.
    ///
    /// # Errors
    /// The first rule that it breaks, by field.
    pub fn validate(&self) -> Result<(), ManifestError> {
        let wrong = |field, problem: String| Err(ManifestError::Field { field, problem });
        check_version(self.version).map_err(|source| ManifestError::Name { field: "version", source })?;
        if self.format.is_empty() || self.format.len() > 64 || self.format.chars().any(char::is_control) {
            return wrong("format", format!("should be a short word such as \"onnx\", not {}", quoted(&self.format)));
        }
        if self.files.is_empty() || self.files.len() > MAX_FILES {
            return wrong("files", format!("should name 1 to {MAX_FILES} files, not {}", self.files.len()));
        }
        let mut paths = BTreeSet::new();
        for file in &self.files {
            check_file_path(&file.path).map_err(|source| ManifestError::Name { field: "files", source })?;
            if !paths.insert(file.path.as_str()) {
                return wrong("files", format!("names {} twice", quoted(&file.path)));
            }
        }
        for path in &paths {
            let folders = path.match_indices('/').map(|(end, _)| &path[..end]);
            if let Some(folder) = folders.into_iter().find(|folder| paths.contains(folder)) {
                return wrong("files", format!("names {} both as a file and as a folder", quoted(folder)));
            }
        }
        if self.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.bytes)).is_none_or(|sum| sum > i64::MAX as u64) {
            return wrong("files", "has sizes that add up to more than 2^63-1 bytes".into());
        }
        if !paths.contains(self.entrypoint.as_str()) {
            return wrong("entrypoint", format!("names {}, which is not among the files", quoted(&self.entrypoint)));
        }
        if let Some(golden) = self.golden.as_deref().filter(|golden| !paths.contains(golden)) {
            return wrong("golden", format!("names {}, which is not among the files", quoted(golden)));
        }
        Ok(())
    }

    /// Model and version.
    pub fn key(&self) -> VersionKey {
        VersionKey::new(self.model.clone(), self.version)
    }

    /// All files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

fn syntax(error: &serde_json::Error) -> ManifestError {
    ManifestError::Syntax(error.to_string())
}

/// Trackers disagree whether an identifier is a number.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum TextOrNumber {
        Text(String),
        Number(serde_json::Number),
    }
    let value = Option::<TextOrNumber>::deserialize(deserializer)
        .map_err(|_| serde::de::Error::custom("lineage should hold strings or numbers"))?;
    Ok(value.map(|value| match value {
        TextOrNumber::Text(text) => text,
        TextOrNumber::Number(number) => number.to_string(),
    }))
}

#[cfg(test)]
mod tests;
