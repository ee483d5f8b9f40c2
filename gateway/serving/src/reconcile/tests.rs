mod operator;
mod trials;
mod unread;

use std::sync::Arc;
use std::time::Duration;

use bascule_registry::Rollout;
use bascule_runtime_fake::FakeModel;

use super::bench::{Bench, at_minute, rules};
use super::loads::MAX_VERIFYING;
use super::*;
use crate::testing::{constant, listing, name};
use crate::{Absent, CommandError, TransitionPolicy};

const SECOND: Duration = Duration::from_secs(1);

fn bench() -> Bench {
    Bench::new(rules())
}

fn broken() -> FakeModel {
    FakeModel { fail_load: Some("no luck".to_owned()), ..constant(0.0) }
}

#[test]
fn a_new_version_takes_over_and_the_old_one_gives_its_memory_back() {
    let mut bench = bench();
    bench.publish("m", 1, &FakeModel { bytes: 1000, ..constant(1.0) });
    bench.look_and_run();
    assert_eq!(bench.stages("m"), "1 ready*");
    bench.publish("m", 2, &FakeModel { bytes: 500, ..constant(2.0) });
    bench.look_and_run();
    assert_eq!(bench.stages("m"), "1 unloaded, 2 ready*");
    assert_eq!((bench.live_sessions(), bench.snapshot.status.memory.reserved_bytes), (1, 500));
    let [receipt] = bench.snapshot.status.receipts.as_slice() else { panic!("{:?}", bench.snapshot.status.receipts) };
    assert_eq!((receipt.version, receipt.reserved_bytes, receipt.trimmed, receipt.rss_after), (1, 1000, true, Some(1)));
    assert_eq!(bench.retired.iter().map(|key| key.version).collect::<Vec<_>>(), [1]);
}

#[test]
fn every_step_of_a_swap_leaves_a_version_that_answers() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    bench.publish("m", 2, &constant(2.0));
    bench.look();
    let mut seen = vec![bench.stages("m")];
    while !bench.work.is_empty() {
        let effect = bench.work.remove(0);
        bench.perform(effect);
        seen.push(bench.stages("m"));
        assert!(bench.stable("m").is_some(), "{seen:?}");
    }
    let expected =
        ["1 ready*, 2 fetching", "1 ready*, 2 verifying", "1 ready*, 2 loading", "1 draining, 2 ready*", "1 unloaded, 2 ready*"];
    seen.dedup();
    assert_eq!(seen, expected);
}

#[test]
fn new_content_of_the_same_number_is_a_swap() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    let before = bench.router.table().route("m").unwrap().stable.clone().unwrap();
    let generation = bench.publish("m", 1, &constant(1.5));
    bench.look();
    assert_eq!(bench.stages("m"), "1 ready*, 1 fetching");
    bench.run();
    let after = bench.router.table().route("m").unwrap().stable.clone().unwrap();
    assert_eq!((bench.stages("m").as_str(), after.digest()), ("1 ready*", &generation.digest));
    assert_ne!(before.digest(), after.digest());
    assert!(bench.retired.is_empty(), "version 1 is still there");
}

#[test]
fn what_fails_is_reported_and_tried_again_and_what_serves_stays() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    bench.publish("m", 2, &broken());
    bench.look_and_run();
    assert_eq!((bench.stages("m").as_str(), bench.cause("m", 2).as_str()), ("1 ready*, 2 failed", "loading: model.json: no luck"));
    for attempts in 2..6 {
        bench.wait(31 * SECOND);
        bench.run();
        let version = bench.status("m").version(2).unwrap().clone();
        assert_eq!((version.attempts, bench.stable("m")), (attempts, Some(1)));
    }
    // Mended under the same number.
    bench.publish("m", 2, &constant(2.0));
    bench.look_and_run();
    assert_eq!(bench.stages("m"), "1 unloaded, 2 ready*");
    assert_eq!(bench.live_sessions(), 1);
}

