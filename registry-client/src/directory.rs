//! A local directory of models, in our layout and in the plain one (`<model>/<n>/model.onnx`), both at once.
//!
//! Each look reads directories and file times; manifests and journals are read again only where something has changed. A
//! plain version counts once two looks, a settle interval apart, have seen the same files: half-copied files are never
//! listed. So do settings, in either layout; until they do, those before them count and new versions wait. Symbolic links count as long as they stay inside the directory.
//!
//! Deliberately absent: what becomes of a version that is no longer there, and the journal of plain models.

mod copying;
mod look;
mod plain;
mod settings;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::Error as StoreError;

use crate::clock::{Clock, SystemClock};
use crate::digest::Digest;
use crate::listing::{Cursor, Generation, Layout, ListedModel, Listing};
use crate::name::{ModelName, VersionKey};
use crate::plain::{Recheck, Settings, add_version, model as plain_model, with_settings};
use crate::registry::changes::Changes;
use crate::registry::contained::ContainedDirectory;
use crate::registry::versions::{Committed, listed, shadowed, with_causes};
use crate::registry::{REPAIR_INTERVAL, Registry};
use crate::settle::{LookTime, Settled, Settler};
use crate::signing::Trust;
use crate::source::{FetchError, Fetched, Progress, SourceError, VersionSource};
use look::{Look, ModelLook, look};
use plain::ScanError;

pub use watch::Watch;

/// How long the files of a plain version have to stay as they are before it counts.
pub const SETTLE_INTERVAL: Duration = Duration::from_secs(1);

/// How a directory is looked at.
#[derive(Clone)]
pub struct DirectoryOptions {
    /// See [`SETTLE_INTERVAL`].
    pub settle_interval: Duration,
    /// How often manifests and journals are read again although nothing tells that they have changed.
    pub repair_interval: Duration,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Signatures are read, those of these keys first.
    pub signatures_of: Option<Arc<Trust>>,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            settle_interval: SETTLE_INTERVAL,
            repair_interval: REPAIR_INTERVAL,
            clock: Arc::new(SystemClock::default()),
            signatures_of: None,
        }
    }
}

/// A local directory of models.
pub struct DirectorySource {
    root: PathBuf,
    options: DirectoryOptions,
    state: tokio::sync::Mutex<State>,
}

/// What was seen so far.
struct State {
    /// Our layout is read through this; made anew when the directory has become another.
    registry: Option<(PathBuf, Arc<Registry>)>,
    changes: u64,
    /// When manifests and journals were last read whatever had changed.
    full_at: Option<Duration>,
    /// By which keys signatures were read then.
    edition: u64,
    /// What is told of a change log that ended before where it was read to.
    restored: Option<String>,
    ours: BTreeMap<ModelName, Ours>,
    settler: Settler<VersionKey, Generation>,
    settings: Settler<ModelName, Settings>,
    /// As last listed, for models that can't be read now.
    listed: BTreeMap<ModelName, Arc<ListedModel>>,
}

/// A model in our layout, as it was last read.
struct Ours {
    fingerprint: Digest,
    /// False where a problem was found, which may be gone at the next look.
    whole: bool,
    committed: Committed,
}

/// What one look adds up to.
struct Outcome {
    complete: bool,
    models: BTreeMap<ModelName, Arc<ListedModel>>,
    problems: Vec<String>,
    recheck: Recheck,
}

