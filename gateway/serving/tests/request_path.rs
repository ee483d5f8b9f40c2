//! The request path over the fake runtime: what a caller sees, and which thread does what.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bascule_registry::{Digest, Generation, Layout, Manifest, ModelName, VersionKey};
use bascule_runtime_api::{DataType, LoadOptions, Runtime, Tensor, TensorSpec};
use bascule_runtime_fake::{FakeLog, FakeModel, FakeOp, FakeRuntime};
use bascule_serving::{
    Candidate, InferError, InferRequest, InferResponse, Inline, ModelSettings, NamedTensor, Publisher, RequestedOutput, Route,
    RouteKey, Router, Servable, ServableSpec, Split, Standing, VersionChoice,
};

/// Only a failure waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    runtime: FakeRuntime,
    router: Router,
    publisher: Publisher,
    settings: ModelSettings,
}

impl Bench {
    fn new() -> Bench {
        let (router, publisher) = Router::new();
        let settings = ModelSettings { inline: Inline::Never, ..ModelSettings::default() };
        Bench { runtime: FakeRuntime::new(), router, publisher, settings }
    }

    fn log(&self) -> Arc<FakeLog> {
        self.runtime.log()
    }

    /// A version that answers its own number in every element of FP32 `y`, for INT32 `x` of shape [-1, 2].
    fn servable(&self, version: u64, change: impl FnOnce(&mut FakeModel)) -> Arc<Servable> {
        let inputs = vec![TensorSpec::new("x", DataType::Int32, [-1, 2])];
        let outputs = vec![TensorSpec::new("y", DataType::Fp32, [-1, 3])];
        let mut model = FakeModel::new(FakeOp::Constant, inputs, outputs);
        model.value = version as f64;
        model.batch_axis = Some(0);
        change(&mut model);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.fake.json"), serde_json::to_vec(&model).unwrap()).unwrap();
        let options = LoadOptions { entrypoint: "model.fake.json".into(), ..LoadOptions::default() };
        let sessions: Vec<_> = (0..self.settings.instances).map(|_| self.runtime.load(dir.path(), &options).unwrap()).collect();
        let spec = ServableSpec {
            generation: generation("m", version),
            settings: Arc::new(self.settings.clone()),
            runtime: "fake",
            runtime_version: "1".to_owned(),
            footprint: sessions[0].footprint(),
            loaded_at: chrono::DateTime::UNIX_EPOCH,
        };
        Servable::start(spec, sessions).unwrap()
    }

    fn publish(&mut self, stable: &Arc<Servable>, candidate: Option<(&Arc<Servable>, u32)>) {
        let name = ModelName::new("m").unwrap();
        let mut route = Route::empty(name.clone(), Standing::Serving);
        route.stable = Some(Arc::clone(stable));
        route.seed = bascule_serving::rollout_seed("rollout");
        route.candidate =
            candidate.map(|(servable, weight_bp)| Candidate { servable: Arc::clone(servable), split: Split::Canary { weight_bp } });
        self.publisher.publish([(name, Some(Arc::new(route)))]);
    }

    async fn infer(&self, request: &InferRequest) -> Result<InferResponse, InferError> {
        self.router.infer(self.router.route("m")?, request).await
    }

    /// Sends a request by itself and gives back what it will come to.
    fn spawn(&self, request: InferRequest) -> tokio::task::JoinHandle<Result<InferResponse, InferError>> {
        let router = self.router.clone();
        tokio::spawn(async move { router.infer(router.route("m")?, &request).await })
    }
}

fn generation(model: &str, version: u64) -> Arc<Generation> {
    let manifest = serde_json::json!({
        "schema": 1, "model": model, "version": version, "format": "fake", "entrypoint": "model.fake.json",
        "files": [{ "path": "model.fake.json", "sha256": Digest::of(b"").to_string(), "bytes": 0 }],
        "created": "2026-01-01T00:00:00Z"
    });
    let (manifest, digest) = Manifest::parse(manifest.to_string().as_bytes()).unwrap();
    let key = VersionKey { model: ModelName::new(model).unwrap(), version };
    Arc::new(Generation {
        key,
        digest,
        bytes: 0,
        layout: Layout::Registry,
        manifest: Arc::new(manifest),
        tombstoned: false,
        signatures: Vec::new(),
        stored: None,
    })
}

fn request(rows: i64) -> InferRequest {
    let tensor = Tensor::from_elements([rows, 2], &vec![0i32; rows as usize * 2]).unwrap();
    InferRequest { inputs: [NamedTensor { name: "x".to_owned(), tensor }].into_iter().collect(), ..InferRequest::default() }
}