#[test]
fn a_source_that_fails_lies_or_is_empty_takes_nothing_away() {
    let mut bench = bench();
    bench.publish("a", 1, &constant(1.0));
    bench.publish("b", 1, &constant(1.0));
    bench.look_and_run();
    for look in [
        Look::Failed("gone".to_owned()),
        Look::Slow,
        Look::Unchanged,
        Look::Listed(Box::new(listing(true, []))),
        Look::Listed(Box::new(listing(false, []))),
        Look::Listed(Box::new(listing(false, [bench.source[&name("a")].clone()]))),
    ] {
        let what = format!("{look:?}").chars().take(60).collect::<String>();
        bench.looked(look);
        bench.run();
        assert_eq!((bench.stages("a").as_str(), bench.stages("b").as_str()), ("1 ready*", "1 ready*"), "{what}");
    }
    bench.looked(Look::Failed("gone".to_owned()));
    assert_eq!(bench.snapshot.status.registry.last_error.as_deref(), Some("gone"));
    bench.look();
    assert_eq!(bench.snapshot.status.registry.last_error, None);
}

#[test]
fn a_deleted_directory_stays_served_or_not_as_the_user_likes() {
    for (absent, expected) in [(Absent::Keep, "1 ready*"), (Absent::Unload, "unknown")] {
        let mut bench = Bench::new(Rules { live: LiveOptions { absent, ..rules().live }, ..rules() });
        bench.publish("a", 1, &constant(1.0));
        bench.publish("b", 1, &constant(1.0));
        bench.look_and_run();
        bench.source.remove("a");
        bench.look_and_run();
        assert_eq!(bench.stages("a"), expected, "{absent:?}");
        assert_eq!(bench.stages("b"), "1 ready*");
        // The next version of what was deleted takes over as ever.
        bench.publish("a", 2, &constant(2.0));
        bench.look_and_run();
        assert_eq!(bench.stable("a"), Some(2));
    }
}

#[test]
fn a_deleted_version_stays_until_another_takes_over() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.publish("m", 2, &constant(2.0));
    bench.look_and_run();
    bench.source.get_mut("m").unwrap().versions.remove(&2);
    bench.look_and_run();
    assert_eq!(bench.stages("m"), "2 ready*");
    bench.publish("m", 3, &constant(3.0));
    bench.look_and_run();
    assert_eq!(bench.stages("m"), "2 unloaded, 3 ready*");
    bench.look_and_run();
    assert_eq!(bench.snapshot.models["m"].versions.keys().copied().collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn a_tombstone_takes_a_version_away_at_once() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.publish("m", 2, &constant(2.0));
    bench.look_and_run();
    let versions = &mut bench.source.get_mut("m").unwrap().versions;
    Arc::make_mut(versions.get_mut(&2).unwrap()).tombstoned = true;
    bench.look();
    assert_eq!(bench.stable("m"), None, "nothing yanked answers");
    bench.run();
    assert_eq!(bench.stages("m"), "1 ready*, 2 unloaded");
}

#[test]
fn what_does_not_fit_is_refused_with_the_arithmetic_and_comes_when_it_fits() {
    let mut bench = Bench::new(Rules {
        live: LiveOptions { memory_budgets: [(bascule_runtime_api::Device::Cpu, 25_000)].into(), ..rules().live },
        ..rules()
    });
    for model in ["a", "b", "c"] {
        bench.publish(model, 1, &FakeModel { bytes: 10_000, ..constant(1.0) });
    }
    bench.look_and_run();
    let ready = |bench: &Bench| ["a", "b", "c"].map(|model| bench.stable(model).is_some());
    assert_eq!(ready(&bench), [true, true, false]);
    let cause = bench.cause("c", 1);
    assert!(cause.starts_with("memory: it needs 10") && cause.contains("of the memory budget of 25000 bytes 20"), "{cause}");
    bench.unload("a");
    bench.run();
    assert_eq!(ready(&bench), [false, true, true], "without waiting for the retry");
}

#[test]
fn where_memory_counts_more_the_old_version_leaves_before_the_new_one_comes() {
    let transition = TransitionPolicy::ResourcePreserving;
    let mut bench = Bench::new(Rules {
        live: LiveOptions { memory_budgets: [(bascule_runtime_api::Device::Cpu, 15_000)].into(), transition, ..rules().live },
        ..rules()
    });
    bench.publish("m", 1, &FakeModel { bytes: 10_000, ..constant(1.0) });
    bench.look_and_run();
    bench.publish("m", 2, &FakeModel { bytes: 10_000, ..constant(2.0) });
    bench.look();
    assert_eq!((bench.stages("m").as_str(), bench.stable("m")), ("1 draining, 2 pending", None));
    bench.run();
    assert_eq!(bench.stages("m"), "1 unloaded, 2 ready*");
}

