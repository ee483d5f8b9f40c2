//! The handle on a running engine: what frontends, commands and tests hold.
//!
//! Requests go to the table and never to the reconciler, but for the first one of a model that is loaded on demand. Commands go to
//! the reconciler's mailbox; what they wait for they read from its snapshots, so nobody keeps a list of those who wait.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bascule_registry::{JournalError, ListedModel, ModelName, Op, Proposal, VersionNumber};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout_at;
use uuid::Uuid;

use crate::engine::LiveOptions;
use crate::journal::JournalStore;
use crate::persist::Written;
use crate::reconcile::{Event, Looks, ResidencyId, Snapshot};
use crate::state::Stage;
use crate::status::{DrainReceipt, ModelStatus, Readiness, Status};
use crate::table::RETRY_AFTER;
use crate::trial::Trial;
use crate::{Gpus, InferError, InferRequest, InferResponse, Routed, Router, Standing};

/// How long [`Serving::apply`] waits for the look that shows its effect. The entry is written either way.
const APPLY_LOOK_WAIT: Duration = Duration::from_secs(5);

/// How long [`Serving::load`] waits for files that have changed lately to keep still.
const SETTLE_WAIT: Duration = Duration::from_secs(15);

/// How often a request is sent again because its model was evicted just before it arrived.
const EVICTION_RETRIES: usize = 3;

/// Beyond its drains, how long a shutdown may take before it is given up.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Why a command is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such model.
    #[error("model '{model}' is not known")]
    UnknownModel {
        /// As asked for.
        model: String,
    },
    /// The model was to be loaded and a version of it can't be. It is tried again while it is aspired.
    #[error("version {version} of model '{model}' failed at {stage}: {cause}")]
    LoadFailed {
        /// The model.
        model: String,
        /// The version; the highest, where several failed.
        version: u64,
        /// The step that failed: [`crate::FailedStep::name`].
        stage: String,
        /// What happened.
        cause: String,
    },
    /// Nothing of the model is to be loaded.
    #[error("no version of model '{model}' is to be loaded: {reason}")]
    NothingToLoad {
        /// The model.
        model: String,
        /// Why.
        reason: String,
    },
    /// It makes no sense as things stand.
    #[error("{reason}")]
    Rejected {
        /// Why, and what to do instead.
        reason: String,
    },
    /// What holds the models can't do this.
    #[error("{what}")]
    Unsupported {
        /// What is lacking.
        what: String,
    },
    /// The registry or journal can't be reached.
    #[error("{message}")]
    Source {
        /// What was asked and what came back.
        message: String,
    },
    /// The change is made and would not survive a restart.
    #[error("the change is made and can't be kept on disk: {message}")]
    State {
        /// What the disk said.
        message: String,
    },
    /// Too many commands wait for the next look.
    #[error("too many commands wait for the next look at the registry")]
    Busy,
    /// The engine is on its way out.
    #[error("the gateway is stopping")]
    Stopping,
}

impl From<JournalError> for CommandError {
    fn from(error: JournalError) -> CommandError {
        match &error {
            JournalError::NoPutIfAbsent { .. } => CommandError::Unsupported { what: error.to_string() },
            JournalError::Unavailable { .. } => CommandError::Source { message: crate::error::with_causes(&error) },
            _ => CommandError::Rejected { reason: crate::error::with_causes(&error) },
        }
    }
}

/// A running engine. Clones are handles to the same one; when the last is gone the engine ends without draining, so call
/// [`Serving::shutdown`] first.
#[derive(Clone)]
pub struct Serving {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) router: Router,
    pub(crate) mailbox: mpsc::Sender<Event>,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) written: watch::Receiver<Written>,
    pub(crate) looks: Arc<Looks>,
    pub(crate) journal: Arc<dyn JournalStore>,
    /// Models whose wish is in the mailbox, so that many requests post one.
    pub(crate) wanted: Arc<Mutex<HashSet<ModelName>>>,
    pub(crate) live: watch::Sender<LiveOptions>,
    pub(crate) gpus: Arc<dyn Gpus>,
    pub(crate) trial: Option<Arc<dyn Trial>>,
    /// Whether a stop was announced; before the engine itself knows of it.
    pub(crate) stopping: watch::Sender<bool>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Whoever looks at the source notices that nobody is left to tell.
        self.looks.ask();
    }
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("readiness", &self.readiness()).finish_non_exhaustive()
    }
}

