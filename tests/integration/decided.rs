//! `bascule where` and `bascule what`: which version runs where, since when, who decided so and why, and which run made it; wherever the
//! journal of the model is kept.

use bascule_onnx_writer::models::constant;
use serde_json::{Value, json};

use crate::oci::Registry;
use crate::sandbox::{Gateway, Sandbox};

fn told(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    let text = sandbox.succeed(&[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("expected JSON, got {text}: {error}"))
}

fn url(gateway: &Gateway) -> String {
    format!("http://{}", gateway.admin)
}

/// The lines of a table, without its head, that are about these versions.
fn lines<'a>(text: &'a str, version: &str) -> Vec<Vec<&'a str>> {
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.filter(|words| words.len() > 2 && words[..2] == ["m", version]).collect()
}

fn has_stable(gateway: &Gateway, version: u64) {
    gateway.eventually_admin("/admin/v1/models/m", |_, model| model["stable"] == version);
}

/// Version 1 gets a quarter of the traffic, from Ann, who says why.
fn try_the_old_one(sandbox: &Sandbox, gateway: &Gateway) {
    sandbox.succeed(&["rollout", "weight", "m", "1", "25%", "--gateway", &url(gateway), "--reason", "compare once more"]);
    gateway.eventually_admin("/admin/v1/models/m", |_, model| {
        model["candidate"]["version"] == 1 && model["journal_seq"] == 1 && model["versions"][0]["state"] == "READY"
    });
}

/// Two versions in the plain layout, and a gateway that serves them.
fn plain() -> Option<(Sandbox, Gateway)> {
    let sandbox = Sandbox::new()?.variable("USER", "ann").set("trial.mode=off");
    sandbox.plain("m", 1, &constant(1.0, 2));
    sandbox.plain("m", 2, &constant(2.0, 2));
    let gateway = sandbox.serve().ready();
    has_stable(&gateway, 2);
    Some((sandbox, gateway))
}

#[test]
fn what_a_gateway_decided_on_plain_models_is_told_with_its_reason() {
    let Some((sandbox, gateway)) = plain() else { return };
    let url = url(&gateway);
    try_the_old_one(&sandbox, &gateway);

    let found = told(&sandbox, &["where", "m", "--gateway", &url]);
    let [one, two] = found["replicas"].as_array().unwrap().as_slice() else { panic!("two versions: {found}") };
    assert_eq!((&one["version"], &one["stage"], &one["traffic_bp"]), (&json!(1), &json!("candidate"), &json!(2_500)));
    let entry = &one["decision"]["entry"];
    assert_eq!((&entry["by"], &entry["reason"], &entry["seq"]), (&json!("ann"), &json!("compare once more"), &json!(1)));
    assert_eq!((&one["since"], &one["decision"]["part"]), (&entry["at"], &json!("candidate")));
    assert!(one["loaded_at"].is_string() && one["digest"].as_str().is_some_and(|digest| digest.len() == 64), "{one}");
    assert_eq!((&two["stage"], &two["decision"], &two["strategy"]), (&json!("stable"), &json!(null), &json!("immediate")));
    assert_eq!(two["since"], two["loaded_at"], "nobody decided");
    let journal = &found["journals"][0];
    assert_eq!((&journal["keeper"], &journal["by"], &journal["seq"]), (&json!("state directory"), &json!(url), &json!(1)));
    assert!(journal["place"].as_str().unwrap().contains(&sandbox.state().display().to_string()), "{journal}");
    assert_eq!(found["differences"], json!([]));

    let shown = sandbox.succeed(&["where", "m@1", "--gateway", &url]);
    let line = lines(&shown, "1").pop().unwrap_or_else(|| panic!("{shown}"));
    assert_eq!(line[..7], ["m", "1", &url, "cpu", "READY", "candidate", "25%"], "{shown}");
    assert_eq!(line[9..16], ["weight", "1", "25%", "ann", "compare", "once", "more"], "{shown}");
    assert!(lines(&shown, "2").is_empty(), "{shown}");
    // The folder holds no journal of this model: there is nothing to compare with.
    let with_registry = told(&sandbox, &["where", "m", "--gateway", &url, "--registry", &sandbox.registry().display().to_string()]);
    assert_eq!((&with_registry["journals"], &with_registry["differences"]), (&found["journals"], &json!([])));

    let shown = sandbox.succeed(&["what", "--gateway", &url]);
    let line = lines(&shown, "1").pop().unwrap_or_else(|| panic!("{shown}"));
    assert_eq!(line[..5], ["m", "1", "READY", "candidate", "25%"], "{shown}");
    assert_eq!(
        (line[7..14].join(" ").as_str(), line.last()),
        ("weight 1 25% ann compare once more", Some(&url.as_str())),
        "{shown}"
    );
    let line = lines(&shown, "2").pop().unwrap_or_else(|| panic!("{shown}"));
    assert_eq!((line[..5].join(" ").as_str(), line[7]), ("m 2 READY stable 75%", "immediate"), "{shown}");
    let what = told(&sandbox, &["what", "--gateway", &url]);
    assert_eq!((&what["versions"][0]["decision"], &what["versions"][0]["since"]), (&one["decision"], &one["since"]));
    assert_eq!(what["versions"][0]["replicas"][0]["loaded_at"], one["loaded_at"]);

    // A restart loads it anew, and changes nothing about who decided, and when.
    let before = one["loaded_at"].clone();
    gateway.kill();
    let gateway = sandbox.serve().ready();
    let path = "/admin/v1/models/m";
    gateway.eventually_admin(path, |_, model| model["candidate"]["version"] == 1 && model["versions"][0]["state"] == "READY");
    let again = told(&sandbox, &["where", "m@1", "--gateway", &self::url(&gateway)]);
    let again = &again["replicas"][0];
    assert_eq!((&again["decision"], &again["since"]), (&one["decision"], &one["since"]));
    assert_ne!(again["loaded_at"], before);
}

