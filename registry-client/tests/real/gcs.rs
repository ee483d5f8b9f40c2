//! Registries at `gs://`, against fake-gcs-server. It takes no writes as the store's client sends them, so what is read is uploaded by
//! the JSON interface: a registry that was published in a directory, and a plain one.

use std::path::Path;
use std::process::Command;

use async_trait::async_trait;
use bascule_registry::conformance::{Fixture, check};
use bascule_registry::{ManualClock, NoProgress, Registry, SETTLE_INTERVAL, StoreEnvironment, VersionKey, VersionSource};

use crate::layouts::request;
use crate::s3::told;
use crate::servers::{Server, find_or_skip, free_port, listens};

/// A bucket that is written to by the JSON interface.
struct Bucket {
    port: u16,
    name: &'static str,
}

impl Bucket {
    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    async fn make(&self) {
        let made = reqwest::Client::new().post(self.url("storage/v1/b")).json(&serde_json::json!({ "name": self.name }));
        assert!(made.send().await.unwrap().status().is_success());
    }

    async fn put(&self, object: &str, content: &[u8]) {
        let url = self.url(&format!("upload/storage/v1/b/{}/o", self.name));
        let put = reqwest::Client::new().post(url).query(&[("uploadType", "media"), ("name", object)]).body(content.to_vec());
        let answer = put.send().await.unwrap();
        assert!(answer.status().is_success(), "{object}: {}", answer.status());
    }

    async fn delete(&self, object: &str) {
        let url = self.url(&format!("storage/v1/b/{}/o/{}", self.name, object.replace('/', "%2F")));
        assert!(reqwest::Client::new().delete(url).send().await.unwrap().status().is_success());
    }
}

/// The environment, and the file that it names.
fn environment(folder: &Path, port: u16) -> StoreEnvironment {
    let account = folder.join("account.json");
    let content = serde_json::json!({
        "gcs_base_url": format!("http://127.0.0.1:{port}"), "disable_oauth": true,
        "client_email": "", "private_key": "", "private_key_id": "",
    });
    std::fs::write(&account, content.to_string()).unwrap();
    [("GOOGLE_SERVICE_ACCOUNT", account.display().to_string())].into_iter().collect()
}

/// What both layouts share.
struct Seeded {
    source: Registry,
    clock: std::sync::Arc<ManualClock>,
    bucket: Bucket,
    /// A registry in a directory, whose files are uploaded.
    folder: tempfile::TempDir,
    uploaded: std::sync::Mutex<std::collections::BTreeSet<String>>,
    /// Taken at the end.
    server: std::sync::Mutex<Option<Server>>,
    plain: bool,
}

impl Seeded {
    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("registry")
    }

    /// Uploads all files of the directory that are not there; the change log last.
    async fn upload(&self) {
        let mut folders = vec![self.root()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files.sort_by_key(|path| (path.to_string_lossy().contains("_changes"), path.to_string_lossy().contains("versions")));
        for file in files {
            let object = file.strip_prefix(self.root()).unwrap().to_str().unwrap().to_owned();
            if !self.uploaded.lock().unwrap().insert(object.clone()) {
                continue;
            }
            self.bucket.put(&object, &std::fs::read(&file).unwrap()).await;
        }
    }

    fn writer(&self) -> Registry {
        Registry::open_dir(&self.root()).unwrap()
    }
}

#[async_trait]
impl Fixture for Seeded {
    fn source(&self) -> &dyn VersionSource {
        &self.source
    }

    async fn add(&self, key: &VersionKey, files: &[(&str, &[u8])]) {
        if self.plain {
            for (path, content) in files {
                self.bucket.put(&format!("{}/{}/{path}", key.model, key.version), content).await;
            }
            self.source.list(None).await.unwrap();
        } else {
            self.writer().publish(request(self.folder.path(), key, files), &NoProgress).await.unwrap();
            self.upload().await;
        }
    }

    async fn withdraw(&self, key: &VersionKey) {
        if self.plain {
            self.bucket.delete(&format!("{}/{}/model.onnx", key.model, key.version)).await;
        } else {
            self.writer().tombstone(key, "tester", "withdrawn").await.unwrap();
            self.upload().await;
        }
    }

    fn pass_time(&self) {
        self.clock.advance(SETTLE_INTERVAL * 2);
    }

    async fn damage(&self, key: &VersionKey, path: &str) {
        let generation = self.source.list(None).await.unwrap().unwrap().generation(key).unwrap().clone();
        let file = generation.manifest.files.iter().find(|file| file.path == path).unwrap();
        let object = match file.sha256 {
            Some(sha256) => format!("{}/blobs/{sha256}", key.model),
            None => format!("{}/{}/{path}", key.model, key.version),
        };
        self.bucket.put(&object, &vec![b'#'; usize::try_from(file.bytes).unwrap()]).await;
    }

    async fn break_off(&self) -> bool {
        self.server.lock().unwrap().take().is_some()
    }
}

#[tokio::test]
#[ignore = "long: needs fake-gcs-server"]
async fn conformance_on_fake_gcs_server() {
    let Some(program) = find_or_skip("gcs/bin/fake-gcs-server") else { return };
    for plain in [false, true] {
        let port = free_port();
        let start = |_: &Path| {
            let mut command = Command::new(&program);
            command.args(["-scheme=http", "-host=127.0.0.1", "-backend=memory", "-log-level=warn", "-public-host=127.0.0.1"]);
            command.arg(format!("-port={port}")).arg(format!("-public-host=127.0.0.1:{port}"));
            command
        };
        let server = Server::start(start, || listens(port));
        let folder = tempfile::tempdir().unwrap();
        let environment = environment(folder.path(), port);
        let bucket = Bucket { port, name: "models" };
        bucket.make().await;
        let missing = Registry::open_in("gs://no-such-bucket", &environment).unwrap().list(None).await.unwrap_err();
        let missing = told(&missing);
        assert!(missing.contains("gs://no-such-bucket") && missing.contains("from GOOGLE_SERVICE_ACCOUNT"), "{missing}");
        std::fs::create_dir(folder.path().join("registry")).unwrap();
        let clock = std::sync::Arc::new(ManualClock::new(chrono::Utc::now()));
        let source = Registry::open_in("gs://models", &environment).unwrap();
        let source = source.with_clock(std::sync::Arc::<ManualClock>::clone(&clock));
        check(&Seeded { source, clock, bucket, folder, uploaded: Default::default(), server: Some(server).into(), plain }).await;
    }
}
