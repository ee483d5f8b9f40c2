use bascule_registry::{Entry, Verdict};
use proptest::prelude::*;

use super::*;
use crate::testing::{minute, name};

fn steering(stable: Option<u64>, candidate: Option<u64>) -> Steering {
    let alias = |name: &str, version| SteeringAlias { name: name.to_owned(), version };
    Steering {
        by: "mlflow".to_owned(),
        stable: alias("champion", stable),
        candidate: alias("challenger", candidate),
        candidate_weight_bp: 1_000,
    }
}

fn entry(seq: u64, by: &str, op: Op) -> Entry {
    let id = Uuid::from_u128(u128::from(seq));
    let at = minute(seq);
    let (by, reason, rollout) = (by.to_owned(), "because".to_owned(), String::new());
    Entry { schema: 1, seq, id, at, by, reason, rollout, op, evidence: None, highest: Some(9), published: None }
}

fn entries(written: &[(&str, Op)]) -> Vec<Entry> {
    (1..).zip(written).map(|(seq, (by, op))| entry(seq, by, op.clone())).collect()
}

/// An op in one word.
fn said(op: &Op) -> String {
    match op {
        Op::Alias { name, version } => format!("{name}={}", version.map_or("none".to_owned(), |version| version.to_string())),
        Op::Weight { version, weight_bp } => format!("weight {version} {}", Weight(*weight_bp)),
        Op::Promote { version: Some(version) } => format!("promote {version}"),
        op => op.name().to_owned(),
    }
}

fn promote(version: u64) -> Op {
    Op::Promote { version: Some(version) }
}

fn weight(version: u64, percent: u32) -> Op {
    Op::Weight { version, weight_bp: percent * 100 }
}

fn alias(name: &str, version: u64) -> Op {
    Op::Alias { name: name.to_owned(), version: Some(version) }
}

/// What was written before; where champion and challenger point; what can be used; what is to be written; what is waited for.
fn check(written: &[(&str, Op)], points: (Option<u64>, Option<u64>), usable: &[u64], expected: &[&str], waiting: &[&str]) {
    let entries = entries(written);
    let mut rollout = Rollout::fold(&entries);
    let steering = steering(points.0, points.1);
    let usable = usable.iter().copied().collect();
    let course = follow(&steering, &usable, &rollout);
    let case = format!("{written:?} with {points:?}");
    assert_eq!(course.ops.iter().map(|step| said(&step.op)).collect::<Vec<_>>(), expected, "{case}");
    assert_eq!(course.waiting.len(), waiting.len(), "{case}: {:?}", course.waiting);
    for (found, expected) in course.waiting.iter().zip(waiting) {
        assert!(found.contains(expected), "{case}: {found} should say {expected}");
    }
    // The journal takes all of it, and then nothing is left to be written.
    for step in course.ops {
        rollout.validate(&step.op).unwrap_or_else(|error| panic!("{case}: {error}"));
        let next = rollout.seq + 1;
        rollout.apply(&entry(next, "mlflow", step.op));
    }
    assert_eq!(follow(&steering, &usable, &rollout).ops, [], "{case}: again");
}

#[test]
fn the_stable_name() {
    let followed = [("mlflow", promote(1)), ("mlflow", alias("champion", 1))];
    check(&[], (None, None), &[1, 2], &[], &[]);
    check(&[], (Some(1), None), &[1, 2], &["promote 1", "champion=1"], &[]);
    check(&followed, (Some(1), None), &[1, 2], &[], &[]);
    check(&followed, (Some(2), None), &[1, 2], &["promote 2", "champion=2"], &[]);
    check(&followed, (None, None), &[1, 2], &["champion=none"], &[]);
    check(&followed, (Some(7), None), &[1, 2], &[], &["champion points at version 7"]);
    // What broke off half-way is done again; what somebody did by hand already is only noted.
    check(&[("mlflow", promote(1))], (Some(1), None), &[1], &["champion=1"], &[]);
    let by_hand = [followed[0].clone(), followed[1].clone(), ("ann", promote(2))];
    check(&by_hand, (Some(1), None), &[1, 2, 3], &[], &[]);
    check(&by_hand, (Some(2), None), &[1, 2, 3], &["champion=2"], &[]);
    check(&by_hand, (Some(3), None), &[1, 2, 3], &["promote 3", "champion=3"], &[]);
    // A candidate of the operator's own is dropped, one of the source's stays.
    let tested = [followed[0].clone(), followed[1].clone(), ("ann", weight(2, 30))];
    check(&tested, (Some(2), None), &[1, 2, 3], &["promote 2", "champion=2"], &[]);
    check(&tested, (Some(3), None), &[1, 2, 3], &["abort", "promote 3", "champion=3"], &[]);
    let pinned = [followed[0].clone(), followed[1].clone(), ("ann", Op::Pin { version: 1 })];
    check(&pinned, (Some(2), None), &[1, 2], &["promote 2", "champion=2"], &[]);
    let frozen = [("ann", Op::Unknown { op: "teleport".into() })];
    check(&frozen, (Some(1), Some(2)), &[1, 2], &[], &[]);
}

