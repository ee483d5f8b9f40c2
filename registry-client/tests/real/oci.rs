//! OCI artifacts in docker-registry.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use async_trait::async_trait;
use bascule_registry::conformance::{Fixture, check};
use bascule_registry::{
    Clock, Digest, Listing, ManualClock, ModelName, NoProgress, OciCredentials, OciOptions, OciRegistry, PublishError,
    PublishRequest, Published, REPAIR_INTERVAL, Secret, SecretKey, Trust, Trusted, VersionKey, VersionSource,
};
use serde_json::json;
use tempfile::TempDir;

use crate::servers::{Server, find_or_skip, free_port, listens};

/// `me` with the password `open sesame`.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";
const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry that ends with its test.
struct Registry {
    server: Option<Server>,
    port: u16,
    data: PathBuf,
    files: TempDir,
    http: reqwest::Client,
}

impl Registry {
    fn start(htpasswd: bool) -> Option<Registry> {
        let program = find_or_skip("oci-registry/bin/docker-registry")?;
        let port = free_port();
        let prepare = |folder: &Path| {
            std::fs::write(folder.join("htpasswd"), HTPASSWD).unwrap();
            let auth = json!({"htpasswd": {"realm": "test", "path": folder.join("htpasswd")}});
            let mut config = json!({
                "version": "0.1", "log": {"level": "warn"}, "http": {"addr": format!("127.0.0.1:{port}")},
                "storage": {"filesystem": {"rootdirectory": folder.join("data")}, "delete": {"enabled": true}},
            });
            if htpasswd {
                config["auth"] = auth;
            }
            // JSON is YAML.
            std::fs::write(folder.join("config.yml"), config.to_string()).unwrap();
            let mut command = Command::new(program);
            command.arg("serve").arg(folder.join("config.yml"));
            command
        };
        let server = Server::start(prepare, || listens(port));
        let data = server.folder().join("data/docker/registry/v2");
        Some(Registry { server: Some(server), port, data, files: tempfile::tempdir().unwrap(), http: reqwest::Client::new() })
    }

    fn place(&self, repository: &str) -> String {
        format!("oci://127.0.0.1:{}/{repository}", self.port)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v2/{path}", self.port)
    }

    fn open(&self, repository: &str) -> (OciRegistry, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        let options = OciOptions { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..OciOptions::default() };
        (OciRegistry::open(&self.place(repository), options).unwrap(), clock)
    }

    fn request(&self, model: &str, version: Option<u64>, files: &[(&str, &[u8])]) -> PublishRequest {
        let dir = self.files.path().join(format!("{model}-{}", Digest::of(format!("{version:?}{files:?}").as_bytes()).short()));
        let written = files.iter().map(|(path, content)| {
            let place = dir.join(path);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(&place, content).unwrap();
            ((*path).to_owned(), place)
        });
        let request = PublishRequest::new(ModelName::new(model).unwrap(), "onnx", files[0].0, written.collect());
        PublishRequest { version, publisher: "tester".into(), ..request }
    }

    /// The digest of a tag's manifest, and its content.
    async fn manifest(&self, repository: &str, tag: &str) -> (String, Vec<u8>) {
        let request = self.http.get(self.url(&format!("{repository}/manifests/{tag}"))).header("accept", IMAGE_MANIFEST);
        let response = request.send().await.unwrap().error_for_status().unwrap();
        let digest = response.headers()["docker-content-digest"].to_str().unwrap().to_owned();
        (digest, response.bytes().await.unwrap().to_vec())
    }

    /// Points a tag at a manifest, as `oras tag` does.
    async fn tag(&self, repository: &str, manifest: &[u8], tag: &str) {
        let url = self.url(&format!("{repository}/manifests/{tag}"));
        let request = self.http.put(url).header("content-type", IMAGE_MANIFEST).body(manifest.to_vec());
        request.send().await.unwrap().error_for_status().unwrap();
    }

    /// Deletes what a tag names, and with it the tag.
    async fn delete(&self, repository: &str, tag: &str) {
        let (digest, _) = self.manifest(repository, tag).await;
        let url = self.url(&format!("{repository}/manifests/{digest}"));
        self.http.delete(url).send().await.unwrap().error_for_status().unwrap();
    }

