//! A reconciler on a test bench: the bench is clock, source, disk and loader threads, and decides what happens when.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::{Digest, Generation, ListedModel, Listing, ModelName, VersionKey, VersionNumber};
use bascule_runtime_api::Device;
use bascule_runtime_fake::{FakeModel, FakeRuntime};
use chrono::DateTime;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::bring::NotBrought;
use super::*;
use crate::drain::drain;
use crate::engine::SettingsError;
use crate::loader::{self, Runtimes};
use crate::memory::Trim;
use crate::status::ModelStatus;
use crate::testing::{ENTRYPOINT, generation, listed, listing, minute, name};
use crate::{CommandError, Devices, ModelSettings, RolloutStrategy, Router, VersionPolicy};

/// Settings as words: `latest=2 all manual instances=2 gpu gpus bad`.
fn read_settings(text: &str) -> Result<ModelSettings, SettingsError> {
    let mut settings = ModelSettings::default();
    for word in text.split_whitespace() {
        match word.split_once('=') {
            Some(("latest", count)) => settings.version_policy = VersionPolicy::Latest(count.parse().unwrap()),
            Some(("instances", count)) => settings.instances = count.parse().unwrap(),
            _ if word == "all" => settings.version_policy = VersionPolicy::All,
            _ if word == "gpu" => settings.devices = Devices::These(vec![Device::Cuda(0)]),
            _ if word == "gpus" => settings.devices = Devices::These(vec![Device::Cuda(0), Device::Cuda(1)]),
            _ if word == "manual" => settings.rollout = RolloutStrategy::Manual,
            _ => return Err(SettingsError { message: format!("'{word}' is no setting") }),
        }
    }
    Ok(settings)
}

pub(super) fn rules() -> Rules {
    Rules {
        load_mode: LoadMode::Watch,
        explicit_models: Vec::new(),
        live: LiveOptions::default(),
        drain_timeout: Duration::from_secs(5),
        retry: RetryPolicy { first: Duration::from_secs(1), max: Duration::from_secs(30), factor: 2.0 },
        keep_previous: Duration::from_secs(600),
        read_settings: Arc::new(|model, _| {
            read_settings(std::str::from_utf8(model.settings.get("settings").map_or(&[], |text| text)).unwrap())
        }),
    }
}

pub(super) struct Bench {
    pub(super) rules: Rules,
    pub(super) reconciler: Reconciler,
    pub(super) router: Router,
    pub(super) runtime: FakeRuntime,
    runtimes: Runtimes,
    /// What tries versions, where any does.
    pub(super) trial: Option<Arc<dyn crate::Trial>>,
    contents: TempDir,
    /// What the source really has.
    pub(super) source: BTreeMap<ModelName, ListedModel>,
    /// What is on disk.
    pub(super) disk: Persisted,
    pub(super) at: Duration,
    pub(super) ticket: u64,
    /// What others were asked to do and have not done yet.
    pub(super) work: Vec<Effect>,
    pub(super) retired: Vec<VersionKey>,
    pub(super) snapshot: Snapshot,
    drains: tokio::runtime::Runtime,
}

impl Bench {
    pub(super) fn new(rules: Rules) -> Bench {
        let (router, publisher) = Router::new();
        let mut reconciler = Reconciler::new(rules.clone(), "the bench".to_owned(), Persisted::default(), publisher);
        // Some models of a simulation run on these.
        let runtime = FakeRuntime::with_gpus(2);
        Bench {
            snapshot: reconciler.empty_snapshot(),
            rules,
            reconciler,
            router,
            runtimes: Runtimes::open(vec![Arc::new(runtime.clone())]),
            runtime,
            trial: None,
            contents: TempDir::new().unwrap(),
            source: BTreeMap::new(),
            disk: Persisted::default(),
            at: Duration::ZERO,
            ticket: 0,
            work: Vec::new(),
            retired: Vec::new(),
            drains: tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap(),
        }
    }

