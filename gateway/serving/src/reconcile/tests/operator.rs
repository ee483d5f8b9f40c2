//! What the operator and the first requests want, and when the server is ready.

use super::*;
use crate::{InferError, Standing};

#[test]
fn an_unload_lasts_until_a_load_and_over_restarts_and_publishes() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    assert_eq!(bench.unload("m").leaving.len(), 1);
    assert_eq!(bench.router.table().route("m").unwrap().standing, Standing::Unloaded);
    bench.run();
    bench.publish("m", 2, &constant(2.0));
    bench.look_and_run();
    bench.restart();
    bench.look_and_run();
    assert_eq!((bench.stages("m").as_str(), bench.live_sessions()), ("", 0));
    assert_eq!(bench.status("m").held.as_deref(), Some("held: unloaded by operator"));
    bench.load("m").unwrap();
    bench.look_and_run();
    assert_eq!((bench.stages("m").as_str(), bench.status("m").held.as_deref()), ("2 ready*", None));
    bench.restart();
    bench.run();
    assert_eq!(bench.stages("m"), "2 ready*", "and a restart brings it back without a look");
    bench.look();
    assert!(bench.unload("nobody").leaving.is_empty());
    assert!(!bench.disk.operator.contains_key("nobody"), "names from outside are not kept");
}

#[test]
fn a_new_version_brings_back_what_was_unloaded_where_that_is_wanted() {
    let mut bench = Bench::new(Rules { live: LiveOptions { resurrect: true, ..rules().live }, ..rules() });
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    bench.unload("m");
    bench.look_and_run();
    assert_eq!(bench.stable("m"), None, "the same content is nothing new");
    bench.publish("m", 2, &constant(2.0));
    bench.look_and_run();
    assert_eq!(bench.stable("m"), Some(2));
    assert!(bench.disk.operator.is_empty());
}

#[test]
fn explicit_models_are_loaded_by_hand_and_stand_still() {
    let mut bench = Bench::new(Rules { load_mode: LoadMode::Explicit, explicit_models: vec![name("a"), name("z")], ..rules() });
    bench.publish("a", 1, &constant(1.0));
    bench.publish("b", 1, &constant(1.0));
    bench.look_and_run();
    assert_eq!((bench.stages("a").as_str(), bench.stages("b").as_str()), ("1 ready*", ""));
    assert_eq!(bench.snapshot.status.registry.problems, ["model 'z' is to be loaded and does not exist"]);
    assert_eq!(bench.router.table().route("b").unwrap().standing, Standing::Unloaded);
    bench.publish("a", 2, &constant(2.0));
    bench.configure("a", "latest=2");
    bench.look_and_run();
    assert_eq!(bench.stages("a"), "1 ready*", "neither versions nor settings are followed");
    bench.load("a").unwrap();
    bench.load("b").unwrap();
    bench.look_and_run();
    assert_eq!((bench.stages("a").as_str(), bench.stages("b").as_str()), ("1 ready, 2 ready*", "1 ready*"));
    bench.restart();
    bench.look_and_run();
    assert_eq!((bench.stable("a"), bench.stable("b")), (Some(2), Some(1)), "what was loaded by hand is loaded after a restart");
    let versions = &mut bench.source.get_mut("a").unwrap().versions;
    Arc::make_mut(versions.get_mut(&2).unwrap()).tombstoned = true;
    bench.look_and_run();
    assert_eq!(bench.stable("a"), Some(1), "a tombstone counts at once");
}

#[test]
fn explicit_models_follow_where_that_is_wanted() {
    let mut bench =
        Bench::new(Rules { load_mode: LoadMode::Explicit, live: LiveOptions { explicit_follow: true, ..rules().live }, ..rules() });
    bench.publish("m", 1, &constant(1.0));
    bench.load("m").unwrap();
    bench.look_and_run();
    bench.publish("m", 2, &constant(2.0));
    bench.look_and_run();
    assert_eq!(bench.stable("m"), Some(2));
}

#[test]
fn a_load_that_comes_after_its_look_is_answered_by_it() {
    let mut bench = Bench::new(Rules { load_mode: LoadMode::Explicit, ..rules() });
    bench.publish("m", 1, &constant(1.0));
    bench.look();
    bench.ticket -= 1;
    bench.load("m").unwrap();
    bench.run();
    assert_eq!(bench.stages("m"), "1 ready*");
    assert_eq!(bench.disk.operator[&name("m")], Operator::On);
}