    /// Pushes a blob without any of the code that is tested.
    async fn blob(&self, repository: &str, content: &[u8]) -> String {
        let begun = self.http.post(self.url(&format!("{repository}/blobs/uploads/"))).send().await.unwrap();
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let digest = format!("sha256:{}", Digest::of(content));
        let put = self.http.put(format!("{location}&digest={digest}")).body(content.to_vec());
        put.send().await.unwrap().error_for_status().unwrap();
        digest
    }
}

fn name(model: &str) -> ModelName {
    ModelName::new(model).unwrap()
}

async fn list(registry: &OciRegistry) -> Listing {
    registry.list(None).await.unwrap().unwrap()
}

async fn fetched(registry: &OciRegistry, listing: &Listing, model: &str, version: u64) -> TempDir {
    let dest = tempfile::tempdir().unwrap();
    let generation = &listing.models[&name(model)].versions[&version];
    registry.fetch(generation, dest.path(), &NoProgress).await.unwrap();
    dest
}

/// The models below one repository.
struct Models {
    registry: Registry,
    server: std::sync::Mutex<Option<Server>>,
    source: OciRegistry,
    clock: Arc<ManualClock>,
}

#[async_trait]
impl Fixture for Models {
    fn source(&self) -> &dyn VersionSource {
        &self.source
    }

    async fn add(&self, key: &VersionKey, files: &[(&str, &[u8])]) {
        let (writer, _) = self.registry.open("models");
        let request = self.registry.request(key.model.as_str(), Some(key.version), files);
        writer.publish(request, &NoProgress).await.unwrap();
    }

    async fn withdraw(&self, key: &VersionKey) {
        self.registry.delete(&format!("models/{}", key.model), &key.version.to_string()).await;
    }

    fn pass_time(&self) {
        self.clock.advance(REPAIR_INTERVAL);
    }

    async fn damage(&self, key: &VersionKey, path: &str) {
        let listing = list(&self.source).await;
        let generation = listing.generation(key).unwrap();
        let file = generation.manifest.files.iter().find(|file| file.path == path).unwrap();
        let digest = file.sha256.unwrap().to_string();
        let place = self.registry.data.join("blobs/sha256").join(&digest[..2]).join(&digest).join("data");
        assert_eq!(std::fs::metadata(&place).unwrap().len(), file.bytes);
        std::fs::write(place, vec![b'#'; usize::try_from(file.bytes).unwrap()]).unwrap();
    }

    async fn break_off(&self) -> bool {
        drop(self.server.lock().unwrap().take());
        true
    }
}

#[tokio::test]
async fn an_oci_registry_conforms() {
    let Some(mut registry) = Registry::start(false) else { return };
    let (source, clock) = registry.open("models");
    let server = std::sync::Mutex::new(registry.server.take());
    check(&Models { registry, server, source, clock }).await;
}

