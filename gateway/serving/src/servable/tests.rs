use bascule_runtime_fake::{FakeLog, FakeModel, FakeRuntime};

use super::*;
use crate::testing::constant;
use crate::testing::servables::{Stubborn, sessions, started, zeros};

/// Only a failure waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A version whose runs of one row were measured as short.
fn short(settings: ModelSettings, sessions: Vec<Box<dyn Session>>) -> Arc<Servable> {
    let servable = started(settings, sessions);
    let bytes = instance::input_bytes(&[zeros(1)]);
    while !servable.context.cost.is_short(bytes) {
        servable.context.cost.record(bytes, Duration::from_micros(1));
    }
    servable
}

async fn run(servable: &Servable, deadline: Option<Instant>) -> Result<Answer, InferError> {
    match servable.run(Inputs::from_iter([zeros(1)]), 1, 0, deadline).await {
        Ok(answer) => Ok(answer),
        Err(Miss::Error(error)) => Err(error),
        Err(Miss::Closed) => panic!("it was open"),
    }
}

fn spawn(servable: &Arc<Servable>, deadline: Option<Instant>) -> tokio::task::JoinHandle<Result<Answer, InferError>> {
    let servable = Arc::clone(servable);
    tokio::spawn(async move { run(&servable, deadline).await })
}

async fn until(log: &Arc<FakeLog>, interrupted: u64, blocked: usize) {
    let log = Arc::clone(log);
    let met = move || log.wait_until(PATIENCE, |counts| (counts.interrupted, counts.blocked) == (interrupted, blocked));
    assert!(tokio::task::spawn_blocking(met).await.unwrap());
}

#[tokio::test]
async fn only_a_size_that_was_measured_as_short_runs_on_the_calling_thread() {
    let runtime = FakeRuntime::new();
    let sessions = || sessions(&runtime, &constant(1.0), 1);
    // The machine may have had something better to do for as long as a run may hold its thread: then it went on in the queue.
    let mut was_queued = true;
    for _ in 0..100 {
        let measured = short(ModelSettings::default(), sessions());
        was_queued &= run(&measured, None).await.unwrap().queued > Duration::ZERO;
    }
    assert!(!was_queued, "not one of a hundred ran on this thread");
    let unmeasured = started(ModelSettings::default(), sessions());
    assert!(run(&unmeasured, None).await.unwrap().queued > Duration::ZERO);
    let never = short(ModelSettings { inline: Inline::Never, ..ModelSettings::default() }, sessions());
    assert!(run(&never, None).await.unwrap().queued > Duration::ZERO);
    let unstoppable = sessions().into_iter().map(|session| Box::new(Stubborn(session)) as _).collect();
    let unstoppable = short(ModelSettings::default(), unstoppable);
    assert!(run(&unstoppable, None).await.unwrap().queued > Duration::ZERO, "nothing could stop it there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_holds_its_callers_thread_is_stopped_and_goes_on_in_the_queue() {
    let runtime = FakeRuntime::new();
    let log = runtime.log();
    let servable = short(ModelSettings::default(), sessions(&runtime, &FakeModel { block: true, ..constant(1.0) }, 1));
    let running = spawn(&servable, None);
    until(&log, 1, 1).await;
    assert!(!servable.context.cost.is_short(instance::input_bytes(&[zeros(1)])), "the next of this size is queued at once");
    log.release();
    assert!(running.await.unwrap().unwrap().queued > Duration::ZERO);
    let snapshot = servable.stats().snapshot();
    assert_eq!((snapshot.success.count, snapshot.fail.count, snapshot.execution_count), (1, 0, 1), "it is one request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_of_a_request_ends_its_run_on_the_calling_thread() {
    let runtime = FakeRuntime::new();
    let settings = ModelSettings { inline: Inline::Always, ..ModelSettings::default() };
    let servable = started(settings, sessions(&runtime, &FakeModel { block: true, ..constant(1.0) }, 1));
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(spawn(&servable, Some(deadline)).await.unwrap().err(), Some(InferError::DeadlineExceeded));
    until(&runtime.log(), 1, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_counts_as_cancelled() {
    let runtime = FakeRuntime::new();
    let settings = ModelSettings { inline: Inline::Never, ..ModelSettings::default() };
    let servable = started(settings, sessions(&runtime, &FakeModel { block: true, ..constant(1.0) }, 1));
    let running = spawn(&servable, None);
    until(&runtime.log(), 0, 1).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    until(&runtime.log(), 1, 0).await;
    let snapshot = servable.stats().snapshot();
    assert_eq!((snapshot.success.count, snapshot.fail.count, snapshot.in_flight), (0, 1, 0));
}

#[tokio::test]
async fn a_request_that_is_taken_as_its_time_in_the_queue_ends_is_not_run_for_nobody() {
    let ticket = Arc::new(Ticket::default());
    let (_reply, answer) = oneshot::channel();
    let waiting = Abandon(Some(Arc::clone(&ticket)));
    let refused = wait(answer, &waiting, None, Some(Instant::now())).await.unwrap();
    assert!(matches!(refused, Err(InferError::Overloaded { .. })), "{refused:?}");
    waiting.disarm();
    ticket.take();
    let flight = Arc::new(Flight::new(None, 1));
    ticket.board(&flight);
    assert!(flight.is_stopped());
}

#[test]
fn a_queue_timeout_beyond_all_measure_is_none() {
    let runtime = FakeRuntime::new();
    let settings = ModelSettings { inline: Inline::Never, queue_timeout: Some(Duration::MAX), ..ModelSettings::default() };
    let servable = started(settings, sessions(&runtime, &constant(1.0), 1));
    let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    assert!(tokio.block_on(run(&servable, None)).is_ok());
}