#[test]
fn a_candidate_gets_its_share_and_a_promotion_keeps_the_old_one_for_a_while() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    let mut second = bench.publish("m", 2, &constant(2.0));
    Arc::make_mut(&mut second.manifest).hold = true;
    bench.source.get_mut("m").unwrap().versions.insert(2, Arc::new(second));
    bench.look_and_run();
    assert_eq!(bench.stages("m"), "1 ready*, 2 ready");
    let decide = |bench: &mut Bench, rollout: Rollout| {
        bench.source.get_mut("m").unwrap().rollout = rollout;
        bench.look_and_run();
    };
    decide(&mut bench, Rollout { id: "r".to_owned(), candidate: Some((2, 1000)), released: [2].into(), ..Rollout::default() });
    assert_eq!(bench.stages("m"), "1 ready*, 2 ready+");
    let shares: Vec<u32> = bench.status("m").versions.iter().map(|version| version.traffic_bp).collect();
    assert_eq!(shares, [9000, 1000]);
    let table = bench.router.table();
    let route = table.route("m").unwrap();
    assert_eq!((route.seed, route.aliases["stable"], route.aliases["candidate"]), (crate::rollout_seed("r"), 1, 2));
    bench.at = Duration::from_secs(3600);
    let stable = Rollout { stable: Some(2), stable_since: at_minute(60), previous_stable: Some(1), ..Rollout::default() };
    decide(&mut bench, stable);
    assert_eq!(bench.stages("m"), "1 ready, 2 ready*", "the previous one is there for a rollback");
    bench.wait(600 * SECOND);
    bench.run();
    assert_eq!(bench.stages("m"), "1 unloaded, 2 ready*");
}

#[test]
fn settings_apply_at_once_where_they_can_and_by_a_swap_where_they_must() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.publish("m", 2, &constant(2.0));
    bench.look_and_run();
    bench.configure("m", "latest=2");
    bench.look_and_run();
    assert_eq!(
        (bench.stages("m").as_str(), bench.runtime.log().counts().loaded),
        ("1 ready, 2 ready*", 2),
        "version 2 was not loaded anew"
    );
    bench.configure("m", "latest=2 instances=2");
    bench.look();
    assert_eq!(bench.stable("m"), Some(2));
    bench.run();
    assert_eq!((bench.stages("m").as_str(), bench.live_sessions()), ("1 ready, 2 ready*", 4));
}

#[test]
fn settings_that_cannot_be_read_leave_the_last_good_ones() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.configure("m", "instances=2");
    bench.look_and_run();
    bench.configure("m", "nonsense");
    bench.look_and_run();
    assert_eq!((bench.stages("m").as_str(), bench.live_sessions()), ("1 ready*", 2));
    assert_eq!(bench.status("m").problems, ["settings: 'nonsense' is no setting"]);
    bench.restart();
    bench.run();
    assert_eq!((bench.stages("m").as_str(), bench.status("m").versions[0].instances), ("1 ready*", 2), "also after a restart");
    bench.publish("n", 1, &constant(1.0));
    bench.configure("n", "nonsense");
    bench.look_and_run();
    assert_eq!(bench.cause("n", 1), "settings: 'nonsense' is no setting");
    bench.configure("n", "");
    bench.look_and_run();
    assert_eq!(bench.stages("n"), "1 ready*", "at once where they are mended");
}

#[test]
fn a_restart_serves_what_was_served_without_its_source() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.publish("m", 2, &constant(2.0));
    bench.configure("m", "latest=2");
    bench.look_and_run();
    bench.restart();
    assert_eq!(bench.snapshot.readiness, Readiness::NotYet { reason: "model 'm' is being loaded".to_owned() });
    bench.run();
    assert_eq!(bench.stages("m"), "1 ready, 2 ready*");
    assert!(!bench.snapshot.readiness.is_ready(), "whether there is more is not known yet");
    bench.looked(Look::Failed("gone".to_owned()));
    assert!(bench.snapshot.readiness.is_ready());
}