#[tokio::test]
async fn rows_of_one_number_may_come_with_an_axis_of_one() {
    let mut bench = Bench::new();
    let scalar = |name: &str| vec![TensorSpec::new(name, DataType::Int32, [-1])];
    let servable = bench.servable(1, |model| {
        *model = FakeModel { batch_axis: Some(0), ..FakeModel::new(FakeOp::Identity, scalar("x"), scalar("y")) };
    });
    bench.publish(&servable, None);
    let request = |shape: &[i64]| {
        let tensor = Tensor::from_elements(shape, &[7, 8, 9]).unwrap();
        InferRequest { inputs: [NamedTensor { name: "x".to_owned(), tensor }].into_iter().collect(), ..InferRequest::default() }
    };
    for shape in [&[3][..], &[3, 1]] {
        let answer = bench.infer(&request(shape)).await.unwrap();
        assert_eq!(answer.outputs[0].1, Tensor::from_elements([3], &[7, 8, 9]).unwrap(), "{shape:?}");
    }
    assert!(matches!(bench.infer(&request(&[1, 3])).await, Err(InferError::InvalidArgument { .. })));
}

/// The version that every element of the answer names.
fn answered_by(response: &InferResponse) -> u64 {
    let (_, tensor) = &response.outputs[0];
    let elements = tensor.elements::<f32>().unwrap();
    assert!(elements.iter().all(|element| *element == elements[0]), "an answer of two versions: {elements:?}");
    assert_eq!(elements[0] as u64, response.servable.version());
    response.servable.version()
}

/// Sessions are made version by version and given to owners in that order, so a session's number says which owner it has.
fn assert_each_was_dropped_by_its_owner(log: &FakeLog, instances: u64) {
    for drop in log.drops() {
        let owner = format!("instance {} m", (drop.session - 1) % instances);
        assert_eq!(drop.thread_name, Some(owner), "{drop:?}");
    }
}

/// Lets every other task run until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "it never came");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_request_is_answered_by_the_stable_version() {
    let mut bench = Bench::new();
    let stable = bench.servable(7, |_| {});
    bench.publish(&stable, None);
    let response = bench.infer(&request(3)).await.unwrap();
    assert_eq!(answered_by(&response), 7);
    assert_eq!(response.outputs[0].1.shape(), [3, 3]);
    let snapshot = stable.stats().snapshot();
    assert_eq!((snapshot.success.count, snapshot.inference_count, snapshot.execution_count), (1, 3, 1));
}

