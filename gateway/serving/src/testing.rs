//! What the tests of several modules need: versions, models and listings that nothing stands behind.

pub(crate) mod servables;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bascule_registry::{
    Cursor, Digest, FetchError, Fetched, FetchedFile, Generation, Layout, Lineage, ListedModel, Listing, MANIFEST_SCHEMA, Manifest,
    ManifestFile, ModelName, Progress, Rollout, SourceError, VersionKey, VersionNumber, VersionSource,
};
use bascule_runtime_api::{DataType, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp};
use chrono::{DateTime, Duration, Utc};
use tempfile::TempDir;
use tokio::sync::watch;

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
        signatures: Vec::new(),
        stored: None,
    }
}

pub(crate) fn listed(model: &ModelName, generations: impl IntoIterator<Item = Generation>) -> ListedModel {
    ListedModel {
        name: model.clone(),
        layout: Layout::Registry,
        registry: None,
        versions: generations.into_iter().map(|generation| (generation.key.version, Arc::new(generation))).collect(),
        unsettled: BTreeSet::new(),
        settings: BTreeMap::new(),
        rollout: Rollout::default(),
        aliases: BTreeMap::new(),
        problems: Vec::new(),
        steering: None,
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

/// A source in memory. What it says and brings can be made to fail.
#[derive(Default)]
pub(crate) struct MemorySource {
    held: Mutex<Held>,
    /// Looks and fetches fail while this is on.
    pub(crate) down: AtomicBool,
    /// Looks and fetches panic while this is on.
    pub(crate) broken: AtomicBool,
    /// Fetches wait while this is on.
    pub(crate) stuck: watch::Sender<bool>,
}

#[derive(Default)]
struct Held {
    models: BTreeMap<ModelName, ListedModel>,
    contents: BTreeMap<Digest, String>,
}

impl MemorySource {
    /// Writes a version; the same number again is new content.
    pub(crate) fn publish(&self, model: &str, version: VersionNumber, content: &FakeModel) {
        let model = name(model);
        let text = serde_json::to_string(content).unwrap();
        let generation = generation(&model, version, &text);
        let mut held = self.held.lock().unwrap();
        held.contents.insert(generation.digest, text);
        held.models.entry(model.clone()).or_insert_with(|| listed(&model, [])).versions.insert(version, Arc::new(generation));
    }

    pub(crate) fn change(&self, model: &str, change: impl FnOnce(&mut ListedModel)) {
        change(self.held.lock().unwrap().models.get_mut(model).unwrap());
    }

    /// Takes a model away without a trace, as deleting its directory does.
    pub(crate) fn remove(&self, model: &str) {
        self.held.lock().unwrap().models.remove(&name(model));
    }

    fn is_down(&self) -> Result<(), std::io::Error> {
        assert!(!self.broken.load(Ordering::SeqCst), "a fault of the source's");
        if self.down.load(Ordering::SeqCst) { Err(std::io::Error::other("unplugged")) } else { Ok(()) }
    }
}

#[async_trait]
impl VersionSource for MemorySource {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        self.is_down().map_err(|error| SourceError::Unavailable { place: "memory".to_owned(), source: Arc::new(error) })?;
        let listing = listing(true, self.held.lock().unwrap().models.values().cloned());
        Ok((since != Some(&listing.cursor)).then_some(listing))
    }

    async fn fetch(&self, generation: &Generation, dest: &Path, _: &dyn Progress) -> Result<Fetched, FetchError> {
        let mut stuck = self.stuck.subscribe();
        stuck.wait_for(|stuck| !stuck).await.unwrap();
        self.is_down().map_err(|error| FetchError::Unavailable { place: "memory".to_owned(), source: Arc::new(error) })?;
        let text = self.held.lock().unwrap().contents.get(&generation.digest).cloned();
        let text = text.ok_or_else(|| FetchError::NotFound { what: generation.key.to_string() })?;
        // What lies there may be shared with other versions: it is replaced, never written to.
        let staged = dest.join(".new");
        std::fs::write(&staged, &text).unwrap();
        std::fs::rename(&staged, dest.join(ENTRYPOINT)).unwrap();
        let file = FetchedFile { path: ENTRYPOINT.to_owned(), sha256: Digest::of(text.as_bytes()), bytes: text.len() as u64 };
        Ok(Fetched { files: vec![file] })
    }
}