#[test]
fn a_load_of_what_failed_does_not_wait_for_the_retry() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.look();
    let Effect::Fetch { id, .. } = bench.work.remove(0) else { panic!() };
    bench.fail_fetch(id);
    assert_eq!(bench.cause("m", 1), "fetching: the source is gone");
    bench.load("m").unwrap();
    assert_eq!(bench.stages("m"), "1 fetching");
    bench.run();
    assert_eq!(bench.stages("m"), "1 ready*");
}

#[test]
fn a_thousand_models_on_demand_cost_what_those_in_use_do() {
    let mut bench = on_demand(None);
    for model in 0..1000 {
        bench.publish(&format!("m{model}"), 1, &constant(1.0));
    }
    bench.look();
    assert!(bench.work.is_empty() && bench.reconciler.wake_at().is_none(), "nothing moves and nothing will");
    for model in 0..50 {
        want(&mut bench, &format!("m{model}"));
    }
    assert_eq!((bench.live_sessions(), bench.snapshot.residents.len()), (50, 50));
    assert_eq!(bench.router.table().route("m999").unwrap().standing, Standing::OnDemand);
    assert_eq!(bench.disk.served.len(), 50);
}

#[test]
fn models_on_demand_give_way_least_recently_used_first() {
    // Room for two of three: each takes its 10 000 bytes and, as an estimate, its file.
    let mut bench = on_demand(Some(25_000));
    for model in ["a", "b", "c"] {
        bench.publish(model, 1, &FakeModel { bytes: 10_000, ..constant(1.0) });
    }
    bench.look();
    want(&mut bench, "a");
    want(&mut bench, "b");
    assert_eq!(bench.snapshot.status.memory.reserved_bytes, 20_000);
    want(&mut bench, "c");
    // All were used within one second: then the first by name goes.
    assert_eq!(["a", "b", "c"].map(|model| bench.stable(model)), [None, Some(1), Some(1)]);
    assert_eq!(bench.router.table().route("a").unwrap().standing, Standing::OnDemand);
    assert!(matches!(bench.router.route("a").unwrap().servable(&crate::VersionChoice::Split), Err(InferError::NotReady { .. })));
    want(&mut bench, "a");
    assert_eq!(bench.stable("a"), Some(1));
    assert_eq!((bench.live_sessions(), bench.snapshot.status.memory.reserved_bytes), (2, 20_000));
}

#[test]
fn after_a_restart_models_on_demand_wait_for_their_request() {
    let mut bench = on_demand(None);
    bench.publish("m", 1, &constant(1.0));
    bench.look();
    want(&mut bench, "m");
    bench.restart();
    bench.looked(Look::Failed("gone".to_owned()));
    assert!(bench.work.is_empty());
    assert_eq!(bench.router.table().route("m").unwrap().standing, Standing::OnDemand);
    want(&mut bench, "m");
    assert_eq!(bench.stable("m"), Some(1));
}

#[test]
fn ready_is_decided_once_and_a_failed_model_is_no_reason() {
    let mut bench = bench();
    bench.settle();
    assert_eq!(bench.snapshot.readiness, Readiness::NotYet { reason: "the bench is being read".to_owned() });
    bench.looked(Look::Failed("gone".to_owned()));
    assert_eq!(bench.snapshot.readiness, Readiness::NotYet { reason: "the bench can't be read: gone".to_owned() });
    bench.publish("good", 1, &constant(1.0));
    bench.publish("bad", 1, &broken());
    bench.look();
    assert!(!bench.snapshot.readiness.is_ready());
    bench.run();
    assert!(bench.snapshot.readiness.is_ready());
    bench.publish("good", 2, &broken());
    bench.look();
    assert!(bench.snapshot.readiness.is_ready(), "what comes later changes nothing");
}

#[test]
fn strictly_ready_is_every_model() {
    let mut bench = Bench::new(Rules { live: LiveOptions { strict_ready: true, ..rules().live }, ..rules() });
    bench.publish("bad", 1, &broken());
    bench.look_and_run();
    assert_eq!(bench.snapshot.readiness, Readiness::NotYet { reason: "model 'bad' is not ready".to_owned() });
    bench.publish("bad", 1, &constant(1.0));
    bench.look_and_run();
    assert!(bench.snapshot.readiness.is_ready());
}

#[test]
fn an_empty_source_is_ready() {
    let mut bench = bench();
    bench.look();
    assert!(bench.snapshot.readiness.is_ready());
}

fn on_demand(budget: Option<u64>) -> Bench {
    Bench::new(Rules {
        load_mode: LoadMode::OnDemand,
        live: LiveOptions {
            memory_budgets: budget.map(|bytes| (bascule_runtime_api::Device::Cpu, bytes)).into_iter().collect(),
            ..rules().live
        },
        ..rules()
    })
}

