use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::{Generation, ListedModel, Rollout, Steering, SteeringAlias, VersionNumber};

use super::*;
use crate::testing::{generation, listed, minute, name};
use VersionPolicy::{All, Latest, Specific};

/// One case; the fields that a case does not name are those of a model that is left to itself.
struct Case {
    /// Numbers, each followed by `t` for tombstoned or `h` for held by its manifest.
    versions: &'static str,
    policy: VersionPolicy,
    strategy: RolloutStrategy,
    transition: TransitionPolicy,
    demand: Demand,
    ready: &'static [VersionNumber],
    serving: Option<VersionNumber>,
    rollout: Rollout,
    at: u64,
}

fn case() -> Case {
    Case {
        versions: "1 2 3",
        policy: Latest(1),
        strategy: RolloutStrategy::Immediate,
        transition: TransitionPolicy::AvailabilityPreserving,
        demand: Demand::Wanted,
        ready: &[],
        serving: None,
        rollout: Rollout::default(),
        at: 100,
    }
}

fn model(versions: &str) -> ListedModel {
    let name = name("m");
    let one = |text: &str| {
        let number = text.trim_end_matches(['t', 'h']).parse().unwrap();
        let mut generation = generation(&name, number, "");
        generation.tombstoned = text.ends_with('t');
        Arc::make_mut(&mut generation.manifest).hold = text.ends_with('h');
        generation
    };
    listed(&name, versions.split_whitespace().map(one))
}

fn check(what: &str, case: Case, expected: &str) {
    let mut model = model(case.versions);
    model.rollout = case.rollout;
    let aspired = aspire(&Circumstances {
        model: &model,
        policy: &case.policy,
        strategy: case.strategy,
        transition: case.transition,
        demand: case.demand,
        ready: &case.ready.iter().copied().collect(),
        serving: case.serving,
        keep_previous: Duration::from_secs(600),
        now: minute(case.at),
    });
    let number = |version: Option<VersionNumber>| version.map_or("-".to_owned(), |version| version.to_string());
    let resident: Vec<String> = aspired.versions.keys().map(ToString::to_string).collect();
    let candidate = aspired.candidate.map_or("-".to_owned(), |(version, weight)| format!("{version}@{weight}"));
    let found = format!(
        "[{}] stable {} next {} candidate {candidate} fallback {}",
        resident.join(" "),
        number(aspired.stable),
        number(aspired.next),
        number(aspired.fallback)
    );
    assert_eq!(found, expected, "{what}");
}

fn decided(stable: VersionNumber, at: u64) -> Rollout {
    Rollout { stable: Some(stable), stable_since: Some(minute(at)), ..Rollout::default() }
}

#[test]
fn policies_select() {
    for (what, policy, versions, expected) in [
        ("the highest", Latest(1), "1 2 3", "[3] stable - next 3 candidate - fallback -"),
        ("the two highest", Latest(2), "1 2 3", "[2 3] stable - next 3 candidate - fallback -"),
        ("more than there are", Latest(9), "1 2", "[1 2] stable - next 2 candidate - fallback -"),
        ("none", Latest(0), "1 2", "[] stable - next - candidate - fallback -"),
        ("all", All, "1 2 3", "[1 2 3] stable - next 3 candidate - fallback -"),
        ("named ones", Specific(vec![1, 7]), "1 2 3", "[1] stable - next 1 candidate - fallback -"),
        ("what is there", Latest(1), "", "[] stable - next - candidate - fallback -"),
        ("not what is tombstoned", Latest(1), "1 2 3t", "[2] stable - next 2 candidate - fallback -"),
    ] {
        check(what, Case { policy, versions, ..case() }, expected);
    }
}

