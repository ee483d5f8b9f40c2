//! A loaded version: what it takes and gives, its queue, its instances.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bascule_handoff::{Pool, Refusal};
use bascule_registry::{Digest, Generation, VersionNumber};
use bascule_runtime_api::{Device, Footprint, RunError, Session, Signature, TensorSpec};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::{oneshot, watch};

use crate::batch::{Answer, BatchRule, Inputs, Pending, WaitingRequests, queue_timed_out};
use crate::cost::{self, Cost};
use crate::flight::{Flight, Ticket};
use crate::instance::{self, Context, Interrupters};
use crate::meters::Meters;
use crate::settings::DEFAULT_MAX_BATCH_SIZE;
use crate::stats::Stats;
use crate::watchdog::watch as watch_run;
use crate::{ErrorCode, InferError, Inline, ModelSettings};

/// A run that was taken for a short one and is not is stopped after this long, and goes on in the queue.
const INLINE_LIMIT: Duration = cost::INLINE_MAX.saturating_mul(25);

/// The same where the settings want every run on its caller's thread.
const INLINE_ALWAYS_LIMIT: Duration = Duration::from_secs(1);

/// Everything about a version that its sessions don't say.
#[derive(Debug, Clone)]
pub struct ServableSpec {
    /// The version and its content.
    pub generation: Arc<Generation>,
    /// The model's settings, as they apply to this version.
    pub settings: Arc<ModelSettings>,
    /// The runtime's name, for example `onnxruntime`.
    pub runtime: &'static str,
    /// The runtime library's version.
    pub runtime_version: String,
    /// Memory of all sessions together.
    pub footprint: Footprint,
    /// When loading ended.
    pub loaded_at: DateTime<Utc>,
}

/// What answers say of their version. Clones share the text.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The number.
    pub version: Bytes,
    /// The digest.
    pub digest: Bytes,
}

/// A loaded version. Dropping the last handle frees nothing heavy: sessions are dropped by the threads that own them.
pub struct Servable {
    spec: ServableSpec,
    shown: Shown,
    signature: Signature,
    devices: Vec<Device>,
    batching: Batching,
    pool: Pool<Box<dyn Session>, WaitingRequests>,
    context: Arc<Context>,
    closed: watch::Receiver<bool>,
}

/// How requests become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batching {
    /// Whether shapes have a leading axis of independent rows.
    pub(crate) axis: bool,
    /// Rows that one request may bring; `None` for any number.
    pub(crate) max_request_rows: Option<u32>,
    /// Rows that a run of several requests may have.
    pub(crate) max_rows: u32,
}

impl Batching {
    /// # Errors
    /// Where the settings want batches of a model that can't be batched; names both.
    pub(crate) fn new(signature: &Signature, settings: &ModelSettings) -> Result<Batching, String> {
        let (axis, wanted_by) = match settings.max_batch_size {
            Some(rows) => (rows > 0, format!("`max_batch_size` is {rows}")),
            None => (signature.batch_axis == Some(0), "the signature has a batch axis".to_owned()),
        };
        if axis {
            check_leading_axes(signature).map_err(|contradiction| format!("{wanted_by} but {contradiction}"))?;
        }
        let max_rows = settings.max_batch_size.unwrap_or(DEFAULT_MAX_BATCH_SIZE).max(1);
        Ok(Batching {
            axis,
            max_request_rows: settings.max_batch_size.filter(|_| axis),
            max_rows: if axis && settings.dynamic_batching { max_rows } else { 1 },
        })
    }
}

/// Whether requests can be joined along the first axis of every tensor.
fn check_leading_axes(signature: &Signature) -> Result<(), String> {
    if signature.inputs.is_empty() {
        return Err("the model has no input".to_owned());
    }
    let inputs = signature.inputs.iter().map(|spec| ("input", spec));
    let mut tensors = inputs.chain(signature.outputs.iter().map(|spec| ("output", spec)));
    match tensors.find(|(_, spec)| spec.shape.first().is_none_or(|dim| *dim >= 0)) {
        None => Ok(()),
        Some((side, TensorSpec { name, shape, .. })) => {
            Err(format!("{side} '{name}' of the model has shape {shape:?}, expected a first dimension of any size (-1)"))
        }
    }
}

