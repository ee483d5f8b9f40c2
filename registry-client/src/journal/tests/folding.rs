use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Folds these ops, each of which has to be allowed when its turn comes.
fn fold(ops: &[Op]) -> Rollout {
    let mut rollout = Rollout::default();
    for (op, seq) in ops.iter().zip(1..) {
        rollout.validate(op).unwrap_or_else(|error| panic!("{seq}: {error}"));
        rollout.apply(&entry(seq, op.clone()));
    }
    rollout
}

fn weight(version: u64, weight_bp: u32) -> Op {
    Op::Weight { version, weight_bp }
}

/// What matters for the route, in one line.
fn route(rollout: &Rollout) -> String {
    let number = |version: Option<u64>| version.map_or("-".to_owned(), |version| version.to_string());
    let candidate = rollout.candidate.map_or("-".into(), |(version, weight)| format!("{version}@{weight}"));
    let set = |set: &BTreeSet<u64>| set.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    format!(
        "stable {} (before {}) candidate {candidate} pinned {} rejected [{}] held [{}]",
        number(rollout.stable),
        number(rollout.previous_stable),
        number(rollout.pinned),
        set(&rollout.rejected),
        set(&rollout.held),
    )
}

#[test]
fn the_fold() {
    let check = |ops: &[Op], expected: &str| assert_eq!(route(&fold(ops)), expected, "{ops:?}");
    check(&[], "stable - (before -) candidate - pinned - rejected [] held []");
    check(&[weight(2, 1_000)], "stable - (before -) candidate 2@1000 pinned - rejected [] held []");
    check(&[weight(2, 1_000), weight(2, 5_000)], "stable - (before -) candidate 2@5000 pinned - rejected [] held []");
    check(&[weight(1, 10_000)], "stable 1 (before -) candidate - pinned - rejected [] held []");
    let promoted = [weight(1, 10_000), weight(2, 1_000), weight(2, 10_000)];
    check(&promoted, "stable 2 (before 1) candidate - pinned - rejected [] held []");
    check(&[weight(1, 10_000), weight(1, 10_000)], "stable 1 (before -) candidate - pinned - rejected [] held []");
    check(&[weight(2, 1_000), weight(2, 0)], "stable - (before -) candidate - pinned - rejected [2] held []");
    check(&[weight(2, 0)], "stable - (before -) candidate - pinned - rejected [2] held []");
    check(&[weight(2, 0), weight(2, 100)], "stable - (before -) candidate 2@100 pinned - rejected [] held []");
    let replaced = [weight(2, 1_000), weight(3, 10_000)];
    check(&replaced, "stable 3 (before -) candidate - pinned - rejected [2] held []");
    check(
        &[weight(2, 0), weight(3, 0), Op::Clear { version: Some(2) }],
        "stable - (before -) candidate - pinned - rejected [3] held []",
    );
    let all = [weight(2, 0), Op::Hold { version: 3 }, Op::Clear { version: None }];
    check(&all, "stable - (before -) candidate - pinned - rejected [] held []");
    check(&[Op::Pin { version: 2 }], "stable - (before -) candidate - pinned 2 rejected [] held []");
    check(
        &[Op::Pin { version: 2 }, Op::Pin { version: 3 }, Op::Unpin],
        "stable - (before -) candidate - pinned - rejected [] held []",
    );
    check(&[Op::Hold { version: 2 }], "stable - (before -) candidate - pinned - rejected [] held [2]");
    check(&[Op::Hold { version: 2 }, weight(2, 1)], "stable - (before -) candidate 2@1 pinned - rejected [] held []");
    let start = Op::Start { version: 2, weight_bp: 0 };
    check(std::slice::from_ref(&start), "stable - (before -) candidate 2@0 pinned - rejected [] held []");
    let step = Op::Step { weight_bp: 500 };
    check(&[start.clone(), step.clone()], "stable - (before -) candidate 2@500 pinned - rejected [] held []");
    check(&[start.clone(), Op::Abort], "stable - (before -) candidate - pinned - rejected [2] held []");
    check(&[start.clone(), Op::Promote { version: None }], "stable 2 (before -) candidate - pinned - rejected [] held []");
    check(&[Op::Promote { version: Some(4) }], "stable 4 (before -) candidate - pinned - rejected [] held []");
    let back = [promoted.as_slice(), &[Op::Rollback { version: None }]].concat();
    check(&back, "stable 1 (before -) candidate - pinned - rejected [2] held []");
    let further = [promoted.as_slice(), &[Op::Rollback { version: Some(7) }]].concat();
    check(&further, "stable 7 (before -) candidate - pinned - rejected [2] held []");
    check(
        &[weight(1, 10_000), start, Op::Rollback { version: Some(5) }],
        "stable 5 (before -) candidate - pinned - rejected [1,2] held []",
    );
}

