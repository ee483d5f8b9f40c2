//! Models in a real OCI registry: published by the program, served, rolled out, and served again while the registry is down.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bascule_onnx_writer::models::constant;
use tempfile::TempDir;

use crate::lifecycle::ask;
use crate::sandbox::{PATIENCE, Sandbox, skip};

/// A registry that ends with its test.
pub struct Registry {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Registry {
    /// `None`, and the test counted as skipped, where docker-registry is not set up.
    pub fn start() -> Option<Registry> {
        Self::start_in(tempfile::tempdir().unwrap(), &serde_json::Value::Null)
    }

    /// With a certificate, which an authority of its own has signed; and the file of that authority.
    fn start_with_tls() -> Option<(Registry, PathBuf)> {
        let folder = tempfile::tempdir().unwrap();
        let (authority, tls) = certificates(folder.path());
        Some((Self::start_in(folder, &tls)?, authority))
    }

    fn start_in(folder: TempDir, tls: &serde_json::Value) -> Option<Registry> {
        let servers = std::env::var_os("BASCULE_TEST_SERVERS").map(PathBuf::from);
        let program = servers.map(|servers| servers.join("oci-registry/bin/docker-registry")).filter(|program| program.exists());
        let Some(program) = program else {
            skip("there is no oci-registry/bin/docker-registry (make test-deps)");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = serde_json::json!({
            "version": "0.1", "log": {"level": "warn"}, "http": {"addr": format!("127.0.0.1:{port}"), "tls": tls},
            "storage": {"filesystem": {"rootdirectory": folder.path().join("data")}},
        });
        // JSON is YAML.
        std::fs::write(folder.path().join("config.yml"), config.to_string()).unwrap();
        let mut command = Command::new(program);
        command.arg("serve").arg(folder.path().join("config.yml"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let registry = Registry { child, port, folder };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < PATIENCE, "docker-registry does not listen");
            std::thread::yield_now();
        }
        Some(registry)
    }

    /// Where repositories of models are put.
    pub fn place(&self) -> String {
        format!("oci://127.0.0.1:{}/models", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Makes an authority that nobody knows, and a certificate for this machine: the authority's file, and the server's setting.
fn certificates(folder: &Path) -> (PathBuf, serde_json::Value) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    let write = |name: &str, text: String| {
        let file = folder.join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let tls = serde_json::json!({
        "certificate": write("server.pem", certificate.pem()), "key": write("server.key", key.serialize_pem()),
    });
    (write("authority.pem", authority.pem()), tls)
}

#[test]
fn a_registry_that_a_private_authority_vouches_for_is_used_where_that_is_trusted() {
    let Some(sandbox) = Sandbox::new() else { return };
    let Some((registry, authority)) = Registry::start_with_tls() else { return };
    let place = format!("oci+https://127.0.0.1:{}/m", registry.port);
    let sandbox = sandbox.at(Some(&place));
    let file = sandbox.path("model.onnx");
    std::fs::write(&file, &constant(1.0, 2).bytes).unwrap();
    let publish = ["publish", "m", file.to_str().unwrap(), "--registry", &place];
    let refused = sandbox.run(&publish);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("UnknownIssuer") && text.contains("SSL_CERT_FILE"), "{text}");

    let sandbox = sandbox.variable("SSL_CERT_FILE", authority.to_str().unwrap());
    sandbox.succeed(&publish);
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
}

#[test]
fn versions_in_an_oci_registry_are_told_apart_and_read_again() {
    let Some(sandbox) = Sandbox::new() else { return };
    let Some(registry) = Registry::start() else { return };
    let place = format!("oci://127.0.0.1:{}/m", registry.port);
    let file = sandbox.path("model.onnx");
    for (value, run) in [(1.0, "run-1"), (2.0, "run-2")] {
        std::fs::write(&file, &constant(value, 2).bytes).unwrap();
        sandbox.succeed(&["publish", "m", file.to_str().unwrap(), "--registry", &place, "--run-id", run]);
    }
    let versions = sandbox.succeed(&["versions", "m", "--registry", &place]);
    let rows: Vec<Vec<&str>> = versions.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.len() == 3 && rows[1][0] == "1" && rows[2].contains(&"run-2"), "{versions}");
    let diff = sandbox.succeed(&["diff", "m", "1", "2", "--registry", &place]);
    assert!(diff.contains("file model.onnx") && diff.contains("lineage run_id"), "{diff}");
    let verified = sandbox.succeed(&["verify", "--registry", &place]);
    assert!(verified.contains("versions 2, files 2"), "{verified}");

    // The content of version 2, as the registry keeps it, gets another byte.
    let digest = bascule_registry::Digest::of(&constant(2.0, 2).bytes).to_string();
    let blob = registry.folder.path().join("data/docker/registry/v2/blobs/sha256").join(&digest[..2]).join(&digest).join("data");
    let mut bytes = std::fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let found = sandbox.run(&["verify", "--registry", &place]);
    let text = String::from_utf8_lossy(&found.stderr).into_owned();
    assert!(!found.status.success() && text.contains("m@2: ") && text.contains("model.onnx") && !text.contains("m@1"), "{text}");
}

/// Whether a version that is pinned is in what a restart serves.
fn is_kept(sandbox: &Sandbox, model: &str, pinned: u64) -> bool {
    let folders = std::fs::read_dir(sandbox.state()).unwrap().map(|entry| entry.unwrap().path().join("served"));
    let mut kept = folders.filter_map(|folder| std::fs::read(folder.join(format!("{model}.json"))).ok());
    kept.any(|kept| {
        let kept = serde_json::from_slice::<serde_json::Value>(&kept).unwrap_or_default();
        let versions = kept["record"]["versions"].as_array().cloned().unwrap_or_default();
        kept["record"]["rollout"]["pinned"] == pinned && versions.iter().any(|version| version["key"]["version"] == pinned)
    })
}

#[test]
fn a_signed_version_of_an_oci_registry_is_served_and_an_unsigned_one_is_refused() {
    let Some(sandbox) = Sandbox::new() else { return };
    let Some(registry) = Registry::start() else { return };
    let place = format!("oci://127.0.0.1:{}/m", registry.port);
    let sandbox = sandbox.at(Some(&place));
    sandbox.succeed(&["keygen", "publisher.key"]);
    let file = sandbox.path("model.onnx");
    for (value, sign) in [(1.0, &["--sign", "publisher.key"][..]), (2.0, &[])] {
        std::fs::write(&file, &constant(value, 2).bytes).unwrap();
        sandbox.succeed(&[&["publish", "m", file.to_str().unwrap(), "--registry", &place], sign].concat());
    }
    let trust = format!("registry.trust=file:{}", sandbox.path("publisher.key.pub").display());
    let gateway = sandbox.serve_with(&["--set", &trust]).ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
    let model = gateway.eventually_admin("/admin/v1/models/m", |code, model| code == 200 && !model["problems"][0].is_null());
    assert_eq!(model["problems"][0], "version 2 is refused: it is not signed");
    let versions = sandbox.succeed(&["versions", "m", "--registry", &place]);
    let signed: Vec<bool> = versions.lines().skip(1).map(|line| !line.ends_with('-')).collect();
    assert_eq!(signed, [true, false], "{versions}");
    let refused = sandbox.run(&["sign", "m", "2", "--key", "publisher.key", "--registry", &place]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("publish --sign"), "{text}");
}

#[test]
fn versions_in_an_oci_registry_are_published_served_and_outlive_it() {
    let Some(sandbox) = Sandbox::new() else { return };
    let Some(registry) = Registry::start() else { return };
    let place = registry.place();
    let sandbox = sandbox.at(Some(&place));
    let publish = |value: f32| {
        let file = sandbox.path("model.onnx");
        std::fs::write(&file, &constant(value, 2).bytes).unwrap();
        sandbox.succeed(&["publish", "m", &file.display().to_string(), "--registry", &place, "--run-id", "run-7"])
    };
    let said = publish(1.0);
    assert!(said.starts_with(&format!("published m@1 to {place}: ")), "{said}");
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
    publish(2.0);
    gateway.wait_version("m", 2);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 2);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 2.0));

    // Decisions are kept by the gateway; a registry of tags can't hold them.
    let admin = format!("http://{}", gateway.admin);
    sandbox.succeed(&["rollout", "pin", "m", "1", "--gateway", &admin]);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 1);
    let refused = sandbox.run(&["rollout", "pin", "m", "2", "--registry", &place]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("holds no rollout journal") && text.contains("--gateway"), "{text}");

    // What answers is shown a moment before it is on disk: a gateway that is killed in between serves what it did before.
    gateway.eventually_admin("/admin/v1/status", |_, _| is_kept(&sandbox, "m", 1));
    gateway.kill();
    drop(registry);
    let gateway = sandbox.serve().ready();
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0), "what was pinned, from the cache");
}