#[test]
fn gateways_that_decide_apart_are_told_and_those_that_share_a_journal_agree() {
    let Some((sandbox, one)) = plain() else { return };
    let place = sandbox.registry().display().to_string();
    let other = || Some(Sandbox::new()?.variable("USER", "ben").set("trial.mode=off").at(Some(&place)));
    let Some(apart) = other() else { return };
    let two = apart.serve().ready();
    has_stable(&two, 2);
    try_the_old_one(&sandbox, &one);
    let (a, b) = (url(&one), url(&two));
    let shown = sandbox.succeed(&["what", "--gateway", &a, "--gateway", &b]);
    assert_eq!(lines(&shown, "2").len(), 2, "75% here and 100% there: {shown}");
    let found = told(&sandbox, &["where", "m", "--gateway", &a, "--gateway", &b]);
    let difference = found["differences"][0].as_str().unwrap();
    assert!(difference.starts_with(&format!("m: {a} has 1 entry that {b} has not, the last: weight 1 25% by ann")), "{difference}");
    assert!(difference.contains("`rollout.journal`"), "{difference}");
    let shown = sandbox.succeed(&["where", "m", "--gateway", &a, "--gateway", &b]);
    assert!(shown.ends_with(&format!("difference: {difference}\n")), "{shown}");
    drop((one, two));

    let shared = format!("rollout.journal={}", sandbox.path("decisions").display());
    let (Some(first), Some(second)) = (other(), other()) else { return };
    let (first, second) = (first.set(&shared), second.set(&shared));
    let (one, two) = (first.serve().ready(), second.serve().ready());
    has_stable(&one, 2);
    has_stable(&two, 2);
    try_the_old_one(&first, &one);
    two.eventually_admin("/admin/v1/models/m", |_, model| {
        model["candidate"]["version"] == 1 && model["versions"][0]["state"] == "READY"
    });
    let (a, b) = (url(&one), url(&two));
    let found = told(&first, &["where", "m@1", "--gateway", &a, "--gateway", &b]);
    assert_eq!((&found["differences"], &found["journals"][1]["keeper"]), (&json!([]), &json!("rollout.journal")));
    assert_eq!(found["replicas"][0]["decision"], found["replicas"][1]["decision"]);
    let shown = first.succeed(&["what", "--gateway", &a, "--gateway", &b]);
    let line = lines(&shown, "1").pop().unwrap_or_else(|| panic!("{shown}"));
    assert!(line.contains(&"ben") && line.ends_with(&[&a, &b]), "one line for both: {shown}");
}

