//! The subcommands that look after a registry, as a user types them: what they print, and how they end.

use bascule_onnx_writer::models::constant;
use serde_json::Value;

use crate::lifecycle::ask;
use crate::sandbox::{Gateway, Sandbox};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("expected JSON, got {text}: {error}"))
}

fn url(gateway: &Gateway) -> String {
    format!("http://{}", gateway.admin)
}

/// A command that has to fail with this code; what it said.
fn fail(sandbox: &Sandbox, code: i32, arguments: &[&str]) -> String {
    let output = sandbox.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn a_signed_version_is_served_and_an_unsigned_one_is_refused_by_name() {
    let Some(sandbox) = Sandbox::new() else { return };
    let made = json(&sandbox.succeed(&["keygen", "release.key", "--json"]));
    let (public, id) = (made["public_key"].as_str().unwrap(), made["key_id"].as_str().unwrap());
    let said = fail(&sandbox, 1, &["keygen", "release.key"]);
    assert!(said.starts_with("error: release.key.pub exists already") && said.contains("\nhint: "), "{said}");
    let secret = std::fs::read_to_string(sandbox.path("release.key")).unwrap();
    let secret = secret.lines().last().unwrap().trim_start_matches("ed25519-secret:").to_owned();

    let sandbox = sandbox.set(&format!("registry.trust={public}"));
    let registry = sandbox.registry().display().to_string();
    assert!(sandbox.publish("m", 1, &constant(1.0, 2)).status.success());
    let gateway = sandbox.serve();
    let status = gateway.eventually_admin("/admin/v1/models/m", |code, model| code == 200 && !model["problems"][0].is_null());
    assert_eq!(status["problems"][0], "version 1 is refused: it is not signed");
    assert_eq!(ask(&gateway, "/v2/models/m/infer").0, 503);
    std::fs::write(sandbox.path("two.onnx"), &constant(2.0, 2).bytes).unwrap();
    let publish =
        ["publish", "m", "two.onnx", "--registry", &registry, "--sign", "release.key", "--wait", "--gateway", &url(&gateway)];
    let printed = sandbox.succeed(&publish);
    assert!(printed.contains(&format!(", signed by {id}")), "{printed}");
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 2.0));
    let printed = sandbox.succeed(&["sign", "m", "1", "--key", "file:release.key", "--registry", &registry]);
    assert!(printed.starts_with(&format!("signed m@1 with key {id}, sha256 ")), "{printed}");
    gateway.eventually_admin("/admin/v1/models/m", |_, model| model["problems"].as_array().is_some_and(Vec::is_empty));

    // What is trusted tomorrow counts on a restart, also while the registry is away; and nothing ever says what the key is.
    gateway.kill();
    std::fs::rename(sandbox.registry(), sandbox.path("away")).unwrap();
    let other = json(&sandbox.succeed(&["keygen", "other.key", "--json"]));
    let stranger = sandbox.serve_with(&["--set", &format!("registry.trust={}", other["public_key"].as_str().unwrap())]);
    let model = stranger.eventually_admin("/admin/v1/models/m", |code, model| code == 200 && !model["problems"][0].is_null());
    assert_eq!(
        model["problems"][0],
        format!("version 2 is refused: it is signed by {public} only, which `registry.trust` does not name")
    );
    assert!(!stranger.log().contains(&secret));
    stranger.kill();
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 2.0), "verified from local disk alone");
}