#[test]
fn the_name_under_test() {
    let followed = [("mlflow", promote(1)), ("mlflow", alias("champion", 1))];
    let tested = [followed[0].clone(), followed[1].clone(), ("mlflow", weight(2, 10)), ("mlflow", alias("challenger", 2))];
    check(&followed, (Some(1), Some(2)), &[1, 2], &["weight 2 10%", "challenger=2"], &[]);
    check(&tested, (Some(1), Some(2)), &[1, 2], &[], &[]);
    check(&tested, (Some(1), Some(3)), &[1, 2, 3], &["abort", "weight 3 10%", "challenger=3"], &[]);
    check(&tested, (Some(1), None), &[1, 2, 3], &["abort", "challenger=none"], &[]);
    check(&tested, (Some(1), Some(7)), &[1, 2, 3], &[], &["challenger points at version 7"]);
    // Promoted in the source, with the name taken away and not.
    check(&tested, (Some(2), None), &[1, 2], &["promote 2", "champion=2", "challenger=none"], &[]);
    check(&tested, (Some(2), Some(2)), &[1, 2], &["promote 2", "champion=2"], &[]);
    check(&tested, (Some(3), Some(2)), &[1, 2, 3], &["abort", "promote 3", "champion=3", "weight 2 10%"], &[]);
    check(&[], (Some(1), Some(2)), &[1, 2], &["promote 1", "champion=1", "weight 2 10%", "challenger=2"], &[]);
    check(&followed, (Some(1), Some(1)), &[1, 2], &["challenger=1"], &[]);
    // The operator goes first: the share that was chosen stays, a version that was dropped is not brought back.
    let raised = [tested[0].clone(), tested[1].clone(), tested[2].clone(), tested[3].clone(), ("ann", weight(2, 50))];
    check(&raised, (Some(1), Some(2)), &[1, 2], &[], &[]);
    let dropped = [tested[0].clone(), tested[1].clone(), tested[2].clone(), tested[3].clone(), ("ann", Op::Abort)];
    check(&dropped, (Some(1), Some(2)), &[1, 2], &[], &[]);
    check(&dropped, (Some(1), None), &[1, 2], &["challenger=none"], &[]);
    let pinned = [followed[0].clone(), followed[1].clone(), ("ann", Op::Pin { version: 1 })];
    check(&pinned, (Some(1), Some(2)), &[1, 2], &[], &["version 1 is no longer pinned"]);
    let both = [tested[0].clone(), tested[1].clone(), tested[2].clone(), tested[3].clone(), ("ann", Op::Pin { version: 1 })];
    check(&both, (Some(3), Some(2)), &[1, 2, 3], &["abort", "promote 3", "champion=3", "challenger=none"], &[]);
    // Beside nothing there is nothing to test.
    check(&[], (None, Some(2)), &[2], &[], &["once another version is stable"]);
    check(&[], (None, Some(2)), &[1, 2], &["weight 2 10%", "challenger=2"], &[]);
    check(&[], (Some(7), Some(2)), &[1, 2], &[], &["champion points at version 7", "once another version is stable"]);
}

#[test]
fn names_that_the_rollout_has_for_itself() {
    let mut steering = steering(Some(1), None);
    steering.stable.name = "stable".to_owned();
    let course = follow(&steering, &[1].into(), &Rollout::default());
    let ops: Vec<String> = course.ops.iter().map(|step| said(&step.op)).collect();
    assert_eq!(ops, ["promote 1", "mlflow.stable=1"]);
    assert!(course.ops.iter().all(|step| Rollout::default().validate(&step.op).is_ok()));
}

#[test]
fn ids_are_those_of_the_decision() {
    let model = name("m");
    let id = id_after(4, &model, &promote(2));
    assert_eq!(id, id_after(4, &model, &promote(2)));
    let others = [
        id_after(5, &model, &promote(2)),
        id_after(4, &model, &promote(3)),
        id_after(4, &name("n"), &promote(2)),
        id_after(4, &model, &weight(2, 10)),
        id_after(4, &model, &weight(2, 20)),
        id_after(4, &model, &alias("champion", 2)),
        id_after(4, &model, &alias("challenger", 2)),
    ];
    assert!(!others.contains(&id) && others.iter().collect::<BTreeSet<_>>().len() == others.len());
}

fn told(written: &[(&str, Op)]) -> Vec<(u64, Verdict)> {
    let owed = owed(&steering(None, None), &entries(written));
    owed.into_iter().map(|one| (one.decided.version, one.decided.verdict)).collect()
}

