//! The registry in our own layout, over any object store with put-if-absent: what it holds, and the journal.
//!
//! A version exists once its manifest does; nothing before that is ever seen. Nothing that was committed is changed.

pub(crate) mod access;
pub(crate) mod changes;
pub(crate) mod contained;
mod fetching;
mod gc;
mod known;
pub(crate) mod location;
mod logged;
mod plain;
mod publish;
mod reading;
mod signatures;
mod tree;
mod verify;
pub(crate) mod versions;

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore};
use uuid::Uuid;

pub use gc::{GC_GRACE, Garbage, Leftover};
pub use location::{StoreEnvironment, without_secrets};
pub use publish::{PublishError, PublishRequest, PublishTarget, Published, collect_files};
pub(crate) use publish::{checked_draft, measure_all};
pub use verify::{Finding, Survey, Verification, bad_signatures};

use crate::clock::{Clock, SystemClock};
use crate::journal::{Entry, JournalEntries, JournalError, JournalPage, Op, Proposal, Rollout};
use crate::listing::{Generation, ListedModel};
use crate::log::{NumberedLog, Put, put_if_absent};
use crate::manifest::{Manifest, ManifestError};
use crate::name::{ModelName, VersionKey, VersionNumber};
use crate::signing::Trust;
use crate::source::Cause;
use crate::transfer::Transfers;
use changes::What;

/// How often all of a registry is listed again, whatever its change log says; up to a tenth earlier, by chance.
pub const REPAIR_INTERVAL: Duration = Duration::from_secs(600);

/// A registry in our own layout.
pub struct Registry {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    description: String,
    clock: Arc<dyn Clock>,
    repair_interval: Duration,
    /// How long plain versions have to stay as they are before they count.
    settle_interval: Duration,
    may_list: location::Listing,
    /// Seeds what spreads the looks of replicas.
    chance: AtomicU64,
    /// Signatures are read, those of these keys first.
    signatures_of: Option<Arc<Trust>>,
    changes: NumberedLog,
    /// Where to look for the end of the change log: right most of the time.
    last_change: AtomicU64,
    seen: tokio::sync::Mutex<Option<reading::Seen>>,
    transfers: Arc<Transfers>,
    multipart: Option<Arc<dyn MultipartStore>>,
    part_bytes: u64,
}

/// Why a registry can't be opened or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// The place is not written as it should be.
    #[error("registry location {location} {problem}")]
    Location {
        /// What was given, quoted.
        location: String,
        /// What is wrong.
        problem: Cow<'static, str>,
    },
    /// A store that this build does not know.
    #[error(
        "registries at {scheme}:// are not supported: write a path, file://, s3://, gs://, az://, http:// or https://, or memory:// for a test"
    )]
    NotSupported {
        /// The scheme of the URL.
        scheme: String,
    },
    /// The directory does not exist.
    #[error("registry directory {} does not exist", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no such version.
    #[error("{key} does not exist")]
    NotFound {
        /// The version.
        key: VersionKey,
    },
    /// The stored manifest breaks a rule.
    #[error("the manifest of {key} can't be used")]
    Manifest {
        /// The version.
        key: VersionKey,
        /// Which rule.
        source: ManifestError,
    },
    /// The store can't hold a registry.
    #[error("{store} can't be written as a registry: it lacks put-if-absent")]
    NoPutIfAbsent {
        /// The store.
        store: String,
    },
    /// The store can't be reached or refuses: worth another try.
    #[error("{place} can't be reached")]
    Unavailable {
        /// What was asked.
        place: String,
        /// Why.
        source: Cause,
    },
}

impl RegistryError {
    pub(crate) fn unavailable(place: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Unavailable { place: place.into(), source: crate::source::cause(source) }
    }

    fn writing(store: &dyn ObjectStore, place: impl Into<String>, error: StoreError) -> Self {
        if crate::log::lacks_put_if_absent(&error) {
            return Self::NoPutIfAbsent { store: store.to_string() };
        }
        Self::unavailable(place, error)
    }
}

