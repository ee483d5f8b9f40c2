//! The serving table: which versions answer, by model. Immutable; a swap is one store of a new one.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bascule_registry::{ModelName, VersionNumber};

use crate::{InferError, Servable};

/// When a caller may try again, where nothing better is known.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How a candidate takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// It answers this share of the callers, in basis points.
    Canary {
        /// 0 to 10 000.
        weight_bp: u32,
    },
    /// It computes this share of the requests beside stable, and its answers are never sent.
    Shadow {
        /// 0 to 10 000.
        weight_bp: u32,
    },
}

/// A version on its way to becoming stable.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The version.
    pub servable: Arc<Servable>,
    /// Its part of the traffic.
    pub split: Split,
}

/// Why a route has no stable version, or that it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// There is a stable version.
    Serving,
    /// Loading, failed or draining.
    NotReady {
        /// The stage and, where it failed, the cause, for people.
        reason: String,
        /// When another try makes sense.
        retry_after: Duration,
    },
    /// The first request loads it.
    OnDemand,
    /// A request has asked for it and it is on its way; others wait for it, too.
    Waking,
    /// The operator has unloaded it.
    Unloaded,
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Uses are told apart from this on.
const LAST_USE_MILLIS: u64 = 8;

/// When a model was last asked for; shared by every generation of its route.
#[derive(Debug, Default)]
pub struct LastUse(AtomicU64);

impl LastUse {
    /// Notes a use now.
    pub(crate) fn touch(&self) {
        let millis = u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        // Many requests of one moment write once: the line is shared by all threads.
        if self.0.load(Ordering::Relaxed) + LAST_USE_MILLIS <= millis {
            self.0.store(millis, Ordering::Relaxed);
        }
    }

    /// When the last use was, in milliseconds from the start of the program, some 10 ms sharp; 0 before the first. Good for comparing.
    pub fn millis(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything about one model that a request needs.
#[derive(Debug, Clone)]
pub struct Route {
    /// The model.
    pub model: ModelName,
    /// The version that answers whoever is not on the candidate.
    pub stable: Option<Arc<Servable>>,
    /// The version on its way to becoming stable.
    pub candidate: Option<Candidate>,
    /// Versions that are ready and answer only who asks for them by number or alias.
    pub others: Vec<Arc<Servable>>,
    /// Names for versions.
    pub aliases: BTreeMap<String, VersionNumber>,
    /// Versions that should be ready and are not, with the stage or cause.
    pub pending: BTreeMap<VersionNumber, String>,
    /// Spreads callers; see [`crate::rollout_seed`].
    pub seed: u64,
    /// Why there is no stable version.
    pub standing: Standing,
    /// When the model was last asked for.
    pub last_use: Arc<LastUse>,
}

impl Route {
    /// A route without any version.
    pub fn empty(model: ModelName, standing: Standing) -> Route {
        Route {
            model,
            stable: None,
            candidate: None,
            others: Vec::new(),
            aliases: BTreeMap::new(),
            pending: BTreeMap::new(),
            seed: 0,
            standing,
            last_use: Arc::default(),
        }
    }

    /// Every version that answers, in no order.
    pub fn servables(&self) -> impl Iterator<Item = &Arc<Servable>> {
        self.stable.iter().chain(self.candidate.iter().map(|candidate| &candidate.servable)).chain(&self.others)
    }

    /// Every version that answers, ascending.
    pub fn versions(&self) -> Vec<&Arc<Servable>> {
        let mut servables: Vec<_> = self.servables().collect();
        servables.sort_by_key(|servable| servable.version());
        servables
    }

    /// The version with this number, where it answers.
    pub fn version(&self, number: VersionNumber) -> Option<&Arc<Servable>> {
        self.servables().find(|servable| servable.version() == number)
    }

    /// Why a version does not answer.
    pub(crate) fn missing_version(&self, version: VersionNumber) -> InferError {
        let model = self.model.to_string();
        if let Some(reason) = self.pending.get(&version) {
            return InferError::NotReady { model, reason: format!("version {version} is {reason}"), retry_after: RETRY_AFTER };
        }
        let served: Vec<String> = self.versions().iter().map(|servable| servable.version().to_string()).collect();
        let served = if served.is_empty() { "none".to_owned() } else { served.join(", ") };
        InferError::UnknownVersion { model, version, served }
    }
}

/// The routes of every known model, at one moment.
#[derive(Debug, Default)]
pub struct ServingTable {
    routes: HashMap<ModelName, Arc<Route>>,
    generation: u64,
}

impl ServingTable {
    /// The route of a model.
    pub fn route(&self, model: &str) -> Option<&Arc<Route>> {
        self.routes.get(model)
    }

    /// Every route, in no order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.values()
    }

    /// Grows with every publish.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// The only writer of the table.
#[derive(Debug)]
pub struct Publisher {
    table: Arc<ArcSwap<ServingTable>>,
    /// Tables that a request may still read. They are dropped here, not on a request thread, once nobody else holds them.
    retired: Vec<Arc<ServingTable>>,
}

impl Publisher {
    pub(crate) fn new(table: Arc<ArcSwap<ServingTable>>) -> Publisher {
        Publisher { table, retired: Vec::new() }
    }

    /// Publishes changed routes in one store: `None` removes a model. Routes that don't change are shared with the table before.
    pub fn publish(&mut self, changes: impl IntoIterator<Item = (ModelName, Option<Arc<Route>>)>) {
        let current = self.table.load_full();
        let mut routes = current.routes.clone();
        for (model, route) in changes {
            match route {
                Some(route) => routes.insert(model, route),
                None => routes.remove(&model),
            };
        }
        let next = Arc::new(ServingTable { routes, generation: current.generation + 1 });
        drop(current);
        self.retired.push(self.table.swap(next));
        self.sweep();
    }

    /// Frees the retired tables that nobody reads any more.
    pub fn sweep(&mut self) {
        self.retired.retain(|table| Arc::strong_count(table) > 1);
    }

    /// The table as it is now.
    pub fn table(&self) -> Arc<ServingTable> {
        self.table.load_full()
    }
}
