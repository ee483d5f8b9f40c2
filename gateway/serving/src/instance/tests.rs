use std::sync::Mutex;

use bascule_registry::VersionKey;
use tokio::sync::oneshot;

use super::*;
use crate::flight::Ticket;
use crate::testing::name;
use crate::testing::servables::{Scripted, zeros};

fn context() -> Context {
    Context {
        model: "m".to_owned(),
        rule: BatchRule { max_rows: 32, max_delay: Duration::ZERO, preferred: Vec::new() },
        stats: Stats::default(),
        meters: Meters::new(&VersionKey::new(name("m"), 1)),
        cost: Cost::default(),
        interrupters: Interrupters(Arc::new([])),
        batched: true,
        given_up: AtomicBool::new(false),
    }
}

/// The caller of a queued request.
struct Caller {
    ticket: Arc<Ticket>,
    answer: oneshot::Receiver<Result<Answer, InferError>>,
}

impl Caller {
    /// Goes away, as a dropped future does.
    fn leave(&mut self) {
        self.answer.close();
        self.ticket.abandon();
    }

    /// The rows of the answer.
    fn answered(&mut self) -> Result<i64, InferError> {
        self.answer.try_recv().unwrap().map(|answer| answer.outputs[0].shape()[0])
    }
}

/// One request for each number of rows.
fn batch<const N: usize>(rows: [u32; N], deadline: Option<Instant>) -> (Vec<Pending>, [Caller; N]) {
    let (batch, callers): (Vec<_>, Vec<_>) = rows
        .map(|rows| {
            let (reply, answer) = oneshot::channel();
            let ticket = Arc::new(Ticket::default());
            let inputs = Inputs::from_iter([zeros(rows.into())]);
            let (queued_at, caller) = (Instant::now(), Caller { ticket: Arc::clone(&ticket), answer });
            (Pending { inputs, rows, priority: 0, queued_at, deadline, expires_at: deadline, ticket, reply }, caller)
        })
        .into_iter()
        .unzip();
    (batch, callers.try_into().ok().unwrap())
}

/// Runs a batch on a session with a script; the rows of each run.
fn run(
    context: &Context,
    batch: Vec<Pending>,
    mut script: impl FnMut(usize, &RunContext<'_>) -> Result<(), RunError> + Send + 'static,
) -> Vec<i64> {
    let rows = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&rows);
    let mut session = Scripted::new(move |number, input, context| {
        seen.lock().unwrap().push(input.shape()[0]);
        script(number, context)
    });
    context.run_batch(&mut session, 0, batch);
    let rows = rows.lock().unwrap();
    rows.clone()
}

fn failed() -> Result<(), RunError> {
    Err(RunError::Failed { message: "no luck".to_owned() })
}

#[test]
fn a_joined_run_that_nobody_waits_for_any_more_is_not_repeated() {
    let (batch, mut callers) = batch([1, 2, 3], None);
    let runs = run(&context(), batch, move |_, context| {
        callers.iter_mut().for_each(Caller::leave);
        assert!(context.is_cancelled(), "the last to leave stops it");
        Err(RunError::Interrupted)
    });
    assert_eq!(runs, [6]);
}

#[test]
fn nothing_is_run_for_callers_who_left_while_it_was_joined() {
    for rows in [&[1, 2][..], &[1]] {
        let (mut batch, mut callers) = batch([1, 2], None);
        batch.truncate(rows.len());
        callers.iter_mut().for_each(Caller::leave);
        assert_eq!(run(&context(), batch, |_, _| Ok(())), [0; 0]);
    }
}

#[test]
fn after_a_joined_run_failed_only_the_living_get_runs_of_their_own_which_they_can_stop() {
    let (mut batch, [mut left, mut late, mut stops, mut stays]) = batch([1, 2, 3, 4], None);
    batch[1].deadline = Some(Instant::now());
    let answers = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&answers);
    let runs = run(&context(), batch, move |number, context| match number {
        1 => {
            left.leave();
            failed()
        }
        2 => {
            assert!(!context.is_cancelled());
            stops.leave();
            assert!(context.is_cancelled(), "it is the only one who waits for this run");
            Err(RunError::Interrupted)
        }
        _ => {
            assert!(!context.is_cancelled(), "another one's run is not stopped with it");
            *kept.lock().unwrap() = Some((late.answered(), std::mem::replace(&mut stays.answer, oneshot::channel().1)));
            Ok(())
        }
    });
    assert_eq!(runs, [10, 3, 4]);
    let (late, mut stays) = answers.lock().unwrap().take().unwrap();
    assert_eq!(late, Err(InferError::DeadlineExceeded));
    assert_eq!(stays.try_recv().unwrap().unwrap().outputs[0].shape(), [4, 2]);
}

