//! Rollout decisions of several gateways in one place, where their registry can hold none. The place is a real object store.

use bascule_onnx_writer::models::constant;
use serde_json::{Value, json};

use crate::faults::{Fault, Proxy};
use crate::http::{get, post};
use crate::lifecycle::ask;
use crate::sandbox::{Gateway, Sandbox, skip};
use crate::servers::{Server, free_port, listens};
use crate::weed::Weed;

const JOURNAL: &str = "s3://decisions/team";

/// A gateway's folder; all of them serve one plain directory.
fn replica(port: u16, registry: Option<&str>) -> Option<Sandbox> {
    let sandbox = Sandbox::new()?;
    let registry = registry.map_or_else(|| sandbox.registry().display().to_string(), str::to_owned);
    let sandbox = sandbox
        .at(Some(&registry))
        .variable("AWS_ACCESS_KEY_ID", "any")
        .variable("AWS_SECRET_ACCESS_KEY", "any")
        .variable("AWS_REGION", "us-east-1")
        .variable("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{port}"))
        .variable("BASCULE_ROLLOUT_JOURNAL", JOURNAL);
    Some(sandbox)
}

fn is_split(status: &Value, weight_bp: u64) -> bool {
    let model = &status["models"][0];
    model["stable"] == 1 && model["candidate"]["version"] == 2 && model["candidate"]["weight_bp"] == weight_bp
}

fn wait_split(gateway: &Gateway, weight_bp: u64) {
    gateway.eventually_admin("/admin/v1/status", |_, status| is_split(status, weight_bp));
}

/// Both versions answer by number, and the split is what it was.
fn assert_serves(gateway: &Gateway, weight_bp: u64, why: &str) {
    assert_eq!(ask(gateway, "/v2/models/m/versions/1/infer"), (200, 1.0), "{why}");
    assert_eq!(ask(gateway, "/v2/models/m/versions/2/infer"), (200, 2.0), "{why}");
    let status = get(gateway.admin, "/admin/v1/status").json_or_null();
    assert!(is_split(&status, weight_bp), "{why}: {status}");
}

/// The command's exit code and what it said on standard error.
fn weigh(sandbox: &Sandbox, gateway: &Gateway, version: &str, weight: &str) -> (Option<i32>, String) {
    let url = format!("http://{}", gateway.admin);
    let output = sandbox.run(&["rollout", "weight", "m", version, weight, "--gateway", &url]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Waits for some more looks at the registry.
fn looks(gateway: &Gateway, count: usize) {
    let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        seen.borrow_mut().insert(status["registry"]["last_good_look"].to_string());
        seen.borrow().len() > count
    });
}

#[test]
fn replicas_follow_one_journal_and_nothing_moves_while_it_is_away() {
    let Some(mut weed) = Weed::start("decisions") else { return };
    let Some(one) = replica(weed.s3(), None) else { return };
    let registry = one.registry().display().to_string();
    let Some(other) = replica(weed.s3(), Some(&registry)) else { return };
    one.plain("m", 1, &constant(1.0, 2));
    one.plain("m", 2, &constant(2.0, 2));
    let (first, second) = (one.serve().ready(), other.serve().ready());
    let done = (Some(0), String::new());
    assert_eq!(weigh(&one, &first, "1", "100%"), done);
    assert_eq!(weigh(&one, &first, "2", "25%"), done);
    for gateway in [&first, &second] {
        wait_split(gateway, 2500);
        gateway.wait_version("m", 1);
        gateway.wait_version("m", 2);
    }
    let journal = &get(second.admin, "/admin/v1/status").json_or_null()["registry"]["journal"];
    assert!(journal["describe"] == JOURNAL && journal["last_good_look"].is_string(), "{journal}");

    weed.stop();
    for gateway in [&first, &second] {
        let status =
            gateway.eventually_admin("/admin/v1/status", |_, status| status["registry"]["journal"]["last_error"].is_string());
        assert!(status["registry"]["journal"]["last_good_look"].is_string(), "{status}");
        assert!(status["registry"]["last_error"].is_null() && status["ready"] == true, "{status}");
    }
    let (code, text) = weigh(&one, &first, "2", "50%");
    assert!(code == Some(1) && text.contains("rollout.journal s3://decisions/team can't be reached"), "{code:?} {text}");
    let shown = other.succeed(&["status", "--gateway", &format!("http://{}", second.admin)]);
    assert!(
        shown.contains("rollout journal (s3://decisions/team), looked at ") && shown.contains("what was decided stays"),
        "{shown}"
    );
    // It would take over at once, were it known that nobody has decided otherwise.
    one.plain("m", 3, &constant(3.0, 2));
    looks(&second, 5);
    assert_serves(&first, 2500, "away");
    assert_serves(&second, 2500, "away");

    first.kill();
    let first = one.serve().ready();
    looks(&first, 5);
    assert_serves(&first, 2500, "restarted while it is away");
    let status = get(first.admin, "/admin/v1/status").json_or_null();
    assert!(status["registry"]["journal"]["last_good_look"].is_null(), "{status}");

    std::fs::remove_dir_all(one.registry().join("m/3")).unwrap();
    weed.restart();
    for gateway in [&first, &second] {
        gateway.eventually_admin("/admin/v1/status", |_, status| {
            let journal = &status["registry"]["journal"];
            journal["last_error"].is_null() && journal["last_good_look"].is_string()
        });
        assert_serves(gateway, 2500, "back");
    }
    assert_eq!(weigh(&other, &second, "2", "50%"), done);
    wait_split(&first, 5000);

    // Without a gateway.
    one.succeed(&["rollout", "weight", "m", "2", "75%", "--registry", &registry]);
    wait_split(&first, 7500);
    wait_split(&second, 7500);
    let refused = one.run(&["rollout", "pin", "m", "9", "--registry", &registry]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("version 9 of m does not exist"), "{refused:?}");
    let entries = one.succeed(&["rollout", "status", "m", "--registry", &registry, "--json"]);
    let entries: Value = serde_json::from_str(&entries).unwrap();
    let weights: Vec<_> = entries.as_array().unwrap().iter().map(|entry| entry["weight_bp"].as_u64().unwrap()).collect();
    assert_eq!(weights, [10_000, 2_500, 5_000, 7_500]);
    post(first.admin, "/admin/v1/kick", &json!({}));
    assert_serves(&first, 7500, "all of it");
}