impl DirectorySource {
    /// A source over this directory, which need not exist yet: while it does not, listing is an error.
    pub fn new(root: impl Into<PathBuf>, options: DirectoryOptions) -> Self {
        let state = State {
            registry: None,
            changes: 0,
            full_at: None,
            edition: 0,
            restored: None,
            ours: BTreeMap::new(),
            settler: Settler::new(options.settle_interval),
            settings: Settler::new(options.settle_interval),
            listed: BTreeMap::new(),
        };
        Self { root: root.into(), options, state: tokio::sync::Mutex::new(state) }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Tells when something below the directory has changed: a hint to list soon. Lossy, and not there on every file system;
    /// listing regularly is what counts.
    ///
    /// # Errors
    /// The directory is not there, or the system has no watches left.
    pub async fn watch(&self) -> Result<Watch, notify::Error> {
        let root = self.root.clone();
        let started = tokio::task::spawn_blocking(move || Watch::start(&root)).await;
        started.unwrap_or_else(|error| Err(notify::Error::io(std::io::Error::other(error))))
    }

    /// What our layout is read through.
    fn registry(&self, state: &mut State, real_root: &Path) -> std::io::Result<Arc<Registry>> {
        if let Some((_, registry)) = state.registry.as_ref().filter(|(known, _)| known == real_root) {
            return Ok(Arc::clone(registry));
        }
        let store = ContainedDirectory::open(real_root)?;
        let registry = Registry::over(Arc::new(store), object_store::path::Path::default(), self.describe());
        let registry = registry.with_clock(Arc::clone(&self.options.clock));
        let registry = Arc::new(match &self.options.signatures_of {
            Some(first) => registry.reading_signatures(Arc::clone(first)),
            None => registry,
        });
        state.registry = Some((real_root.to_owned(), Arc::clone(&registry)));
        (state.full_at, state.changes) = (None, 0);
        Ok(registry)
    }

    /// What the change log names since the last look; all models where it is time to repair.
    async fn changes(&self, state: &State, registry: &Registry, now: Duration) -> Result<Changes, StoreError> {
        let recent = state.full_at.is_some_and(|full_at| now.saturating_sub(full_at) < self.options.repair_interval);
        // By other keys, other signatures count.
        if recent && state.edition == registry.edition() {
            return registry.changes_after(state.changes).await;
        }
        // The log comes first: what is committed during the look is then seen again, never missed.
        Ok(Changes { last: registry.last_change().await?, models: None })
    }

    /// The settings that count. At the first look at a model they may do so at once where nobody can be writing them.
    fn settings(&self, state: &mut State, seen: &ModelLook, time: &LookTime) -> Settled<Settings> {
        let (digest, contents) = (seen.settings.digest(), || seen.settings.contents());
        if seen.settings.is_quiet(self.options.clock.now()) {
            state.settings.trust(&seen.name, digest, time, contents);
        }
        state.settings.observe(&seen.name, digest, time, contents)
    }

    async fn read_ours(
        &self,
        state: &mut State,
        registry: &Registry,
        mut seen: ModelLook,
        settings: Settled<Settings>,
        outcome: &mut Outcome,
    ) {
        let Some((fingerprint, anew)) = seen.ours.map(|fingerprint| (fingerprint, seen.anew)) else { return };
        let name = seen.name.clone();
        let known = state.ours.get(&name).filter(|known| !anew && known.fingerprint == fingerprint && known.whole);
        if known.is_none() {
            match registry.committed(&name).await {
                Ok(committed) => {
                    // A problem may be a file that is still being copied, and whose time says nothing then.
                    let whole = committed.problems.is_empty();
                    drop(state.ours.insert(name.clone(), Ours { fingerprint, whole, committed }));
                }
                Err(error) => {
                    // Whatever was the reason to read it is still one.
                    state.ours.remove(&name);
                    return outcome.keep_as_it_was(state, &name, &with_causes(&error));
                }
            }
        }
        let Some(known) = state.ours.get(&name) else { return };
        seen.problems.extend(shadowed(&seen.numeric));
        if let Some(model) = listed(&name, known.committed.clone(), Settings::new(), seen.problems) {
            outcome.add(state, model, settings);
        }
    }
}

impl Outcome {
    /// A model that can't be read stays as it was, and the listing can remove nothing.
    fn keep_as_it_was(&mut self, state: &State, name: &ModelName, why: &str) {
        self.complete = false;
        self.problems.push(format!("model {name} can't be read: {why}"));
        if let Some(model) = state.listed.get(name) {
            self.models.insert(name.clone(), Arc::clone(model));
        }
    }

    /// Adds a model with its settings, as far as these have settled.
    fn add(&mut self, state: &State, model: ListedModel, settings: Settled<Settings>) {
        let listed = state.listed.get(&model.name);
        let model = with_settings(model, settings, listed.map(AsRef::as_ref), &mut self.recheck);
        self.models.insert(model.name.clone(), Arc::new(model));
    }