    pub(super) fn now(&self) -> Now {
        Now { at: self.at, utc: DateTime::UNIX_EPOCH + self.at }
    }

    // The source.

    /// Writes a version into the source; the same number again is new content.
    pub(super) fn publish(&mut self, model: &str, version: VersionNumber, content: &FakeModel) -> Generation {
        let model = name(model);
        let text = serde_json::to_string(content).unwrap();
        let generation = generation(&model, version, &text);
        let folder = self.folder(&generation.digest);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(ENTRYPOINT), text).unwrap();
        let listed = self.source.entry(model.clone()).or_insert_with(|| listed(&model, []));
        listed.versions.insert(version, Arc::new(generation.clone()));
        generation
    }

    fn folder(&self, digest: &Digest) -> PathBuf {
        self.contents.path().join(digest.to_string())
    }

    pub(super) fn configure(&mut self, model: &str, settings: &str) {
        let listed = self.source.get_mut(model).unwrap();
        listed.settings.insert("settings".to_owned(), settings.as_bytes().into());
    }

    pub(super) fn listing(&self) -> Listing {
        listing(true, self.source.values().cloned())
    }

    // What the reconciler is told.

    pub(super) fn tell(&mut self, event: Event) {
        self.reconciler.handle(event, self.now());
        self.settle();
    }

    pub(super) fn settle(&mut self) {
        let (effects, snapshot) = self.reconciler.settle(self.now());
        self.snapshot = snapshot;
        let table = self.router.table();
        for effect in effects {
            match effect {
                Effect::Persist { what: Write::Operator(model, operator), .. } => {
                    self.disk.operator.remove(&model);
                    self.disk.operator.extend(operator.map(|operator| (model, operator)));
                }
                Effect::Persist { what: Write::Served(model, served), .. } => {
                    self.disk.served.remove(&model);
                    self.disk.served.extend(served.map(|served| (model, (*served).clone())));
                }
                Effect::Retired { key } => self.retired.push(key),
                Effect::CancelFetch { id } => {
                    self.work.retain(|work| !matches!(work, Effect::Fetch { id: other, .. } if *other == id))
                }
                Effect::Drain { ref servable, .. } => {
                    let named = table.routes().any(|route| route.servables().any(|other| Arc::ptr_eq(other, servable)));
                    assert!(!named, "{servable:?} is to be closed and the table names it");
                    self.work.push(effect);
                }
                effect => self.work.push(effect),
            }
        }
    }

    pub(super) fn look(&mut self) {
        let listing = self.listing();
        self.looked(Look::Listed(Box::new(listing)));
    }

    pub(super) fn looked(&mut self, look: Look) {
        self.ticket += 1;
        self.tell(Event::Looked { ticket: self.ticket, look, registries: Vec::new(), journal: None });
    }

    pub(super) fn load(&mut self, model: &str) -> Result<u64, CommandError> {
        let (reply, mut answer) = oneshot::channel();
        self.tell(Event::Load { model: name(model), ticket: self.ticket + 1, reply });
        answer.try_recv().unwrap()
    }

    pub(super) fn unload(&mut self, model: &str) -> Unloading {
        let (reply, mut answer) = oneshot::channel();
        self.tell(Event::Unload { model: name(model), reply });
        answer.try_recv().unwrap().unwrap()
    }

    // What others do.

    /// Does one piece of work, well where it is up to the bench.
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Fetch { id, generation, .. } => {
                let files = Files::at(self.folder(&generation.digest));
                self.tell(Event::Fetched { id, result: Ok(files) });
            }
            Effect::Verify { id, job } => {
                let trial = self.trial.clone();
                let around = loader::Surroundings { trial: trial.as_deref(), ..loader::Surroundings::untried(&crate::NoGpus) };
                let result = loader::verify(&self.runtimes, &job, &around).map(Box::new);
                self.tell(Event::Verified { id, result });
            }
            Effect::Try { id, job, verified } => {
                let trial = self.trial.clone();
                let around = loader::Surroundings { trial: trial.as_deref(), ..loader::Surroundings::untried(&crate::NoGpus) };
                let result = loader::try_out(*verified, &job, &around).map(Box::new);
                self.tell(Event::Tried { id, result });
            }
            Effect::Load { id, job } => {
                let (sender, warmed) = std::sync::mpsc::sync_channel(1);
                let at = self.now().utc;
                let result = loader::load(*job, None, move || sender.send(()).unwrap(), || at);
                if warmed.try_recv().is_ok() {
                    self.tell(Event::Warming { id });
                }
                self.tell(Event::Loaded { id, result });
            }
            Effect::Drain { id, servable, timeout } => {
                let mut drained = self.drains.block_on(drain(servable, timeout));
                drained.took = Duration::from_millis(5);
                self.tell(Event::Drained { id, drained });
            }
            Effect::Trim => self.tell(Event::Trimmed(Some(Trim { took: Duration::from_millis(20), rss_after: Some(1) }))),
            effect @ (Effect::CancelFetch { .. } | Effect::Persist { .. } | Effect::Retired { .. }) => {
                panic!("{effect:?} is no work")
            }
        }
    }

    pub(super) fn fail_fetch(&mut self, id: ResidencyId) {
        self.tell(Event::Fetched { id, result: Err(NotBrought::Failed("the source is gone".to_owned())) });
    }

    /// Does all there is to do, until nobody has anything to do.
    pub(super) fn run(&mut self) {
        while !self.work.is_empty() {
            let effect = self.work.remove(0);
            self.perform(effect);
        }
    }

    /// Moves the clock to where something happens by itself, or by so much.
    pub(super) fn wait(&mut self, most: Duration) {
        let until = self.at + most;
        let wake = self.reconciler.wake_at().filter(|at| *at <= until);
        self.at = wake.unwrap_or(until).max(self.at);
        if wake.is_some() {
            self.tell(Event::Tick);
        }
    }

    pub(super) fn look_and_run(&mut self) {
        self.look();
        self.run();
    }

    /// As after a kill: nothing is left but the disk and the source. Without waiting for anything.
    pub(super) fn restart(&mut self) {
        let (router, publisher) = Router::new();
        let disk = self.disk.clone();
        // Sessions of the old one are dropped by their own threads.
        self.reconciler = Reconciler::new(self.rules.clone(), "the bench".to_owned(), disk, publisher);
        self.router = router;
        self.work.clear();
        self.settle();
    }

    // What can be seen.

    pub(super) fn status(&self, model: &str) -> &ModelStatus {
        self.snapshot.status.model(model).unwrap()
    }

    /// The versions of a model with their stages: `1 ready*, 2 loading`, the star for stable, `+` for a candidate.
    pub(super) fn stages(&self, model: &str) -> String {
        let Some(status) = self.snapshot.status.model(model) else { return "unknown".to_owned() };
        let one = |version: &crate::VersionStatus| {
            let mark = match version.role.as_deref() {
                Some("stable") => "*",
                Some("candidate") => "+",
                _ => "",
            };
            format!("{} {}{mark}", version.version, version.stage)
        };
        status.versions.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// What the table says of a model.
    pub(super) fn stable(&self, model: &str) -> Option<VersionNumber> {
        self.router.table().route(model)?.stable.as_ref().map(|servable| servable.version())
    }

    pub(super) fn cause(&self, model: &str, version: VersionNumber) -> String {
        let version = self.status(model).version(version).unwrap();
        format!("{}: {}", version.failed_step.clone().unwrap_or_default(), version.cause.clone().unwrap_or_default())
    }

    pub(super) fn live_sessions(&self) -> usize {
        self.runtime.log().counts().live
    }
}

/// The time of a decision in a journal.
pub(super) fn at_minute(minutes: u64) -> Option<DateTime<chrono::Utc>> {
    Some(minute(minutes))
}