/// A key that is taken out of a file, from SIGHUP to what is served, refused and said.
#[test]
fn a_hangup_reads_trusted_keys_again_and_names_what_needs_a_restart() {
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox.at(None).set("trial.mode=off");
    let keygen = |name: &str| json(&sandbox.succeed(&["keygen", name, "--json"]))["public_key"].as_str().unwrap().to_owned();
    let (old, new) = (keygen("old.key"), keygen("new.key"));
    let registry = sandbox.registry().display().to_string();
    let configure = |settle_interval: &str| {
        let entry = format!("name = \"one\"\nurl = \"{registry}\"\nsettle_interval = \"{settle_interval}\"");
        std::fs::write(sandbox.path("bascule.toml"), format!("[[registry]]\n{entry}\ntrust = [\"file:trusted.pub\"]\n")).unwrap();
    };
    configure("1s");
    std::fs::write(sandbox.path("trusted.pub"), format!("{old}\n{new}\n")).unwrap();
    for (value, key) in [(1.0, "old.key"), (2.0, "new.key")] {
        std::fs::write(sandbox.path("m.onnx"), &constant(value, 2).bytes).unwrap();
        sandbox.succeed(&["publish", "m", "m.onnx", "--registry", &registry, "--sign", key]);
    }
    let gateway = sandbox.serve().ready();
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 2);

    configure("2s");
    std::fs::write(sandbox.path("trusted.pub"), &old).unwrap();
    gateway.signal("HUP");
    let refused = format!("version 2 is refused: it is signed by {new} only, which `registry.trust` does not name");
    gateway.eventually_admin("/admin/v1/models/m", |_, model| model["problems"][0] == refused.as_str());
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 2.0), "what serves is not taken away");
    let log = gateway.log();
    let settle = log.lines().find(|line| line.contains("registry.settle_interval")).unwrap_or_default();
    assert!(settle.contains("needs a restart") && settle.contains("one=2s"), "{log}");

    std::fs::remove_file(sandbox.path("trusted.pub")).unwrap();
    gateway.signal("HUP");
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        let problem = status["registry"]["problems"][0].as_str().unwrap_or_default();
        problem.contains("trusted.pub") && problem.contains("the keys that were trusted before still count")
    });
    assert!(gateway.log().contains("can't be read: who is trusted stays as it was"), "{}", gateway.log());

    // A restart loads anew.
    std::fs::write(sandbox.path("trusted.pub"), &old).unwrap();
    gateway.kill();
    let gateway = sandbox.serve().ready();
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 1);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
}

#[test]
fn versions_are_listed_compared_and_yanked() {
    let Some(sandbox) = Sandbox::new() else { return };
    let registry = sandbox.registry().display().to_string();
    for (value, run, accuracy) in [(1.0, "run-1", "accuracy=0.5"), (2.0, "run-2", "accuracy=0.75")] {
        std::fs::write(sandbox.path("m.onnx"), &constant(value, 2).bytes).unwrap();
        sandbox.succeed(&["publish", "m", "m.onnx", "--registry", &registry, "--run-id", run, "--metric", accuracy]);
    }
    let gateway = sandbox.serve().ready();
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 2);
    let url = url(&gateway);

    let listed = sandbox.succeed(&["versions", "m", "--registry", &registry]);
    let listed = words(&listed);
    assert_eq!(listed[0], ["VERSION", "STATE", "CREATED", "SIZE", "PUBLISHER", "RUN", "METRICS", "SIGNED", "BY"]);
    assert!(listed[1].starts_with(&["1", "-"]) && listed[1].ends_with(&["run-1", "accuracy=0.5", "-"]), "{listed:?}");
    let diff = json(&sandbox.succeed(&["diff", "m", "1", "2", "--registry", &registry, "--json"]));
    let accuracy = diff["differences"].as_array().unwrap().iter().find(|one| one["field"] == "metric accuracy").unwrap();
    assert_eq!((&accuracy["a"], &accuracy["b"], &accuracy["delta"]), (&"0.5".into(), &"0.75".into(), &0.25.into()));
    let shown = sandbox.succeed(&["diff", "m", "1", "2", "--registry", &registry]);
    assert!(words(&shown).contains(&vec!["lineage", "run_id", "run-1", "run-2", "changed"]), "{shown}");
    let said = fail(&sandbox, 1, &["diff", "m", "1", "9", "--registry", &registry]);
    assert!(said.starts_with("error: m@9 does not exist\nhint: `bascule versions m`"), "{said}");

    let arguments = ["yank", "m", "2", "--registry", &registry, "--gateway", &url];
    let said = fail(&sandbox, 1, &arguments);
    assert!(said.starts_with("error: m@2 serves and was not yanked: it is stable on http://"), "{said}");
    assert!(said.contains("\nhint: `bascule rollout weight m 1 100%`"), "{said}");
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 2.0));
    let printed = sandbox.succeed(&[&arguments[..], &["--force"]].concat());
    assert!(printed.contains("version 1 serves instead"), "{printed}");
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 1);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
    let listed = json(&sandbox.succeed(&["versions", "m", "--registry", &registry, "--json"]));
    assert_eq!(listed[1]["states"][0], "tombstoned");
}