#[test]
fn a_journal_that_hangs_holds_up_nothing_else() {
    let Some(weed) = Weed::start("decisions") else { return };
    let proxy = Proxy::before(([127, 0, 0, 1], weed.s3()).into());
    let Some(sandbox) = replica(proxy.address.port(), None) else { return };
    sandbox.plain("m", 1, &constant(1.0, 2));
    sandbox.plain("m", 2, &constant(2.0, 2));
    let gateway = sandbox.serve().ready();
    assert_eq!(weigh(&sandbox, &gateway, "1", "100%").0, Some(0));
    assert_eq!(weigh(&sandbox, &gateway, "2", "25%").0, Some(0));
    wait_split(&gateway, 2500);
    gateway.wait_version("m", 2);
    proxy.set(Fault::Hang);
    let status = gateway.eventually_admin("/admin/v1/status", |_, status| status["registry"]["journal"]["last_error"].is_string());
    assert!(status["registry"]["journal"]["last_error"].to_string().contains("no answer within 5 s"), "{status}");
    assert!(sandbox.publish("other", 1, &constant(9.0, 2)).status.success());
    gateway.wait_version("other", 1);
    assert_serves(&gateway, 2500, "it hangs");
    gateway.kill();
    let gateway = sandbox.serve().ready();
    assert_serves(&gateway, 2500, "restarted while it hangs");
    proxy.set(Fault::None);
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        let journal = &status["registry"]["journal"];
        journal["last_error"].is_null() && journal["last_good_look"].is_string()
    });
    assert_eq!(weigh(&sandbox, &gateway, "2", "50%").0, Some(0));
    wait_split(&gateway, 5000);
}

#[test]
fn a_place_that_can_hold_no_journal_is_refused_by_the_start_and_by_check() {
    let Some(weed) = Weed::start("decisions") else { return };
    let Some(sandbox) = replica(weed.s3(), None) else { return };
    sandbox.plain("m", 1, &constant(1.0, 2));
    let (status, log) = sandbox.try_serve(&["--set", "rollout.journal=https://host/journal"]).err().unwrap();
    let expected = "rollout.journal: \"https://host/journal\" can't hold a journal: it lacks put-if-absent";
    assert!(!status.success() && log.replace("\ncaused by: ", ": ").contains(expected), "{status}: {log}");
    let registry = sandbox.registry().display().to_string();
    let check = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let output = sandbox.run(&["check", "--registry", &registry].into_iter().chain(sets).collect::<Vec<_>>());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(&[]), (Some(0), String::new()));
    let (code, text) = check(&["rollout.journal=https://host/journal"]);
    assert!(code == Some(1) && text.contains(expected), "{code:?} {text}");
    let (code, text) = check(&["rollout.journal=s3://nobody-made-this/x"]);
    assert!(code == Some(1) && text.contains("rollout.journal s3://nobody-made-this/x can't be reached"), "{code:?} {text}");
    drop(weed);
    let (code, text) = check(&[]);
    assert!(code == Some(1) && text.contains("rollout.journal s3://decisions/team can't be reached"), "{code:?} {text}");
}

/// Python's own server over a folder, which hands out files and takes none.
fn serve_folder(folder: &std::path::Path) -> Option<(Server, u16)> {
    if !std::process::Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        skip("there is no python3");
        return None;
    }
    let port = free_port();
    let start = |_: &std::path::Path| {
        let mut command = std::process::Command::new("python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]).arg(folder).arg(port.to_string());
        command
    };
    Some((Server::start(start, || listens(port)), port))
}

#[test]
fn decisions_on_a_registry_that_is_only_read_go_on_from_its_owners() {
    let Some(sandbox) = Sandbox::new() else { return };
    let Some((server, port)) = serve_folder(&sandbox.registry()) else { return };
    let owner = sandbox.registry().display().to_string();
    for version in [1, 2] {
        assert!(sandbox.publish("m", version, &constant(version as f32, 2)).status.success());
    }
    sandbox.succeed(&["rollout", "weight", "m", "1", "100%", "--registry", &owner]);
    let place = format!("http://127.0.0.1:{port}");
    let sandbox = sandbox.at(Some(&place));
    let gateway = sandbox.serve().ready();
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 1);
    let done = (Some(0), String::new());
    assert_eq!(weigh(&sandbox, &gateway, "2", "25%"), done);
    wait_split(&gateway, 2500);
    gateway.wait_version("m", 2);
    sandbox.succeed(&["rollout", "weight", "m", "2", "50%", "--registry", &owner]);
    wait_split(&gateway, 5000);
    drop(server);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["registry"]["last_error"].is_string());
    assert_eq!(weigh(&sandbox, &gateway, "2", "75%"), done, "what was begun goes on without the registry");
    wait_split(&gateway, 7500);
    gateway.kill();
    let gateway = sandbox.serve().ready();
    assert_serves(&gateway, 7500, "restarted without the registry");
}