#[test]
fn what_came_after_a_decision_is_told_by_its_number() {
    let late = entry(1_000_000, Op::Unpin).at;
    let decided = |op: Op, highest| {
        let mut rollout = Rollout::default();
        rollout.apply(&Entry { highest, ..entry(1, op) });
        rollout
    };
    let full = decided(weight(2, 10_000), Some(4));
    for (version, follows) in [(1, false), (2, false), (3, false), (4, false), (5, true)] {
        // Whatever clocks say: packed before the decision and published after it, or the other way round.
        for created in [DateTime::UNIX_EPOCH, late] {
            assert_eq!(full.came_after(version, created), follows, "{version}");
        }
    }
    // An entry of an older build says nothing of what existed.
    let old = decided(weight(2, 10_000), None);
    assert!(old.came_after(3, late) && !old.came_after(3, DateTime::UNIX_EPOCH) && !old.came_after(1, late));
    assert!(decided(Op::Pause, Some(4)).came_after(1, DateTime::UNIX_EPOCH), "nothing was decided");
    // The last decision counts.
    let mut again = full;
    again.apply(&Entry { highest: Some(6), ..entry(2, Op::Rollback { version: Some(1) }) });
    assert!(!again.came_after(5, late) && again.came_after(7, DateTime::UNIX_EPOCH));
}

#[test]
fn flags_and_aliases() {
    let alias = |name: &str, version| Op::Alias { name: name.into(), version };
    let rollout = fold(&[alias("prod", Some(1)), alias("prod", Some(2)), alias("old", Some(1)), alias("old", None)]);
    assert_eq!(rollout.aliases.into_iter().collect::<Vec<_>>(), [("prod".to_owned(), 2)]);
    assert!(fold(&[Op::Disable]).disabled && !fold(&[Op::Disable, Op::Enable]).disabled);
    assert!(fold(&[weight(2, 10), Op::Pause]).paused && !fold(&[weight(2, 10), Op::Pause, Op::Resume]).paused);
    assert!(!fold(&[weight(2, 10), Op::Pause, Op::Abort]).paused, "a pause ends with its candidate");
}

#[test]
fn a_rollout_keeps_its_id_while_its_weight_changes() {
    let mut rollout = fold(&[weight(2, 100)]);
    let id = rollout.id.clone();
    assert_eq!(id, Uuid::from_u128(1).to_string());
    assert_eq!(rollout.since, Some(entry(1, Op::Unpin).at));
    rollout.apply(&entry(2, weight(2, 9_000)));
    rollout.apply(&entry(3, Op::Pause));
    assert_eq!((&rollout.id, rollout.since), (&id, Some(entry(2, Op::Unpin).at)));
    rollout.apply(&entry(4, weight(2, 0)));
    rollout.apply(&entry(5, weight(2, 100)));
    assert_eq!(rollout.id, Uuid::from_u128(5).to_string(), "a new try assigns callers anew");
    let mut named = entry(6, Op::Start { version: 3, weight_bp: 1 });
    named.rollout = "spring".into();
    rollout.apply(&named);
    assert_eq!(rollout.id, "spring");
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let check = |ops: &[Op], op: Op, reason: &str| {
        let error = fold(ops).validate(&op).expect_err(reason).to_string();
        assert!(error.starts_with(op.name()) && error.contains(reason), "{error:?} should say {reason:?}");
    };
    let start = |version| Op::Start { version, weight_bp: 0 };
    check(&[], weight(1, 10_001), "0 to 10000 basis points");
    check(&[weight(1, 10_000)], weight(1, 500), "version 1 is stable");
    check(&[weight(1, 10_000)], weight(1, 0), "version 1 is stable");
    check(&[weight(1, 10_000)], start(1), "version 1 is stable");
    check(&[weight(2, 500)], weight(3, 500), "version 2 is the candidate with 5%: give it 0% or 100% first");
    check(&[weight(2, 500)], start(3), "version 2 is being rolled out");
    check(&[Op::Pin { version: 1 }], weight(2, 500), "version 1 is pinned: unpin it first");
    check(&[Op::Disable], start(2), "rollouts are disabled");
    check(&[Op::Disable], Op::Disable, "disabled already");
    check(&[], Op::Enable, "enabled already");
    check(&[], Op::Unpin, "nothing is pinned");
    for op in [Op::Abort, Op::Pause, Op::Resume, Op::Step { weight_bp: 1 }] {
        check(&[], op, "there is no candidate");
    }
    check(&[weight(2, 1)], Op::Resume, "is not paused");
    check(&[weight(2, 1), Op::Pause], Op::Pause, "is paused");
    check(&[weight(2, 1), Op::Pause], Op::Step { weight_bp: 2 }, "is paused");
    check(&[], Op::Promote { version: None }, "no candidate: name a version");
    check(&[weight(2, 1)], Op::Promote { version: Some(3) }, "version 2 is the candidate");
    check(&[], Op::Rollback { version: None }, "no previous stable version");
    check(&[weight(1, 10_000)], Op::Rollback { version: Some(1) }, "stable already");
    check(&[weight(2, 1)], Op::Hold { version: 2 }, "takes traffic already");
    check(&[], Op::Alias { name: "7".into(), version: Some(1) }, "neither a number");
    check(&[], Op::Alias { name: "stable".into(), version: Some(1) }, "neither a number");
    check(&[], Op::Alias { name: "a/b".into(), version: Some(1) }, "the rule of model names");
    check(&[], Op::Alias { name: "prod".into(), version: None }, "no such alias");
    check(&[], Op::Unknown { op: "teleport".into() }, "this build does not know it");
}

