//! The threads that own sessions, and what happens in a run: join the inputs, run, split the outputs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bascule_handoff::{Next, Owner};
use bascule_runtime_api::{Interrupt, RunContext, RunError, Session, Tensor};
use tokio::sync::watch;

use crate::InferError;
use crate::batch::{Answer, BatchRule, Flight, Inputs, Pending, WaitingRequests};
use crate::meters::Meters;
use crate::stats::{RunTimes, Stats};

/// A run on the calling thread may take this long, as far as was measured.
const INLINE_MAX: Duration = Duration::from_micros(200);

/// Runs of a size that must have been measured before one of them may run inline.
const INLINE_SAMPLES: u64 = 8;

/// What every instance of a version shares.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) rule: BatchRule,
    pub(crate) stats: Arc<Stats>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) cost: Arc<Cost>,
    pub(crate) interrupters: Interrupters,
    pub(crate) batched: bool,
}

/// How long runs take, by the size of their inputs.
#[derive(Debug)]
pub(crate) struct Cost {
    by_size: [SizeCost; 33],
}

#[derive(Debug, Default)]
struct SizeCost {
    samples: AtomicU64,
    /// Close to the highest of the last runs: rises at once, falls slowly.
    high_ns: AtomicU64,
}

impl Default for Cost {
    fn default() -> Self {
        Cost { by_size: std::array::from_fn(|_| SizeCost::default()) }
    }
}

impl Cost {
    fn of(&self, bytes: usize) -> &SizeCost {
        let power = (usize::BITS - bytes.leading_zeros()) as usize;
        &self.by_size[power.min(self.by_size.len() - 1)]
    }

    pub(crate) fn record(&self, bytes: usize, took: Duration) {
        let cost = self.of(bytes);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let high = cost.high_ns.load(Ordering::Relaxed);
        // A race loses one sample, which the next makes good.
        cost.high_ns.store(took.max(high - high / 64), Ordering::Relaxed);
        cost.samples.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether runs of this size were measured and are short.
    pub(crate) fn is_short(&self, bytes: usize) -> bool {
        let cost = self.of(bytes);
        cost.samples.load(Ordering::Relaxed) >= INLINE_SAMPLES
            && u128::from(cost.high_ns.load(Ordering::Relaxed)) <= INLINE_MAX.as_nanos()
    }
}

/// A way to stop each session's run.
#[derive(Clone)]
pub(crate) struct Interrupters(Arc<[Option<Arc<dyn Interrupt>>]>);

impl Interrupters {
    pub(crate) fn of(sessions: &[Box<dyn Session>]) -> Interrupters {
        Interrupters(sessions.iter().map(|session| session.interrupter()).collect())
    }

    pub(crate) fn interrupt(&self) {
        self.0.iter().flatten().for_each(|interrupt| interrupt.interrupt());
    }

