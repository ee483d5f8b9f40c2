//! Models in the plain layout in an object store: put there by whoever, served, followed, and kept when they vanish.

use bascule_onnx_writer::models::constant;
use serde_json::Value;

use crate::http::call;
use crate::lifecycle::ask;
use crate::sandbox::Sandbox;
use crate::weed::Weed;

/// The digest that a version is served by.
fn digest(status: &Value, version: u64) -> Option<String> {
    let versions = status["models"][0]["versions"].as_array()?;
    let ready = versions.iter().find(|one| one["version"] == version && one["state"] == "READY")?;
    ready["digest"].as_str().map(str::to_owned)
}

#[test]
fn plain_models_in_a_store_are_served_followed_and_kept() {
    let Some(weed) = Weed::start("models") else { return };
    let Some(sandbox) = Sandbox::new() else { return };
    let sandbox = sandbox
        .at(Some("s3://models/plain"))
        .variable("AWS_ACCESS_KEY_ID", "any")
        .variable("AWS_SECRET_ACCESS_KEY", "any")
        .variable("AWS_REGION", "us-east-1")
        .variable("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{}", weed.s3()));
    let store = |method: &str, version: u64, content: &[u8]| {
        let path = format!("/models/plain/m/{version}/model.onnx");
        let answer = call(([127, 0, 0, 1], weed.s3()).into(), method, &path, &[], content);
        assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
    };
    store("PUT", 1, &constant(1.0, 2).bytes);
    let gateway = sandbox.serve().ready();
    gateway.wait_version("m", 1);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));

    store("PUT", 2, &constant(2.0, 2).bytes);
    gateway.wait_version("m", 2);
    let status = gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 2);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 2.0));

    // Other content under the same number is a swap like any other.
    let before = digest(&status, 2);
    assert!(before.is_some(), "{status}");
    store("PUT", 2, &constant(3.0, 2).bytes);
    let status = gateway.eventually_admin("/admin/v1/status", |_, status| {
        let now = digest(status, 2);
        now.is_some() && now != before
    });
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 3.0), "{status}");
    let versions = sandbox.succeed(&["versions", "m", "--registry", "s3://models/plain"]);
    assert_eq!(versions.lines().count(), 3, "{versions}");

    for version in [1, 2] {
        store("DELETE", version, b"");
    }
    gateway.eventually_admin("/admin/v1/status", |_, status| status["registry"]["problems"].to_string().contains("empty now"));
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 3.0));
    gateway.kill();
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 3.0), "from local disk");
}
