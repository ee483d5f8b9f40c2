//! What a server is told of decisions, where others have moved its aliases or removed the version since.

use chrono::DateTime;
use serde_json::{Value, json};

use super::fake::{Answer, Asked, Fake};
use super::*;
use crate::steering::{Decided, Verdict, WriteBack as _};

fn decided(version: u64, verdict: Verdict, stable_from: &[Option<u64>]) -> Decided {
    let stable_from = stable_from.iter().copied().collect();
    Decided { version, verdict, by: "ann".into(), at: DateTime::UNIX_EPOCH, reason: "better".into(), stable_from }
}

/// A server whose one model has these aliases. Versions from 5 on are gone.
fn server(asked: &Asked, aliases: &[(&str, u64)]) -> Answer {
    let version = asked.query.get("version").cloned().or_else(|| Some(asked.body.get("version")?.as_str()?.to_owned()));
    let is_there = version.is_none_or(|version| version.parse::<u64>().unwrap() < 5);
    match asked.path.rsplit_once("mlflow/").unwrap().1 {
        "registered-models/get" => {
            let aliases: Vec<Value> =
                aliases.iter().map(|(alias, version)| json!({ "alias": alias, "version": version.to_string() })).collect();
            Answer::json(&json!({ "registered_model": { "name": "m", "aliases": aliases } }))
        }
        "model-versions/get" | "model-versions/set-tag" | "registered-models/alias" if is_there => Answer::json(&json!({})),
        _ => Answer::with(404, "", br#"{"error_code": "RESOURCE_DOES_NOT_EXIST"}"#),
    }
}

/// Which verdict was set as a tag, and how aliases were changed.
async fn told(aliases: &'static [(&'static str, u64)], decided: &Decided) -> (Vec<String>, Vec<String>) {
    let fake = Fake::start(|asked| server(asked, aliases)).await;
    fake.source(MlflowOptions::default()).tell(&ModelName::new("m").unwrap(), decided).await.unwrap();
    let (mut verdicts, mut changes) = (Vec::new(), Vec::new());
    for asked in fake.asked() {
        let text = |field: &str| asked.body[field].as_str().unwrap_or_default().to_owned();
        if asked.path.ends_with("/alias") {
            changes.push(format!("{} {} {}", asked.method, text("alias"), text("version")));
        } else if text("key") == "bascule.verdict" {
            verdicts.push(format!("{} {}", text("version"), text("value")));
        }
    }
    (verdicts, changes)
}

#[tokio::test]
async fn an_alias_that_others_have_moved_stays() {
    let check = async |aliases: &'static [(&'static str, u64)], decided: Decided, changes: &[&str]| {
        let (verdicts, changed) = told(aliases, &decided).await;
        assert_eq!(verdicts, [format!("{} {}", decided.version, decided.verdict.as_str())], "{aliases:?}");
        assert_eq!(changed, changes, "{aliases:?} {decided:?}");
    };
    let promoted = |from: &[Option<u64>]| decided(2, Verdict::Promoted, from);
    check(&[("champion", 1)], promoted(&[Some(1)]), &["POST champion 2"]).await;
    check(&[("champion", 1), ("challenger", 2)], promoted(&[Some(1)]), &["DELETE challenger ", "POST champion 2"]).await;
    check(&[], promoted(&[None]), &["POST champion 2"]).await;
    check(&[("champion", 4)], promoted(&[Some(1), Some(4)]), &["POST champion 2"]).await;
    check(&[("champion", 2), ("challenger", 2)], promoted(&[Some(1)]), &["DELETE challenger "]).await;
    // Moved or removed by others.
    check(&[("champion", 3)], promoted(&[Some(1)]), &[]).await;
    check(&[("champion", 3), ("challenger", 2)], promoted(&[None, Some(1)]), &[]).await;
    check(&[], promoted(&[Some(1)]), &[]).await;
    let aborted = || decided(2, Verdict::Aborted, &[Some(1)]);
    check(&[("champion", 1), ("challenger", 2)], aborted(), &["DELETE challenger "]).await;
    check(&[("champion", 1), ("challenger", 3)], aborted(), &[]).await;
    check(&[("champion", 1)], aborted(), &[]).await;
}

#[tokio::test]
async fn a_version_that_is_gone_is_as_good_as_told() {
    for verdict in [Verdict::Promoted, Verdict::Aborted, Verdict::RolledBack] {
        let (_, changes) = told(&[("champion", 1)], &decided(7, verdict, &[Some(1)])).await;
        assert!(changes.is_empty(), "{changes:?}");
    }
    // What answers so although the version is there lets no changes through.
    let fake = Fake::start(|asked| match asked.method.as_str() {
        "GET" => server(asked, &[("champion", 1)]),
        _ => Answer::with(404, "", b""),
    })
    .await;
    let source = fake.source(MlflowOptions::default());
    let refused = source.tell(&ModelName::new("m").unwrap(), &decided(2, Verdict::Promoted, &[Some(1)])).await;
    assert!(refused.is_err());
}