fn want(bench: &mut Bench, model: &str) {
    bench.router.route(model).unwrap();
    bench.tell(Event::Wanted { model: name(model) });
    bench.run();
}

#[test]
fn an_unload_before_the_first_look_counts() {
    for resurrect in [false, true] {
        let mut bench = Bench::new(Rules { live: LiveOptions { resurrect, ..rules().live }, ..rules() });
        bench.publish("m", 1, &constant(1.0));
        bench.unload("m");
        // As at the first look at a plain directory, which can't tell yet what counts.
        let listed = bench.source.get_mut("m").unwrap();
        let versions = std::mem::take(&mut listed.versions);
        listed.unsettled.insert(1);
        bench.look_and_run();
        let listed = bench.source.get_mut("m").unwrap();
        listed.unsettled.clear();
        listed.versions = versions;
        bench.look_and_run();
        assert_eq!((bench.stages("m").as_str(), bench.stable("m")), ("", None));
        assert_eq!(bench.status("m").held.as_deref(), Some("held: unloaded by operator"));
        bench.publish("m", 2, &constant(2.0));
        bench.look_and_run();
        assert_eq!(bench.stable("m"), resurrect.then_some(2), "version 1 was nothing new, version 2 is");
    }
}

#[test]
fn a_model_on_demand_with_a_broken_version_gives_way_too() {
    let mut bench = on_demand(Some(25_000));
    for model in ["a", "b", "c"] {
        bench.publish(model, 1, &FakeModel { bytes: 10_000, ..constant(1.0) });
    }
    bench.look();
    want(&mut bench, "a");
    bench.publish("a", 2, &FakeModel { fail_load: Some("no luck".to_owned()), ..constant(2.0) });
    bench.look_and_run();
    assert_eq!(bench.stages("a"), "1 ready*, 2 failed");
    want(&mut bench, "b");
    want(&mut bench, "c");
    assert_eq!(["a", "b", "c"].map(|model| bench.stable(model)), [None, Some(1), Some(1)]);
}

#[test]
fn a_model_that_was_asked_for_stays_asked_for_until_it_is_there_or_has_failed() {
    let mut bench = on_demand(None);
    bench.publish("good", 1, &constant(1.0));
    bench.publish("bad", 1, &FakeModel { fail_load: Some("no luck".to_owned()), ..constant(1.0) });
    bench.look();
    let standing = |bench: &Bench, model: &str| bench.router.table().route(model).unwrap().standing.clone();
    for model in ["good", "bad"] {
        assert_eq!(standing(&bench, model), Standing::OnDemand);
        bench.tell(Event::Wanted { model: name(model) });
        assert_eq!(standing(&bench, model), Standing::Waking, "whoever comes now waits, too");
    }
    bench.run();
    assert_eq!(standing(&bench, "good"), Standing::Serving);
    assert!(matches!(standing(&bench, "bad"), Standing::NotReady { .. }));
    // One version fails first, and the other is still to come.
    bench.publish("mixed", 1, &constant(1.0));
    bench.publish("mixed", 2, &FakeModel { fail_load: Some("no luck".to_owned()), ..constant(1.0) });
    bench.configure("mixed", "latest=2");
    bench.look();
    bench.tell(Event::Wanted { model: name("mixed") });
    while bench.stages("mixed") != "1 fetching, 2 failed" {
        let effect = bench.work.remove(0);
        bench.perform(effect);
    }
    assert_eq!(standing(&bench, "mixed"), Standing::Waking);
}

#[test]
fn readiness_does_not_wait_for_files_that_never_keep_still() {
    let mut bench = bench();
    bench.publish("good", 1, &constant(1.0));
    bench.publish("moving", 1, &constant(1.0));
    let moving = bench.source.get_mut("moving").unwrap();
    moving.versions.clear();
    moving.unsettled.insert(1);
    bench.look_and_run();
    assert!(!bench.snapshot.readiness.is_ready(), "they may be a version");
    bench.at += 29 * SECOND;
    bench.look();
    assert!(!bench.snapshot.readiness.is_ready());
    bench.at += SECOND;
    bench.look();
    assert!(bench.snapshot.readiness.is_ready());
    let mut bench = on_demand(None);
    bench.publish("moving", 1, &constant(1.0));
    bench.source.get_mut("moving").unwrap().unsettled.insert(1);
    bench.look();
    assert!(bench.snapshot.readiness.is_ready(), "it has a version that can be loaded");
}
