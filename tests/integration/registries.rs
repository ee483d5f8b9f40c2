//! Several registries in one gateway.

use bascule_onnx_writer::models::constant;
use serde_json::Value;

use crate::lifecycle::ask;
use crate::sandbox::{Gateway, Sandbox};

/// A gateway whose configuration lists two registries, both folders.
fn sandbox() -> Option<Sandbox> {
    let sandbox = Sandbox::new()?.at(None);
    for name in ["prod", "lab"] {
        std::fs::create_dir(sandbox.path(name)).unwrap();
    }
    let file = "[[registry]]\nname = \"prod\"\nurl = \"prod\"\n\n[[registry]]\nname = \"lab\"\nurl = \"lab\"\n";
    std::fs::write(sandbox.path("bascule.toml"), file).unwrap();
    Some(sandbox)
}

fn publish(sandbox: &Sandbox, registry: &str, model: &str, version: u64, value: f32) {
    let file = sandbox.path(&format!("{model}-{version}.onnx"));
    std::fs::write(&file, constant(value, 2).bytes).unwrap();
    let (file, version) = (file.display().to_string(), version.to_string());
    sandbox.succeed(&["publish", model, &file, "--version", &version, "--registry", registry]);
}

fn problems_of(gateway: &Gateway, model: &str, part: &str) -> Value {
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        let models = status["models"].as_array().cloned().unwrap_or_default();
        let known = models.iter().find(|known| known["name"] == model);
        known.is_some_and(|known| known.to_string().contains(part))
    })
}

#[test]
fn models_of_all_registries_are_served_and_one_that_is_away_changes_nothing() {
    let Some(sandbox) = sandbox() else { return };
    publish(&sandbox, "prod", "digits", 1, 1.0);
    publish(&sandbox, "lab", "faces", 1, 5.0);
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/digits/infer"), (200, 1.0));
    assert_eq!(ask(&gateway, "/v2/models/faces/infer"), (200, 5.0));
    std::fs::rename(sandbox.path("lab"), sandbox.path("away")).unwrap();
    let status =
        gateway.eventually_admin("/admin/v1/status", |_, status| status["registry"]["registries"][1]["last_error"].is_string());
    assert_eq!(status["registry"]["registries"][1]["name"], "lab");
    assert!(status["registry"]["registries"][0]["last_error"].is_null(), "{status}");
    publish(&sandbox, "prod", "digits", 2, 2.0);
    gateway.wait_version("digits", 2);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 2);
    assert_eq!(ask(&gateway, "/v2/models/digits/infer"), (200, 2.0), "the other registry is followed");
    assert_eq!(ask(&gateway, "/v2/models/faces/infer"), (200, 5.0), "and nothing was unloaded");
    drop(gateway);

    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/faces/infer"), (200, 5.0), "a restart serves it from local disk");
    assert_eq!(ask(&gateway, "/v2/models/digits/infer"), (200, 2.0));
    std::fs::rename(sandbox.path("away"), sandbox.path("lab")).unwrap();
    publish(&sandbox, "lab", "faces", 2, 6.0);
    gateway.wait_version("faces", 2);
}

#[test]
fn a_decision_goes_to_the_registry_of_its_model() {
    let Some(sandbox) = sandbox() else { return };
    publish(&sandbox, "prod", "digits", 1, 1.0);
    publish(&sandbox, "lab", "faces", 1, 5.0);
    publish(&sandbox, "lab", "faces", 2, 6.0);
    let gateway = sandbox.serve().ready();
    gateway.wait_version("faces", 2);
    sandbox.succeed(&["rollout", "weight", "faces", "1", "100%", "--gateway", &format!("http://{}", gateway.admin)]);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][1]["stable"] == 1);
    assert!(sandbox.path("lab/faces/rollout").is_dir() && !sandbox.path("prod/faces").exists());
    let journal = sandbox.succeed(&["rollout", "status", "faces", "--registry", "lab"]);
    assert!(journal.contains("100%"), "{journal}");
}

#[test]
fn a_name_in_two_registries_is_an_error_that_names_both_and_what_serves_goes_on() {
    let Some(sandbox) = sandbox() else { return };
    publish(&sandbox, "prod", "digits", 1, 1.0);
    let gateway = sandbox.serve().ready();
    publish(&sandbox, "lab", "digits", 9, 9.0);
    let status = problems_of(&gateway, "digits", "has a model of this name too");
    assert!(status.to_string().contains("`lab`") && status.to_string().contains("`prod`"), "{status}");
    assert_eq!(ask(&gateway, "/v2/models/digits/infer"), (200, 1.0));
    publish(&sandbox, "prod", "digits", 2, 2.0);
    gateway.wait_version("digits", 2);
    drop(gateway);

    let gateway = sandbox.serve().ready();
    gateway.wait_version("digits", 2);
    problems_of(&gateway, "digits", "has a model of this name too");
    drop(gateway);

    // A gateway that never served it can't know whose it is.
    std::fs::remove_dir_all(sandbox.state()).unwrap();
    let gateway = sandbox.serve();
    let status = problems_of(&gateway, "digits", "both have a model of this name");
    assert!(status.to_string().contains("`lab`") && status.to_string().contains("`prod`"), "{status}");
    assert_ne!(ask(&gateway, "/v2/models/digits/infer").0, 200);
}

#[test]
fn commands_that_write_ask_which_registry_is_meant() {
    let Some(sandbox) = sandbox() else { return };
    let file = sandbox.path("m.onnx");
    std::fs::write(&file, constant(1.0, 2).bytes).unwrap();
    let refused = sandbox.run(&["publish", "digits", &file.display().to_string()]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && text.contains("--registry prod|lab"), "{text}");
}
