//! For tests: versions of fake models, alone in a table or served by an engine, without any file that a test would have to write.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use async_trait::async_trait;
use bascule_registry::{
    Cache, Cursor, Digest, FetchError, Fetched, FetchedFile, Generation, Layout, ListedModel, Listing, LocalJournal, Manifest,
    ModelName, Progress, Rollout, SourceError, VersionKey, VersionSource,
};
use bascule_runtime_api::{DataType, Footprint, LoadOptions, Runtime as _, Signature, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};
use bascule_serving::{
    Engine, EngineOptions, Gpu, Gpus, LiveOptions, LoadMode, ModelSettings, Publisher, Route, Router, Servable, ServableSpec,
    Serving, Standing,
};
use chrono::DateTime;
use tempfile::TempDir;

/// The only file of a version.
const FILE: &str = "model.json";

/// A model that answers its inputs.
pub(crate) fn identity(datatype: DataType, shape: &[i64]) -> FakeModel {
    let spec = |name: &str| TensorSpec::new(name, datatype, shape);
    let batch_axis = (shape.first() == Some(&-1)).then_some(0);
    FakeModel { batch_axis, ..FakeModel::new(FakeOp::Identity, vec![spec("x")], vec![spec("y")]) }
}

/// Four numbers a row in, three out, each of them `value`; rows can be joined.
pub(crate) fn constant(value: f64) -> FakeModel {
    let spec = |name: &str, columns| TensorSpec::new(name, DataType::Fp32, [-1, columns]);
    FakeModel { batch_axis: Some(0), value, ..FakeModel::new(FakeOp::Constant, vec![spec("x", 4)], vec![spec("y", 3)]) }
}

/// A version's generation, and its file's content.
pub(crate) fn generation(model: &str, version: u64, fake: &FakeModel) -> (Arc<Generation>, Vec<u8>) {
    declaring(model, version, fake, None)
}

/// The same, where the manifest declares this signature.
fn declaring(model: &str, version: u64, fake: &FakeModel, signature: Option<&Signature>) -> (Arc<Generation>, Vec<u8>) {
    let content = serde_json::to_vec(fake).unwrap();
    let manifest = serde_json::json!({
        "schema": 1, "model": model, "version": version, "format": "fake", "entrypoint": FILE,
        "files": [{ "path": FILE, "sha256": Digest::of(&content).to_string(), "bytes": content.len() }],
        "signature": signature, "created": "2026-01-01T00:00:00Z"
    });
    let (manifest, digest) = Manifest::parse(manifest.to_string().as_bytes()).unwrap();
    let key = VersionKey { model: ModelName::new(model).unwrap(), version };
    let bytes = content.len() as u64;
    let generation = Generation {
        key,
        digest,
        bytes,
        layout: Layout::Plain,
        manifest: Arc::new(manifest),
        tombstoned: false,
        signatures: Vec::new(),
        stored: None,
    };
    (Arc::new(generation), content)
}

/// A version that is loaded without an engine. `runtime` is the name that it goes by.
pub(crate) fn servable(
    model: &str,
    version: u64,
    fake: &FakeModel,
    settings: ModelSettings,
    runtime: &'static str,
) -> Arc<Servable> {
    let (generation, content) = generation(model, version, fake);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), content).unwrap();
    let options = LoadOptions { entrypoint: FILE.into(), ..LoadOptions::default() };
    let sessions = (0..settings.instances).map(|_| FakeRuntime::new().load(dir.path(), &options).unwrap());
    let spec = ServableSpec {
        generation,
        settings: Arc::new(settings.clone()),
        runtime,
        runtime_version: "1".to_owned(),
        footprint: Footprint::default(),
        loaded_at: DateTime::UNIX_EPOCH,
    };
    Servable::start(spec, sessions.collect()).unwrap()
}

/// A table of these routes.
pub(crate) fn table(routes: Vec<Route>) -> (Router, Publisher) {
    let (router, mut publisher) = Router::new();
    publisher.publish(routes.into_iter().map(|route| (route.model.clone(), Some(Arc::new(route)))));
    (router, publisher)
}

/// A route: the last version is the stable one.
pub(crate) fn route(model: &str, mut versions: Vec<Arc<Servable>>, standing: Standing) -> Route {
    let mut route = Route::empty(ModelName::new(model).unwrap(), standing);
    route.stable = versions.pop();
    route.others = versions;
    route
}

/// A driver without GPUs that keeps which threads have asked it.
#[derive(Default)]
pub(crate) struct Driver(Mutex<Vec<ThreadId>>);

impl Driver {
    pub(crate) fn asked_by(&self) -> Vec<ThreadId> {
        self.0.lock().unwrap().clone()
    }
}

impl Gpus for Driver {
    fn list(&self) -> Vec<Gpu> {
        self.0.lock().unwrap().push(std::thread::current().id());
        Vec::new()
    }
}

/// One version on a [`Shelf`].
struct Shelved {
    generation: Arc<Generation>,
    content: Vec<u8>,
}

/// Versions in memory, and the settings of their models.
#[derive(Default)]
pub(crate) struct Shelf {
    models: Mutex<BTreeMap<ModelName, BTreeMap<u64, Shelved>>>,
    settings: Mutex<BTreeMap<ModelName, ModelSettings>>,
}