    fn get(&self, index: usize) -> Option<Arc<dyn Interrupt>> {
        self.0.get(index).cloned().flatten()
    }
}

/// Sets the flag when the last owner thread lets go of it, however that thread ends.
struct LastOne(watch::Sender<bool>);

impl Drop for LastOne {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// Starts one thread an owner; the receiver turns true when the last of them has dropped its session.
pub(crate) fn start(
    owners: Vec<Owner<Box<dyn Session>, WaitingRequests>>,
    context: &Context,
    model: &str,
) -> std::io::Result<watch::Receiver<bool>> {
    let (sender, closed) = watch::channel(false);
    let last = Arc::new(LastOne(sender));
    for owner in owners {
        let context = context.clone();
        let last = Arc::clone(&last);
        std::thread::Builder::new().name(format!("instance {}", model.chars().take(40).collect::<String>())).spawn(move || {
            own(owner, &context);
            drop(last);
        })?;
    }
    Ok(closed)
}

/// The life of an owner thread.
fn own(mut owner: Owner<Box<dyn Session>, WaitingRequests>, context: &Context) {
    let index = owner.index();
    loop {
        match owner.next(|waiting, closing| waiting.take(&context.rule, Instant::now(), closing)) {
            Next::Run(batch) => {
                let flight = Arc::new(Flight::new(context.interrupters.get(index), batch.len()));
                for pending in &batch {
                    pending.ticket.board(&flight);
                }
                owner.with_session(|session| run_batch(session.as_mut(), batch, context));
                flight.end();
            }
            Next::Closed(session) => return drop(session),
        }
    }
}

pub(crate) fn input_bytes(inputs: &[Tensor]) -> usize {
    inputs.iter().map(|tensor| tensor.bytes().len()).sum()
}

/// Runs a batch and answers everyone in it.
fn run_batch(session: &mut dyn Session, batch: Vec<Pending>, context: &Context) {
    let taken_at = Instant::now();
    if batch.len() > 1 {
        let joined = run_joined(session, &batch, context);
        match joined {
            Ok((parts, times)) => {
                for (pending, outputs) in batch.into_iter().zip(parts) {
                    let queued = taken_at.saturating_duration_since(pending.queued_at);
                    answer(pending, Ok(Answer { outputs, queued, times }));
                }
                return;
            }
            // One request may have spoilt the run for the others: each gets a run of its own.
            Err(error) => tracing::debug!(%error, requests = batch.len(), "a joined run failed, running each request by itself"),
        }
    }
    for pending in batch {
        let queued = taken_at.saturating_duration_since(pending.queued_at);
        let result =
            run_one(session, &pending.inputs, pending.rows, pending.deadline, &context.stats, &context.meters, &context.cost);
        answer(pending, result.map(|answer| Answer { queued, ..answer }));
    }
}

fn answer(pending: Pending, result: Result<Answer, InferError>) {
    // The caller may have gone: then nobody is to be told.
    drop(pending.reply.send(result));
}

type Parts = Vec<Vec<Tensor>>;

fn run_joined(session: &mut dyn Session, batch: &[Pending], context: &Context) -> Result<(Parts, RunTimes), RunError> {
    debug_assert!(context.batched, "only rows can be joined");
    let started = Instant::now();
    let inputs: Option<Inputs> = (0..session.signature().inputs.len())
        .map(|input| Tensor::concat_rows(&batch.iter().filter_map(|pending| pending.inputs.get(input)).collect::<Vec<_>>()))
        .collect();
    let inputs = inputs.ok_or_else(|| RunError::Failed { message: "requests of different shapes were joined".to_owned() })?;
    let joined_at = Instant::now();
    let rows: u32 = batch.iter().map(|pending| pending.rows).sum();
    let deadline = batch.iter().map(|pending| pending.deadline).max().flatten();
    let outputs = guarded_run(session, &inputs, deadline)?;
    let ran_at = Instant::now();
    let parts = split(session, &outputs, batch, rows)?;
    let times = RunTimes { input: joined_at - started, infer: ran_at - joined_at, output: ran_at.elapsed() };
    context.cost.record(input_bytes(&inputs), times.infer);
    context.stats.ran(rows, &times);
    context.meters.ran(rows, &times);
    Ok((parts, times))
}

fn split(session: &dyn Session, outputs: &[Tensor], batch: &[Pending], rows: u32) -> Result<Parts, RunError> {
    let mut first = 0;
    let mut parts = Vec::with_capacity(batch.len());
    for pending in batch {
        let count = pending.rows as usize;
        let part: Option<Vec<Tensor>> = outputs
            .iter()
            .map(|output| if output.shape().first() == Some(&i64::from(rows)) { output.slice_rows(first, count) } else { None })
            .collect();
        parts.push(part.ok_or_else(|| not_batched(session, outputs, rows))?);
        first += count;
    }
    Ok(parts)
}

fn not_batched(session: &dyn Session, outputs: &[Tensor], rows: u32) -> RunError {
    let names = session.signature().outputs.iter().zip(outputs);
    let wrong = names.filter(|(_, output)| output.shape().first() != Some(&i64::from(rows)));
    let wrong: Vec<String> = wrong.map(|(spec, output)| format!("'{}' {:?}", spec.name, output.shape())).collect();
    RunError::Failed { message: format!("expected outputs of {rows} rows, got {}", wrong.join(", ")) }
}

/// Runs one request.
pub(crate) fn run_one(
    session: &mut dyn Session,
    inputs: &Inputs,
    rows: u32,
    deadline: Option<Instant>,
    stats: &Stats,
    meters: &Meters,
    cost: &Cost,
) -> Result<Answer, InferError> {
    let started = Instant::now();
    let result = guarded_run(session, inputs, deadline);
    let times = RunTimes { infer: started.elapsed(), ..RunTimes::default() };
    match result {
        Ok(outputs) => {
            cost.record(input_bytes(inputs), times.infer);
            stats.ran(rows, &times);
            meters.ran(rows, &times);
            Ok(Answer { outputs, queued: Duration::ZERO, times })
        }
        Err(RunError::InvalidInput { message }) => Err(InferError::InvalidArgument { message }),
        // Whoever interrupted has gone, or the gateway stops.
        Err(RunError::Interrupted) => Err(InferError::Cancelled),
        Err(RunError::Failed { message }) => Err(InferError::Internal { message }),
    }
}

/// A panic in a runtime fails the run and not the thread that owns the session.
fn guarded_run(session: &mut dyn Session, inputs: &[Tensor], deadline: Option<Instant>) -> Result<Vec<Tensor>, RunError> {
    let expected = session.signature().outputs.len();
    let run = AssertUnwindSafe(|| session.run(inputs, &RunContext { deadline }));
    match catch_unwind(run) {
        Ok(Ok(outputs)) if outputs.len() != expected => {
            Err(RunError::Failed { message: format!("expected {expected} outputs, got {}", outputs.len()) })
        }
        Ok(result) => result,
        Err(panic) => {
            let message = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
            Err(RunError::Failed { message: format!("the runtime panicked: {}", message.unwrap_or("no message")) })
        }
    }
}
