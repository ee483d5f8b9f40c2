//! The threads that own sessions, and what happens in a run: join the inputs, run, split the outputs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bascule_handoff::{Next, Owner};
use bascule_runtime_api::{Interrupt, RunContext, RunError, Session, Tensor};
use tokio::sync::watch;

use crate::InferError;
use crate::batch::{Answer, BatchRule, Inputs, Pending, WaitingRequests};
use crate::cost::Cost;
use crate::error::panicked;
use crate::flight::Flight;
use crate::meters::Meters;
use crate::nan;
use crate::stats::{RunTimes, Stats};

/// What every instance of a version shares.
pub(crate) struct Context {
    pub(crate) model: String,
    pub(crate) rule: BatchRule,
    pub(crate) stats: Stats,
    pub(crate) meters: Meters,
    pub(crate) cost: Cost,
    pub(crate) interrupters: Interrupters,
    pub(crate) batched: bool,
    /// Set when a drain takes too long: no run begins any more.
    pub(crate) given_up: AtomicBool,
}

/// A way to stop each session's run.
#[derive(Clone)]
pub(crate) struct Interrupters(Arc<[Option<Arc<dyn Interrupt>>]>);

impl Interrupters {
    pub(crate) fn of(sessions: &[Box<dyn Session>]) -> Interrupters {
        Interrupters(sessions.iter().map(|session| session.interrupter()).collect())
    }

    /// Stops every run that is under way.
    pub(crate) fn interrupt(&self) {
        self.0.iter().flatten().for_each(|interrupt| interrupt.interrupt());
    }