#[test]
fn what_runs_where_is_told_and_silent_gateways_are_named() {
    let Some(sandbox) = Sandbox::new() else { return };
    let registry = sandbox.registry().display().to_string();
    std::fs::write(sandbox.path("m.onnx"), &constant(1.0, 2).bytes).unwrap();
    sandbox.succeed(&["publish", "m", "m.onnx", "--registry", &registry, "--run-id", "run-1"]);
    let gateway = sandbox.serve().ready();
    let url = url(&gateway);
    sandbox.succeed(&["rollout", "weight", "m", "1", "100%", "--gateway", &url, "--reason", "good"]);
    gateway.eventually_admin("/admin/v1/models/m", |_, model| model["decided_at"].is_string());
    let silent = "http://127.0.0.1:9";
    let output = sandbox.run(&["what", "--gateway", &url, "--gateway", silent]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "one of two answers");
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning: no gateway answers at http://127.0.0.1:9"), "{output:?}");
    let line = words(&printed).pop().unwrap();
    assert_eq!(line[..5], ["m", "1", "READY", "stable", "100%"], "{printed}");
    assert!(line[7..].starts_with(&["weight", "1", "100%"]) && line.contains(&"good") && line.contains(&"run-1"), "{printed}");
    assert_eq!(line.last(), Some(&url.as_str()), "{printed}");
    let found = json(&sandbox.succeed(&["where", "m@1", "--gateway", &url, "--registry", &registry, "--json"]));
    let replica = &found["replicas"][0];
    assert_eq!(
        (&replica["gateway"], &replica["stage"], &replica["run_id"]),
        (&url.as_str().into(), &"stable".into(), &"run-1".into())
    );
    assert!(replica["loaded_at"].is_string() && replica["decided_at"].is_string() && replica["digest"].is_string(), "{replica}");
    assert_eq!((&found["decisions"][0]["version"], &found["decisions"][0]["entry"]["reason"]), (&1.into(), &"good".into()));
    assert_eq!(found["differences"], serde_json::json!([]), "the gateway's journal is that of the registry");
    let shown = sandbox.succeed(&["where", "m", "--gateway", &url, "--registry", &registry]);
    assert_eq!(words(&shown).pop().unwrap()[..7], ["m", "1", &url, "cpu", "READY", "stable", "100%"], "{shown}");
    let said = fail(&sandbox, 3, &["what", "--gateway", silent]);
    assert!(said.starts_with("error: no gateway answers at http://127.0.0.1:9") && said.contains("\nhint: "), "{said}");
    let said = fail(&sandbox, 1, &["where", "m@7", "--gateway", &url]);
    assert!(said.starts_with("error: m@7 runs on none of the gateways that answered: 1\nhint: "), "{said}");
}

#[test]
fn damage_is_found_and_only_garbage_is_removed() {
    let Some(sandbox) = Sandbox::new() else { return };
    let registry = sandbox.registry().display().to_string();
    for version in [1, 2] {
        assert!(sandbox.publish("m", version, &constant(version as f32, 2)).status.success());
    }
    let printed = sandbox.succeed(&["verify", "--registry", &registry]);
    assert!(printed.contains(": versions 2, files 2, "), "{printed}");
    let stray = format!("m/blobs/{}", "0".repeat(64));
    sandbox.write(&stray, "stray");
    let printed = sandbox.succeed(&["gc", "--registry", &registry, "--delete"]);
    assert_eq!(printed, "nothing to remove; younger than 1day, which may belong to a publish that is under way: 1\n");
    let printed = sandbox.succeed(&["gc", "--registry", &registry, "--grace", "0s"]);
    assert!(printed.contains(&stray) && printed.ends_with("to be removed with --delete: 1, 5 B\n"), "{printed}");
    let output = sandbox.run(&["gc", "--registry", &registry, "--grace", "0s", "--delete", "--json"]);
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("warning: with a grace time of 0s"), "{output:?}");
    let removed = json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!((&removed["deleted"], &removed["models"][0]["old"][0]["object"]), (&true.into(), &stray.as_str().into()));
    assert!(!sandbox.registry().join(&stray).exists());
    let listed = json(&sandbox.succeed(&["versions", "m", "--registry", &registry, "--json"]));
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let manifest = std::fs::read(sandbox.registry().join("m/versions/1/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let blob = format!("m/blobs/{}", manifest["files"][0]["sha256"].as_str().unwrap());
    let length = std::fs::metadata(sandbox.registry().join(&blob)).unwrap().len();
    sandbox.write(&blob, vec![0; length as usize]);
    let said = fail(&sandbox, 1, &["verify", "m", "--registry", &registry]);
    assert!(said.starts_with("error: m@1: file \"m-1.onnx\" is corrupt: its sha256 is ") && said.contains("\nhint: "), "{said}");
    std::fs::remove_file(sandbox.registry().join(&blob)).unwrap();
    let said = fail(&sandbox, 1, &["verify", "m", "--registry", &registry]);
    assert!(said.starts_with("error: m@1: file \"m-1.onnx\" is missing"), "{said}");
}