/// Why a servable did not answer.
pub(crate) enum Miss {
    /// It is on its way out: another version is to be asked.
    Closed,
    /// It has an answer, and that is an error.
    Error(InferError),
}

impl Servable {
    /// Starts one owner thread a session. All sessions are of one version.
    ///
    /// # Errors
    /// Where there is no session, the settings want batches of a model that can't be batched, or a thread can't be started; sessions
    /// are then dropped on the calling thread.
    pub fn start(spec: ServableSpec, sessions: Vec<Box<dyn Session>>) -> std::io::Result<Arc<Servable>> {
        let Some(first) = sessions.first() else {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "a version needs one session at the least"));
        };
        let signature = first.signature().clone();
        let mut devices: Vec<Device> = sessions.iter().map(|session| session.device()).collect();
        devices.sort_unstable();
        devices.dedup();
        let batching = Batching::new(&signature, &spec.settings)
            .map_err(|contradiction| std::io::Error::new(std::io::ErrorKind::InvalidInput, contradiction))?;
        let interrupters = Interrupters::of(&sessions);
        let levels = usize::try_from(spec.settings.priority_levels).unwrap_or(1);
        let (pool, owners) = Pool::new(sessions, WaitingRequests::new(levels), spec.settings.queue_capacity);
        let mut preferred = spec.settings.preferred_batch_sizes.clone();
        preferred.sort_unstable();
        let context = Arc::new(Context {
            model: spec.generation.key.model.to_string(),
            rule: BatchRule { max_rows: batching.max_rows, max_delay: spec.settings.max_queue_delay, preferred },
            stats: Stats::default(),
            meters: Meters::new(&spec.generation.key),
            cost: Cost::default(),
            interrupters,
            batched: batching.axis,
            given_up: AtomicBool::new(false),
        });
        let closed = match instance::start(owners, &context) {
            Ok(closed) => closed,
            Err(error) => {
                pool.close();
                return Err(error);
            }
        };
        let Generation { key, digest, .. } = spec.generation.as_ref();
        let shown = Shown { version: key.version.to_string().into(), digest: digest.to_string().into() };
        Ok(Arc::new(Servable { spec, shown, signature, devices, batching, pool, context, closed }))
    }

    /// The version's number.
    pub fn version(&self) -> VersionNumber {
        self.spec.generation.key.version
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        self.spec.generation.key.model.as_ref()
    }

    /// What identifies the content.
    pub fn digest(&self) -> &Digest {
        &self.spec.generation.digest
    }

    /// The version's number and digest as text, ASCII, for every answer to say.
    pub fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Everything that was said when it was loaded.
    pub fn spec(&self) -> &ServableSpec {
        &self.spec
    }

    /// What it takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The devices that really run it, ascending. Each has as many sessions.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The same as text: `cuda:0, cuda:1`.
    pub fn devices_shown(&self) -> String {
        self.devices.iter().map(Device::to_string).collect::<Vec<String>>().join(", ")
    }

    /// Whether shapes have a leading axis of independent rows.
    pub fn is_batched(&self) -> bool {
        self.batching.axis
    }

    /// Rows in one run at the most; 0 where shapes have no batch axis.
    pub fn max_batch_size(&self) -> u32 {
        if self.batching.axis { self.spec.settings.max_batch_size.unwrap_or(DEFAULT_MAX_BATCH_SIZE) } else { 0 }
    }

    /// Rows that one request may bring; `None` for any number.
    pub(crate) fn max_request_rows(&self) -> Option<u32> {
        self.batching.max_request_rows
    }

    /// Class names of an output.
    pub fn labels(&self, output: &str) -> Option<&[String]> {
        self.spec.settings.labels.get(output).map(Vec::as_slice)
    }

    /// Counts and times.
    pub fn stats(&self) -> &Stats {
        &self.context.stats
    }

    /// Requests that wait.
    pub fn queued(&self) -> usize {
        self.pool.queued()
    }

    /// Sessions.
    pub fn instances(&self) -> usize {
        self.pool.slots()
    }

    /// Takes no more requests; what waits is still run. Returns at once. Call it only after the table no longer names this version.
    pub fn close(&self) {
        self.pool.close();
    }

    /// For a drain that takes too long: answers what is queued with "not ready" and stops the runs that are under way; their callers
    /// are told the same. A run that is about to begin may be missed: call it again while the version has not closed.
    pub(crate) fn give_up(&self) {
        self.context.given_up.store(true, Ordering::SeqCst);
        for pending in self.pool.abort() {
            pending.answer(Err(self.context.given_up_error()));
        }
        self.context.interrupters.interrupt();
    }

    /// Waits until every instance has ended and every session was dropped by its owner.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        // An error means that the last owner thread is gone, which is what is waited for.
        drop(closed.wait_for(|closed| *closed).await);
    }

    /// Runs a checked request, inline or through the queue.
    pub(crate) async fn run(&self, inputs: Inputs, rows: u32, priority: u64, deadline: Option<Instant>) -> Result<Answer, Miss> {
        let request = Counted::enter(&self.context);
        let result = match self.run_inline(&inputs, rows, deadline, request.entered) {
            Some(result) => result.map_err(Miss::Error),
            None => self.enqueue(inputs, rows, priority, deadline, request.entered).await,
        };
        request.ended(&result);
        result
    }

    /// Whether a request could be queued now, or is to be handed on.
    pub(crate) fn has_room(&self) -> bool {
        self.pool.has_room()
    }

    /// Counts a request that is refused because the queue is full.
    pub(crate) fn refuse(&self) -> InferError {
        self.context.stats.failed(Duration::ZERO);
        self.refused(ErrorCode::Overloaded);
        self.queue_full()
    }

    fn queue_full(&self) -> InferError {
        let what = format!("the queue of model '{}' ({} requests)", self.model(), self.pool.capacity());
        InferError::Overloaded { what, retry_after: crate::table::RETRY_AFTER }
    }

    /// Counts a request for this version that was refused before it could be queued.
    pub(crate) fn refused(&self, code: ErrorCode) {
        self.context.meters.failed(code);
    }

    /// Runs on this thread where that is allowed and an instance is free. `None`: the queue is to have it, which is also where a run
    /// goes on that held this thread for too long.
    fn run_inline(
        &self,
        inputs: &Inputs,
        rows: u32,
        deadline: Option<Instant>,
        now: Instant,
    ) -> Option<Result<Answer, InferError>> {
        let (limit, must_be_stoppable) = match self.spec.settings.inline {
            Inline::Always => (INLINE_ALWAYS_LIMIT, false),
            Inline::Auto if self.context.cost.is_short(instance::input_bytes(inputs)) => (INLINE_LIMIT, true),
            Inline::Auto | Inline::Never => return None,
        };
        if deadline.is_some_and(|deadline| deadline <= now) {
            return None;
        }
        let mut claim = self.pool.claim()?;
        let interrupt = self.context.interrupters.get(claim.index());
        if must_be_stoppable && interrupt.is_none() {
            return None;
        }
        let due = deadline.map_or(now + limit, |deadline| deadline.min(now + limit));
        let flight = Arc::new(Flight::new(interrupt, 1));
        let watched = watch_run(due, &flight)?;
        let result = claim.with_session(|session| self.context.run_one(session.as_mut(), inputs, rows, (now, deadline), &flight));
        drop(watched);
        // Before the slot is given back: who stops this run late must not stop the next one.
        flight.end();
        drop(claim);
        match result? {
            Err(RunError::Interrupted) if !self.context.is_given_up() => match deadline {
                Some(deadline) if deadline <= Instant::now() => Some(Err(InferError::DeadlineExceeded)),
                _ => None,
            },
            result => Some(result.map_err(|error| self.context.error(error))),
        }
    }

    async fn enqueue(
        &self,
        inputs: Inputs,
        rows: u32,
        priority: u64,
        deadline: Option<Instant>,
        queued_at: Instant,
    ) -> Result<Answer, Miss> {
        if deadline.is_some_and(|deadline| deadline <= queued_at) {
            return Err(Miss::Error(InferError::DeadlineExceeded));
        }
        let settings = &self.spec.settings;
        let queue_limit = settings.queue_timeout.and_then(|timeout| queued_at.checked_add(timeout));
        let (reply, answer) = oneshot::channel();
        let ticket = Arc::new(Ticket::default());
        let pending = Pending {
            inputs,
            rows,
            priority: self.level(priority),
            queued_at,
            deadline,
            expires_at: [deadline, queue_limit].into_iter().flatten().min(),
            ticket: Arc::clone(&ticket),
            reply,
        };
        match self.pool.submit(pending) {
            Ok(()) => {}
            Err((_, Refusal::Closed)) => return Err(Miss::Closed),
            Err((_, Refusal::Full)) => return Err(Miss::Error(self.queue_full())),
        }
        let waiting = Abandon(Some(ticket));
        let result = wait(answer, &waiting, deadline, queue_limit).await;
        match result {
            Some(result) => {
                waiting.disarm();
                result.map_err(Miss::Error)
            }
            None => Err(Miss::Error(InferError::Internal { message: "an instance ended without answering".to_owned() })),
        }
    }

    fn level(&self, priority: u64) -> usize {
        let priority = if priority == 0 { u64::from(self.spec.settings.default_priority) } else { priority };
        usize::try_from(priority.saturating_sub(1)).unwrap_or(usize::MAX)
    }
}