#[tokio::test]
async fn a_version_is_published_and_fetched_and_its_blobs_are_used_again() {
    let Some(registry) = Registry::start(false) else { return };
    let (oci, _) = registry.open("team/digits");
    let weights: Vec<u8> = (0..20_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let files: &[(&str, &[u8])] = &[("model.onnx", b"the model"), ("data/weights.bin", &weights), ("empty", b"")];
    let mut request = registry.request("digits", None, files);
    request.metrics.insert("accuracy".into(), 0.97);
    request.lineage.run_id = Some("run-1".into());
    let published = oci.publish(request.clone(), &NoProgress).await.unwrap();
    assert_eq!((published.key.version, published.reused_bytes), (1, 0));
    assert_eq!(registry.manifest("team/digits", "1").await.0, format!("sha256:{}", published.digest));
    let listing = list(&oci).await;
    let version = &listing.models[&name("digits")].versions[&1];
    assert_eq!(version.digest, published.digest);
    assert_eq!(version.manifest.lineage.run_id.as_deref(), Some("run-1"));
    let dest = fetched(&oci, &listing, "digits", 1).await;
    for (path, content) in files {
        assert!(std::fs::read(dest.path().join(path)).unwrap() == *content, "{path}");
    }
    let again = oci.publish(request, &NoProgress).await.unwrap();
    assert_eq!((again.key.version, again.reused_bytes), (2, again.bytes));
}

#[tokio::test]
async fn tags_are_aliases_that_move_and_go() {
    let Some(registry) = Registry::start(false) else { return };
    let (oci, clock) = registry.open("digits");
    for content in [b"one", b"two"] {
        oci.publish(registry.request("digits", None, &[("model.onnx", content)]), &NoProgress).await.unwrap();
    }
    let [one, two] = [registry.manifest("digits", "1").await.1, registry.manifest("digits", "2").await.1];
    registry.tag("digits", &one, "champion").await;
    let first = list(&oci).await;
    assert_eq!(first.models[&name("digits")].aliases["champion"], 1);
    registry.tag("digits", &two, "champion").await;
    let moved = oci.list(Some(&first.cursor)).await.unwrap().expect("an alias has moved");
    assert_eq!(moved.models[&name("digits")].aliases["champion"], 2);

    // A number whose content changes is another generation, once the tags are looked at again.
    registry.tag("digits", &two, "1").await;
    assert!(oci.list(Some(&moved.cursor)).await.unwrap().is_none());
    clock.advance(REPAIR_INTERVAL);
    let changed = oci.list(Some(&moved.cursor)).await.unwrap().expect("a number has moved");
    let versions = &changed.models[&name("digits")].versions;
    assert_eq!(versions[&1].digest, versions[&2].digest);
    let dest = fetched(&oci, &changed, "digits", 1).await;
    assert_eq!(std::fs::read(dest.path().join("model.onnx")).unwrap(), b"two");

    registry.delete("digits", "2").await;
    let gone = oci.list(Some(&changed.cursor)).await.unwrap().expect("all tags have gone");
    assert!(gone.complete && gone.models.is_empty(), "{gone:?}");
}

#[tokio::test]
async fn what_trusted_keys_have_signed_is_listed_and_nothing_else() {
    let Some(registry) = Registry::start(false) else { return };
    let (oci, _) = registry.open("digits");
    let (key, stranger) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
    for signers in [vec![key.clone(), stranger.clone()], Vec::new(), vec![stranger.clone()]] {
        let request = registry.request("digits", None, &[("model.onnx", b"one")]);
        oci.publish(PublishRequest { signers, ..request }, &NoProgress).await.unwrap();
    }
    let (_, signed) = registry.manifest("digits", "1").await;
    // Another number, and another publisher's name beside the signature.
    registry.tag("digits", &signed, "4").await;
    let mut altered: serde_json::Value = serde_json::from_slice(&signed).unwrap();
    let config = registry.http.get(registry.url(&format!("digits/blobs/{}", altered["config"]["digest"].as_str().unwrap())));
    let config = config.send().await.unwrap().text().await.unwrap();
    let config = config.replace("\"version\": 1", "\"version\": 5");
    altered["config"]["digest"] = registry.blob("digits", config.as_bytes()).await.into();
    altered["config"]["size"] = config.len().into();
    registry.tag("digits", altered.to_string().as_bytes(), "5").await;

    let trusted = Trusted::new(Arc::new(oci), Arc::new(Trust::new([key.public()])));
    let listing = trusted.list(None).await.unwrap().unwrap();
    let model = &listing.models[&name("digits")];
    assert_eq!(model.versions.keys().collect::<Vec<_>>(), [&1]);
    let problems = model.problems.join("\n");
    for problem in [
        "version 2 is refused: it is not signed",
        "version 3 is refused: it is signed by",
        "version 4 is refused: its manifest is not the one that is signed",
        "version 5 is refused: its signature by the trusted key",
    ] {
        assert!(problems.contains(problem), "{problems}");
    }
    let dest = tempfile::tempdir().unwrap();
    trusted.fetch(&model.versions[&1], dest.path(), &NoProgress).await.unwrap();
    assert_eq!(std::fs::read(dest.path().join("model.onnx")).unwrap(), b"one");
}

#[tokio::test]
async fn of_many_publishers_each_gets_what_it_is_told() {
    let Some(registry) = Registry::start(false) else { return };
    let (oci, _) = registry.open("digits");
    let first = oci.publish(registry.request("digits", Some(1), &[("model.onnx", b"first")]), &NoProgress).await.unwrap();
    let second = oci.publish(registry.request("digits", Some(1), &[("model.onnx", b"second")]), &NoProgress).await;
    assert!(matches!(second, Err(PublishError::AlreadyExists { .. })), "{second:?}");
    let there = format!("sha256:{}", first.digest);
    assert_eq!(registry.manifest("digits", "1").await.0, there);

    // This registry can't put only where there is nothing. At the same moment at least the one that is there is told that it won,
    // and nobody is told of an error that is none.
    let writers: Vec<OciRegistry> = (0..4).map(|_| registry.open("digits").0).collect();
    let requests = (0..4_u8).map(|nth| registry.request("digits", Some(2), &[("model.onnx", &[nth])]));
    let publishes = writers.iter().zip(requests).map(|(writer, request)| writer.publish(request, &NoProgress));
    let outcomes: Vec<Result<Published, PublishError>> = futures::future::join_all(publishes).await;
    let there = registry.manifest("digits", "2").await.0;
    let told =
        |outcome: &&Result<Published, PublishError>| outcome.as_ref().is_ok_and(|won| format!("sha256:{}", won.digest) == there);
    assert_eq!(outcomes.iter().filter(told).count(), 1, "{outcomes:?}");
    for lost in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(matches!(lost, PublishError::AlreadyExists { .. }), "{}", crate::s3::told(lost));
    }
}