#[tokio::test]
async fn what_does_not_fit_is_named() {
    let mut bench = Bench::new();
    bench.settings.max_batch_size = Some(4);
    let stable = bench.servable(1, |_| {});
    bench.publish(&stable, None);
    let error = async |change: &dyn Fn(&mut InferRequest)| {
        let mut request = request(1);
        change(&mut request);
        bench.infer(&request).await.unwrap_err().to_string()
    };
    let tensor = |shape: &[i64]| Tensor::from_elements(shape, &vec![0i32; shape.iter().product::<i64>() as usize]).unwrap();
    type Change<'a> = &'a dyn Fn(&mut InferRequest);
    let cases: [(Change<'_>, &str); 9] = [
        (&|request| request.inputs[0].name = "z".into(), "unexpected input 'z' for model 'm'; expected 'x'"),
        (&|request| request.inputs.clear(), "input 'x' of model 'm' is missing; expected 'x'"),
        (&|request| request.inputs.push(request.inputs[0].clone()), "input 'x' is given twice"),
        (
            &|request| request.inputs[0].tensor = Tensor::from_elements([1, 2], &[0f32; 2]).unwrap(),
            "input 'x': expected datatype INT32, got FP32",
        ),
        (
            &|request| request.inputs[0].tensor = tensor(&[2]),
            "input 'x': expected shape [-1,2], where the first dimension is the batch, got [2]",
        ),
        (&|request| request.inputs[0].tensor = tensor(&[5, 2]), "expected a batch of at most 4 for model 'm', got 5"),
        (&|request| request.inputs[0].tensor = tensor(&[0, 2]), "expected a batch of at least 1 for model 'm', got 0"),
        (
            &|request| request.outputs.push(RequestedOutput { name: "w".into() }),
            "unexpected output 'w' for model 'm'; expected 'y'",
        ),
        (&|request| request.version = VersionChoice::Number(9), "model 'm' has no version 9 that is served; served: 1"),
    ];
    for (change, expected) in cases {
        assert_eq!(error(change).await, expected);
    }
    let unknown = bench.router.route("nope").unwrap_err();
    assert_eq!(unknown, InferError::UnknownModel { model: "nope".into() });
}

#[tokio::test]
async fn a_tensor_without_elements_cannot_ask_for_rows_without_end() {
    let mut bench = Bench::new();
    let stable = bench.servable(1, |model| model.inputs = vec![TensorSpec::new("x", DataType::Int32, [-1, -1])]);
    bench.publish(&stable, None);
    let ask = async |shape: &[i64]| {
        let mut request = request(1);
        request.inputs[0].tensor = Tensor::from_elements(shape, &[0i32; 0]).unwrap();
        bench.infer(&request).await.map(|response| response.outputs[0].1.shape().to_vec()).map_err(|error| error.to_string())
    };
    assert_eq!(ask(&[5, 0]).await, Ok(vec![5, 3]));
    assert_eq!(ask(&[0, i64::from(1 << 20)]).await, Ok(vec![0, 3]));
    for shape in [[4_294_967_295, 0], [(1 << 20) + 1, 0], [0, i64::MAX]] {
        let expected = "input 'x': expected sizes of a product of at most 1048576 beside the 0 of an empty tensor, got shape";
        assert_eq!(ask(&shape).await, Err(format!("{expected} [{},{}]", shape[0], shape[1])));
    }
    let largest = ask(&[1 << 20, 0]).await;
    assert_eq!(largest, Ok(vec![1 << 20, 3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_requests_share_a_run_and_get_their_own_rows_back() {
    let mut bench = Bench::new();
    let stable = bench.servable(1, |model| {
        model.op = FakeOp::Identity;
        model.outputs = vec![TensorSpec::new("y", DataType::Int32, [-1, 2])];
        model.block = true;
    });
    bench.publish(&stable, None);
    let log = bench.log();
    let first = bench.spawn(request(1));
    let waited = Arc::clone(&log);
    assert!(tokio::task::spawn_blocking(move || waited.wait_until(PATIENCE, |counts| counts.blocked == 1)).await.unwrap());
    let others: Vec<_> = (1..=4)
        .map(|number| {
            let mut request = request(number);
            let values = vec![number as i32; number as usize * 2];
            request.inputs[0].tensor = Tensor::from_elements([number, 2], &values).unwrap();
            bench.spawn(request)
        })
        .collect();
    until(|| stable.queued() == 4).await;
    log.release();
    first.await.unwrap().unwrap();
    for (other, number) in others.into_iter().zip(1..) {
        let response = other.await.unwrap().unwrap();
        assert_eq!(response.outputs[0].1.shape(), [number, 2]);
        assert!(response.outputs[0].1.elements::<i32>().unwrap().iter().all(|value| i64::from(*value) == number));
    }
    assert_eq!(log.batch_sizes(), [(1, 1), (10, 1)].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_deadline_and_cancellation_have_names_and_dead_work_never_runs() {
    let mut bench = Bench::new();
    bench.settings.queue_capacity = 2;
    bench.settings.dynamic_batching = false;
    let stable = bench.servable(1, |model| model.block = true);
    bench.publish(&stable, None);
    let log = bench.log();
    let running = bench.spawn(request(1));
    let waited = Arc::clone(&log);
    assert!(tokio::task::spawn_blocking(move || waited.wait_until(PATIENCE, |counts| counts.blocked == 1)).await.unwrap());
    let late = InferRequest { deadline: Some(Instant::now() + Duration::from_millis(20)), ..request(1) };
    let late = bench.spawn(late);
    let gone = bench.spawn(request(1));
    until(|| stable.queued() == 2).await;
    assert_eq!(late.await.unwrap().unwrap_err(), InferError::DeadlineExceeded);
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    // Both places are held by the dead: the living get them.
    let living = [bench.spawn(request(1)), bench.spawn(request(1))];
    until(|| stable.stats().in_flight() == 3).await;
    until(|| stable.queued() == 2).await;
    let refused = bench.infer(&request(1)).await.unwrap_err();
    assert!(matches!(&refused, InferError::Overloaded { .. }), "{refused}");
    let past = InferRequest { deadline: Some(Instant::now()), ..request(1) };
    assert_eq!(bench.infer(&past).await.unwrap_err(), InferError::DeadlineExceeded);
    log.release();
    running.await.unwrap().unwrap();
    for one in living {
        one.await.unwrap().unwrap();
    }
    assert_eq!(log.counts().succeeded, 3, "one that ran and two that lived");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_caller_went_away_is_stopped() {
    let mut bench = Bench::new();
    let stable = bench.servable(1, |model| model.block = true);
    bench.publish(&stable, None);
    let log = bench.log();
    let running = bench.spawn(request(1));
    let waited = Arc::clone(&log);
    assert!(tokio::task::spawn_blocking(move || waited.wait_until(PATIENCE, |counts| counts.blocked == 1)).await.unwrap());
    running.abort();
    let waited = Arc::clone(&log);
    assert!(tokio::task::spawn_blocking(move || waited.wait_until(PATIENCE, |counts| counts.interrupted == 1)).await.unwrap());
}

#[tokio::test]
async fn a_queue_timeout_refuses_what_still_waits() {
    let mut bench = Bench::new();
    bench.settings.queue_timeout = Some(Duration::from_millis(10));
    let stable = bench.servable(1, |model| model.block = true);
    bench.publish(&stable, None);
    let log = bench.log();
    let running = bench.spawn(request(1));
    until(|| log.counts().blocked == 1).await;
    let refused = bench.infer(&request(1)).await.unwrap_err();
    assert!(matches!(&refused, InferError::Overloaded { .. }), "{refused}");
    log.release();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failing_or_panicking_run_is_an_internal_error_and_the_instance_lives_on() {
    let mut bench = Bench::new();
    for change in [&|model: &mut FakeModel| model.panic_on_run = true, &|model: &mut FakeModel| model.fail_run_every = Some(1)]
        as [&dyn Fn(&mut FakeModel); 2]
    {
        let stable = bench.servable(1, |model| change(model));
        bench.publish(&stable, None);
        for _ in 0..3 {
            let error = bench.infer(&request(1)).await.unwrap_err();
            assert!(matches!(&error, InferError::Internal { .. }), "{error:?}");
            assert_eq!(error.to_string(), "internal error", "inward detail never leaves");
        }
        assert_eq!(stable.stats().snapshot().fail.count, 3);
    }
}

#[tokio::test]
async fn a_model_that_is_to_run_inline_does_and_its_session_dies_on_its_own_thread() {
    let mut bench = Bench::new();
    bench.settings.inline = Inline::Always;
    let stable = bench.servable(1, |_| {});
    bench.publish(&stable, None);
    assert_eq!(answered_by(&bench.infer(&request(1)).await.unwrap()), 1);
    assert_eq!(stable.stats().snapshot().queue.ns, 0, "nothing was queued");
    stable.close();
    stable.closed().await;
    assert_each_was_dropped_by_its_owner(&bench.log(), 1);
}

#[tokio::test]
async fn a_caller_keeps_its_side_of_a_canary_and_numbers_go_where_they_say() {
    let mut bench = Bench::new();
    let (stable, candidate) = (bench.servable(1, |_| {}), bench.servable(2, |_| {}));
    let mut canary_before = 0;
    for weight_bp in [0, 1_000, 5_000, 10_000] {
        bench.publish(&stable, Some((&candidate, weight_bp)));
        let mut canary = 0;
        for caller in 0..200u32 {
            let keyed = InferRequest { key: RouteKey::Caller(Arc::from(caller.to_le_bytes())), ..request(1) };
            let first = answered_by(&bench.infer(&keyed).await.unwrap());
            assert_eq!(answered_by(&bench.infer(&keyed).await.unwrap()), first, "caller {caller} at {weight_bp}");
            canary += u32::from(first == 2);
        }
        assert!(canary >= canary_before, "{canary} after {canary_before}");
        canary_before = canary;
        for version in [1, 2] {
            let numbered = InferRequest { version: VersionChoice::Number(version), ..request(1) };
            assert_eq!(answered_by(&bench.infer(&numbered).await.unwrap()), version);
        }
    }
    assert_eq!(canary_before, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_fail_nothing_and_sessions_die_on_their_own_threads() {
    const SWAPS: u64 = 100;
    let mut bench = Bench::new();
    bench.settings.instances = 2;
    bench.settings.inline = Inline::Auto;
    let mut stable = bench.servable(1, |_| {});
    bench.publish(&stable, None);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (router, stop) = (bench.router.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut answered, mut last) = (0u64, 0);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let response = router.infer(router.route("m").unwrap(), &request(1 + client % 3)).await.unwrap();
                    let version = answered_by(&response);
                    assert!(version >= last, "version {version} answered after {last}");
                    last = version;
                    answered += 1;
                    tokio::task::yield_now().await;
                }
                answered
            })
        })
        .collect();
    for version in 2..=SWAPS {
        let next = bench.servable(version, |_| {});
        bench.publish(&next, None);
        stable.close();
        stable.closed().await;
        stable = next;
        until(|| stable.stats().snapshot().success.count > 3).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    stable.close();
    stable.closed().await;
    let log = bench.log();
    assert_eq!((log.counts().live, log.counts().failed), (0, 0));
    assert_eq!(log.drops().len() as u64, SWAPS * 2);
    assert_each_was_dropped_by_its_owner(&log, 2);
}