/// Tells when the engine shows something new. Made before something is read, it misses nothing that comes after.
#[derive(Debug)]
pub struct Changes {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    stopping: watch::Receiver<bool>,
}

impl Changes {
    /// Waits until there is something new since this was made or last returned; a stop that is announced is. False, at once, where the
    /// engine has ended.
    pub async fn next(&mut self) -> bool {
        tokio::select! {
            changed = self.snapshots.changed() => changed.is_ok(),
            changed = self.stopping.changed() => changed.is_ok(),
        }
    }
}

impl Serving {
    pub(crate) fn new(shared: Shared) -> Serving {
        Serving { shared: Arc::new(shared) }
    }

    /// The table and nothing else.
    pub fn router(&self) -> &Router {
        &self.shared.router
    }

    /// The route of a model. One that is loaded on demand is loaded first: the call waits for that, but not beyond the deadline nor
    /// longer than the engine's limit.
    ///
    /// # Errors
    /// As [`Router::route`]; [`InferError::NotReady`] and [`InferError::DeadlineExceeded`] where a load takes too long.
    pub async fn route(&self, model: &str, deadline: Option<Instant>) -> Result<Routed, InferError> {
        let routed = self.shared.router.route(model)?;
        if routed.route().standing.loads_on_request() { self.wake(model, deadline).await } else { Ok(routed) }
    }

    /// Answers a request by the route that was read for it.
    ///
    /// # Errors
    /// As [`Router::infer`].
    pub async fn infer(&self, routed: Routed, request: &InferRequest) -> Result<InferResponse, InferError> {
        let mut routed = routed;
        for _ in 0..EVICTION_RETRIES {
            let model = routed.route().model.clone();
            let error = match self.shared.router.infer(routed, request).await {
                Err(
                    error @ (InferError::NotReady { .. } | InferError::UnknownVersion { .. } | InferError::UnknownAlias { .. }),
                ) => error,
                result => return result,
            };
            if !self.sleeps(model.as_ref()) {
                return Err(error);
            }
            routed = self.route(model.as_ref(), request.deadline).await?;
        }
        self.shared.router.infer(routed, request).await
    }

    /// Loads a model, or picks up its new content and settings: one look at the source, then it waits until each version that should
    /// be loaded is ready or has failed. Undoes an unload.
    ///
    /// # Errors
    /// [`CommandError::LoadFailed`] where a version of it failed, others where it could not be tried.
    pub async fn load(&self, model: &str) -> Result<(), CommandError> {
        let name = ModelName::new(model).map_err(|_| CommandError::UnknownModel { model: shown(model) })?;
        self.forgive(name.clone()).await;
        let limit = Instant::now() + SETTLE_WAIT;
        loop {
            let (unsettled, outcome) = self.load_now(&name).await?;
            let Some(version) = unsettled else { return outcome };
            // Files of a plain version count at the second look that sees them alike: then it is loaded, too.
            let settled = self.when(|snapshot| unsettled_version(snapshot, &name).is_none());
            if timeout_at(limit.into(), settled).await.is_err() {
                let (model, stage) = (name.to_string(), "settling".to_owned());
                let cause = "its files or settings have not kept still for long enough to count".to_owned();
                return Err(CommandError::LoadFailed { model, version, stage, cause });
            }
        }
    }

    /// An operator who loads a model knows what happened before.
    async fn forgive(&self, name: ModelName) {
        let Some(trial) = self.shared.trial.clone() else { return };
        // A panic of a trial's is its own.
        drop(tokio::task::spawn_blocking(move || trial.forgive(&name)).await);
    }