impl Registry {
    /// Opens a registry at a path, `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`,
    /// `http(s)://host/path` (to be read only) or, for tests, `memory://` (which is empty at each opening). Credentials and
    /// settings of stores come from the variables of the environment that other tools go by. Stores on other machines are not asked yet.
    ///
    /// # Errors
    /// [`RegistryError::Location`] says what is wrong with the place or lacks in the environment, [`RegistryError::Missing`] where a
    /// directory is not there, [`RegistryError::NotSupported`] for other schemes.
    pub fn open(location: &str) -> Result<Self, RegistryError> {
        Self::open_in(location, &StoreEnvironment::of_process())
    }

    /// The same with these variables instead of those of the process.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn open_in(location: &str, environment: &StoreEnvironment) -> Result<Self, RegistryError> {
        let opened = location::open(location, environment)?;
        let registry = Self::over(opened.store, opened.prefix, opened.description);
        Ok(Self { may_list: opened.listing, multipart: opened.multipart, ..registry })
    }

    /// The same, and a directory that is not there is made. Blocks.
    ///
    /// # Errors
    /// As [`Registry::open`]; and where the directory can't be made.
    pub fn open_or_create(location: &str) -> Result<Self, RegistryError> {
        if let Some(path) = location::local_path(location)? {
            let place = || format!("directory {}", path.display());
            crate::durable::create_dir(&path).map_err(|error| RegistryError::unavailable(place(), error))?;
        }
        Self::open(location)
    }

    /// A registry in a local directory, which has to exist.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn open_dir(dir: &FsPath) -> Result<Self, RegistryError> {
        let opened = location::open_dir(dir)?;
        Ok(Self::over(opened.store, Path::default(), opened.description))
    }

    /// A registry below a prefix of any store; the description is for people.
    pub fn over(store: Arc<dyn ObjectStore>, prefix: Path, description: impl Into<String>) -> Self {
        let changes = NumberedLog::new(Arc::clone(&store), prefix.clone().join("_changes"));
        Self {
            store,
            prefix,
            description: description.into(),
            clock: Arc::new(SystemClock::default()),
            repair_interval: REPAIR_INTERVAL,
            settle_interval: crate::directory::SETTLE_INTERVAL,
            may_list: location::Listing::Recursive,
            chance: AtomicU64::new(RandomState::new().build_hasher().finish()),
            signatures_of: None,
            changes,
            last_change: AtomicU64::new(0),
            seen: tokio::sync::Mutex::default(),
            transfers: Arc::clone(Transfers::of_process()),
            multipart: None,
            part_bytes: publish::PART_BYTES,
        }
    }

    /// Takes the time from this clock.
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Reads all of it again after this time instead of [`REPAIR_INTERVAL`].
    pub fn with_repair_interval(mut self, interval: Duration) -> Self {
        self.repair_interval = interval;
        self
    }

    /// Lets plain versions count after this time instead of [`crate::SETTLE_INTERVAL`].
    pub fn with_settle_interval(mut self, interval: Duration) -> Self {
        self.settle_interval = interval;
        self
    }

    /// From 0 to 1, another at each call: replicas that were started together must not look together for ever.
    pub(crate) fn spread(&self) -> f64 {
        // Knuth's linear congruential generator: no more than spreading is needed.
        let next = |chance: u64| Some(chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
        let chance = self.chance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        (chance >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Reads the signatures of versions, those of these keys first, and keeps their manifests as they are stored.
    pub fn reading_signatures(mut self, of: Arc<Trust>) -> Self {
        self.signatures_of = Some(of);
        self
    }

    /// Uploads large files through this, which has to be the same store, so that a publish that broke off can be continued: see
    /// [`PublishRequest::resume_dir`].
    pub fn with_multipart(mut self, store: Arc<dyn MultipartStore>) -> Self {
        self.multipart = Some(store);
        self
    }

    /// Fetches within these bounds instead of those of the process.
    #[cfg(test)]
    pub(crate) fn with_transfers(mut self, transfers: Arc<Transfers>) -> Self {
        self.transfers = transfers;
        self
    }

    /// Uploads in parts of this size, and files up to it at once.
    #[cfg(test)]
    pub(crate) fn with_part_bytes(mut self, bytes: u64) -> Self {
        self.part_bytes = bytes;
        self
    }

    /// For people: `directory ./models`.
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// The journal of a model; empty where it has none.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`].
    pub async fn journal(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError> {
        self.entries(model).all().await
    }

    /// The last entries of a model's journal, or the last ones before an entry, newest first: `limit` at the most, and fewer where they are
    /// large.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`].
    pub async fn journal_page(&self, model: &ModelName, before: Option<u64>, limit: usize) -> Result<JournalPage, JournalError> {
        self.entries(model).page(before, limit).await
    }

    /// The entries of a model's journal after this one.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`].
    pub async fn journal_after(&self, model: &ModelName, seq: u64) -> Result<Vec<Entry>, JournalError> {
        self.entries(model).after(seq).await
    }

    /// The fold of a model's journal.
    ///
    /// # Errors
    /// [`JournalError::Unavailable`].
    pub async fn rollout(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        self.entries(model).rollout().await
    }

    /// Writes a journal entry after the last one and returns its number. With an id that is there already nothing is written
    /// and the number is that of the entry which has it.
    ///
    /// # Errors
    /// [`JournalError::Refused`] where it makes no sense as things stand, [`JournalError::Version`] and
    /// [`JournalError::Model`] where what it names does not exist. After [`JournalError::Unavailable`] retry with the same id.
    pub async fn append(&self, model: &ModelName, op: Op, by: &str, reason: &str, id: Uuid) -> Result<u64, JournalError> {
        let proposal = Proposal { op, by: by.into(), reason: reason.into(), id, evidence: None, highest: None };
        self.propose(model, &proposal).await
    }

    /// The same with evidence.
    ///
    /// # Errors
    /// As [`Registry::append`].
    pub async fn propose(&self, model: &ModelName, proposal: &Proposal) -> Result<u64, JournalError> {
        self.check_exists(model, &proposal.op).await?;
        let highest = self.highest(model).await;
        let highest =
            highest.map_err(|error| JournalError::unavailable(format!("model {model} of {}", self.description), error))?;
        let proposal = Proposal { highest: proposal.highest.max(highest), ..proposal.clone() };
        let seq = self.entries(model).append(&proposal, self.clock.now()).await?;
        self.note_change(model, What::Journal, proposal.op.version()).await;
        Ok(seq)
    }

    /// Tells whoever follows the change log that a model's journal has grown.
    pub(crate) async fn note_decision(&self, model: &ModelName, version: Option<VersionNumber>) {
        self.note_change(model, What::Journal, version).await;
    }

    /// Whether the store really has put-if-absent: a small object of fixed content is put twice, and the second time has to be refused.
    /// Some servers take no notice of the condition and put it all the same.
    pub(crate) async fn has_put_if_absent(&self) -> Result<bool, StoreError> {
        let path = self.prefix.clone().join("_probe").join("put-if-absent.json");
        for _ in 0..2 {
            match put_if_absent(self.store.as_ref(), &path, "{}".into()).await {
                Ok(Put::Taken) => return Ok(true),
                Ok(Put::Done) => {}
                Err(error) if crate::log::lacks_put_if_absent(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Yanks a version: it leaves service and is not loaded again. Its files stay. A second time changes nothing.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] where there is no such version.
    pub async fn tombstone(&self, key: &VersionKey, by: &str, reason: &str) -> Result<(), RegistryError> {
        self.manifest_bytes(key).await?.ok_or_else(|| RegistryError::NotFound { key: key.clone() })?;
        let content = serde_json::json!({"schema": 1, "at": self.clock.now(), "by": by, "reason": reason});
        let path = self.tombstone_path(key);
        let put = put_if_absent(self.store.as_ref(), &path, content.to_string().into()).await;
        put.map_err(|error| RegistryError::writing(self.store.as_ref(), path.to_string(), error))?;
        // One that was there may be our own, put by a try whose answer was lost: then nobody has been told.
        self.note_change(&key.model, What::Tombstone, Some(key.version)).await;
        Ok(())
    }

    /// The models that lie there, with versions or without, by name.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`].
    pub async fn models(&self) -> Result<Vec<ModelName>, RegistryError> {
        let prefix = Some(&self.prefix).filter(|prefix| !prefix.as_ref().is_empty());
        let level = self.store.list_with_delimiter(prefix).await;
        let level = level.map_err(|error| RegistryError::unavailable(self.description.clone(), error))?;
        let names = level.common_prefixes.iter().filter_map(|dir| dir.filename());
        Ok(names.filter_map(|name| ModelName::new(name).ok()).collect())
    }

    /// All of one model; `None` where there is no version of it, and no problem.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`].
    pub async fn model(&self, name: &ModelName) -> Result<Option<ListedModel>, RegistryError> {
        self.read_model(name).await
    }

    /// One version, tombstoned or not.
    ///
    /// # Errors
    /// As [`Registry::manifest`].
    pub async fn version(&self, key: &VersionKey) -> Result<Generation, RegistryError> {
        self.read_version(key).await
    }

    /// The manifest of a version.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Manifest`] where it breaks a rule, [`RegistryError::Unavailable`].
    pub async fn manifest(&self, key: &VersionKey) -> Result<Manifest, RegistryError> {
        Ok(self.read_version(key).await?.manifest.as_ref().clone())
    }

    async fn check_exists(&self, model: &ModelName, op: &Op) -> Result<(), JournalError> {
        let unreachable = |error: RegistryError| match error {
            RegistryError::NoPutIfAbsent { store } => JournalError::NoPutIfAbsent { store },
            error => JournalError::unavailable(format!("model {model} of {}", self.description), error),
        };
        let problem = match self.shape(model).await.map_err(unreachable)? {
            shape if shape.ours => None,
            shape if !shape.numeric.is_empty() => Some("is in the plain layout: its journal is kept by the gateway that serves it"),
            _ => Some("is not in this registry"),
        };
        if let Some(problem) = problem {
            return Err(JournalError::Model { model: model.to_string(), problem });
        }
        let Some(version) = op.version().filter(|_| op.needs_version()) else { return Ok(()) };
        let wrong = |problem| Err(JournalError::Version { model: model.to_string(), version, problem });
        match self.read_version(&VersionKey::new(model.clone(), version)).await {
            Ok(generation) if generation.tombstoned => wrong("is tombstoned"),
            Ok(_) => Ok(()),
            Err(RegistryError::NotFound { .. }) => wrong("does not exist"),
            Err(error) => Err(unreachable(error)),
        }
    }

    /// A model's journal, to be read and written without a look at what else is known of the model.
    pub(crate) fn entries(&self, model: &ModelName) -> JournalEntries {
        JournalEntries::new(Arc::clone(&self.store), self.model_path(model).join("rollout"))
    }

    fn model_path(&self, model: &ModelName) -> Path {
        self.prefix.clone().join(model.as_str())
    }

    fn version_path(&self, model: &ModelName, version: VersionNumber) -> Path {
        self.model_path(model).join("versions").join(version.to_string())
    }

    fn manifest_path(&self, key: &VersionKey) -> Path {
        self.version_path(&key.model, key.version).join("manifest.json")
    }

    fn tombstone_path(&self, key: &VersionKey) -> Path {
        self.version_path(&key.model, key.version).join("tombstone.json")
    }

    fn blob_path(&self, model: &ModelName, digest: &crate::digest::Digest) -> Path {
        self.model_path(model).join("blobs").join(digest.to_string())
    }
}

#[cfg(test)]
mod tests;