impl Shelf {
    /// Adds a version. Who looks next sees it.
    pub(crate) fn put(&self, model: &str, version: u64, fake: &FakeModel) {
        self.add(generation(model, version, fake));
    }

    /// The same, with a manifest that declares the model's signature.
    pub(crate) fn put_declared(&self, model: &str, version: u64, fake: &FakeModel) {
        let (inputs, outputs) = (fake.inputs.clone(), fake.outputs.clone());
        self.add(declaring(model, version, fake, Some(&Signature { inputs, outputs, batch_axis: fake.batch_axis })));
    }

    fn add(&self, (generation, content): (Arc<Generation>, Vec<u8>)) {
        let version = generation.key.version;
        let mut models = self.models.lock().unwrap();
        models.entry(generation.key.model.clone()).or_default().insert(version, Shelved { generation, content });
    }

    /// Sets the settings of a model, before it is put here.
    pub(crate) fn set(&self, model: &str, settings: ModelSettings) {
        self.settings.lock().unwrap().insert(ModelName::new(model).unwrap(), settings);
    }

    fn settings_of(&self, model: &ModelName) -> ModelSettings {
        self.settings.lock().unwrap().get(model).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl VersionSource for Shelf {
    fn describe(&self) -> String {
        "a shelf".to_owned()
    }

    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        let listed = |(name, versions): (&ModelName, &BTreeMap<u64, Shelved>)| {
            let model = ListedModel {
                name: name.clone(),
                // Its journal is the local one.
                layout: Layout::Plain,
                registry: None,
                versions: versions.iter().map(|(version, shelved)| (*version, Arc::clone(&shelved.generation))).collect(),
                unsettled: BTreeSet::new(),
                settings: BTreeMap::new(),
                rollout: Rollout::default(),
                aliases: BTreeMap::new(),
                problems: Vec::new(),
                steering: None,
            };
            (name.clone(), Arc::new(model))
        };
        let models = self.models.lock().unwrap().iter().map(listed).collect();
        let listing = Listing::new(true, models, chrono::Utc::now(), Vec::new());
        Ok(Some(listing).filter(|listing| since != Some(&listing.cursor)))
    }

    async fn fetch(&self, generation: &Generation, dest: &Path, _: &dyn Progress) -> Result<Fetched, FetchError> {
        let content = {
            let models = self.models.lock().unwrap();
            models[&generation.key.model][&generation.key.version].content.clone()
        };
        // What lies there may be shared with other versions: it is replaced, never written to.
        let staged = dest.join(".new");
        std::fs::write(&staged, &content).unwrap();
        std::fs::rename(&staged, dest.join(FILE)).unwrap();
        let file = FetchedFile { path: FILE.to_owned(), sha256: Digest::of(&content), bytes: content.len() as u64 };
        Ok(Fetched { files: vec![file] })
    }
}

/// A running engine over a [`Shelf`].
pub(crate) struct Sandbox {
    pub(crate) serving: Serving,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) runtime: FakeRuntime,
    pub(crate) gpus: Arc<Driver>,
    /// Holds cache, state and journal for as long as the engine runs.
    _dir: TempDir,
}

/// A model on the shelf from the start.
pub(crate) struct Stocked(pub(crate) &'static str, pub(crate) u64, pub(crate) FakeModel, pub(crate) ModelSettings);

impl Sandbox {
    /// An engine that has loaded these.
    pub(crate) async fn start(stock: impl IntoIterator<Item = Stocked>) -> Sandbox {
        Sandbox::with_mode(stock, LoadMode::Watch).await
    }

    /// The same, where models load otherwise.
    pub(crate) async fn with_mode(stock: impl IntoIterator<Item = Stocked>, load_mode: LoadMode) -> Sandbox {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Shelf::default());
        for Stocked(model, version, fake, settings) in stock {
            shelf.set(model, settings);
            shelf.put(model, version, &fake);
        }
        let runtime = FakeRuntime::new();
        let journal = Arc::new(LocalJournal::open(&dir.path().join("journal")).unwrap());
        let cache = Cache::open(dir.path().join("cache")).unwrap();
        let reader = Arc::clone(&shelf);
        let gpus = Arc::new(Driver::default());
        let options = EngineOptions {
            gpus: Arc::clone(&gpus) as Arc<dyn Gpus>,
            runtimes: vec![Arc::new(runtime.clone())],
            read_settings: Arc::new(move |model, _| Ok(reader.settings_of(&model.name))),
            load_mode,
            // Looks are asked for, so that no test waits for one.
            live: LiveOptions { poll_interval: Duration::from_secs(3600), ..LiveOptions::default() },
            ..EngineOptions::new(Arc::clone(&shelf) as Arc<dyn VersionSource>, journal, cache, dir.path().join("state"))
        };
        // Warm-up runs are let through the gate; those of the test wait at it.
        runtime.log().release();
        let serving = Engine::start(options).await.unwrap();
        serving.wait_ready().await;
        runtime.log().hold();
        Sandbox { serving, shelf, runtime, gpus, _dir: dir }
    }
}