    /// Loads what a look finds, and how that went; with a version that the look found and that could not count yet.
    async fn load_now(&self, name: &ModelName) -> Result<(Option<VersionNumber>, Result<(), CommandError>), CommandError> {
        let model = name.as_str();
        let ticket = self.shared.looks.ask();
        let (reply, answer) = oneshot::channel();
        self.post(Event::Load { model: name.clone(), ticket, reply }).await?;
        let drain = answer.await.map_err(|_| CommandError::Stopping)??;
        let looked = self.when(|snapshot| snapshot.looked >= ticket && snapshot.drain >= drain).await?;
        self.kept(looked.write).await?;
        let snapshot = self.when(|snapshot| snapshot.status.model(model).is_none_or(is_settled)).await?;
        let outcome = match (snapshot.status.model(model), &looked.look_error) {
            // What is known of it from before is loaded. Whether there is something new, nobody can say.
            (_, Some(error)) => return Err(CommandError::Source { message: error.clone() }),
            (Some(status), None) => outcome(status),
            (None, None) => return Err(CommandError::UnknownModel { model: shown(model) }),
        };
        Ok((unsettled_version(&looked, name), outcome))
    }

    /// Unloads a model until [`Serving::load`]: also a restart does not bring it back, nor does a new version. With `wait`, returns
    /// what each of its versions gave back, once all have. A model that is not known is unloaded already.
    ///
    /// # Errors
    /// [`CommandError::State`] where a restart would bring it back, [`CommandError::Stopping`].
    pub async fn unload(&self, model: &str, wait: bool) -> Result<Vec<DrainReceipt>, CommandError> {
        let Ok(name) = ModelName::new(model) else { return Ok(Vec::new()) };
        let (reply, answer) = oneshot::channel();
        self.post(Event::Unload { model: name, reply }).await?;
        let unloading = answer.await.map_err(|_| CommandError::Stopping)??;
        self.kept(unloading.write).await?;
        if !wait {
            return Ok(Vec::new());
        }
        let leaving: BTreeSet<ResidencyId> = unloading.leaving.into_iter().collect();
        let gone = |snapshot: &Snapshot| snapshot.residents.is_disjoint(&leaving);
        let snapshot = self.when(gone).await?;
        let receipts = snapshot.receipts.iter().filter(|(id, _)| leaving.contains(id));
        Ok(receipts.map(|(_, receipt)| receipt.clone()).collect())
    }

    /// Looks at the source now. Many calls while one look is under way make one more.
    pub fn kick(&self) {
        self.shared.looks.ask();
    }