/// Waits for the answer until the deadline, or until the queue's own limit while still queued; `None` where no answer can come.
async fn wait(
    mut answer: oneshot::Receiver<Result<Answer, InferError>>,
    waiting: &Abandon,
    deadline: Option<Instant>,
    queue_limit: Option<Instant>,
) -> Option<Result<Answer, InferError>> {
    if let Some(limit) = queue_limit.filter(|limit| deadline.is_none_or(|deadline| *limit < deadline)) {
        match tokio::time::timeout_at(limit.into(), &mut answer).await {
            Ok(result) => return result.ok(),
            Err(_) if waiting.is_taken() => {}
            Err(_) => {
                // An instance may take it at this very moment.
                waiting.abandon();
                return Some(Err(queue_timed_out()));
            }
        }
    }
    match deadline {
        None => answer.await.ok(),
        Some(deadline) => match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(result) => result.ok(),
            Err(_) => {
                waiting.abandon();
                Some(Err(InferError::DeadlineExceeded))
            }
        },
    }
}

/// Tells the run, where one is under way, when its caller goes away: also when this future is dropped.
struct Abandon(Option<Arc<Ticket>>);

impl Abandon {
    fn is_taken(&self) -> bool {
        self.0.as_ref().is_some_and(|ticket| ticket.is_taken())
    }