    pub(crate) fn get(&self, index: usize) -> Option<Arc<dyn Interrupt>> {
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

/// Starts one thread an owner; the receiver turns true when the last of them has dropped its session. A thread's name begins with
/// `instance` and its owner's number.
pub(crate) fn start(
    owners: Vec<Owner<Box<dyn Session>, WaitingRequests>>,
    context: &Arc<Context>,
) -> std::io::Result<watch::Receiver<bool>> {
    let (sender, closed) = watch::channel(false);
    let last = Arc::new(LastOne(sender));
    let model: String = context.model.chars().take(40).collect();
    for owner in owners {
        let context = Arc::clone(context);
        let last = Arc::clone(&last);
        let name = format!("instance {} {model}", owner.index());
        std::thread::Builder::new().name(name).spawn(move || {
            // Dropped after the owner, which drops its session, also where this thread panics.
            let _last = last;
            own(owner, &context);
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
                owner.with_session(|session| context.run_batch(session.as_mut(), index, batch));
            }
            Next::Closed(session) => return drop(session),
        }
    }
}

pub(crate) fn input_bytes(inputs: &[Tensor]) -> usize {
    inputs.iter().map(|tensor| tensor.bytes().len()).sum()
}

type Parts = Vec<Vec<Tensor>>;

impl Context {
    /// Runs a batch and answers everyone in it.
    fn run_batch(&self, session: &mut dyn Session, index: usize, batch: Vec<Pending>) {
        let taken_at = Instant::now();
        let queued = |pending: &Pending| taken_at.saturating_duration_since(pending.queued_at);
        if batch.len() > 1 {
            match self.aboard(index, &batch, |flight| self.run_joined(session, &batch, flight)) {
                Ok((parts, times)) => {
                    for (pending, outputs) in batch.into_iter().zip(parts) {
                        let queued = queued(&pending);
                        pending.answer(Ok(Answer { outputs, queued, times }));
                    }
                    return;
                }
                // Nobody waits any more, or the version is given up: another run would serve no one.
                Err(RunError::Interrupted) => {
                    batch.into_iter().for_each(|pending| pending.answer(Err(self.error(RunError::Interrupted))));
                    return;
                }
                // One request may have spoilt the run for the others: each gets a run of its own.
                Err(error) => {
                    tracing::debug!(%error, requests = batch.len(), "a joined run failed, running each request by itself")
                }
            }
        }
        for pending in batch {
            // Those before it in the batch may have taken long.
            let now = Instant::now();
            if pending.is_forsaken(now) {
                pending.expire(now);
                continue;
            }
            let result = self.aboard(index, std::slice::from_ref(&pending), |flight| {
                self.run_one(session, &pending.inputs, pending.rows, (now, pending.deadline), flight)
            });
            let queued = queued(&pending);
            pending.answer(result.map(|answer| Answer { queued, ..answer }).map_err(|error| self.error(error)));
        }
    }

    /// Makes a run whose callers can stop it: the last one to go away does.
    fn aboard<R>(&self, index: usize, batch: &[Pending], run: impl FnOnce(&Flight) -> R) -> R {
        let flight = Arc::new(Flight::new(self.interrupters.get(index), batch.len()));
        for pending in batch {
            pending.ticket.board(&flight);
        }
        let result = run(&flight);
        flight.end();
        result
    }

    fn run_joined(&self, session: &mut dyn Session, batch: &[Pending], flight: &Flight) -> Result<(Parts, RunTimes), RunError> {
        debug_assert!(self.batched, "only rows can be joined");
        let started = Instant::now();
        let inputs: Option<Inputs> = (0..session.signature().inputs.len())
            .map(|input| Tensor::concat_rows(&batch.iter().filter_map(|pending| pending.inputs.get(input)).collect::<Vec<_>>()))
            .collect();
        let inputs = inputs.ok_or_else(|| RunError::Failed { message: "requests of different shapes were joined".to_owned() })?;
        let joined_at = Instant::now();
        // The rule joins no more than fit a run, so this can't overflow.
        let rows: u32 = batch.iter().map(|pending| pending.rows).sum();
        let result = self.guarded_run(session, &inputs, last_deadline(batch), flight);
        let ran_at = Instant::now();
        let outputs = result.inspect_err(|_| self.cost.record_failed(input_bytes(&inputs), ran_at - joined_at))?;
        let parts = split(session, &outputs, batch, rows)?;
        let times = RunTimes { input: joined_at - started, infer: ran_at - joined_at, output: ran_at.elapsed() };
        self.ran(&inputs, rows, &times);
        self.look_for_nan(parts.iter().flatten());
        Ok((parts, times))
    }

    /// Runs one request, `from` now on.
    pub(crate) fn run_one(
        &self,
        session: &mut dyn Session,
        inputs: &Inputs,
        rows: u32,
        (from, deadline): (Instant, Option<Instant>),
        flight: &Flight,
    ) -> Result<Answer, RunError> {
        let result = self.guarded_run(session, inputs, deadline, flight);
        let times = RunTimes { infer: from.elapsed(), ..RunTimes::default() };
        let outputs = result.inspect_err(|_| self.cost.record_failed(input_bytes(inputs), times.infer))?;
        self.ran(inputs, rows, &times);
        self.look_for_nan(&outputs);
        Ok(Answer { outputs, queued: Duration::ZERO, times })
    }

    fn ran(&self, inputs: &Inputs, rows: u32, times: &RunTimes) {
        self.cost.record(input_bytes(inputs), times.infer);
        self.stats.ran(rows, times);
        self.meters.ran(rows, times);
    }

    /// NaN is an answer, and is counted. Takes no lock and allocates nothing.
    fn look_for_nan<'a>(&self, outputs: impl IntoIterator<Item = &'a Tensor>) {
        let outputs = nan::count(outputs);
        if outputs > 0 {
            self.stats.had_nan(outputs);
            self.meters.had_nan(outputs);
        }
    }

    /// A panic in a runtime fails the run and not the thread that owns the session.
    fn guarded_run(
        &self,
        session: &mut dyn Session,
        inputs: &[Tensor],
        deadline: Option<Instant>,
        flight: &Flight,
    ) -> Result<Vec<Tensor>, RunError> {
        if flight.is_stopped() || self.is_given_up() {
            return Err(RunError::Interrupted);
        }
        let expected = session.signature().outputs.len();
        let run = AssertUnwindSafe(|| session.run(inputs, &RunContext { deadline, cancelled: Some(flight.cancelled()) }));
        match catch_unwind(run) {
            Ok(Ok(outputs)) if outputs.len() != expected => {
                Err(RunError::Failed { message: format!("expected {expected} outputs, got {}", outputs.len()) })
            }
            Ok(result) => result,
            Err(panic) => Err(RunError::Failed { message: format!("the runtime {}", panicked(panic.as_ref())) }),
        }
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::SeqCst)
    }

    /// What a caller is told of a run that gave no outputs.
    pub(crate) fn error(&self, error: RunError) -> InferError {
        match error {
            RunError::InvalidInput { message } => InferError::InvalidArgument { message },
            RunError::Interrupted if self.is_given_up() => self.given_up_error(),
            // Whoever interrupted has gone.
            RunError::Interrupted => InferError::Cancelled,
            RunError::Failed { message } => InferError::Internal { message },
        }
    }

    /// What callers are told whom a version leaves behind: to ask again, for another one.
    pub(crate) fn given_up_error(&self) -> InferError {
        InferError::NotReady {
            model: self.model.clone(),
            reason: "the version was unloaded before it had answered".to_owned(),
            retry_after: crate::table::RETRY_AFTER,
        }
    }
}

/// When the last caller has gone; `None` where one waits without a limit.
fn last_deadline(batch: &[Pending]) -> Option<Instant> {
    batch.iter().map(|pending| pending.deadline).reduce(|a, b| Some(a?.max(b?))).flatten()
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

#[cfg(test)]
mod tests;