    /// Writes a rollout decision to the model's journal, then looks. Returns the entry's number. A retry with the same id is the same
    /// decision.
    ///
    /// # Errors
    /// [`CommandError::Rejected`] where the decision makes no sense as things stand.
    pub async fn apply(&self, model: &str, op: Op, by: &str, reason: &str, id: Option<Uuid>) -> Result<u64, CommandError> {
        let unknown = || CommandError::UnknownModel { model: shown(model) };
        let name = ModelName::new(model).map_err(|_| unknown())?;
        let listed = self.snapshot().models.get(&name).cloned().ok_or_else(unknown)?;
        check_version(&listed, &op)?;
        let proposal = Proposal {
            id: id.unwrap_or_else(Uuid::new_v4),
            // What has not settled is there all the same.
            highest: listed.versions.keys().chain(&listed.unsettled).max().copied(),
            ..Proposal::new(op, by, reason)
        };
        let seq = self.shared.journal.append(&name, listed.layout, &proposal).await?;
        let ticket = self.shared.looks.ask_about(name);
        let shown = self.when(|snapshot| snapshot.looked >= ticket);
        // A slow source does not make the decision undone: it shows later.
        match tokio::time::timeout(APPLY_LOOK_WAIT, shown).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Ok(seq),
        }
    }

    /// Goes by other options from now on, and looks at the source again. What serves is not touched by that alone.
    ///
    /// # Errors
    /// [`CommandError::Stopping`].
    pub async fn change(&self, live: LiveOptions) -> Result<(), CommandError> {
        // In this order: a look that reports by the new rules must find the reconciler going by them.
        self.post(Event::Changed(Box::new(live.clone()))).await?;
        self.shared.live.send_replace(live);
        self.shared.looks.ask();
        Ok(())
    }

    /// The status with counters and GPUs as they are now.
    pub fn live_status(&self) -> Status {
        self.status().with_live(self.shared.gpus.as_ref())
    }

    /// The last snapshot. Its counters are 0: [`Status::with_live`] reads them.
    pub fn status(&self) -> Arc<Status> {
        let status = Arc::clone(&self.shared.snapshots.borrow().status);
        if status.ready && *self.shared.stopping.borrow() {
            return Arc::new(Status { ready: false, ..Status::clone(&status) });
        }
        status
    }

    /// What the source has of a model, loaded or not; `None` where it has nothing, or was not looked at yet.
    pub fn listed(&self, model: &str) -> Option<Arc<ListedModel>> {
        self.shared.snapshots.borrow().models.get(model).cloned()
    }

    /// Whether the server takes traffic.
    pub fn readiness(&self) -> Readiness {
        // A reconciler that has ended tells nothing any more.
        if *self.shared.stopping.borrow() || self.shared.snapshots.has_changed().is_err() {
            return Readiness::Stopping;
        }
        self.shared.snapshots.borrow().readiness.clone()
    }

    /// Waits until the server is ready, or stops.
    pub async fn wait_ready(&self) {
        let mut stopping = self.shared.stopping.subscribe();
        // An error means that the engine has ended, which is as good as stopping.
        tokio::select! {
            ready = self.when(|snapshot| !matches!(snapshot.readiness, Readiness::NotYet { .. })) => drop(ready),
            stopping = stopping.wait_for(|stopping| *stopping) => drop(stopping),
        }
    }

    /// Follows what the engine shows, from now on.
    pub fn changes(&self) -> Changes {
        let mut changes = Changes { snapshots: self.shared.snapshots.clone(), stopping: self.shared.stopping.subscribe() };
        changes.snapshots.mark_unchanged();
        changes
    }

    /// Says from now on that the server is stopping, so that callers go elsewhere, and serves on as before until
    /// [`Serving::shutdown`].
    pub fn announce_stop(&self) {
        self.shared.stopping.send_replace(true);
    }

    /// Is not ready from now on, answers what was asked before, and ends: runs that are not over after `drain_timeout` are stopped.
    pub async fn shutdown(&self, drain_timeout: Duration) {
        if self.post(Event::Shutdown { drain_timeout }).await.is_err() {
            return;
        }
        let stopped = self.when(|snapshot| snapshot.stopped);
        if tokio::time::timeout(drain_timeout + SHUTDOWN_GRACE, stopped).await.is_err() {
            tracing::warn!("the engine is given up: a load or a run can't be stopped");
        }
        // What was served stays on disk; a disk that fails has been logged.
        let kept = self.kept(self.snapshot().write);
        drop(tokio::time::timeout(SHUTDOWN_GRACE, kept).await);
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.shared.snapshots.borrow())
    }

    /// The first snapshot, from the current one on, that meets a condition.
    async fn when(&self, condition: impl Fn(&Snapshot) -> bool) -> Result<Arc<Snapshot>, CommandError> {
        let mut snapshots = self.shared.snapshots.clone();
        let met = snapshots.wait_for(|snapshot| condition(snapshot)).await;
        met.map(|snapshot| Arc::clone(&snapshot)).map_err(|_| CommandError::Stopping)
    }

    async fn kept(&self, write: u64) -> Result<(), CommandError> {
        let mut written = self.shared.written.clone();
        let written = written.wait_for(|written| written.upto >= write).await.map_err(|_| CommandError::Stopping)?;
        written.error.clone().map_or(Ok(()), |message| Err(CommandError::State { message }))
    }

    async fn post(&self, event: Event) -> Result<(), CommandError> {
        self.shared.mailbox.send(event).await.map_err(|_| CommandError::Stopping)
    }

    fn sleeps(&self, model: &str) -> bool {
        let table = self.shared.router.table();
        table.route(model).is_some_and(|route| route.standing.loads_on_request())
    }

    /// Asks for a model that is loaded on demand and waits until it is, or has failed.
    async fn wake(&self, model: &str, deadline: Option<Instant>) -> Result<Routed, InferError> {
        let limit = Instant::now() + self.shared.live.borrow().on_demand_wait;
        let until = deadline.map_or(limit, |deadline| deadline.min(limit));
        let mut snapshots = self.shared.snapshots.clone();
        loop {
            snapshots.mark_unchanged();
            let routed = self.shared.router.route(model)?;
            match routed.route().standing {
                Standing::OnDemand => self.want(&routed, until).await,
                Standing::Waking => {}
                _ => return Ok(routed),
            }
            match timeout_at(until.into(), snapshots.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(not_ready(model, "the gateway is stopping")),
                Err(_) if deadline.is_some_and(|deadline| deadline <= limit) => return Err(InferError::DeadlineExceeded),
                Err(_) => return Err(not_ready(model, "it is being loaded")),
            }
        }
    }

    async fn want(&self, routed: &Routed, until: Instant) {
        let model = routed.route().model.clone();
        let wanted = || self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if !wanted().insert(model.clone()) {
            return;
        }
        let posted = timeout_at(until.into(), self.post(Event::Wanted { model: model.clone() })).await;
        if !matches!(posted, Ok(Ok(()))) {
            wanted().remove(&model);
        }
    }
}

