use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bascule_runtime_fake::{FakeModel, FakeRuntime};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::*;
use crate::testing::servables::{sessions, started, zeros};
use crate::testing::{constant, name};
use crate::{Inline, ModelSettings, NamedTensor, Standing, VersionChoice};

/// Keeps counters by their labels.
#[derive(Default)]
struct Counters(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels: Vec<&str> = key.labels().map(metrics::Label::value).collect();
        let name = format!("{} {}", key.name(), labels.join(" "));
        Counter::from_arc(Arc::clone(self.0.lock().unwrap().entry(name).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

impl Counters {
    /// Every counter that counted something.
    fn counted(&self) -> Vec<String> {
        let counters = self.0.lock().unwrap();
        let counted = counters.iter().map(|(name, count)| (name, count.load(Ordering::SeqCst)));
        counted.filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}")).collect()
    }
}

fn request(rows: i64) -> InferRequest {
    let x = NamedTensor { name: "x".to_owned(), tensor: zeros(rows) };
    InferRequest { inputs: [x].into_iter().collect(), ..InferRequest::default() }
}

#[test]
fn every_request_for_a_known_model_is_counted_once_by_its_outcome() {
    let counters = Counters::default();
    metrics::with_local_recorder(&counters, || {
        let runtime = FakeRuntime::new();
        let settings = ModelSettings { inline: Inline::Never, max_batch_size: Some(4), ..ModelSettings::default() };
        let servable = started(settings, sessions(&runtime, &FakeModel { block: true, ..constant(1.0) }, 1));
        let (router, mut publisher) = Router::new();
        let mut route = Route::empty(name("m"), Standing::Serving);
        route.stable = Some(Arc::clone(&servable));
        let starting = Standing::NotReady { reason: "it is loading".to_owned(), retry_after: crate::table::RETRY_AFTER };
        let empty = Route::empty(name("n"), starting);
        publisher.publish([(name("m"), Some(Arc::new(route))), (name("n"), Some(Arc::new(empty)))]);
        let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let infer = |model: &str, request: InferRequest| {
            let routed = router.route(model).unwrap();
            tokio.block_on(router.infer(routed, &request)).map(drop)
        };
        {
            let (request, routed) = (request(1), router.route("m").unwrap());
            let mut leaves = Box::pin(router.infer(routed, &request));
            assert!(matches!(leaves.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
        }
        runtime.log().release();
        infer("m", request(1)).unwrap();
        infer("m", request(5)).unwrap_err();
        infer("m", InferRequest { inputs: Default::default(), ..request(1) }).unwrap_err();
        infer("m", InferRequest { deadline: Some(Instant::now()), ..request(1) }).unwrap_err();
        infer("m", InferRequest { version: VersionChoice::Number(9), ..request(1) }).unwrap_err();
        infer("n", request(1)).unwrap_err();
    });
    let expected = [
        "bascule_requests_total m 1 cancelled 1",
        "bascule_requests_total m 1 deadline_exceeded 1",
        "bascule_requests_total m 1 invalid_argument 2",
        "bascule_requests_total m 1 ok 1",
        "bascule_requests_total m none not_found 1",
        "bascule_requests_total n none not_ready 1",
    ];
    assert_eq!(counters.counted(), expected);
}
#[test]
fn a_request_comes_in_vain_where_every_version_that_may_answer_has_a_full_queue() {
    let runtime = FakeRuntime::new();
    let settings = || ModelSettings { inline: Inline::Never, queue_capacity: 1, ..ModelSettings::default() };
    let blocking = FakeModel { block: true, ..constant(1.0) };
    let (full, idle) =
        (started(settings(), sessions(&runtime, &blocking, 1)), started(settings(), sessions(&runtime, &blocking, 1)));
    let (router, mut publisher) = Router::new();
    let mut publish = |others: Vec<Arc<Servable>>| {
        let stable = Some(Arc::clone(&full));
        let route = Route { stable, others, ..Route::empty(name("m"), Standing::Serving) };
        publisher.publish([(name("m"), Some(Arc::new(route)))]);
    };
    publish(Vec::new());
    assert!(router.check_room("m", None).is_ok());
    let requests = [request(1), request(1)];
    let mut waiting: Vec<_> = requests.iter().map(|request| Box::pin(router.infer(router.route("m").unwrap(), request))).collect();
    let mut poll = |place: usize| assert!(waiting[place].as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    poll(0);
    assert!(runtime.log().wait_until(Duration::from_secs(60), |counts| counts.blocked == 1));
    assert!(router.check_room("m", None).is_ok(), "one runs and none waits");
    poll(1);
    assert!(matches!(router.check_room("m", None), Err(InferError::Overloaded { .. })));
    assert!(matches!(router.check_room("m", Some(1)), Err(InferError::Overloaded { .. })));
    assert_eq!(full.stats().snapshot().fail.count, 2);
    assert!(router.check_room("m", Some(9)).is_ok(), "what is not there is told by its own error");
    assert!(router.check_room("n", None).is_ok());
    publish(vec![idle]);
    assert!(router.check_room("m", None).is_ok(), "a body may name the other one");
    publish(Vec::new());
    full.close();
    assert!(router.check_room("m", None).is_ok(), "what closes hands requests on");
    runtime.log().release();
}
