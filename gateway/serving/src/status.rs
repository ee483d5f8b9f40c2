//! What the engine shows of itself: a snapshot that the reconciler replaces, and live counters that are read when somebody looks.
//!
//! The same structs are what `bascule status --json` prints and reads back, so every field has a plain JSON form.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bascule_registry::{Layout, SourceHealth};
use bascule_runtime_api::Device;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::reconcile::FetchProgress;
use crate::{Gpu, Gpus, Servable, memory};

/// Everything that the engine knows of its models, at one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// The models by name, ascending.
    pub models: Vec<Arc<ModelStatus>>,
    /// Where versions come from.
    pub registry: RegistryStatus,
    /// Main memory.
    pub memory: MemoryStatus,
    /// Of the serving table; grows with every publish.
    pub generation: u64,
    /// What the readiness call answers.
    pub ready: bool,
    /// The last drains, oldest first, 16 at the most.
    pub receipts: Vec<DrainReceipt>,
}

/// The source, and how looking at it went.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RegistryStatus {
    /// For people: `directory ./models`.
    pub describe: String,
    /// When a look last succeeded.
    pub last_good_look: Option<DateTime<Utc>>,
    /// Why the last look failed; absent after one that did not.
    pub last_error: Option<String>,
    /// What the last look found wrong outside any model.
    pub problems: Vec<String>,
    /// The same of each registry, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<RegistryPart>,
    /// The same of the place that holds the rollout journals of models whose registry can't, where replicas share one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<RegistryPart>,
}

/// One of several registries, or what holds rollout journals, and how looking at it went.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RegistryPart {
    /// What the configuration calls it.
    pub name: String,
    /// For people.
    pub describe: String,
    /// When a look last succeeded.
    pub last_good_look: Option<DateTime<Utc>>,
    /// Why the last look failed; absent after one that did not.
    pub last_error: Option<String>,
}

impl RegistryPart {
    pub(crate) fn of(health: &SourceHealth) -> RegistryPart {
        RegistryPart {
            name: health.name.clone().unwrap_or_default(),
            describe: health.describe.clone(),
            last_good_look: health.last_good,
            last_error: health.error.clone(),
        }
    }
}

/// Main memory, in bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// What all versions together may take; absent where there is no limit.
    pub budget_bytes: Option<u64>,
    /// What loaded versions take, and those that load will: estimates where nothing better is known.
    pub reserved_bytes: u64,
    /// Of the whole process, as the operating system counts it; absent where it does not tell.
    pub rss_bytes: Option<u64>,
    /// The same of each GPU.
    #[serde(default)]
    pub devices: Vec<DeviceMemory>,
}

/// A GPU's memory, in bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DeviceMemory {
    /// `cuda:0`.
    pub device: String,
    /// Its model, for people.
    #[serde(default)]
    pub name: Option<String>,
    /// What all versions together may take of it; absent where there is no limit.
    pub budget_bytes: Option<u64>,
    /// What loaded versions take by estimate, and those that load will.
    pub reserved_bytes: u64,
    /// All that it has.
    #[serde(default)]
    pub total_bytes: Option<u64>,
    /// What nobody uses, other processes included.
    #[serde(default)]
    pub free_bytes: Option<u64>,
}

/// One model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Its name.
    pub name: String,
    /// `serving`, `not_ready`, `on_demand`, `waking` (asked for on demand and on its way) or `unloaded`.
    pub standing: String,
    /// How it lies in its registry; absent where nothing of it exists.
    #[serde(default)]
    pub layout: Option<Layout>,
    /// Why nothing is loaded although it could be: `held: unloaded by operator`.
    pub held: Option<String>,
    /// `watch`, `explicit` or `on_demand`.
    pub load_mode: String,
    /// The version policy, for people: `latest 1`, `all`, `specific 1, 3`.
    pub policy: String,
    /// `immediate` or `manual`.
    pub strategy: String,
    /// The version that answers whoever is not on the candidate.
    pub stable: Option<u64>,
    /// The version on its way to becoming stable.
    pub candidate: Option<CandidateStatus>,
    /// The version that has all unversioned traffic, or will once it is ready.
    pub pinned: Option<u64>,
    /// Versions that no policy selects.
    pub rejected: Vec<u64>,
    /// Names for versions.
    pub aliases: BTreeMap<String, u64>,
    /// The journal entry that this build can't follow; the route stays as it was.
    pub frozen: Option<String>,
    /// The versions that should be loaded as things stand.
    #[serde(default)]
    pub aspired: Vec<u64>,
    /// When stable, candidate, weight or pin were last decided.
    #[serde(default)]
    pub decided_at: Option<DateTime<Utc>>,
    /// The last entry of its journal that is followed; 0 before the first.
    #[serde(default)]
    pub journal_seq: u64,
    /// What is wrong, for people.
    pub problems: Vec<String>,
    /// The versions that are or should be loaded, or were, ascending; a version whose content changes is there twice.
    pub versions: Vec<VersionStatus>,
}

