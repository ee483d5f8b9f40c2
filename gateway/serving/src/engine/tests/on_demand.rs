//! Models that are loaded by their first request.

use super::*;

fn on_demand(world: &World) -> EngineOptions {
    EngineOptions { load_mode: LoadMode::OnDemand, ..world.options() }
}

#[tokio::test]
async fn the_first_request_loads_a_model_and_waits_for_it() {
    let world = World::new();
    for model in ["a", "b"] {
        world.source.publish(model, 1, &constant(1.0));
    }
    let serving = Engine::start(on_demand(&world)).await.unwrap();
    serving.wait_ready().await;
    assert_eq!(world.runtime.log().counts().loaded, 0);
    let both = tokio::join!(ask(&serving, "a", 1), ask(&serving, "a", 2));
    assert_eq!(both, (Ok((1, vec![1.0])), Ok((1, vec![1.0, 1.0]))));
    assert_eq!(world.runtime.log().counts().loaded, 1, "many first requests load once");
    assert_eq!(serving.status().model("b").unwrap().standing, "on_demand");
    let unknown = serving.route("c", None).await.unwrap_err();
    assert_eq!(unknown, InferError::UnknownModel { model: "c".to_owned() });
}

#[tokio::test]
async fn nobody_waits_for_a_load_beyond_the_deadline_or_the_limit() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    world.source.stuck.send_replace(true);
    let serving = Engine::start(with(on_demand(&world), |live| live.on_demand_wait = Duration::from_millis(100))).await.unwrap();
    serving.wait_ready().await;
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(serving.route("m", Some(deadline)).await.unwrap_err(), InferError::DeadlineExceeded);
    // The wish of the first request is known by now: whoever comes next finds a model that is on its way.
    until(&serving, "the fetch", |serving| serving.status().model("m").is_some_and(|model| !model.versions.is_empty())).await;
    let error = ask(&serving, "m", 1).await.unwrap_err();
    assert!(matches!(error, InferError::NotReady { .. }), "{error:?}");
    world.source.stuck.send_replace(false);
    until(&serving, "the load", |serving| stable(serving, "m") == Some(1)).await;
    assert_eq!(ask(&serving, "m", 1).await, Ok((1, vec![1.0])));
}

#[tokio::test]
async fn a_model_on_demand_that_fails_says_so_at_once() {
    let world = World::new();
    world.source.publish("m", 1, &FakeModel { fail_load: Some("no luck".to_owned()), ..constant(1.0) });
    let options = with(on_demand(&world), |live| live.on_demand_wait = Duration::from_secs(3600));
    let serving = Engine::start(options).await.unwrap();
    serving.wait_ready().await;
    let error = ask(&serving, "m", 1).await.unwrap_err();
    let InferError::NotReady { reason, .. } = error else { panic!("{error:?}") };
    assert_eq!(reason, "no version of it could be loaded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_more_models_than_fit_are_all_answered() {
    let world = World::new();
    for model in ["a", "b", "c", "d"] {
        world.source.publish(model, 1, &FakeModel { bytes: 10_000, ..constant(1.0) });
    }
    let options = with(on_demand(&world), |live| {
        live.memory_budgets = [(Device::Cpu, 25_000)].into();
        live.on_demand_wait = Duration::from_secs(60);
    });
    let serving = Engine::start(options).await.unwrap();
    serving.wait_ready().await;
    for round in 0..5 {
        for model in ["a", "b", "c", "d"] {
            assert_eq!(ask(&serving, model, 1).await, Ok((1, vec![1.0])), "{model} in round {round}");
            assert!(serving.status().memory.reserved_bytes <= 25_000);
        }
    }
    assert!(world.runtime.log().counts().loaded > 8, "models gave way to each other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_while_a_model_is_on_its_way_waits_for_it() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    world.source.stuck.send_replace(true);
    let options = with(on_demand(&world), |live| live.on_demand_wait = Duration::from_secs(60));
    let serving = Engine::start(options).await.unwrap();
    serving.wait_ready().await;
    let asking = |serving: &Serving| {
        let serving = serving.clone();
        tokio::spawn(async move { ask(&serving, "m", 1).await })
    };
    let first = asking(&serving);
    let fetching = |serving: &Serving| serving.status().model("m").is_some_and(|model| model.standing == "waking");
    until(&serving, "the fetch", fetching).await;
    let others: Vec<_> = (0..8).map(|_| asking(&serving)).collect();
    world.source.stuck.send_replace(false);
    for asked in others.into_iter().chain([first]) {
        assert_eq!(asked.await.unwrap(), Ok((1, vec![1.0])));
    }
    assert_eq!(world.runtime.log().counts().loaded, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_waits_for_memory_that_others_use_now() {
    let world = World::new();
    for model in ["a", "b"] {
        world.source.publish(model, 1, &FakeModel { bytes: 10_000, block: model == "a", ..constant(1.0) });
    }
    let log = world.runtime.log();
    log.release();
    let options = with(on_demand(&world), |live| {
        live.memory_budgets = [(Device::Cpu, 15_000)].into();
        live.on_demand_wait = Duration::from_secs(60);
    });
    let settings = ModelSettings { inline: crate::Inline::Never, ..ModelSettings::default() };
    let serving =
        Engine::start(EngineOptions { read_settings: Arc::new(move |_, _| Ok(settings.clone())), ..options }).await.unwrap();
    serving.wait_ready().await;
    assert_eq!(ask(&serving, "a", 1).await, Ok((1, vec![1.0])));
    log.hold();
    let (asker, waiter) = (serving.clone(), serving.clone());
    let user = tokio::spawn(async move { ask(&asker, "a", 1).await });
    assert!(tokio::task::block_in_place(|| log.wait_until(Duration::from_secs(60), |counts| counts.blocked == 1)));
    let waiting = tokio::spawn(async move { ask(&waiter, "b", 1).await });
    until(&serving, "b", |serving| serving.status().model("b").is_some_and(|model| model.standing == "waking")).await;
    log.release();
    assert_eq!(user.await.unwrap(), Ok((1, vec![1.0])));
    assert_eq!(waiting.await.unwrap(), Ok((1, vec![1.0])));
}
