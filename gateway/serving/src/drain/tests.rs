use std::time::Duration;

use bascule_runtime_fake::{FakeLog, FakeModel, FakeRuntime};

use super::*;
use crate::batch::Inputs;
use crate::servable::Miss;
use crate::testing::constant;
use crate::testing::servables::{Stubborn, sessions, started, zeros};
use crate::{InferError, Inline, ModelSettings};

/// Only a failure waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

fn blocking() -> FakeModel {
    FakeModel { block: true, ..constant(1.0) }
}

fn ask(servable: &Arc<Servable>) -> tokio::task::JoinHandle<Option<InferError>> {
    let servable = Arc::clone(servable);
    tokio::spawn(async move {
        match servable.run(Inputs::from_iter([zeros(1)]), 1, 0, None).await {
            Ok(_) => None,
            Err(Miss::Error(error)) => Some(error),
            Err(Miss::Closed) => panic!("it was open"),
        }
    })
}

async fn blocked(log: &Arc<FakeLog>) {
    let log = Arc::clone(log);
    assert!(tokio::task::spawn_blocking(move || log.wait_until(PATIENCE, |counts| counts.blocked == 1)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_drain_leaves_behind_is_told_to_ask_again_and_nothing_queued_is_run() {
    let runtime = FakeRuntime::new();
    let settings = ModelSettings { inline: Inline::Never, dynamic_batching: false, ..ModelSettings::default() };
    let servable = started(settings, sessions(&runtime, &blocking(), 1));
    let running = ask(&servable);
    blocked(&runtime.log()).await;
    let queued = [ask(&servable), ask(&servable)];
    while servable.queued() < 2 {
        tokio::task::yield_now().await;
    }
    let drained = drain(Arc::clone(&servable), Duration::from_millis(1)).await;
    assert!(drained.interrupted, "{drained:?}");
    for asked in [running].into_iter().chain(queued) {
        let error = asked.await.unwrap();
        assert!(matches!(error, Some(InferError::NotReady { .. })), "{error:?}");
    }
    let counts = runtime.log().counts();
    assert_eq!((counts.interrupted, counts.succeeded + counts.failed, counts.live), (1, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_cannot_be_stopped_is_waited_for() {
    let runtime = FakeRuntime::new();
    let sessions = sessions(&runtime, &blocking(), 1).into_iter().map(|session| Box::new(Stubborn(session)) as _).collect();
    let servable = started(ModelSettings { inline: Inline::Never, ..ModelSettings::default() }, sessions);
    let running = ask(&servable);
    blocked(&runtime.log()).await;
    let queued = ask(&servable);
    while servable.queued() < 1 {
        tokio::task::yield_now().await;
    }
    let draining = tokio::spawn(drain(Arc::clone(&servable), Duration::ZERO));
    assert!(matches!(queued.await.unwrap(), Some(InferError::NotReady { .. })), "the limit is over");
    assert_eq!((draining.is_finished(), runtime.log().counts().live), (false, 1), "the session is still its thread's");
    runtime.log().release();
    let drained = draining.await.unwrap();
    assert!(drained.interrupted, "{drained:?}");
    assert_eq!(runtime.log().counts().live, 0);
    assert_eq!(running.await.unwrap(), None, "an answer that came all the same is given");
}