/// A candidate's part.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CandidateStatus {
    /// The version.
    pub version: u64,
    /// Its share of the callers in basis points.
    pub weight_bp: u32,
    /// `canary` or `shadow`.
    pub kind: String,
}

/// One version.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct VersionStatus {
    /// Its number.
    pub version: u64,
    /// Names its content.
    pub digest: String,
    /// `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`.
    pub state: String,
    /// The state by its inner name: `pending`, `fetching`, `verifying`, `loading`, `warming`, `ready`, `draining`, `unloaded`, `failed`.
    pub stage: String,
    /// The step that failed: `settings`, `fetching`, `verifying`, `trial`, `quarantine`, `memory`, `loading`, `warming`, `golden`.
    pub failed_step: Option<String>,
    /// Why it failed.
    pub cause: Option<String>,
    /// When a failed load is tried again.
    pub retry_at: Option<DateTime<Utc>>,
    /// Failed attempts in a row.
    pub attempts: u32,
    /// `stable`, `candidate` or `other`, where it answers.
    pub role: Option<String>,
    /// Its share of unversioned traffic, in basis points.
    pub traffic_bp: u32,
    /// The device that runs it, or several with commas between.
    pub device: Option<String>,
    /// Name and version of its runtime.
    pub runtime: Option<String>,
    /// Sessions.
    pub instances: u32,
    /// Main memory of all sessions.
    pub memory_bytes: Option<u64>,
    /// Whether that was measured; otherwise it is an estimate.
    pub memory_measured: bool,
    /// Answered and failed requests.
    pub requests: u64,
    /// Failed requests.
    pub errors: u64,
    /// Outputs of requests that had NaN among their first 1,024 elements.
    #[serde(default)]
    pub nan_outputs: u64,
    /// Requests that wait or run.
    pub in_flight: u64,
    /// Requests that wait.
    pub queued: u64,
    /// Median of the answered requests' time in microseconds.
    pub p50_us: Option<u64>,
    /// 99th percentile of it.
    pub p99_us: Option<u64>,
    /// When loading ended.
    pub loaded_at: Option<DateTime<Utc>>,
    /// It takes no unversioned traffic until somebody gives it some.
    #[serde(default)]
    pub held: bool,
    /// Who published it.
    #[serde(default)]
    pub publisher: String,
    /// The training run that made it.
    pub run_id: Option<String>,
    /// What its training measured.
    pub metrics: BTreeMap<String, f64>,
    /// What was read and is not honoured, and what went wrong without stopping the load.
    pub warnings: Vec<String>,
    /// Size of its files.
    pub bytes: u64,
    /// While it is fetched: what of that is there.
    pub fetched_bytes: Option<u64>,
    /// Where `fetched_bytes` comes from.
    #[serde(skip)]
    pub(crate) fetch: Weak<FetchProgress>,
    /// Where live counters come from.
    #[serde(skip)]
    pub(crate) servable: Weak<Servable>,
}

/// What a drain gave back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrainReceipt {
    /// The model.
    pub model: String,
    /// The version.
    pub version: u64,
    /// Main memory that was reserved for it.
    pub reserved_bytes: u64,
    /// Memory of GPUs that was.
    #[serde(default)]
    pub device_bytes: u64,
    /// Memory of the process before the drain; includes whatever else ran.
    pub rss_before: Option<u64>,
    /// Memory of the process after it, and after the trim where there was one.
    pub rss_after: Option<u64>,
    /// Whether freed memory was given back to the operating system before `rss_after` was read. That is done every 30 s at the most,
    /// after the last of several drains.
    pub trimmed: bool,
    /// From leaving the table to the last session dropped, in seconds.
    #[serde(rename = "took_seconds", with = "seconds")]
    pub took: Duration,
    /// Whether runs had to be stopped.
    pub interrupted: bool,
    /// When it ended.
    pub at: DateTime<Utc>,
}