#[test]
fn an_unknown_entry_freezes_the_route_as_it_stood() {
    let mut rollout = fold(&[weight(1, 10_000), weight(2, 500)]);
    let before = route(&rollout);
    rollout.apply(&entry(3, Op::Unknown { op: "teleport".into() }));
    rollout.apply(&entry(4, weight(2, 10_000)));
    assert_eq!((route(&rollout), rollout.seq), (before, 4));
    assert_eq!(rollout.frozen.as_deref(), Some("entry 3: teleport"));
    let refused = rollout.validate(&Op::Abort).unwrap_err();
    assert!(matches!(&refused, JournalError::Frozen(entry) if entry == "entry 3: teleport"), "{refused}");
}

#[test]
fn a_hold_in_the_manifest_lasts_until_an_entry_gives_traffic_or_clears() {
    let rollout = fold(&[weight(2, 500), Op::Hold { version: 9 }]);
    assert!(rollout.holds(1, true) && !rollout.holds(1, false));
    assert!(!rollout.holds(2, true) && rollout.holds(9, false));
    assert!(!fold(&[Op::Clear { version: Some(1) }]).holds(1, true));
    assert!(fold(&[Op::Clear { version: Some(1) }, Op::Hold { version: 1 }]).holds(1, false));
}

fn any_op() -> impl Strategy<Value = Op> {
    (0_usize..18, 1_u64..5, 0_u32..12_000).prop_map(|(kind, version, weight_bp)| match every_op().into_iter().nth(kind) {
        Some((Op::Weight { .. }, _)) => Op::Weight { version, weight_bp },
        Some((Op::Start { .. }, _)) => Op::Start { version, weight_bp },
        Some((Op::Step { .. }, _)) => Op::Step { weight_bp },
        Some((Op::Pin { .. }, _)) => Op::Pin { version },
        Some((Op::Hold { .. }, _)) => Op::Hold { version },
        Some((Op::Clear { .. }, _)) => Op::Clear { version: (version > 2).then_some(version) },
        Some((Op::Rollback { .. }, _)) => Op::Rollback { version: (version > 2).then_some(version) },
        Some((op, _)) => op,
        None => Op::Unknown { op: "teleport".into() },
    })
}

proptest! {
    /// Any entries, sensible or not: the fold takes them, does not depend on how it is cut, and takes none twice.
    #[test]
    fn the_fold_is_total_and_can_be_cut_and_repeated(ops in prop::collection::vec(any_op(), 0..40), cut in 0_usize..40) {
        let entries: Vec<_> = ops.into_iter().zip(1..).map(|(op, seq)| entry(seq, op)).collect();
        let whole = Rollout::fold(&entries);
        prop_assert_eq!(whole.seq, entries.len() as u64);
        let cut = cut.min(entries.len());
        let mut rollout: Rollout = serde_json::from_slice(&serde_json::to_vec(&Rollout::fold(&entries[..cut])).unwrap()).unwrap();
        for entry in &entries {
            rollout.apply(entry);
            rollout.apply(entry);
        }
        prop_assert_eq!(&rollout, &whole);
        if let Some((version, weight)) = whole.candidate {
            prop_assert!(weight < FULL_WEIGHT_BP, "all traffic is stable's");
            prop_assert!(!whole.rejected.contains(&version) && !whole.id.is_empty());
        }
        prop_assert!(whole.held.is_disjoint(&whole.released));
    }

    /// Entries that are allowed never leave the state in contradiction.
    #[test]
    fn allowed_entries_never_contradict_each_other(ops in prop::collection::vec(any_op(), 0..60)) {
        let mut rollout = Rollout::default();
        for op in ops {
            if rollout.validate(&op).is_ok() {
                let before = rollout.clone();
                rollout.apply(&entry(rollout.seq + 1, op.clone()));
                let candidate = rollout.candidate.map(|(version, _)| version);
                prop_assert!(candidate.is_none() || candidate != rollout.stable, "{:?} on {:?}", op, before);
                prop_assert!(candidate.is_none_or(|version| !rollout.rejected.contains(&version)), "{:?} on {:?}", op, before);
                prop_assert!(candidate.is_none_or(|version| !rollout.held.contains(&version)), "{:?} on {:?}", op, before);
                prop_assert!(rollout.stable.is_none_or(|version| !rollout.held.contains(&version)), "{:?} on {:?}", op, before);
                prop_assert!(rollout.paused <= candidate.is_some(), "{:?} on {:?}", op, before);
            }
        }
    }
}