#[test]
fn stable_follows_the_highest_that_is_ready() {
    let ready = |ready, serving| Case { ready, serving, ..case() };
    check("at once where nothing is before it", ready(&[3], None), "[3] stable 3 next 3 candidate - fallback -");
    check("and keeps what serves until then", ready(&[2], Some(2)), "[2 3] stable 2 next 3 candidate - fallback 2");
    check("also while that is not ready, after a restart", ready(&[], Some(2)), "[2 3] stable - next 3 candidate - fallback 2");
    check("then lets it go", ready(&[2, 3], Some(2)), "[3] stable 3 next 3 candidate - fallback -");
    let two = |ready, serving| Case { policy: Latest(2), ready, serving, ..case() };
    check("a lower one answers meanwhile", two(&[2], None), "[2 3] stable 2 next 3 candidate - fallback -");
    check(
        "also in the place of what is not wanted any more",
        two(&[1, 2], Some(1)),
        "[1 2 3] stable 2 next 3 candidate - fallback 1",
    );
    check(
        "but for a tombstone, which ends it at once",
        Case { versions: "1 2t 3", ready: &[2], serving: Some(2), ..case() },
        "[3] stable - next 3 candidate - fallback -",
    );
    check(
        "and where memory counts more",
        Case { transition: TransitionPolicy::ResourcePreserving, ..ready(&[2], Some(2)) },
        "[3] stable - next 3 candidate - fallback -",
    );
}

#[test]
fn held_versions_are_loaded_and_take_nothing() {
    let held = |versions, ready, rollout| Case { versions, ready, rollout, ..case() };
    let by_journal = Rollout { held: [3].into(), ..Rollout::default() };
    let released = Rollout { released: [3].into(), ..Rollout::default() };
    check("by the manifest", held("1 2 3h", &[2, 3], Rollout::default()), "[2 3] stable 2 next 2 candidate - fallback -");
    check("by the journal", held("1 2 3", &[2, 3], by_journal), "[2 3] stable 2 next 2 candidate - fallback -");
    check("until they are released", held("1 2 3h", &[2, 3], released), "[3] stable 3 next 3 candidate - fallback -");
    check("also alone", held("1h", &[1], Rollout::default()), "[1] stable - next - candidate - fallback -");
}

#[test]
fn rejected_versions_are_selected_by_nothing() {
    let rollout = Rollout { rejected: [3].into(), ..Rollout::default() };
    let rejected = |policy, ready, serving| Case { policy, ready, serving, rollout: rollout.clone(), ..case() };
    check("latest", rejected(Latest(1), &[2, 3], Some(2)), "[2] stable 2 next 2 candidate - fallback -");
    check("all", rejected(All, &[], None), "[1 2] stable - next 2 candidate - fallback -");
    check(
        "one that serves stays until another does",
        rejected(Latest(1), &[3], Some(3)),
        "[2 3] stable 3 next 2 candidate - fallback 3",
    );
}

#[test]
fn a_candidate_is_resident_and_followed_by_nobody() {
    let rollout = Rollout { candidate: Some((3, 1000)), ..Rollout::default() };
    let split = |ready, serving| Case { ready, serving, rollout: rollout.clone(), ..case() };
    check("beside stable", split(&[2, 3], Some(2)), "[2 3] stable 2 next 2 candidate 3@1000 fallback -");
    check("whatever is ready", split(&[], None), "[2 3] stable - next 2 candidate 3@1000 fallback -");
    check("stable itself, until the other is ready", split(&[3], Some(3)), "[2 3] stable 3 next 2 candidate 3@1000 fallback 3");
    check(
        "not where it is gone",
        Case { versions: "1 2", ready: &[2], rollout: rollout.clone(), ..case() },
        "[2] stable 2 next 2 candidate - fallback -",
    );
    let pinned = Rollout { pinned: Some(1), ..rollout.clone() };
    check("a pin takes all", Case { ready: &[1, 2, 3], rollout: pinned, ..case() }, "[1 3] stable 1 next 1 candidate - fallback -");
}

