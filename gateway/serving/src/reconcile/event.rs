//! What the reconciler is told, what it has done, and what it shows. All closed: a reader sees everything that can happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::{Generation, Lease, ListedModel, Listing, ModelName, SourceHealth, VersionKey};
use chrono::{DateTime, Utc};
use tokio::sync::oneshot;

use super::bring::{FetchProgress, NotBrought};
use crate::engine::LiveOptions;
use crate::loader::{LoadFailure, LoadJob, Loaded, Verified, VerifyJob};
use crate::memory::Trim;
use crate::persist::Write;
use crate::status::{DrainReceipt, Readiness, Status};
use crate::{CommandError, Servable};

/// The time, as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    /// Since some fixed moment; never goes back. Everything is decided by this one.
    pub(crate) at: Duration,
    /// The calendar's time: shown, and compared with what the registry says of a decision.
    pub(crate) utc: DateTime<Utc>,
}

impl Now {
    /// The calendar's time at a moment of the engine's clock.
    pub(crate) fn utc_at(&self, at: Duration) -> DateTime<Utc> {
        let ahead = chrono::Duration::from_std(at.saturating_sub(self.at)).unwrap_or(chrono::Duration::MAX);
        self.utc.checked_add_signed(ahead).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

/// One stay of a version in memory, from the wish to load it to the last byte given back. A version whose content or settings change
/// has two at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ResidencyId(pub(crate) u64);

/// A version's files on local disk, and the lease that keeps them there.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    dir: PathBuf,
    /// Only held; dropping it lets the cache evict the files.
    _lease: Option<Lease>,
}

impl Files {
    pub(crate) fn leased(lease: Lease) -> Files {
        Files { dir: lease.dir().to_owned(), _lease: Some(lease) }
    }

    /// Files that nobody takes away.
    pub(crate) fn at(dir: impl Into<PathBuf>) -> Files {
        Files { dir: dir.into(), _lease: None }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// What a look at the source brought.
#[derive(Debug)]
pub(crate) enum Look {
    /// What exists.
    Listed(Box<Listing>),
    /// The same as before.
    Unchanged,
    /// Some of what existed before, with what was decided on it since: the source itself can't be read.
    Decided(Box<Listing>),
    /// Nothing: why.
    Failed(String),
    /// Nothing yet; the look goes on.
    Slow,
}

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drained {
    pub(crate) took: Duration,
    /// Whether runs had to be stopped.
    pub(crate) interrupted: bool,
    pub(crate) rss_before: Option<u64>,
    pub(crate) rss_after: Option<u64>,
}

/// The answer to an unload.
#[derive(Debug)]
pub(crate) struct Unloading {
    /// What has to end before the model is gone.
    pub(crate) leaving: Vec<ResidencyId>,
    /// The write that keeps the operator's state.
    pub(crate) write: u64,
}

/// Everything that the reconciler is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// A look that was begun after the ticket was given out.
    Looked {
        ticket: u64,
        look: Look,
        /// How it went at each registry, where the source has several.
        registries: Vec<SourceHealth>,
        /// The same of what holds the rollout journals, where that is not this gateway's own.
        journal: Option<SourceHealth>,
    },
    Fetched {
        id: ResidencyId,
        result: Result<Files, NotBrought>,
    },
    Verified {
        id: ResidencyId,
        result: Result<Box<Verified>, LoadFailure>,
    },
    Tried {
        id: ResidencyId,
        result: Result<Box<Verified>, LoadFailure>,
    },
    /// Sessions are made, warm-up begins.
    Warming {
        id: ResidencyId,
    },
    Loaded {
        id: ResidencyId,
        result: Result<Loaded, LoadFailure>,
    },
    Drained {
        id: ResidencyId,
        drained: Drained,
    },
    Trimmed(Option<Trim>),
    /// The operator wants a model, as the look with this ticket or a later one finds it. The answer is the number of the drain of the
    /// mailbox that knows of the wish.
    Load {
        model: ModelName,
        ticket: u64,
        reply: oneshot::Sender<Result<u64, CommandError>>,
    },
    Unload {
        model: ModelName,
        reply: oneshot::Sender<Result<Unloading, CommandError>>,
    },
    /// Somebody asked for a model that is loaded on demand.
    Wanted {
        model: ModelName,
    },
    /// The rules that may change have changed.
    Changed(Box<LiveOptions>),
    /// A moment has come that the reconciler wanted to be woken at.
    Tick,
    Shutdown {
        drain_timeout: Duration,
    },
}

/// Everything that the reconciler has done by others.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Answered by [`Event::Fetched`].
    Fetch { id: ResidencyId, generation: Arc<Generation>, progress: Arc<FetchProgress> },
    /// Nobody wants the files any more. There may still be an answer.
    CancelFetch { id: ResidencyId },
    /// Answered by [`Event::Verified`].
    Verify { id: ResidencyId, job: Box<VerifyJob> },
    /// Answered by [`Event::Tried`].
    Try { id: ResidencyId, job: Box<VerifyJob>, verified: Box<Verified> },
    /// Answered by [`Event::Warming`] and [`Event::Loaded`].
    Load { id: ResidencyId, job: Box<LoadJob> },
    /// The table no longer names it. Answered by [`Event::Drained`].
    Drain { id: ResidencyId, servable: Arc<Servable>, timeout: Duration },
    /// Answered by [`Event::Trimmed`].
    Trim,
    /// To be kept on disk, in this order.
    Persist { write: u64, what: Write },
    /// Nothing of this version is left in memory.
    Retired { key: VersionKey },
}

/// What the reconciler shows after each drain of its mailbox.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    /// Which drain of the mailbox this is.
    pub(crate) drain: u64,
    pub(crate) status: Arc<Status>,
    pub(crate) readiness: Readiness,
    /// The ticket of the last look that ended, and why it failed where it did.
    pub(crate) looked: u64,
    pub(crate) look_error: Option<String>,
    /// What exists.
    pub(crate) models: Arc<BTreeMap<ModelName, Arc<ListedModel>>>,
    /// What is in memory or on its way in or out.
    pub(crate) residents: Arc<BTreeSet<ResidencyId>>,
    /// The last drains with what drained.
    pub(crate) receipts: Arc<VecDeque<(ResidencyId, DrainReceipt)>>,
    /// The last write that was asked for.
    pub(crate) write: u64,
    /// Nothing is left and nothing will come.
    pub(crate) stopped: bool,
}
