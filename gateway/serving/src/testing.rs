//! What the tests of several modules need: versions, models and listings that nothing stands behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bascule_registry::{
    Digest, Generation, Layout, Lineage, ListedModel, Listing, MANIFEST_SCHEMA, Manifest, ManifestFile, ModelName, Rollout,
    VersionKey, VersionNumber,
};
use bascule_runtime_api::{DataType, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp};
use chrono::{DateTime, Duration, Utc};
use tempfile::TempDir;

pub(crate) const FORMAT: &str = "fake";
pub(crate) const ENTRYPOINT: &str = "model.json";

pub(crate) fn name(text: &str) -> ModelName {
    ModelName::new(text).unwrap()
}

/// So many minutes after a fixed day.
pub(crate) fn minute(minutes: u64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + Duration::minutes(i64::try_from(minutes).unwrap())
}

/// Version n was made in minute n.
pub(crate) fn generation(model: &ModelName, version: VersionNumber, content: &str) -> Generation {
    let manifest = Manifest {
        schema: MANIFEST_SCHEMA,
        model: model.clone(),
        version,
        format: FORMAT.to_owned(),
        entrypoint: ENTRYPOINT.to_owned(),
        files: vec![ManifestFile {
            path: ENTRYPOINT.to_owned(),
            sha256: Some(Digest::of(content.as_bytes())),
            bytes: content.len() as u64,
        }],
        signature: None,
        golden: None,
        lineage: Lineage::default(),
        metrics: BTreeMap::new(),
        tags: BTreeMap::new(),
        created: minute(version),
        publisher: String::new(),
        hold: false,
        extra: BTreeMap::new(),
    };
    Generation {
        key: VersionKey::new(model.clone(), version),
        digest: Digest::of(format!("{model} {version} {content}").as_bytes()),
        bytes: content.len() as u64,
        layout: Layout::Registry,
        manifest: Arc::new(manifest),
        tombstoned: false,
    }
}

pub(crate) fn listed(model: &ModelName, generations: impl IntoIterator<Item = Generation>) -> ListedModel {
    ListedModel {
        name: model.clone(),
        layout: Layout::Registry,
        versions: generations.into_iter().map(|generation| (generation.key.version, Arc::new(generation))).collect(),
        unsettled: BTreeSet::new(),
        settings: BTreeMap::new(),
        rollout: Rollout::default(),
        aliases: BTreeMap::new(),
        problems: Vec::new(),
    }
}

pub(crate) fn listing(complete: bool, models: impl IntoIterator<Item = ListedModel>) -> Listing {
    let models = models.into_iter().map(|model| (model.name.clone(), Arc::new(model))).collect();
    Listing::new(complete, models, DateTime::UNIX_EPOCH, Vec::new())
}

/// A fake model that answers `value` for each row of its one input.
pub(crate) fn constant(value: f64) -> FakeModel {
    let inputs = vec![TensorSpec::new("x", DataType::Fp32, [-1, 2])];
    let outputs = vec![TensorSpec::new("y", DataType::Fp32, [-1, 1])];
    FakeModel { value, batch_axis: Some(0), tag: value.to_string(), ..FakeModel::new(FakeOp::Constant, inputs, outputs) }
}

/// A folder with a model file.
pub(crate) fn folder(model: &FakeModel) -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join(ENTRYPOINT), serde_json::to_vec(model).unwrap()).unwrap();
    dir
}