#[test]
fn a_restart_serves_what_was_served_although_the_source_has_something_broken_now() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    bench.publish("m", 1, &broken());
    bench.restart();
    bench.look_and_run();
    assert_eq!(bench.stages("m"), "1 ready*, 1 failed", "the old content answers, the new one is reported");
    let mut bench = Bench::new(rules());
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    bench.publish("m", 2, &broken());
    bench.restart();
    bench.look_and_run();
    assert_eq!(bench.stages("m"), "1 ready*, 2 failed");
}

#[test]
fn memory_goes_back_at_most_once_in_a_while() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    for version in 2..5 {
        bench.publish("m", version, &constant(1.0));
        bench.look_and_run();
    }
    let trimmed = |bench: &Bench| bench.snapshot.status.receipts.iter().map(|receipt| receipt.trimmed).collect::<Vec<_>>();
    assert_eq!(trimmed(&bench), [true, false, false]);
    assert_eq!(bench.reconciler.wake_at(), Some(30 * SECOND), "what was drained since is trimmed later");
    bench.wait(30 * SECOND);
    assert!(matches!(bench.work.as_slice(), [Effect::Trim]), "{:?}", bench.work);
    bench.run();
    assert_eq!(bench.reconciler.wake_at(), None);
}

#[test]
fn fetches_and_loads_are_bounded_and_all_get_their_turn() {
    let mut bench = bench();
    for model in 0..30 {
        bench.publish(&format!("m{model}"), 1, &constant(1.0));
    }
    bench.look();
    let fetching = |bench: &Bench| bench.work.iter().filter(|work| matches!(work, Effect::Fetch { .. })).count();
    let verifying = |bench: &Bench| bench.work.iter().filter(|work| matches!(work, Effect::Verify { .. })).count();
    let loading = |bench: &Bench| bench.work.iter().filter(|work| matches!(work, Effect::Load { .. })).count();
    assert_eq!(fetching(&bench), MAX_FETCHES);
    while !bench.work.is_empty() {
        let effect = bench.work.remove(0);
        bench.perform(effect);
        assert!(fetching(&bench) <= MAX_FETCHES && verifying(&bench) <= MAX_VERIFYING && loading(&bench) <= 2);
    }
    assert_eq!(bench.live_sessions(), 30);
}

#[test]
fn verifications_that_hang_hold_up_no_load() {
    let mut bench = bench();
    bench.publish("ready", 1, &constant(1.0));
    bench.look();
    while !matches!(bench.work.as_slice(), [Effect::Load { .. }]) {
        let effect = bench.work.remove(0);
        bench.perform(effect);
    }
    // Its trial is over; those of others do not end.
    let load = bench.work.remove(0);
    for model in 0..2 * MAX_VERIFYING {
        bench.publish(&format!("m{model}"), 1, &constant(1.0));
    }
    bench.look();
    while let Some(at) = bench.work.iter().position(|work| matches!(work, Effect::Fetch { .. })) {
        let effect = bench.work.remove(at);
        bench.perform(effect);
    }
    assert!(bench.work.len() == MAX_VERIFYING && bench.work.iter().all(|work| matches!(work, Effect::Verify { .. })));
    bench.perform(load);
    assert_eq!(bench.live_sessions(), 1);
}

#[test]
fn a_fetch_that_nobody_wants_any_more_is_given_up() {
    let mut bench = bench();
    bench.publish("m", 1, &constant(1.0));
    bench.look();
    bench.publish("m", 2, &constant(2.0));
    bench.look();
    assert!(matches!(bench.work.as_slice(), [Effect::Fetch { generation, .. }] if generation.key.version == 2), "{:?}", bench.work);
    bench.run();
    assert_eq!((bench.stages("m").as_str(), bench.reconciler.fetching), ("2 ready*", 0));
}

#[test]
fn a_shutdown_drains_everything_and_forgets_nothing() {
    let mut bench = bench();
    bench.publish("a", 1, &constant(1.0));
    bench.publish("b", 1, &broken());
    bench.look_and_run();
    bench.publish("c", 1, &constant(1.0));
    bench.look();
    let served = bench.disk.served.clone();
    bench.tell(Event::Shutdown { drain_timeout: SECOND });
    assert_eq!((&bench.snapshot.readiness, bench.snapshot.stopped), (&Readiness::Stopping, false));
    assert_eq!(bench.load("a"), Err(CommandError::Stopping));
    bench.run();
    assert!(bench.snapshot.stopped);
    assert_eq!((bench.live_sessions(), bench.snapshot.status.memory.reserved_bytes), (0, 0));
    assert_eq!(bench.disk.served, served);
}

