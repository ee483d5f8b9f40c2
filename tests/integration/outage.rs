//! What becomes of what serves while its registry is stopped, cut off, slow or lying: nothing. The registry is a real object store.

use bascule_onnx_writer::models::constant;
use serde_json::Value;

use crate::faults::{Fault, Proxy};
use crate::lifecycle::ask;
use crate::sandbox::{Gateway, Sandbox};
use crate::weed::Weed;

const BUCKET: &str = "models";

/// An S3 server that can be stopped and started again, the proxy before it, and a gateway's folder.
struct World {
    weed: Weed,
    proxy: Proxy,
    sandbox: Sandbox,
}

impl World {
    fn new() -> Option<World> {
        let weed = Weed::start(BUCKET)?;
        let proxy = Proxy::before(([127, 0, 0, 1], weed.s3()).into());
        let sandbox = Sandbox::new()?
            .at(Some(&format!("s3://{BUCKET}/live")))
            .variable("AWS_ACCESS_KEY_ID", "any")
            .variable("AWS_SECRET_ACCESS_KEY", "any")
            .variable("AWS_REGION", "us-east-1")
            .variable("AWS_ENDPOINT_URL", &format!("http://{}", proxy.address));
        Some(World { weed, proxy, sandbox })
    }

    fn start(&mut self) {
        self.weed.restart();
    }

    /// Whether what is kept for a restart says so.
    fn keeps(&self, text: &str) -> bool {
        let parts = std::fs::read_dir(self.sandbox.state()).unwrap().map(|entry| entry.unwrap().path());
        let kept = parts.filter_map(|part| std::fs::read_to_string(part.join("served/m.json")).ok());
        kept.map(|kept| kept.split_whitespace().collect::<String>()).any(|kept| kept.contains(text))
    }

    fn stop(&mut self) {
        self.weed.stop();
    }

    /// Publishes past the proxy: others can reach the registry. All but the first take no traffic by themselves.
    fn publish(&self, model: &str, version: u64, value: f32) {
        let file = self.sandbox.path(&format!("{model}-{version}.onnx"));
        std::fs::write(&file, constant(value, 2).bytes).unwrap();
        let (file, number) = (file.display().to_string(), version.to_string());
        let place = format!("s3://{BUCKET}/live");
        let hold: &[&str] = if version > 1 { &["--hold"] } else { &[] };
        let arguments = [&["publish", model, &file, "--version", &number, "--registry", &place], hold].concat();
        let mut command = self.sandbox.command(&arguments);
        let output = command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.weed.s3())).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Two replicas' worth of state: a stable version and a candidate with a share.
    fn serve_two_versions(&self) -> Gateway {
        self.publish("m", 1, 1.0);
        let gateway = self.sandbox.serve().ready();
        let url = format!("http://{}", gateway.admin);
        self.sandbox.succeed(&["rollout", "weight", "m", "1", "100%", "--gateway", &url]);
        self.publish("m", 2, 2.0);
        gateway.wait_version("m", 2);
        self.sandbox.succeed(&["rollout", "weight", "m", "2", "25%", "--gateway", &url]);
        gateway.wait_version("m", 2);
        gateway.eventually_admin("/admin/v1/status", |_, status| is_split(status));
        gateway
    }
}

fn is_split(status: &Value) -> bool {
    let model = &status["models"][0];
    model["stable"] == 1 && model["candidate"]["version"] == 2 && model["candidate"]["weight_bp"] == 2500
}

/// Version 1 and 2 answer by number, and the split is what it was.
fn assert_serves(gateway: &Gateway, why: &str) {
    assert_eq!(ask(gateway, "/v2/models/m/versions/1/infer"), (200, 1.0), "{why}");
    assert_eq!(ask(gateway, "/v2/models/m/versions/2/infer"), (200, 2.0), "{why}");
    let status = crate::http::get(gateway.admin, "/admin/v1/status").json_or_null();
    assert!(is_split(&status), "{why}: {status}");
}

