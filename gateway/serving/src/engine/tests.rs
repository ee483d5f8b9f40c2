mod journals;
mod keeping;
mod on_demand;
mod steered;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use bascule_registry::{Layout, LocalJournal, Op};
use bascule_runtime_api::{DataType, Tensor, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::testing::{MemorySource, constant, name};
use crate::{CommandError, InferError, InferRequest, NamedTensor, Readiness, Standing, VersionChoice};

/// Everything that outlives an engine.
struct World {
    source: Arc<MemorySource>,
    runtime: FakeRuntime,
    dir: TempDir,
}

impl World {
    fn new() -> World {
        World { source: Arc::default(), runtime: FakeRuntime::new(), dir: TempDir::new().unwrap() }
    }

    fn options(&self) -> EngineOptions {
        let journal = LocalJournal::open(&self.dir.path().join("journal")).unwrap();
        let cache = Cache::open(self.dir.path().join("cache")).unwrap();
        EngineOptions {
            runtimes: vec![Arc::new(self.runtime.clone())],
            // Whatever a test sees is seen because it was asked for, or because a command looks.
            live: LiveOptions { poll_interval: Duration::from_secs(3600), ..LiveOptions::default() },
            ..EngineOptions::new(Arc::clone(&self.source) as _, Arc::new(journal), cache, self.dir.path().join("state"))
        }
    }

    async fn start(&self) -> Serving {
        Engine::start(self.options()).await.unwrap()
    }
}

/// Waits for a condition on the snapshots; a test that waits for what never comes fails after a minute.
async fn until(serving: &Serving, what: &str, condition: impl Fn(&Serving) -> bool) {
    let mut snapshots = serving.shared.snapshots.clone();
    let met = async {
        // Asked outside of the channel's own lock, which the condition takes, too.
        while !condition(serving) {
            snapshots.changed().await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), met).await.is_ok(), "waited for {what}");
}

fn stable(serving: &Serving, model: &str) -> Option<u64> {
    serving.router().table().route(model)?.stable.as_ref().map(|servable| servable.version())
}

fn request(rows: i64) -> InferRequest {
    let tensor = Tensor::from_elements([rows, 2], &vec![0f32; 2 * usize::try_from(rows).unwrap()]).unwrap();
    InferRequest { inputs: [NamedTensor { name: "x".to_owned(), tensor }].into_iter().collect(), ..InferRequest::default() }
}

/// The version that answered and what it answered.
async fn ask(serving: &Serving, model: &str, rows: i64) -> Result<(u64, Vec<f32>), InferError> {
    let routed = serving.route(model, None).await?;
    let response = serving.infer(routed, &request(rows)).await?;
    let elements = response.outputs.iter().flat_map(|(_, tensor)| tensor.elements::<f32>().unwrap().into_owned());
    Ok((response.servable.version(), elements.collect()))
}

#[test]
fn waits_grow_to_the_limit() {
    let policy = RetryPolicy { first: Duration::from_secs(1), max: Duration::from_secs(60), factor: 2.0 };
    let waits: Vec<u64> = [0, 1, 2, 3, 6, 7, 8, 1000, u32::MAX].map(|failures| policy.delay(failures).as_secs()).to_vec();
    assert_eq!(waits, [1, 1, 2, 4, 32, 60, 60, 60, 60]);
    let nonsense = RetryPolicy { factor: f64::NAN, ..policy };
    assert_eq!(nonsense.delay(5), Duration::from_secs(1));
}

/// A model of two outputs that both say which version it is.
fn twice(version: u64) -> FakeModel {
    let (inputs, value) = (vec![TensorSpec::new("x", DataType::Fp32, [-1, 2])], version as f64);
    let outputs = ["y", "z"].map(|output| TensorSpec::new(output, DataType::Fp32, [-1, 1])).to_vec();
    FakeModel {
        value,
        batch_axis: Some(0),
        delay_us: 20,
        tag: version.to_string(),
        ..FakeModel::new(FakeOp::Constant, inputs, outputs)
    }
}