/// Whether the server takes traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// Not yet, or in strict mode not now.
    NotYet {
        /// For people.
        reason: String,
    },
    /// No more.
    Stopping,
}

impl Readiness {
    /// Whether it is [`Readiness::Ready`].
    pub fn is_ready(&self) -> bool {
        *self == Readiness::Ready
    }
}

impl MemoryStatus {
    /// Says of each GPU what it is, also of those of which nothing is reserved.
    fn add_gpus(&mut self, gpus: &[Gpu]) {
        for gpu in gpus {
            let device = Device::Cuda(gpu.ordinal).to_string();
            let at = self.devices.iter().position(|known| known.device == device).unwrap_or_else(|| {
                self.devices.push(DeviceMemory { device, ..DeviceMemory::default() });
                self.devices.len() - 1
            });
            let known = &mut self.devices[at];
            known.name = Some(gpu.name.clone());
            (known.total_bytes, known.free_bytes) = (Some(gpu.total_bytes), Some(gpu.free_bytes));
        }
    }
}

impl Status {
    /// The status with counters as they are now: the snapshot itself holds none.
    #[must_use]
    pub fn with_live(&self, gpus: &dyn Gpus) -> Status {
        let mut status = self.clone();
        status.memory.rss_bytes = memory::rss_bytes();
        status.memory.add_gpus(&gpus.list());
        for version in status.models.iter_mut().flat_map(|model| &mut Arc::make_mut(model).versions) {
            version.read_live();
        }
        status
    }

    /// One model, where it is known.
    pub fn model(&self, name: &str) -> Option<&ModelStatus> {
        let index = self.models.binary_search_by(|model| model.name.as_str().cmp(name)).ok()?;
        self.models.get(index).map(Arc::as_ref)
    }
}

impl ModelStatus {
    /// A version's latest life, where it has one.
    pub fn version(&self, number: u64) -> Option<&VersionStatus> {
        self.versions.iter().rev().find(|version| version.version == number)
    }
}

impl VersionStatus {
    fn read_live(&mut self) {
        self.fetched_bytes = self.fetch.upgrade().map(|fetch| fetch.bytes());
        let Some(servable) = self.servable.upgrade() else { return };
        let snapshot = servable.stats().snapshot();
        self.requests = snapshot.success.count + snapshot.fail.count;
        self.errors = snapshot.fail.count;
        self.nan_outputs = snapshot.nan_outputs;
        self.in_flight = snapshot.in_flight;
        self.queued = servable.queued() as u64;
        let micros = snapshot.latency.map(|quantiles| quantiles.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)));
        self.p50_us = micros.map(|[p50, _]| p50);
        self.p99_us = micros.map(|[_, p99]| p99);
    }
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(duration.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_its_json() {
        let receipt = DrainReceipt {
            model: "m".to_owned(),
            version: 3,
            reserved_bytes: 7,
            device_bytes: 0,
            rss_before: Some(9),
            rss_after: None,
            trimmed: true,
            took: Duration::from_millis(1500),
            interrupted: false,
            at: DateTime::UNIX_EPOCH,
        };
        let version = VersionStatus { version: 3, stage: "failed".to_owned(), ..VersionStatus::default() };
        let model = ModelStatus { name: "m".to_owned(), versions: vec![version], ..ModelStatus::default() };
        let status = Status { models: vec![Arc::new(model)], receipts: vec![receipt.clone()], ..Status::default() };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["receipts"][0]["took_seconds"], 1.5);
        let back: Status = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&back).unwrap(), json);
        assert_eq!(back.receipts, [receipt]);
        assert_eq!(back.model("m").and_then(|model| model.version(3)).map(|version| version.stage.as_str()), Some("failed"));
        assert!(back.model("n").is_none());
    }
}