#[test]
fn a_pin_wins_over_everything() {
    let rollout = Rollout { pinned: Some(1), stable: Some(2), stable_since: Some(minute(5)), ..Rollout::default() };
    let pinned = |versions, ready, serving| Case { versions, ready, serving, rollout: rollout.clone(), ..case() };
    check("once it is ready", pinned("1 2 3", &[1, 2, 3], Some(3)), "[1 2 3] stable 1 next 1 candidate - fallback -");
    check("not before", pinned("1 2 3", &[2, 3], Some(3)), "[1 2 3] stable 3 next 1 candidate - fallback 3");
    check("not where it is tombstoned", pinned("1t 2 3", &[2, 3], Some(3)), "[2 3] stable 2 next 2 candidate - fallback -");
}

#[test]
fn a_decision_overrides_what_was_there_and_not_what_comes() {
    let follow = |versions, ready, serving, at| Case { versions, ready, serving, rollout: decided(2, at), ..case() };
    check("version 3 was there in minute 5", follow("1 2 3", &[2, 3], Some(3), 5), "[2 3] stable 2 next 2 candidate - fallback -");
    check("until 2 is ready 3 stays", follow("1 2 3", &[3], Some(3), 5), "[2 3] stable 3 next 2 candidate - fallback 3");
    check("version 6 came later", follow("1 2 3 6", &[2, 3, 6], Some(2), 5), "[2 6] stable 6 next 6 candidate - fallback -");
    check(
        "and is followed only when it is ready",
        follow("2 6 7", &[2, 6], Some(6), 5),
        "[2 6 7] stable 6 next 7 candidate - fallback 6",
    );
    check("a lower one is never", follow("1 2", &[1, 2], Some(2), 0), "[2] stable 2 next 2 candidate - fallback -");
    // Copied or packed before the decision, and there only after it.
    let known = |versions, ready| Case {
        versions,
        ready,
        serving: Some(2),
        rollout: Rollout { stable_highest: Some(3), ..decided(2, 100) },
        ..case()
    };
    check("version 3 was there, whatever its date", known("1 2 3", &[2, 3]), "[2 3] stable 2 next 2 candidate - fallback -");
    check("version 6 was not", known("1 2 3 6", &[2, 3, 6]), "[2 6] stable 6 next 6 candidate - fallback -");
    check("what was decided is gone", follow("1 3", &[1, 3], Some(3), 5), "[3] stable 3 next 3 candidate - fallback -");
}

#[test]
fn without_following_a_new_version_takes_nothing() {
    let manual = |ready, serving, rollout| Case { strategy: RolloutStrategy::Manual, ready, serving, rollout, ..case() };
    let none = Rollout::default;
    check("what serves goes on", manual(&[2, 3], Some(2), none()), "[2 3] stable 2 next 2 candidate - fallback -");
    check("the first version is the first", manual(&[1, 3], None, none()), "[1 3] stable 1 next 1 candidate - fallback -");
    check(
        "what was decided goes before what serves",
        manual(&[1, 3], Some(1), decided(3, 5)),
        "[3] stable 3 next 3 candidate - fallback -",
    );
    let disabled = Rollout { disabled: true, ..none() };
    check(
        "disabled rollouts are the same",
        Case { ready: &[2, 3], serving: Some(2), rollout: disabled, ..case() },
        "[2 3] stable 2 next 2 candidate - fallback -",
    );
    let gone = Rollout { previous_stable: Some(1), ..decided(9, 5) };
    check("what was decided is gone: what was before it", manual(&[], None, gone), "[1 3] stable - next 1 candidate - fallback -");
    check("or the next lower one", manual(&[], None, decided(3, 5)), "[3] stable - next 3 candidate - fallback -");
    check(
        "with nothing lower nothing",
        Case { versions: "5", ..manual(&[], None, decided(3, 5)) },
        "[5] stable - next - candidate - fallback -",
    );
}

#[test]
fn the_previous_stable_version_is_kept_for_a_while() {
    let rollout = Rollout { previous_stable: Some(1), ..decided(3, 100) };
    let at = |at| Case { ready: &[1, 3], serving: Some(3), rollout: rollout.clone(), at, ..case() };
    check("at first", at(109), "[1 3] stable 3 next 3 candidate - fallback -");
    check("not for ever", at(110), "[3] stable 3 next 3 candidate - fallback -");
}