fn not_ready(model: &str, reason: &str) -> InferError {
    InferError::NotReady { model: shown(model), reason: reason.to_owned(), retry_after: RETRY_AFTER }
}

/// A name from outside, cut to a length that a log can bear.
pub(crate) fn shown(model: &str) -> String {
    model.chars().take(128).collect()
}

/// A version of a model that can't count yet, because its files or the model's settings have changed lately.
fn unsettled_version(snapshot: &Snapshot, model: &ModelName) -> Option<VersionNumber> {
    snapshot.models.get(model)?.unsettled.last().copied()
}

fn is_loading(status: &ModelStatus) -> bool {
    status.versions.iter().any(|version| Stage::ALL.into_iter().any(|stage| stage.is_loading() && stage.name() == version.stage))
}

fn is_settled(status: &ModelStatus) -> bool {
    !is_loading(status)
}

/// What came of a load, once nothing of the model is on its way.
fn outcome(status: &ModelStatus) -> Result<(), CommandError> {
    let model = status.name.clone();
    if let Some(failed) = status.versions.iter().rev().find(|version| version.stage == Stage::Failed.name()) {
        return Err(CommandError::LoadFailed {
            model,
            version: failed.version,
            stage: failed.failed_step.clone().unwrap_or_default(),
            cause: failed.cause.clone().unwrap_or_default(),
        });
    }
    if status.versions.iter().any(|version| version.stage == Stage::Ready.name()) {
        return Ok(());
    }
    let reason = match (&status.held, status.problems.first()) {
        (Some(held), _) => held.clone(),
        (None, Some(problem)) => problem.clone(),
        (None, None) => format!("its version policy is '{}'", status.policy),
    };
    Err(CommandError::NothingToLoad { model, reason })
}

/// Whether the version that a decision is about exists. A journal beside a plain directory can't tell.
fn check_version(listed: &ListedModel, op: &Op) -> Result<(), CommandError> {
    let version = match op {
        // Taking traffic away and forgetting are right for what is gone, too.
        Op::Weight { weight_bp: 0, .. } | Op::Clear { .. } => return Ok(()),
        op => op.version(),
    };
    let Some(version) = version else { return Ok(()) };
    let problem = match listed.versions.get(&version) {
        None => "does not exist",
        Some(generation) if generation.tombstoned => "is tombstoned",
        Some(_) => return Ok(()),
    };
    Err(CommandError::Rejected { reason: format!("version {version} of model '{}' {problem}", listed.name) })
}
