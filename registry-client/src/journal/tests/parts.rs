use super::*;

/// Each version with its part and the entry since which it has it, in one line.
fn parts(ops: &[Op]) -> String {
    let entries: Vec<Entry> = ops.iter().zip(1..).map(|(op, seq)| entry(seq, op.clone())).collect();
    let parts = deciding_entries(&entries);
    parts.iter().map(|(version, (part, entry))| format!("{version} {part:?} {}", entry.seq)).collect::<Vec<_>>().join(", ")
}

#[test]
fn what_gave_each_version_its_part() {
    let check = |ops: &[Op], expected: &str| assert_eq!(parts(ops), expected, "{ops:?}");
    let weight = |version, weight_bp| Op::Weight { version, weight_bp };
    check(&[], "");
    check(&[Op::Disable, Op::Alias { name: "prod".into(), version: Some(1) }], "");
    check(&[weight(1, 10_000)], "1 Stable 1");
    check(&[weight(1, 10_000), weight(1, 10_000)], "1 Stable 1");
    check(&[weight(1, 10_000), weight(2, 1_000)], "1 Stable 1, 2 Candidate 2");
    check(&[weight(1, 10_000), weight(2, 1_000), Op::Step { weight_bp: 2_000 }, Op::Pause], "1 Stable 1, 2 Candidate 3");
    // Who promotes or rolls back need not name a version.
    check(&[weight(1, 10_000), weight(2, 1_000), Op::Promote { version: None }], "1 Open 3, 2 Stable 3");
    check(&[weight(1, 10_000), weight(2, 10_000), Op::Rollback { version: None }], "1 Stable 3, 2 Rejected 3");
    check(&[weight(1, 10_000), weight(2, 1_000), Op::Abort], "1 Stable 1, 2 Rejected 3");
    check(&[weight(2, 0), Op::Clear { version: Some(2) }], "2 Open 2");
    check(&[Op::Hold { version: 3 }], "3 Held 1");
    // A pin takes the traffic of the others, and its end gives it back.
    check(&[weight(1, 10_000), Op::Pin { version: 2 }], "1 Open 2, 2 Pinned 2");
    check(&[weight(1, 10_000), Op::Pin { version: 2 }, Op::Unpin], "1 Stable 3, 2 Open 3");
    check(&[weight(1, 10_000), Op::Pin { version: 1 }, Op::Unpin], "1 Stable 3");
    // What nobody can follow stops it.
    check(&[weight(1, 10_000), Op::Unknown { op: "teleport".into() }, weight(2, 10_000)], "1 Stable 1");
}

#[test]
fn without_the_first_entries_what_is_left_is_right() {
    let all: Vec<Entry> = [
        Op::Weight { version: 1, weight_bp: 10_000 },
        Op::Weight { version: 2, weight_bp: 1_000 },
        Op::Step { weight_bp: 2_000 },
        Op::Weight { version: 3, weight_bp: 10_000 },
    ]
    .iter()
    .zip(1..)
    .map(|(op, seq)| entry(seq, op.clone()))
    .collect();
    let known = deciding_entries(&all[2..]);
    assert_eq!(known.len(), 1, "what the first ones decided is not known: {known:?}");
    assert_eq!(known[&3], (Part::Stable, &all[3]));
    assert!(Part::Stable.takes_traffic() && !Part::Rejected.takes_traffic());
}