/// Asks without a pause until told to stop; what answered, and what was wrong.
async fn client(serving: Serving, rows: i64, stop: Arc<AtomicBool>, answered: Arc<AtomicUsize>) -> Result<(), String> {
    let mut highest = 0;
    while !stop.load(Ordering::Relaxed) {
        let (version, elements) = ask(&serving, "m", rows).await.map_err(|error| format!("{error} ({error:?})"))?;
        if elements.len() != 2 * usize::try_from(rows).unwrap_or(0) || elements.iter().any(|element| *element != version as f32) {
            return Err(format!("version {version} is said to have answered {elements:?}"));
        }
        if version < highest {
            return Err(format!("version {version} answered after version {highest}"));
        }
        highest = version;
        answered.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn versions_are_swapped_under_load_without_a_failed_request() {
    flip(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
#[ignore = "long: 1,000 swaps"]
async fn a_thousand_times_neither() {
    flip(1_000).await;
}

async fn flip(flips: u64) {
    let world = World::new();
    world.source.publish("m", 1, &twice(1));
    let settings = |_: &ListedModel, _: Option<u64>| Ok(ModelSettings { instances: 2, ..ModelSettings::default() });
    let serving = Engine::start(EngineOptions { read_settings: Arc::new(settings), ..world.options() }).await.unwrap();
    serving.wait_ready().await;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let ask = |number: i64| client(serving.clone(), 1 + number % 3, Arc::clone(&stop), Arc::clone(&answered));
    let clients: Vec<_> = (0..8).map(|number| tokio::spawn(ask(number))).collect();
    for version in 2..=flips + 1 {
        let before = answered.load(Ordering::Relaxed);
        world.source.publish("m", version, &twice(version));
        serving.load("m").await.unwrap();
        assert_eq!(stable(&serving, "m"), Some(version));
        // Every version answers something, so that each swap is one under load.
        while answered.load(Ordering::Relaxed) == before && !clients.iter().any(tokio::task::JoinHandle::is_finished) {
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap().unwrap();
    }
    serving.shutdown(Duration::from_secs(30)).await;
    let log = world.runtime.log();
    assert_eq!((log.counts().live, log.counts().failed), (0, 0));
    let drops = log.drops();
    assert_eq!(drops.len() as u64, 2 * (flips + 1));
    // Sessions are made version by version and given to owners in that order.
    let owner = |session: u64| format!("instance {} m", (session - 1) % 2);
    let elsewhere = drops.iter().find(|event| event.thread_name != Some(owner(event.session)));
    assert_eq!(elsewhere, None, "sessions are dropped by the threads that own them");
    assert_eq!(serving.status().memory.reserved_bytes, 0);
}

#[tokio::test]
async fn a_load_waits_for_its_end_and_tells_what_failed() {
    let world = World::new();
    let serving = world.start().await;
    assert_eq!(serving.load("m").await, Err(CommandError::UnknownModel { model: "m".to_owned() }));
    assert_eq!(serving.load("no such/name").await, Err(CommandError::UnknownModel { model: "no such/name".to_owned() }));
    world.source.publish("m", 1, &constant(1.0));
    assert_eq!(serving.load("m").await, Ok(()));
    assert_eq!(ask(&serving, "m", 1).await, Ok((1, vec![1.0])));
    world.source.publish("m", 2, &FakeModel { fail_load: Some("no luck".to_owned()), ..constant(2.0) });
    let failed = CommandError::LoadFailed {
        model: "m".to_owned(),
        version: 2,
        stage: "loading".to_owned(),
        cause: "model.json: no luck".to_owned(),
    };
    assert_eq!(serving.load("m").await, Err(failed.clone()));
    assert_eq!(serving.load("m").await, Err(failed), "it is tried again and fails again");
    assert_eq!(ask(&serving, "m", 1).await, Ok((1, vec![1.0])), "what serves stays");
    world.source.change("m", |model| {
        for generation in model.versions.values_mut() {
            Arc::make_mut(generation).tombstoned = true;
        }
    });
    assert!(matches!(serving.load("m").await, Err(CommandError::NothingToLoad { .. })));
    world.source.down.store(true, Ordering::SeqCst);
    let unreachable = CommandError::Source { message: "memory can't be read: unplugged".to_owned() };
    assert_eq!(serving.load("other").await, Err(unreachable));
}

fn with(mut options: EngineOptions, change: impl FnOnce(&mut LiveOptions)) -> EngineOptions {
    change(&mut options.live);
    options
}

#[tokio::test]
async fn a_decision_is_written_and_shows() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    world.source.publish("m", 2, &constant(2.0));
    // A journal beside the source, as for a plain directory.
    world.source.change("m", |model| model.layout = Layout::Plain);
    let serving = world.start().await;
    serving.wait_ready().await;
    assert_eq!(stable(&serving, "m"), Some(2));
    assert_eq!(serving.apply("m", Op::Pin { version: 1 }, "me", "a test", None).await, Ok(1));
    until(&serving, "the pin", |serving| stable(serving, "m") == Some(1)).await;
    let refused = serving.apply("m", Op::Pin { version: 9 }, "me", "a test", None).await;
    assert_eq!(refused, Err(CommandError::Rejected { reason: "version 9 of model 'm' does not exist".to_owned() }));
    let refused = serving.apply("m", Op::Abort, "me", "a test", None).await;
    assert_eq!(refused, Err(CommandError::Rejected { reason: "abort is refused: there is no candidate".to_owned() }));
    assert!(matches!(serving.apply("n", Op::Unpin, "me", "", None).await, Err(CommandError::UnknownModel { .. })));
    let id = Some(Uuid::from_u128(7));
    assert_eq!(serving.apply("m", Op::Unpin, "me", "a test", id).await, Ok(2));
    assert_eq!(serving.apply("m", Op::Unpin, "me", "a test", id).await, Ok(2), "a retry is the same decision");
    until(&serving, "the other version", |serving| stable(serving, "m") == Some(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_answers_what_was_asked_and_stops_what_never_ends() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    let settings = ModelSettings { inline: crate::Inline::Never, ..ModelSettings::default() };
    let options = EngineOptions { read_settings: Arc::new(move |_, _| Ok(settings.clone())), ..world.options() };
    let serving = Engine::start(options).await.unwrap();
    serving.wait_ready().await;
    let log = world.runtime.log();
    let blocked = || tokio::task::block_in_place(|| log.wait_until(Duration::from_secs(60), |counts| counts.blocked == 1));
    world.source.publish("m", 2, &FakeModel { block: true, ..constant(2.0) });
    let loader = serving.clone();
    let loading = tokio::spawn(async move { loader.load("m").await });
    assert!(blocked());
    assert_eq!(ask(&serving, "m", 1).await, Ok((1, vec![1.0])), "a warm-up that hangs holds up nobody");
    log.release();
    loading.await.unwrap().unwrap();
    // Warm-up is over: from now on runs wait at the gate.
    log.hold();
    let asker = serving.clone();
    let asking = tokio::spawn(async move { ask(&asker, "m", 1).await });
    assert!(blocked());
    serving.shutdown(Duration::from_millis(50)).await;
    assert!(matches!(asking.await.unwrap(), Err(InferError::NotReady { .. })), "its run was stopped");
    assert_eq!(serving.readiness(), Readiness::Stopping);
    assert_eq!(log.counts().live, 0);
    assert!(serving.status().receipts.iter().any(|receipt| receipt.interrupted));
    assert_eq!(serving.load("m").await, Err(CommandError::Stopping));
    let refused = serving.route("m", None).await.unwrap();
    assert!(matches!(&refused.route().standing, Standing::NotReady { reason, .. } if reason == "the gateway is stopping"));
    assert!(refused.servable(&VersionChoice::Split).is_err());
}

#[tokio::test]
async fn an_announced_stop_is_told_and_stops_nothing() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    let serving = world.start().await;
    serving.wait_ready().await;
    assert!(serving.status().ready);
    let mut changes = serving.changes();
    assert!(tokio::time::timeout(Duration::ZERO, changes.next()).await.is_err(), "nothing has changed yet");
    serving.announce_stop();
    let told = tokio::time::timeout(Duration::from_secs(60), changes.next()).await;
    assert_eq!(told, Ok(true), "who waits for a change is woken");
    assert_eq!((serving.readiness(), serving.status().ready), (Readiness::Stopping, false));
    assert_eq!(ask(&serving, "m", 1).await, Ok((1, vec![1.0])));
    serving.shutdown(Duration::from_secs(60)).await;
    assert_eq!(serving.readiness(), Readiness::Stopping);
}

#[tokio::test]
async fn what_has_left_is_told_once() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    let (sender, mut retired) = mpsc::channel(8);
    let on_retired = move |key: &VersionKey| sender.try_send(key.clone()).unwrap();
    let serving = Engine::start(EngineOptions { on_retired: Arc::new(on_retired), ..world.options() }).await.unwrap();
    serving.wait_ready().await;
    world.source.publish("m", 2, &constant(2.0));
    serving.load("m").await.unwrap();
    assert_eq!(retired.recv().await, Some(VersionKey::new(name("m"), 1)));
    serving.shutdown(Duration::from_secs(30)).await;
    assert_eq!(retired.recv().await, Some(VersionKey::new(name("m"), 2)));
}

#[tokio::test]
async fn a_status_reads_live_counters() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    let serving = world.start().await;
    serving.wait_ready().await;
    for _ in 0..3 {
        ask(&serving, "m", 1).await.unwrap();
    }
    let before = serving.status();
    let live = before.with_live(&NoGpus);
    let version = |status: &crate::Status| status.model("m").unwrap().version(1).unwrap().clone();
    assert_eq!((version(&before).requests, version(&live).requests, version(&live).errors), (0, 3, 0));
    assert!(version(&live).p50_us.is_some() && live.memory.rss_bytes > Some(0));
    assert_eq!((version(&live).role.as_deref(), version(&live).traffic_bp), (Some("stable"), 10_000));
}

#[tokio::test]
async fn an_engine_ends_with_its_last_handle() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    let serving = world.start().await;
    serving.wait_ready().await;
    drop(serving);
    let log = world.runtime.log();
    let ended = tokio::task::spawn_blocking(move || log.wait_until(Duration::from_secs(60), |counts| counts.live == 0));
    assert!(ended.await.unwrap());
}

#[tokio::test]
async fn options_change_while_the_engine_runs() {
    let world = World::new();
    let content = FakeModel { bytes: 10_000, ..constant(1.0) };
    world.source.publish("a", 1, &content);
    let options = with(world.options(), |live| live.memory_budgets = [(Device::Cpu, 15_000)].into());
    let changed =
        LiveOptions { memory_budgets: BTreeMap::new(), absent: Absent::Unload, strict_ready: true, ..options.live.clone() };
    let serving = Engine::start(options).await.unwrap();
    serving.wait_ready().await;
    world.source.publish("b", 1, &content);
    assert!(matches!(serving.load("b").await, Err(CommandError::LoadFailed { .. })), "there is memory for one");
    world.source.remove("a");
    serving.kick();
    serving.change(changed).await.unwrap();
    until(&serving, "the other one", |serving| stable(serving, "b") == Some(1)).await;
    until(&serving, "the end of what is gone", |serving| serving.status().model("a").is_none()).await;
    world.source.publish("b", 2, &FakeModel { fail_load: Some("no luck".to_owned()), ..constant(2.0) });
    serving.kick();
    let strict = |serving: &Serving| matches!(serving.readiness(), Readiness::NotYet { .. });
    until(&serving, "a failure that counts", strict).await;
}

#[tokio::test]
async fn decisions_of_other_replicas_are_followed() {
    let world = World::new();
    for version in [1, 2] {
        world.source.publish("m", version, &constant(version as f64));
    }
    world.source.change("m", |model| model.layout = Layout::Plain);
    let serving = world.start().await;
    serving.wait_ready().await;
    assert_eq!(stable(&serving, "m"), Some(2));
    let other = LocalJournal::open(&world.dir.path().join("journal")).unwrap();
    other.append(&name("m"), Op::Pin { version: 1 }, "another replica", "", Uuid::new_v4()).await.unwrap();
    serving.kick();
    until(&serving, "the pin", |serving| stable(serving, "m") == Some(1)).await;
}

#[tokio::test]
async fn a_journal_that_cannot_be_read_concerns_its_model_only() {
    let world = World::new();
    for model in ["good", "bad"] {
        world.source.publish(model, 1, &constant(1.0));
        world.source.change(model, |model| model.layout = Layout::Plain);
    }
    // A file where the journal's directory should be.
    std::fs::create_dir_all(world.dir.path().join("journal")).unwrap();
    std::fs::write(world.dir.path().join("journal/bad"), "").unwrap();
    let serving = world.start().await;
    until(&serving, "the good one", |serving| stable(serving, "good") == Some(1)).await;
    let routed = serving.route("bad", None).await.unwrap();
    assert!(matches!(routed.servable(&VersionChoice::Split), Err(InferError::NotReady { .. })), "it exists");
    assert!(!serving.readiness().is_ready(), "what should be loaded of it is not known");
    let problems = serving.status().registry.problems.clone();
    assert!(problems.iter().any(|problem| problem.contains("bad")), "{problems:?}");
    std::fs::remove_file(world.dir.path().join("journal/bad")).unwrap();
    serving.kick();
    until(&serving, "the other one", |serving| stable(serving, "bad") == Some(1)).await;
}

#[tokio::test]
async fn a_source_that_panics_is_one_that_fails() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    let serving = world.start().await;
    serving.wait_ready().await;
    world.source.broken.store(true, Ordering::SeqCst);
    let Err(CommandError::Source { message }) = serving.load("m").await else { panic!() };
    assert!(message.contains("panicked"), "{message}");
    assert_eq!(ask(&serving, "m", 1).await, Ok((1, vec![1.0])));
    world.source.broken.store(false, Ordering::SeqCst);
    world.source.publish("m", 2, &constant(2.0));
    assert_eq!(serving.load("m").await, Ok(()));
    assert_eq!(stable(&serving, "m"), Some(2));
}

#[tokio::test]
async fn a_load_waits_for_files_to_keep_still() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    let serving = world.start().await;
    serving.wait_ready().await;
    world.source.publish("m", 2, &constant(2.0));
    world.source.change("m", |model| {
        let generation = model.versions.remove(&2).unwrap();
        model.unsettled.insert(2);
        // It counts at the look after the next.
        model.problems = vec![serde_json::to_string(&*generation).unwrap()];
    });
    let loader = serving.clone();
    let loading = tokio::spawn(async move { loader.load("m").await });
    until(&serving, "the first look", |serving| serving.status().model("m").is_some_and(|model| !model.problems.is_empty())).await;
    world.source.change("m", |model| {
        model.unsettled.clear();
        let generation = serde_json::from_str(&model.problems.remove(0)).unwrap();
        model.versions.insert(2, Arc::new(generation));
    });
    serving.kick();
    assert_eq!(loading.await.unwrap(), Ok(()));
    assert_eq!(stable(&serving, "m"), Some(2));
}