#[tokio::test]
async fn what_oras_pushes_is_served() {
    let Some(registry) = Registry::start(false) else { return };
    let (oci, _) = registry.open("team/net");
    let config = registry.blob("team/net", b"{}").await;
    let mut layers = Vec::new();
    for (title, content) in [("net.onnx", &b"the model"[..]), ("labels.txt", b"cat\ndog\n")] {
        let digest = registry.blob("team/net", content).await;
        layers.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": content.len(),
            "annotations": {"org.opencontainers.image.title": title}}));
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": "application/vnd.unknown.artifact.v1",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2, "data": "e30="},
        "layers": layers, "annotations": {"org.opencontainers.image.created": "2026-01-02T03:04:05Z"},
    });
    registry.tag("team/net", manifest.to_string().as_bytes(), "3").await;
    registry.tag("team/net", manifest.to_string().as_bytes(), "v1.0").await;
    let listing = list(&oci).await;
    let net = &listing.models[&name("net")];
    assert!(listing.complete && net.problems.is_empty(), "{:?}", net.problems);
    let version = &net.versions[&3];
    assert_eq!((version.manifest.format.as_str(), version.manifest.entrypoint.as_str()), ("onnx", "net.onnx"));
    assert_eq!((version.digest, net.aliases["v1.0"]), (Digest::of(manifest.to_string().as_bytes()), 3));
    let dest = fetched(&oci, &listing, "net", 3).await;
    assert_eq!(std::fs::read(dest.path().join("labels.txt")).unwrap(), b"cat\ndog\n");
}

#[tokio::test]
async fn a_registry_with_passwords_is_read_and_written_with_them() {
    let Some(registry) = Registry::start(true) else { return };
    let open = |credentials: OciCredentials| {
        OciRegistry::open(&registry.place("digits"), OciOptions { credentials, ..OciOptions::default() }).unwrap()
    };
    let login = |password: &str| Some((Secret::Value("me".into()), Secret::Value(password.into())));
    let ours = open(OciCredentials { login: login("open sesame"), docker_config: None });
    ours.publish(registry.request("digits", None, &[("model.onnx", b"one")]), &NoProgress).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    // `me:open sesame`, as `docker login` writes it.
    let config = json!({"auths": {format!("127.0.0.1:{}", registry.port): {"auth": "bWU6b3BlbiBzZXNhbWU="}}});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let dockers = open(OciCredentials { login: None, docker_config: Some(folder.path().to_owned()) });
    assert_eq!(list(&dockers).await.models[&name("digits")].versions.len(), 1);

    let refused = async |credentials: OciCredentials, tried: &str| {
        let error = open(credentials).list(None).await.unwrap_err();
        let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(text.contains("401") && text.contains(tried) && !text.contains("hunter2"), "{text}");
    };
    refused(OciCredentials { login: login("hunter2"), docker_config: None }, "with oci.username and oci.password").await;
    refused(OciCredentials::default(), "without credentials").await;
}