#[test]
fn nothing_is_unloaded_whatever_the_registry_does_and_it_recovers_by_itself() {
    let Some(mut world) = World::new() else { return };
    let gateway = world.serve_two_versions();
    for (number, fault) in (3..).zip([Fault::Cut, Fault::Status(500), Fault::Status(403), Fault::Hang]) {
        world.proxy.set(fault);
        // The one that is met may still have been on its way.
        world.proxy.wait_for(2);
        if fault != Fault::Hang {
            let status = gateway.eventually_admin("/admin/v1/status", |_, status| status["registry"]["last_error"].is_string());
            assert!(status["registry"]["last_good_look"].is_string(), "{fault:?}: {status}");
        }
        assert_serves(&gateway, &format!("{fault:?}"));
        world.publish("m", number, number as f32);
        world.proxy.set(Fault::None);
        gateway.eventually_admin("/admin/v1/status", |_, status| {
            let versions = status["models"][0]["versions"].as_array().cloned().unwrap_or_default();
            status["registry"]["last_error"].is_null() && versions.iter().any(|version| version["version"] == number)
        });
        assert_serves(&gateway, &format!("after {fault:?}"));
    }
    world.stop();
    gateway.eventually_admin("/admin/v1/status", |_, status| status["registry"]["last_error"].is_string());
    assert_serves(&gateway, "the server is stopped");
    world.start();
    gateway.eventually_admin("/admin/v1/status", |_, status| status["registry"]["last_error"].is_null());
    assert_serves(&gateway, "the server is back");
}

#[test]
fn a_registry_that_comes_back_empty_unloads_nothing() {
    let Some(world) = World::new() else { return };
    // Everything is read again at each look, as it is from time to time.
    let gateway = world.serve_two_versions();
    world.proxy.set(Fault::Empty);
    world.proxy.wait_for(3);
    assert_serves(&gateway, "empty");
    drop(gateway);
    let gateway = world.sandbox.serve().ready();
    world.proxy.set(Fault::Empty);
    world.proxy.wait_for(3);
    assert_serves(&gateway, "empty at a start");
    world.proxy.set(Fault::None);
    world.publish("m", 3, 3.0);
    gateway.eventually_admin("/admin/v1/status", |_, status| status.to_string().contains("\"version\":3"));
    assert_serves(&gateway, "after an empty answer");
}

#[test]
fn bytes_that_are_not_the_manifests_are_never_served() {
    let Some(world) = World::new() else { return };
    let gateway = world.serve_two_versions();
    let url = format!("http://{}", gateway.admin);
    for (number, fault) in (3..).zip([Fault::Corrupt, Fault::Wrong, Fault::Truncate]) {
        world.proxy.set(fault);
        world.publish("m", number, number as f32);
        let status = gateway.eventually_admin("/admin/v1/status", |_, status| {
            let versions = status["models"][0]["versions"].as_array().cloned().unwrap_or_default();
            versions.iter().any(|version| version["version"] == number && version["cause"].is_string())
        });
        let text = status.to_string();
        assert!(fault == Fault::Truncate || text.contains("is corrupt"), "{fault:?}: {text}");
        assert_serves(&gateway, &format!("{fault:?}"));
        assert_ne!(ask(&gateway, &format!("/v2/models/m/versions/{number}/infer")).0, 200, "{fault:?}");
        world.proxy.set(Fault::None);
        // The next try is a matter of its backoff, and `load` does not wait for that.
        sandbox_load(&world.sandbox, &url);
        gateway.wait_version("m", number);
        assert_eq!(ask(&gateway, &format!("/v2/models/m/versions/{number}/infer")), (200, number as f64), "{fault:?}");
    }
}

fn sandbox_load(sandbox: &Sandbox, url: &str) {
    sandbox.succeed(&["load", "m", "--gateway", url]);
}

#[test]
fn a_restart_without_the_registry_serves_what_was_served_and_recovers() {
    let Some(mut world) = World::new() else { return };
    let gateway = world.serve_two_versions();
    let before = crate::http::get(gateway.http, "/v2/models/m/versions/2").json_or_null();
    // What is decided shows a moment before it is on disk.
    gateway.eventually_admin("/admin/v1/status", |_, _| world.keeps("\"candidate\":[2,2500]"));
    gateway.kill();
    world.stop();
    let gateway = world.sandbox.serve().ready();
    assert_serves(&gateway, "started without its registry");
    assert_eq!(crate::http::get(gateway.http, "/v2/models/m/versions/2").json_or_null(), before);
    let status = crate::http::get(gateway.admin, "/admin/v1/status").json_or_null();
    assert!(status["registry"]["last_good_look"].is_null() && status["ready"] == true, "{status}");
    world.start();
    world.publish("m", 3, 3.0);
    gateway.eventually_admin("/admin/v1/status", |_, status| {
        let versions = status["models"][0]["versions"].as_array().cloned().unwrap_or_default();
        versions.iter().any(|version| version["version"] == 3)
    });
    assert_serves(&gateway, "recovered without a restart");
}

#[test]
fn a_slow_registry_holds_up_nothing_that_serves() {
    let Some(world) = World::new() else { return };
    let gateway = world.serve_two_versions();
    world.proxy.set(Fault::Trickle);
    world.publish("m", 3, 3.0);
    assert_serves(&gateway, "a slow registry");
    gateway.eventually_admin("/admin/v1/status", |_, status| status.to_string().contains("\"version\":3"));
}