#[test]
fn what_the_source_is_told() {
    use Verdict::{Aborted, Promoted, RolledBack};
    let followed = [("mlflow", promote(1)), ("mlflow", alias("champion", 1))];
    let after = |more: &[(&'static str, Op)]| told(&[&followed[..], more].concat());
    assert_eq!(after(&[]), []);
    assert_eq!(after(&[("ann", promote(2))]), [(2, Promoted)]);
    assert_eq!(after(&[("ann", weight(2, 10))]), []);
    assert_eq!(after(&[("ann", weight(2, 10)), ("ann", weight(2, 100))]), [(2, Promoted)]);
    assert_eq!(after(&[("ann", weight(2, 10)), ("judge", Op::Abort)]), [(2, Aborted)]);
    assert_eq!(after(&[("ann", weight(2, 10)), ("ann", weight(2, 0))]), [(2, Aborted)]);
    // Only the last word counts, and what has come back as a move of the source's own is done.
    assert_eq!(after(&[("ann", promote(2)), ("ann", promote(3))]), [(3, Promoted)]);
    assert_eq!(after(&[("ann", promote(2)), ("ann", Op::Rollback { version: None })]), [(2, RolledBack), (1, Promoted)]);
    assert_eq!(after(&[("ann", promote(2)), ("mlflow", alias("champion", 2))]), []);
    assert_eq!(after(&[("ann", promote(2)), ("mlflow", promote(4)), ("mlflow", alias("champion", 4))]), []);
    let aborted = [("ann", weight(2, 10)), ("ann", Op::Abort)];
    assert_eq!(after(&[&aborted[..], &[("mlflow", Op::Alias { name: "challenger".into(), version: None })]].concat()), []);
    assert_eq!(after(&[&aborted[..], &[("mlflow", alias("champion", 1))]].concat()), [(2, Aborted)]);
    // What the source itself has decided it knows.
    assert_eq!(after(&[("mlflow", weight(2, 10)), ("mlflow", Op::Abort)]), []);
    let decided = owed(&steering(None, None), &entries(&[("ann", promote(2))]))[0].decided.clone();
    assert_eq!((decided.by.as_str(), decided.reason.as_str(), decided.at), ("ann", "because", minute(1)));
}

/// From where a promotion moves the source's name: from where it was followed, and from where it may have been moved since.
#[test]
fn where_the_name_is_expected() {
    let from = |written: &[(&str, Op)]| {
        let mut owed = owed(&steering(None, None), &entries(written));
        owed.pop().unwrap().decided.stable_from.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(from(&[("ann", promote(2))]), [None]);
    let followed = [("mlflow", promote(1)), ("mlflow", alias("champion", 1))];
    assert_eq!(from(&[&followed[..], &[("ann", promote(2))]].concat()), [Some(1)]);
    assert_eq!(from(&[&followed[..], &[("ann", promote(2)), ("ann", promote(3))]].concat()), [Some(1), Some(2)]);
    let moved = [("ann", promote(2)), ("mlflow", promote(4)), ("mlflow", alias("champion", 4)), ("ann", promote(3))];
    assert_eq!(from(&[&followed[..], &moved].concat()), [Some(4)]);
    let removed = ("mlflow", Op::Alias { name: "champion".into(), version: None });
    assert_eq!(from(&[&followed[..], &[removed, ("ann", promote(3))]].concat()), [None]);
}

fn any_op() -> impl Strategy<Value = (bool, Op)> {
    let version = 1..5u64;
    let op = prop_oneof![
        version.clone().prop_map(promote),
        (version.clone(), 0..=100u32).prop_map(|(version, percent)| weight(version, percent)),
        Just(Op::Abort),
        version.clone().prop_map(|version| Op::Pin { version }),
        Just(Op::Unpin),
        Just(Op::Rollback { version: None }),
        Just(Op::Clear { version: None }),
        (prop_oneof![Just("champion"), Just("challenger")], proptest::option::of(version))
            .prop_map(|(name, version)| Op::Alias { name: name.to_owned(), version }),
    ];
    (any::<bool>(), op)
}

proptest! {
    /// Whatever was written, the journal takes what follows from the names, and then they are followed or waited for.
    #[test]
    fn following_ends(written in proptest::collection::vec(any_op(), 0..20), points in any::<(Option<u8>, Option<u8>)>()) {
        let mut rollout = Rollout::default();
        for (by_source, op) in written {
            if rollout.validate(&op).is_ok() {
                let next = rollout.seq + 1;
                rollout.apply(&entry(next, if by_source { "mlflow" } else { "ann" }, op));
            }
        }
        let version = |number: Option<u8>| number.map(|number| u64::from(number % 5) + 1);
        let steering = steering(version(points.0), version(points.1));
        let usable = [1, 2, 3, 4].into();
        for step in follow(&steering, &usable, &rollout).ops {
            prop_assert!(rollout.validate(&step.op).is_ok(), "{:?} is refused by {:?}", step.op, rollout);
            let next = rollout.seq + 1;
            rollout.apply(&entry(next, "mlflow", step.op));
        }
        let again = follow(&steering, &usable, &rollout);
        prop_assert_eq!(&again.ops, &[]);
        let followed = |alias: &SteeringAlias| rollout.aliases.get(&alias.name).copied() == alias.version;
        let open = [&steering.stable, &steering.candidate].into_iter().filter(|alias| !followed(alias)).count();
        prop_assert_eq!(open, again.waiting.len());
    }
}