#[test]
fn a_slot_that_is_not_taken_goes_to_the_next() {
    let mut bench = bench();
    for model in 0..MAX_FETCHES {
        bench.publish(&format!("a{model}"), 1, &constant(1.0));
    }
    for model in 0..=MAX_FETCHES {
        bench.publish(&format!("bad{model}"), 1, &constant(1.0));
        bench.configure(&format!("bad{model}"), "nonsense");
    }
    bench.publish("z", 1, &constant(1.0));
    bench.look_and_run();
    assert_eq!(bench.stages("z"), "1 ready*");
    assert!(bench.snapshot.readiness.is_ready());
}

#[test]
fn a_drain_that_does_not_end_holds_up_neither_the_next_version_nor_its_memory() {
    let budget = LiveOptions { memory_budgets: [(bascule_runtime_api::Device::Cpu, 35_000)].into(), ..rules().live };
    let mut bench = Bench::new(Rules { live: budget, ..rules() });
    let content = |value| FakeModel { bytes: 10_000, ..constant(value) };
    bench.publish("m", 1, &content(1.0));
    bench.look_and_run();
    bench.publish("m", 2, &content(2.0));
    bench.look();
    let stuck = loop {
        match bench.work.remove(0) {
            drain @ Effect::Drain { .. } => break drain,
            other => bench.perform(other),
        }
    };
    bench.publish("m", 3, &content(3.0));
    bench.look_and_run();
    assert_eq!(bench.stages("m"), "1 draining, 2 ready*, 3 pending");
    bench.wait(60 * SECOND);
    bench.run();
    assert_eq!(bench.stages("m"), "1 draining, 2 unloaded, 3 ready*");
    assert_eq!(bench.snapshot.status.memory.reserved_bytes, 20_000, "what it holds is held");
    bench.perform(stuck);
    assert_eq!(bench.snapshot.status.memory.reserved_bytes, 10_000);
}

#[test]
fn the_status_forgets_versions_of_long_ago() {
    let mut bench = bench();
    for version in 1..=40 {
        bench.publish("m", version, &constant(1.0));
        bench.look_and_run();
    }
    assert_eq!(bench.status("m").versions.len(), 17, "{}", bench.stages("m"));
}

#[test]
fn files_that_changed_lately_are_not_gone() {
    let mut bench = Bench::new(Rules { live: LiveOptions { absent: Absent::Unload, ..rules().live }, ..rules() });
    bench.publish("m", 1, &constant(1.0));
    bench.look_and_run();
    bench.restart();
    // The first look at a plain directory can't tell yet whether its files keep still.
    let listed = bench.source.get_mut("m").unwrap();
    let versions = std::mem::take(&mut listed.versions);
    listed.unsettled.insert(1);
    bench.look_and_run();
    assert_eq!(bench.stages("m"), "1 ready*");
    let listed = bench.source.get_mut("m").unwrap();
    listed.unsettled.clear();
    bench.look_and_run();
    assert_eq!(bench.stable("m"), None, "now it is");
    drop(versions);
}

#[test]
fn whoever_counts_on_a_drain_that_does_not_end_is_told() {
    let budget = LiveOptions { memory_budgets: [(bascule_runtime_api::Device::Cpu, 15_000)].into(), ..rules().live };
    let mut bench = Bench::new(Rules { live: budget, ..rules() });
    let content = FakeModel { bytes: 10_000, ..constant(1.0) };
    bench.publish("a", 1, &content);
    bench.look_and_run();
    bench.unload("a");
    let stuck = bench.work.remove(0);
    assert!(matches!(stuck, Effect::Drain { .. }), "{stuck:?}");
    bench.publish("b", 1, &content);
    bench.look_and_run();
    assert_eq!(bench.stages("b"), "1 verifying", "it waits for the memory of the other");
    bench.wait(60 * SECOND);
    assert_eq!(bench.status("b").version(1).unwrap().failed_step.as_deref(), Some("memory"));
    bench.perform(stuck);
    bench.run();
    assert_eq!(bench.stages("b"), "1 ready*");
}