    fn abandon(&self) {
        if let Some(ticket) = &self.0 {
            ticket.abandon();
        }
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// A request that is counted once: by its outcome, or as cancelled where its future is dropped before there is one.
struct Counted<'a> {
    context: &'a Context,
    entered: Instant,
    has_ended: bool,
}

impl<'a> Counted<'a> {
    fn enter(context: &'a Context) -> Counted<'a> {
        context.stats.enter();
        context.meters.in_flight(1.0);
        Counted { context, entered: Instant::now(), has_ended: false }
    }

    fn ended(mut self, result: &Result<Answer, Miss>) {
        self.has_ended = true;
        match result {
            Ok(answer) => {
                let total = self.entered.elapsed();
                self.context.stats.succeeded(total, answer.queued, &answer.times);
                self.context.meters.succeeded(total, answer.queued, &answer.times);
            }
            Err(Miss::Error(error)) => self.failed(error.code()),
            Err(Miss::Closed) => {}
        }
    }

    fn failed(&self, code: ErrorCode) {
        self.context.stats.failed(self.entered.elapsed());
        self.context.meters.failed(code);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.failed(ErrorCode::Cancelled);
        }
        self.context.stats.leave();
        self.context.meters.in_flight(-1.0);
    }
}

impl fmt::Debug for Servable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servable").field("key", &self.spec.generation.key).field("digest", &self.spec.generation.digest).finish()
    }
}

impl Drop for Servable {
    fn drop(&mut self) {
        // A servable that never made it into a table still has owners to release.
        self.pool.close();
    }
}

/// The spec of an input, by name, with its place.
pub(crate) fn find<'a>(specs: &'a [TensorSpec], name: &str) -> Option<(usize, &'a TensorSpec)> {
    specs.iter().enumerate().find(|(_, spec)| spec.name == name)
}

#[cfg(test)]
mod tests;
