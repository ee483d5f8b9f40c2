//! What a source says exists, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestBuilder};
use crate::journal::Rollout;
use crate::manifest::Manifest;
use crate::name::{ModelName, VersionKey, VersionNumber};
use crate::signing::ManifestSignature;
use crate::steering::Steering;

/// How a model lies in its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Manifests, blobs and a journal, as [`crate::Registry`] writes them.
    Registry,
    /// The same behind a web server, from where it is only read. Its journal comes with the listing; one that is kept beside the source goes
    /// on from it once something is decided here.
    Web,
    /// `<model>/<n>/model.onnx`: what Triton, TF Serving and OVMS read.
    Plain,
    /// Registered models of an MLflow tracking server.
    Mlflow,
    /// Repositories of an OCI registry.
    Oci,
}

impl Layout {
    /// Whether the source itself holds the rollout journal; else it is kept beside the source.
    pub fn holds_journal(self) -> bool {
        self == Self::Registry
    }

    /// Whether the listing brings a journal that is only read: one that is kept beside the source goes on from it.
    pub fn brings_journal(self) -> bool {
        self == Self::Web
    }

    /// One word, as in status and listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Web => "web",
            Self::Plain => "plain",
            Self::Mlflow => "mlflow",
            Self::Oci => "oci",
        }
    }
}

/// One content of one version. A plain directory can change under the same number: that is another generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Model and version.
    pub key: VersionKey,
    /// Names the content: the sha256 of the stored manifest, or of a plain directory's listing. Same digest, same bytes.
    pub digest: Digest,
    /// All files together.
    pub bytes: u64,
    /// Where it comes from.
    pub layout: Layout,
    /// What is in it; made up from file names for a plain directory.
    pub manifest: Arc<Manifest>,
    /// Yanked: it must leave service and is never loaded anew.
    pub tombstoned: bool,
    /// The signatures on its manifest, as they were found: not checked yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<ManifestSignature>,
    /// The manifest as it is stored, where signatures are read: what they sign is its digest, [`Generation::signed_digest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Arc<str>>,
}

impl Generation {
    /// The digest that signatures on it sign. In an OCI registry the manifest is a part of what names the content.
    pub fn signed_digest(&self) -> Digest {
        match (self.layout, &self.stored) {
            (Layout::Oci, Some(stored)) => Digest::of(stored.as_bytes()),
            _ => self.digest,
        }
    }
}

/// One model with all that its source knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedModel {
    /// Its name.
    pub name: ModelName,
    /// How it lies.
    pub layout: Layout,
    /// The place of its registry; nothing where its source does not say.
    pub registry: Option<Arc<str>>,
    /// The versions that exist, tombstoned ones among them.
    pub versions: BTreeMap<VersionNumber, Arc<Generation>>,
    /// Versions whose files, or those of the model's settings, have changed lately and do not count yet. One that was listed
    /// before is still in `versions`, as it was then.
    pub unsettled: BTreeSet<VersionNumber>,
    /// Small files at the model's root by name: `model.toml`, `config.pbtxt`, label files.
    pub settings: BTreeMap<String, Arc<[u8]>>,
    /// The fold of the journal; empty where the source holds none.
    pub rollout: Rollout,
    /// Names that point at versions.
    pub aliases: BTreeMap<String, VersionNumber>,
    /// What is wrong with it, for people. What is named here is left out; the rest counts.
    pub problems: Vec<String>,
    /// Names of the source's own that say which version is stable and which is under test; `None` where it has none.
    pub steering: Option<Steering>,
}

impl ListedModel {
    /// Lets none of its versions count for now, but for those that were taken out of service: these have not settled either, and stay named.
    pub fn unsettle(&mut self) {
        self.unsettled.extend(self.versions.keys());
        self.versions.retain(|_, generation| generation.tombstoned);
    }
}

/// All that exists in a source.
#[derive(Debug, Clone)]
pub struct Listing {
    /// False where a part could not be read: such a listing may add and never remove.
    pub complete: bool,
    /// The models by name.
    pub models: BTreeMap<ModelName, Arc<ListedModel>>,
    /// Hand it to the next [`crate::VersionSource::list`].
    pub cursor: Cursor,
    /// When it was made.
    pub at: DateTime<Utc>,
    /// What is wrong outside any model, for people.
    pub problems: Vec<String>,
    /// A part of the source has neither been read yet nor failed: what is missing may be there.
    pub unread: bool,
    /// Something has not settled: look again after this time, even if the next look says that nothing has changed.
    pub recheck_after: Option<Duration>,
}

/// Where a listing stood. Opaque; may be kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The last change that the listing includes.
    pub(crate) changes: u64,
    /// Names all that was listed.
    pub(crate) state: Digest,
}

impl Listing {
    /// A listing of these models; its cursor is computed from them.
    pub fn new(complete: bool, models: BTreeMap<ModelName, Arc<ListedModel>>, at: DateTime<Utc>, problems: Vec<String>) -> Self {
        let state = state_digest(complete, &models, &problems);
        Self { complete, models, cursor: Cursor { changes: 0, state }, at, problems, unread: false, recheck_after: None }
    }

    /// One generation, where it exists.
    pub fn generation(&self, key: &VersionKey) -> Option<&Arc<Generation>> {
        self.models.get(&key.model)?.versions.get(&key.version)
    }
}

/// Names what is listed: two listings with the same digest tell an engine the same.
fn state_digest(complete: bool, models: &BTreeMap<ModelName, Arc<ListedModel>>, problems: &[String]) -> Digest {
    #[cfg(test)]
    DIGESTS.with(|digests| digests.set(digests.get() + 1));
    let mut state = DigestBuilder::default();
    state.number(u64::from(complete)).number(models.len() as u64);
    for model in models.values() {
        state.field(model.registry.as_deref().unwrap_or_default().as_bytes());
        state.field(model.name.as_str().as_bytes()).number(model.layout as u64).number(model.versions.len() as u64);
        for (version, generation) in &model.versions {
            state.number(*version).bytes(generation.digest.as_bytes()).number(u64::from(generation.tombstoned));
            state.number(generation.signatures.len() as u64);
            for signature in &generation.signatures {
                state.field(signature.key.as_bytes()).field(signature.signature.as_bytes());
            }
        }
        state.number(model.unsettled.len() as u64);
        for version in &model.unsettled {
            state.number(*version);
        }
        state.number(model.settings.len() as u64);
        for (name, content) in &model.settings {
            state.field(name.as_bytes()).field(content);
        }
        model.rollout.describe_to(&mut state);
        state.number(model.aliases.len() as u64);
        for (alias, version) in &model.aliases {
            state.field(alias.as_bytes()).number(*version);
        }
        texts(&mut state, &model.problems);
        // Numbers and texts always have a JSON form.
        state.field(&serde_json::to_vec(&model.steering).unwrap_or_default());
    }
    texts(&mut state, problems);
    state.finish()
}

fn texts(state: &mut DigestBuilder, texts: &[String]) {
    state.number(texts.len() as u64);
    for text in texts {
        state.field(text.as_bytes());
    }
}

#[cfg(test)]
std::thread_local! {
    /// How many listings were digested on this thread: with many models that is what a look costs.
    pub(crate) static DIGESTS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}
