mod folding;
mod paging;
mod parts;
mod storing;

use chrono::DateTime;
use serde_json::json;

use super::*;

fn entry(seq: u64, op: Op) -> Entry {
    let at = DateTime::from_timestamp(1_000 + i64::try_from(seq).unwrap(), 0).unwrap();
    let id = Uuid::from_u128(u128::from(seq));
    let (by, reason, rollout) = ("me".into(), "because".into(), String::new());
    Entry { schema: ENTRY_SCHEMA, seq, id, at, by, reason, rollout, op, evidence: None, highest: None, published: None }
}

/// One op of each kind, as it is written and as it is stored.
fn every_op() -> Vec<(Op, serde_json::Value)> {
    vec![
        (Op::Weight { version: 2, weight_bp: 1_000 }, json!({"op": "weight", "version": 2, "weight_bp": 1_000})),
        (Op::Pin { version: 2 }, json!({"op": "pin", "version": 2})),
        (Op::Unpin, json!({"op": "unpin"})),
        (Op::Start { version: 2, weight_bp: 50 }, json!({"op": "start", "version": 2, "weight_bp": 50})),
        (Op::Step { weight_bp: 500 }, json!({"op": "step", "weight_bp": 500})),
        (Op::Pause, json!({"op": "pause"})),
        (Op::Resume, json!({"op": "resume"})),
        (Op::Promote { version: None }, json!({"op": "promote"})),
        (Op::Promote { version: Some(2) }, json!({"op": "promote", "version": 2})),
        (Op::Abort, json!({"op": "abort"})),
        (Op::Rollback { version: Some(1) }, json!({"op": "rollback", "version": 1})),
        (Op::Alias { name: "prod".into(), version: Some(2) }, json!({"op": "alias", "alias": "prod", "version": 2})),
        (Op::Alias { name: "prod".into(), version: None }, json!({"op": "alias", "alias": "prod"})),
        (Op::Clear { version: None }, json!({"op": "clear"})),
        (Op::Hold { version: 2 }, json!({"op": "hold", "version": 2})),
        (Op::Disable, json!({"op": "disable"})),
        (Op::Enable, json!({"op": "enable"})),
    ]
}

#[test]
fn entries_are_stored_as_the_format_says() {
    for (op, stored) in every_op() {
        let written = serde_json::to_value(entry(7, op.clone())).unwrap();
        let mut expected = json!({
            "schema": 1, "seq": 7, "id": Uuid::from_u128(7), "at": "1970-01-01T00:16:47Z",
            "by": "me", "reason": "because", "rollout": "",
        });
        expected.as_object_mut().unwrap().extend(stored.as_object().unwrap().clone());
        assert_eq!(written, expected);
        assert_eq!(serde_json::from_value::<Entry>(written).unwrap(), entry(7, op));
    }
    let knowing = Entry { highest: Some(9), ..entry(7, Op::Unpin) };
    let written = serde_json::to_value(knowing.clone()).unwrap();
    assert_eq!(written["highest"], 9);
    assert_eq!(serde_json::from_value::<Entry>(written).unwrap(), knowing);
}

#[test]
fn entries_that_say_nothing_sensible_are_refused() {
    let check = |change: serde_json::Value, expected: &str| {
        let mut stored = serde_json::to_value(entry(1, Op::Weight { version: 2, weight_bp: 1 })).unwrap();
        for (name, value) in change.as_object().unwrap() {
            let members = stored.as_object_mut().unwrap();
            if value.is_null() { drop(members.remove(name)) } else { drop(members.insert(name.clone(), value.clone())) }
        }
        let error = serde_json::from_value::<Entry>(stored).unwrap_err().to_string();
        assert!(error.contains(expected), "{change}: {error} should say {expected}");
    };
    check(json!({"version": null}), "op weight needs `version`");
    check(json!({"weight_bp": null}), "op weight needs `weight_bp`");
    check(json!({"weight_bp": 10_001}), "weight_bp 10001 is above 10000");
    check(json!({"weight_bp": -1}), "invalid value");
    check(json!({"version": 0}), "version 0 is out of range");
    check(json!({"version": u64::MAX}), "is out of range");
    check(json!({"op": "alias"}), "op alias needs `alias`");
    check(json!({"op": null}), "missing field `op`");
    check(json!({"id": "nobody"}), "UUID");
}

#[test]
fn what_a_newer_build_wrote_is_read_as_unknown() {
    let read = |change: serde_json::Value| {
        let mut stored = serde_json::to_value(entry(1, Op::Unpin)).unwrap();
        stored.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value::<Entry>(stored).unwrap().op
    };
    assert_eq!(read(json!({"op": "teleport", "version": 3})), Op::Unknown { op: "teleport".into() });
    assert_eq!(read(json!({"schema": 2})), Op::Unknown { op: "unpin of schema 2".into() });
    let handed_on = json!({"schema": 2, "op": "unpin of schema 2"});
    assert_eq!(read(handed_on), Op::Unknown { op: "unpin of schema 2".into() }, "as another build of ours has read it");
    assert_eq!(read(json!({"colour": "blue"})), Op::Unpin, "unknown members are ignored");
}

#[test]
fn weights() {
    for (text, weight, shown) in [
        ("0%", 0, "0%"),
        ("10%", 1_000, "10%"),
        ("100%", 10_000, "100%"),
        ("0.5%", 50, "0.5%"),
        ("12.34%", 1_234, "12.34%"),
        ("0.05%", 5, "0.05%"),
        ("007%", 700, "7%"),
    ] {
        assert_eq!(text.parse(), Ok(Weight(weight)), "{text}");
        assert_eq!(Weight(weight).to_string(), shown);
    }
    for text in ["", "%", "10", "10 %", "-1%", "100.01%", "101%", "999%", "1.234%", ".5%", "5.%", "1e1%", "١%", "1000%"] {
        assert!(text.parse::<Weight>().is_err(), "{text:?} should be refused");
    }
}