#[test]
fn a_frozen_journal_leaves_the_route_as_it_is() {
    let rollout = Rollout { frozen: Some("entry 9: shift".to_owned()), candidate: Some((2, 500)), ..Rollout::default() };
    let frozen = |ready, serving| Case { ready, serving, rollout: rollout.clone(), ..case() };
    check("stable and candidate", frozen(&[1, 2, 3], Some(1)), "[1 2 3] stable 1 next 1 candidate 2@500 fallback -");
    check("a fresh replica begins with the first", frozen(&[], None), "[1 2 3] stable - next 1 candidate 2@500 fallback -");
}

#[test]
fn what_nobody_wants_is_not_resident() {
    for demand in [Demand::Idle, Demand::NotLoaded, Demand::Off] {
        let rollout = Rollout { pinned: Some(1), candidate: Some((2, 1)), ..Rollout::default() };
        let off = Case { demand, ready: &[1, 2, 3], serving: Some(3), rollout, ..case() };
        check(&format!("{demand:?}"), off, "[] stable - next - candidate - fallback -");
    }
}

fn fold_check(
    what: &str,
    before: Option<&str>,
    listed: Option<&str>,
    removal: Removal,
    resident: &[VersionNumber],
    expected: Option<&str>,
) {
    let (before, listed) = (before.map(|text| Arc::new(model(text))), listed.map(|text| Arc::new(model(text))));
    let is_resident = |generation: &Generation| resident.contains(&generation.key.version);
    let after = fold(before.as_ref(), listed.as_ref(), removal, is_resident);
    let found = after.as_ref().map(|model| model.versions.keys().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    assert_eq!(found.as_deref(), expected, "{what}");
    let names: BTreeSet<&str> = after.iter().flat_map(|model| model.problems.iter().map(String::as_str)).collect();
    assert_eq!(names.contains(existing::ABSENT), listed.is_none() && removal == Removal::NotResident && after.is_some(), "{what}");
}

#[test]
fn a_look_takes_away_only_what_it_may() {
    use Removal::{All, NotResident, Nothing};
    fold_check("a first look", None, Some("1 2"), NotResident, &[], Some("1 2"));
    fold_check("more", Some("1"), Some("1 2"), All, &[], Some("1 2"));
    fold_check("less, and not loaded", Some("1 2"), Some("1"), NotResident, &[1], Some("1"));
    fold_check("less, and loaded", Some("1 2"), Some("1"), NotResident, &[2], Some("1 2"));
    fold_check("less, and loaded, Triton's way", Some("1 2"), Some("1"), All, &[2], Some("1"));
    fold_check("a look that failed in part", Some("1 2"), Some("3"), Nothing, &[], Some("1 2 3"));
    fold_check("the model is gone", Some("1 2"), None, NotResident, &[], None);
    fold_check("and served", Some("1 2"), None, NotResident, &[2], Some("2"));
    fold_check("and served, Triton's way", Some("1 2"), None, All, &[2], None);
    fold_check("and the look failed in part", Some("1 2"), None, Nothing, &[], Some("1 2"));
}

#[test]
fn what_has_not_settled_is_not_gone() {
    let before = Arc::new(ListedModel { settings: [("model.toml".to_owned(), Arc::from(&b"x"[..]))].into(), ..model("1 2") });
    let look = |versions: &str, unsettled: &[VersionNumber]| {
        Arc::new(ListedModel { unsettled: unsettled.iter().copied().collect(), ..model(versions) })
    };
    // The first look after a restart: files and settings are there, and count at the second.
    let after = fold(Some(&before), Some(&look("", &[1, 2, 3])), Removal::All, |_| false).unwrap();
    assert!(Arc::ptr_eq(&before, &after));
    // What was taken out of service is, whatever else is not known.
    let yanked = fold(Some(&before), Some(&look("1t 7t", &[1, 2, 3, 7])), Removal::All, |_| false).unwrap();
    assert_eq!(*yanked, ListedModel { versions: model("1t 2").versions, ..ListedModel::clone(&before) });
    let again = fold(Some(&yanked), Some(&look("1t", &[1, 2])), Removal::All, |_| false).unwrap();
    assert!(Arc::ptr_eq(&yanked, &again));
    let after = fold(Some(&before), Some(&look("2", &[1])), Removal::All, |_| false).unwrap();
    assert_eq!(after.versions.keys().collect::<Vec<_>>(), [&1, &2]);
    let after = fold(Some(&before), Some(&look("2", &[3])), Removal::All, |_| false).unwrap();
    assert_eq!(after.versions.keys().collect::<Vec<_>>(), [&2], "what has gone is");
}

#[test]
fn what_has_not_changed_is_shared() {
    let before = Arc::new(model("1 2"));
    let same = fold(Some(&before), Some(&Arc::new(model("1 2"))), Removal::NotResident, |_| false).unwrap();
    assert!(Arc::ptr_eq(&before, &same));
    let kept = fold(Some(&before), Some(&Arc::new(model("1"))), Removal::Nothing, |_| false).unwrap();
    assert!(Arc::ptr_eq(&before, &kept));
}

#[test]
fn a_model_that_stands_still_takes_decisions_and_no_versions() {
    let own = Arc::new(model("1 2"));
    let mut listed = model("1t 2 3");
    listed.rollout.pinned = Some(2);
    let adopted = adopt_decisions(&own, &listed);
    let versions: Vec<(u64, bool)> =
        adopted.versions.iter().map(|(version, generation)| (*version, generation.tombstoned)).collect();
    assert_eq!(versions, [(1, true), (2, false)]);
    assert_eq!(adopted.rollout.pinned, Some(2));
    assert!(Arc::ptr_eq(&own, &adopt_decisions(&own, &own)));
}

#[test]
fn a_source_that_names_the_stable_version_decides() {
    let alias = |name: &str, version| SteeringAlias { name: name.to_owned(), version };
    let check = |stable: Option<u64>, rollout: &str, policy: VersionPolicy, expected: (Option<u64>, &[u64])| {
        let mut model = model("1 2 3 4");
        let by = "mlflow".to_owned();
        let (champion, challenger) = (alias("champion", stable), alias("challenger", None));
        model.steering = Some(Steering { by, stable: champion, candidate: challenger, candidate_weight_bp: 1_000 });
        model.rollout = match rollout {
            "followed" => Rollout { stable: Some(2), stable_highest: Some(2), ..Rollout::default() },
            "pinned" => Rollout { stable: Some(2), pinned: Some(1), ..Rollout::default() },
            _ => Rollout::default(),
        };
        let aspired = aspire(&Circumstances {
            model: &model,
            policy: &policy,
            strategy: RolloutStrategy::Immediate,
            transition: TransitionPolicy::AvailabilityPreserving,
            demand: Demand::Wanted,
            ready: &BTreeSet::new(),
            serving: None,
            keep_previous: Duration::ZERO,
            now: minute(100),
        });
        let found = (aspired.next, aspired.versions.keys().copied().collect::<Vec<_>>());
        assert_eq!(found, (expected.0, expected.1.to_vec()), "{stable:?} {rollout} {policy:?}");
    };
    check(Some(2), "followed", Latest(1), (Some(2), &[2]));
    check(Some(2), "followed", All, (Some(2), &[1, 2, 3, 4]));
    check(Some(2), "followed", Specific(vec![3]), (Some(2), &[2, 3]));
    check(Some(2), "pinned", Latest(1), (Some(1), &[1, 2]));
    // Not followed yet: nobody guesses.
    check(Some(9), "", Latest(1), (None, &[]));
    // Without the name the usual strategy counts.
    check(None, "followed", Latest(1), (Some(4), &[2, 4]));
}