#[test]
fn a_joined_run_is_limited_by_its_last_deadline_unless_one_waits_without() {
    let (early, late) = (Instant::now() + Duration::from_secs(3600), Instant::now() + Duration::from_secs(7200));
    for (deadlines, expected) in [([Some(early), Some(late)], Some(late)), ([Some(early), None], None), ([None, Some(early)], None)]
    {
        let (mut batch, mut callers) = batch([1, 1], None);
        batch.iter_mut().zip(deadlines).for_each(|(pending, deadline)| pending.deadline = deadline);
        let runs = run(&context(), batch, move |_, context| {
            assert_eq!(context.deadline, expected);
            Ok(())
        });
        assert_eq!(runs, [2]);
        assert_eq!(callers.each_mut().map(Caller::answered), [Ok(1), Ok(1)]);
    }
}

#[test]
fn a_version_that_is_given_up_begins_no_run_and_says_so() {
    let context = context();
    let (first, mut callers) = batch([1, 2], None);
    context.given_up.store(true, Ordering::SeqCst);
    assert_eq!(run(&context, first, |_, _| Ok(())), [0; 0]);
    for caller in &mut callers {
        let error = caller.answered().unwrap_err();
        assert_eq!(error.to_string(), "model 'm' is not ready: the version was unloaded before it had answered");
    }
    let (single, [mut caller]) = batch([1], None);
    assert_eq!(run(&context, single, |_, _| Ok(())), [0; 0]);
    assert!(matches!(caller.answered(), Err(InferError::NotReady { .. })));
}

#[test]
fn runs_that_fail_or_are_stopped_keep_their_size_from_running_inline() {
    for error in [RunError::Interrupted, RunError::InvalidInput { message: "no".to_owned() }] {
        for rows in [&[1][..], &[1, 1]] {
            let context = Arc::new(context());
            let bytes = input_bytes(&[zeros(rows.len() as i64)]);
            (0..100).for_each(|_| context.cost.record(bytes, Duration::ZERO));
            assert!(context.cost.is_short(bytes));
            let (mut batch, _callers) = batch([1, 1], None);
            batch.truncate(rows.len());
            let (error, seen) = (error.clone(), Arc::clone(&context));
            run(&context, batch, move |number, _| {
                if number > 1 {
                    return Ok(());
                }
                // Time passes on the clock that runs are measured by.
                let until = Instant::now() + 2 * crate::cost::INLINE_MAX;
                while Instant::now() < until {
                    assert!(seen.cost.is_short(bytes));
                }
                Err(error.clone())
            });
            assert!(!context.cost.is_short(bytes), "{rows:?}");
        }
    }
}

#[test]
fn answers_with_nan_are_given_and_counted_by_request() {
    let context = context();
    let (mut requests, mut callers) = batch([1, 2, 1], None);
    let nan = |rows: usize| Tensor::from_elements([rows as i64, 2], &vec![f32::NAN; 2 * rows]).unwrap();
    requests[0].inputs = Inputs::from_iter([nan(1)]);
    requests[1].inputs = Inputs::from_iter([nan(2)]);
    assert_eq!(run(&context, requests, |_, _| Ok(())), [4]);
    assert!(callers.iter_mut().all(|caller| caller.answered().is_ok()));
    assert_eq!(context.stats.snapshot().nan_outputs, 2);
    let (mut alone, _callers) = batch([1], None);
    alone[0].inputs = Inputs::from_iter([nan(1)]);
    assert_eq!(run(&context, alone, |_, _| Ok(())), [1]);
    assert_eq!(context.stats.snapshot().nan_outputs, 3);
}