#[test]
fn a_registry_that_says_other_than_the_gateway_is_told() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.variable("USER", "ann").set("trial.mode=off");
    let registry = sandbox.registry().display().to_string();
    for version in [1, 2] {
        assert!(sandbox.publish("m", version, &constant(version as f32, 2)).status.success());
    }
    let gateway = sandbox.serve().ready();
    has_stable(&gateway, 2);
    try_the_old_one(&sandbox, &gateway);
    let url = url(&gateway);
    let found = told(&sandbox, &["where", "m", "--gateway", &url, "--registry", &registry]);
    assert_eq!((&found["differences"], &found["journals"][0]["keeper"]), (&json!([]), &json!("registry")));
    assert_eq!(found["journals"].as_array().unwrap().len(), 2, "the gateway's answer, and the registry itself");
    assert_eq!(found["replicas"][0]["publisher"], "ann");

    // A copy of the registry in which somebody has decided otherwise.
    let copy = sandbox.path("copy").display().to_string();
    assert!(std::process::Command::new("cp").args(["-r", &registry, &copy]).status().unwrap().success());
    sandbox.succeed(&["rollout", "pin", "m", "1", "--registry", &copy, "--reason", "night shift"]);
    let shown = sandbox.succeed(&["where", "m", "--gateway", &url, "--registry", &copy]);
    let difference = shown.lines().last().unwrap();
    assert!(difference.starts_with("difference: m: the registry, ") && difference.contains(" has 1 entry that http"), "{shown}");
    assert!(difference.contains("pin 1 by ann at ") && difference.ends_with("(night shift)"), "{shown}");
    let what = told(&sandbox, &["what", "--gateway", &url, "--registry", &copy]);
    assert!(what["differences"][0].as_str().is_some_and(|difference| difference.contains("night shift")), "{what}");

    // While the registry is away nobody can read the journal; what runs is told all the same.
    std::fs::rename(sandbox.registry(), sandbox.path("away")).unwrap();
    let output = sandbox.run(&["where", "m@1", "--gateway", &url, "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains(&format!("warning: m: its journal can't be read at {url}")), "{said}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["replicas"][0]["stage"], &found["journals"]), (&json!("candidate"), &json!([])));
}

#[test]
fn what_runs_from_an_oci_registry_is_told_with_its_run() {
    let Some(sandbox) = Sandbox::new() else { return };
    let Some(registry) = Registry::start() else { return };
    let place = registry.place();
    let sandbox = sandbox.at(Some(&place)).variable("USER", "ann").set("trial.mode=off");
    let file = sandbox.path("model.onnx").display().to_string();
    for (value, run) in [(1.0, "run-1"), (2.0, "run-2")] {
        std::fs::write(&file, &constant(value, 2).bytes).unwrap();
        sandbox.succeed(&["publish", "m", &file, "--registry", &place, "--run-id", run]);
    }
    let gateway = sandbox.serve().ready();
    has_stable(&gateway, 2);
    let url = url(&gateway);
    sandbox.succeed(&["rollout", "pin", "m", "1", "--gateway", &url, "--reason", "the new one drifts"]);
    has_stable(&gateway, 1);
    let output = sandbox.run(&["where", "m@1", "--gateway", &url, "--registry", &place, "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.starts_with("note: a registry at oci:// holds no rollout journals"), "{said}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let replica = &found["replicas"][0];
    assert_eq!((&replica["run_id"], &replica["publisher"], &replica["stage"]), (&json!("run-1"), &json!("ann"), &json!("stable")));
    let (entry, part) = (&replica["decision"]["entry"], &replica["decision"]["part"]);
    assert_eq!((part, &entry["reason"], &replica["since"]), (&json!("pinned"), &json!("the new one drifts"), &entry["at"]));
    assert!(replica["loaded_at"].is_string() && replica["digest"].as_str().is_some_and(|digest| digest.len() == 64), "{replica}");
    assert_eq!(found["journals"][0]["keeper"], "state directory");
    let shown = sandbox.succeed(&["what", "--gateway", &url]);
    let line = lines(&shown, "1").pop().unwrap_or_else(|| panic!("{shown}"));
    assert_eq!(line[..5], ["m", "1", "READY", "stable", "100%"], "{shown}");
    assert_eq!(line[7..16].join(" "), "pin 1 ann the new one drifts run-1 ann", "{shown}");
}