    fn add_plain(&mut self, state: &mut State, seen: ModelLook, settings: Settled<Settings>, time: &LookTime) {
        let ModelLook { name, plain, problems, .. } = seen;
        let mut model = plain_model(&name, problems);
        for (version, files) in plain {
            let key = VersionKey::new(name.clone(), version);
            match files {
                Ok(files) => {
                    let settled = state.settler.observe(&key, files.digest, time, || plain::generation(&key, &files));
                    add_version(&mut model, version, settled, &mut self.recheck);
                }
                Err(ScanError::Refused(why)) => model.problems.push(format!("version {version} is ignored: {why}")),
                Err(ScanError::Io(error)) => {
                    self.complete = false;
                    model.problems.push(format!("version {version} can't be read: {error}"));
                    model.versions.extend(state.settler.last(&key).map(|generation| (version, generation)));
                }
            }
        }
        self.add(state, model, settings);
    }
}

#[async_trait]
impl VersionSource for DirectorySource {
    fn describe(&self) -> String {
        format!("directory {}", self.root.display())
    }

    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        let mut state = self.state.lock().await;
        let root = self.root.clone();
        let began = self.options.clock.elapsed();
        let seen = tokio::task::spawn_blocking(move || look(&root)).await.map_err(std::io::Error::other).flatten();
        let seen = seen.map_err(|error| SourceError::unavailable(self.describe(), error))?;
        let time = LookTime { began, ended: self.options.clock.elapsed() };
        let outcome = self.add_up(&mut state, seen, &time).await?;
        let mut listing = Listing::new(outcome.complete, outcome.models, self.options.clock.now(), outcome.problems);
        listing.cursor.changes = state.changes;
        listing.recheck_after = outcome.recheck.0;
        state.listed.clone_from(&listing.models);
        Ok(Some(listing).filter(|listing| since.is_none_or(|since| since.state != listing.cursor.state)))
    }

    async fn fetch(&self, generation: &Generation, dest: &Path, progress: &dyn Progress) -> Result<Fetched, FetchError> {
        match generation.layout {
            Layout::Registry => {
                let root = self.root.clone();
                let opened = tokio::task::spawn_blocking(move || Registry::open_dir(&root)).await;
                let opened = opened.map_err(|error| FetchError::unavailable(self.describe(), error))?;
                let registry = opened.map_err(|error| FetchError::unavailable(self.describe(), error))?;
                registry.fetch(generation, dest, progress).await
            }
            Layout::Plain => copying::copy_plain(&self.root, generation, dest, progress).await,
            other @ (Layout::Web | Layout::Mlflow | Layout::Oci) => {
                let what = format!("{} of the layout {} in {}", generation.key, other.as_str(), self.describe());
                Err(FetchError::NotFound { what })
            }
        }
    }
}

impl DirectorySource {
    async fn add_up(&self, state: &mut State, seen: Look, time: &LookTime) -> Result<Outcome, SourceError> {
        let registry = self.registry(state, &seen.root).map_err(|error| SourceError::unavailable(self.describe(), error))?;
        let edition = registry.edition();
        let changes = self.changes(state, &registry, time.began).await;
        let changes = changes.map_err(|error| SourceError::unavailable(self.describe(), error))?;
        let mut outcome = Outcome { complete: true, models: BTreeMap::new(), problems: seen.problems, recheck: Recheck::default() };
        let (mut ours, mut plain, mut names) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for mut model in seen.models {
            names.insert(model.name.clone());
            plain.extend(model.plain.keys().map(|version| VersionKey::new(model.name.clone(), *version)));
            if let Some(why) = &model.failed {
                outcome.keep_as_it_was(state, &model.name, why);
                continue;
            }
            let settings = self.settings(state, &model, time);
            if model.ours.is_some() {
                ours.insert(model.name.clone());
                model.anew = changes.models.as_ref().is_none_or(|changed| changed.contains(&model.name));
                self.read_ours(state, &registry, model, settings, &mut outcome).await;
            } else {
                outcome.add_plain(state, model, settings, time);
            }
        }
        if outcome.complete {
            state.settler.keep_only(&plain);
            state.settings.keep_only(&names);
        }
        state.ours.retain(|name, _| ours.contains(name));
        // Only now: whoever is cancelled before has not followed the log.
        if changes.models.is_none() {
            (state.full_at, state.edition) = (Some(time.began), edition);
            state.restored = registry.restored(state.changes, changes.last);
        }
        outcome.problems.extend(state.restored.clone());
        state.changes = changes.last;
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests;
