//! The repository's index: every known model, and what has become of its versions.

use bascule_serving::{ModelStatus, Status, VersionStatus};
use serde::Serialize;

const READY: &str = "READY";

/// One version of one model, or a model of which nothing was ever loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IndexEntry {
    /// The model.
    pub name: String,
    /// The version; absent where nothing was ever loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why it is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Every known model and version by name and number; only what answers where `ready_only`.
pub fn index(status: &Status, ready_only: bool) -> Vec<IndexEntry> {
    let entries = status.models.iter().flat_map(|model| entries(model));
    entries.filter(|entry| !ready_only || entry.state.as_deref() == Some(READY)).collect()
}

fn entries(model: &ModelStatus) -> Vec<IndexEntry> {
    let versions: Vec<IndexEntry> = latest(model).into_iter().map(|version| entry(model, version)).collect();
    if versions.is_empty() {
        return vec![IndexEntry { name: model.name.clone(), version: None, state: None, reason: None }];
    }
    versions
}

/// The versions by number, each once. While its content changes a version is there twice: what answers counts, else what is newer.
pub(crate) fn latest(model: &ModelStatus) -> Vec<&VersionStatus> {
    let mut versions: Vec<&VersionStatus> = Vec::with_capacity(model.versions.len());
    for version in &model.versions {
        match versions.last_mut().filter(|last| last.version == version.version) {
            Some(last) if last.state == READY => {}
            Some(last) => *last = version,
            None => versions.push(version),
        }
    }
    versions
}

fn entry(model: &ModelStatus, version: &VersionStatus) -> IndexEntry {
    let reason = match (version.stage.as_str(), &version.cause) {
        ("failed", Some(cause)) => Some(cause.clone()),
        ("unloaded", _) => Some("unloaded".to_owned()),
        _ => None,
    };
    IndexEntry { name: model.name.clone(), version: Some(version.version.to_string()), state: Some(version.state.clone()), reason }
}
