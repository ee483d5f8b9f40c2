//! The recorded behaviour of a real Triton: every case is sent here too, and what is answered otherwise is listed with its reason in
//! `tests/recorded-differences.toml`, no more and no less.

mod case;
mod compare;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use crate::http::post;
use crate::sandbox::{Gateway, Sandbox, repository, skip};
use case::{Answer, Call, Case};
use compare::{Difference, Kind};
use wire::Wire;

/// Names the folder with the cases, where it isn't beside the repository.
const FOLDER_VARIABLE: &str = "BASCULE_OIP_CASES";

/// What the recorded server had not loaded at its start.
const NOT_LOADED: [&str; 5] = ["not_loaded", "broken", "bad_config", "no_version", "ident_bf16"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    difference: Vec<Listed>,
}

/// Cases that are answered otherwise, for one reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    kind: Kind,
    /// The status or code that is answered instead of the recorded one.
    answers: Option<String>,
    reason: String,
    cases: Vec<String>,
}

impl Listed {
    fn says(&self, found: &Difference) -> bool {
        self.kind == found.kind && self.answers.as_ref().is_none_or(|answers| *answers == found.answered)
    }
}

fn listed() -> BTreeMap<String, Listed> {
    let listing: Listing = toml::from_str(include_str!("../recorded-differences.toml")).unwrap();
    let mut listed = BTreeMap::new();
    for difference in listing.difference {
        assert!(!difference.reason.is_empty() && !difference.cases.is_empty(), "a difference without reason or cases");
        let Listed { kind, answers, reason, cases } = difference;
        for id in cases {
            let entry = Listed { kind, answers: answers.clone(), reason: reason.clone(), cases: Vec::new() };
            assert!(listed.insert(id.clone(), entry).is_none(), "{id} is listed twice");
        }
    }
    listed
}

/// The folder with cases and models; where there is none, the test that calls this is reported as skipped.
fn folder_or_skip() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from) {
        assert!(folder.join("cases").is_dir(), "{FOLDER_VARIABLE} is {}, which has no cases", folder.display());
        return Some(folder);
    }
    let folder = repository().join("../shared/oip-cases");
    if folder.join("cases").is_dir() {
        return Some(folder);
    }
    skip(&format!("the recorded cases are not here; {FOLDER_VARIABLE} names their folder"));
    None
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A gateway over a copy of the recorded models, with those loaded that the recorded server had loaded.
fn serve(sandbox: &Sandbox, folder: &Path, models: &BTreeSet<String>) -> Gateway {
    copy(folder, &sandbox.registry());
    let gateway = sandbox.serve().ready();
    for name in models {
        if !NOT_LOADED.contains(&name.as_str()) {
            // Files count once they have kept still through two looks, so the first load may be too early to see them.
            gateway.eventually(&format!("/v2/models/{name}/ready"), |status, _| {
                post(gateway.http, &format!("/v2/repository/models/{name}/load"), &json!({}));
                status == 200
            });
        }
    }
    gateway
}

/// What the cases of one protocol came to.
#[derive(Default)]
struct Outcome {
    alike: usize,
    /// Differ as they are listed.
    different: usize,
    wrong: Vec<String>,
}

impl Outcome {
    fn add(&mut self, case: &Case, answer: &Answer, listed: Option<Listed>) {
        self.wrong.extend(compare::without_text(case, answer).map(|problem| format!("{}: {problem}", case.id)));
        let problem = match (compare::difference(case, answer), listed) {
            (None, None) => {
                self.alike += 1;
                return;
            }
            (None, Some(listed)) => format!("listed, but answered as recorded ({})", listed.reason),
            (Some(found), None) => format!("{:?} differs and is not listed\n{}", found.kind, found.shown),
            (Some(found), Some(listed)) if listed.says(&found) => {
                self.different += 1;
                return;
            }
            (Some(found), Some(_)) => format!("{:?} differs otherwise than listed\n{}", found.kind, found.shown),
        };
        self.wrong.push(format!("{}: {problem}", case.id));
    }
}

/// Replays the cases that `chosen` is true for, in the order of their recording, against a gateway of their own: so were they recorded.
#[expect(clippy::print_stdout, reason = "the count, for those who run this with --nocapture")]
fn replay(protocol: &str, chosen: impl Fn(&Call) -> bool) {
    let Some(folder) = folder_or_skip() else { return };
    let Some(sandbox) = Sandbox::new().map(|sandbox| sandbox.set("load.mode=explicit")) else { return };
    let models = fs::read_dir(folder.join("models")).unwrap();
    let models = models.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let gateway = serve(&sandbox, &folder.join("models"), &models);
    let wire = Wire::to(&gateway);
    let (mut listed, mut outcome, mut replayed) = (listed(), Outcome::default(), 0);
    let cases = case::read_all(&folder.join("cases"), models);
    for case in &cases {
        let listed = listed.remove(&case.id);
        if chosen(&case.call) {
            outcome.add(case, &wire.send(&case.call), listed);
            replayed += 1;
        }
    }
    let Outcome { alike, different, mut wrong } = outcome;
    wrong.extend(listed.into_keys().map(|id| format!("{id}: listed, but there is no such case")));
    println!("recorded cases over {protocol}: {replayed} replayed, {alike} alike, {different} listed differences");
    assert!(wrong.is_empty(), "{} cases\n{}\n{}", wrong.len(), wrong.join("\n"), gateway.log());
}

#[test]
fn recorded_requests_over_http_are_answered_as_triton_does_or_as_listed() {
    replay("HTTP", |call| !matches!(call, Call::Grpc { .. }));
}

#[test]
fn recorded_requests_over_grpc_are_answered_as_triton_does_or_as_listed() {
    replay("gRPC", |call| matches!(call, Call::Grpc { .. }));
}
