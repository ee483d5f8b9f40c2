//! What a session promises over its life: outputs outlive it, any thread may own it, an interrupt stops only what runs.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::{Endless, Fixture, load, run, sample};
use crate::{DataType, RunContext, RunError, Runtime, Session, Tensor};

/// How long an interrupt may take before it counts as one that does nothing.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn check(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    outputs_outlive_the_session(runtime, fixture);
    a_session_moves_between_threads(runtime, fixture);
    sessions_run_side_by_side(runtime, fixture);
    a_dropped_session_is_gone(runtime, fixture);
    an_interrupt_stops_only_what_runs(runtime, fixture);
}

fn outputs_outlive_the_session(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let has = fixture.datatypes();
    for datatype in [DataType::Fp32, DataType::Bytes].into_iter().filter(|datatype| has.contains(datatype)) {
        let mut session = load(runtime, &fixture.identity(datatype, &[-1, 64]));
        let first = sample(datatype, &[3, 64], 4);
        let second = sample(datatype, &[5, 64], 5);
        let kept = run(session.as_mut(), std::slice::from_ref(&first));
        run(session.as_mut(), std::slice::from_ref(&second));
        assert_eq!(kept[0], first, "a later run changed the outputs of an earlier one");
        drop(session);
        assert_eq!(kept[0], first, "outputs changed when their session was dropped");
    }
}

fn a_session_moves_between_threads(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let model = fixture.identity(DataType::Int64, &[-1]);
    let input = sample(DataType::Int64, &[4], 6);
    thread::scope(|scope| {
        let mut session = joined(scope.spawn(|| load(runtime, &model)).join());
        for _ in 0..3 {
            let runner = scope.spawn(|| {
                let input = std::slice::from_ref(&input);
                assert_eq!(run(session.as_mut(), input), input, "on another thread");
                session
            });
            session = joined(runner.join());
        }
        joined(scope.spawn(|| drop(session)).join());
    });
}

fn sessions_run_side_by_side(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let model = fixture.identity(DataType::Fp64, &[-1, 16]);
    let model = &model;
    thread::scope(|scope| {
        for seed in 10..14 {
            scope.spawn(move || {
                let mut session = load(runtime, model);
                for rows in 1..40 {
                    let input = sample(DataType::Fp64, &[rows, 16], seed);
                    assert_eq!(run(session.as_mut(), std::slice::from_ref(&input)), [input], "sessions mix their tensors");
                }
            });
        }
    });
}

fn a_dropped_session_is_gone(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let model = fixture.identity(DataType::Fp32, &[-1]);
    let input = sample(DataType::Fp32, &[4], 7);
    let before = fixture.live_sessions();
    for _ in 0..25 {
        let mut session = load(runtime, &model);
        if let (Some(before), Some(now)) = (before, fixture.live_sessions()) {
            assert_eq!(now, before + 1, "one session was loaded");
        }
        run(session.as_mut(), std::slice::from_ref(&input));
        drop(session);
        assert_eq!(fixture.live_sessions(), before, "a dropped session is still alive");
    }
}

fn an_interrupt_stops_only_what_runs(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let Some(Endless { model, forever, brief }) = fixture.endless() else {
        let session = load(runtime, &fixture.identity(DataType::Fp32, &[-1]));
        assert!(session.interrupter().is_none(), "sessions have an interrupter and the fixture no endless model to try it on");
        return;
    };
    let mut session = load(runtime, &model);
    let Some(interrupter) = session.interrupter() else { panic!("the session has no interrupter") };
    for round in 0..2 {
        interrupter.interrupt();
        let result;
        (session, result) = run_until_stopped(session, forever.clone(), || interrupter.interrupt());
        assert_eq!(result, Err(RunError::Interrupted), "round {round}: the interrupted run");
        interrupter.interrupt();
        let result;
        (session, result) = run_cancelled(session, forever.clone());
        assert_eq!(result, Err(RunError::Interrupted), "round {round}: the run that was cancelled before it began");
    }
    fixture.unblock();
    run(session.as_mut(), &brief);
    drop(session);
    interrupter.interrupt();
}

/// Runs on another thread, and interrupts again and again until the run ends: an interrupt that comes before the run has begun
/// must do nothing, so a single one could be lost.
fn run_until_stopped(
    mut session: Box<dyn Session>,
    inputs: Vec<Tensor>,
    interrupt: impl Fn(),
) -> (Box<dyn Session>, Result<Vec<Tensor>, RunError>) {
    let (sender, receiver) = sync_channel(1);
    let runner = thread::spawn(move || {
        let result = session.run(&inputs, &RunContext::default());
        // The receiver is gone only where the suite has already failed.
        let _ = sender.send((session, result));
    });
    let limit = Instant::now() + PATIENCE;
    loop {
        interrupt();
        match receiver.recv_timeout(Duration::from_millis(1)) {
            Ok(ended) => {
                joined(runner.join());
                return ended;
            }
            Err(RecvTimeoutError::Disconnected) => panic!("the interrupted run panicked"),
            Err(RecvTimeoutError::Timeout) => assert!(Instant::now() < limit, "the run goes on in spite of interrupts"),
        }
    }
}

/// Runs on another thread with a context that is cancelled: nothing else stops the run.
fn run_cancelled(mut session: Box<dyn Session>, inputs: Vec<Tensor>) -> (Box<dyn Session>, Result<Vec<Tensor>, RunError>) {
    let (sender, receiver) = sync_channel(1);
    let runner = thread::spawn(move || {
        let cancelled = AtomicBool::new(true);
        let result = session.run(&inputs, &RunContext { cancelled: Some(&cancelled), ..RunContext::default() });
        // The receiver is gone only where the suite has already failed.
        let _ = sender.send((session, result));
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(ended) => {
            joined(runner.join());
            ended
        }
        Err(RecvTimeoutError::Disconnected) => panic!("the cancelled run panicked"),
        Err(RecvTimeoutError::Timeout) => panic!("a run that was cancelled before it began goes on"),
    }
}

/// The value of a joined thread; its panic goes on here.
fn joined<T>(result: thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
