//! The source of MLflow against the real server.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bascule_registry::conformance::{Fixture, check};
use bascule_registry::{
    Decided, FetchError, Listing, ManualClock, MlflowCredentials, MlflowOptions, MlflowSource, ModelName, NoProgress, Verdict,
    VersionKey, VersionSource, WriteBack,
};
use chrono::DateTime;
use object_store::ObjectStoreExt as _;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::seaweedfs::{ACCESS_KEY, SeaweedFs};
use crate::servers::{Server, find_or_skip, free_port, listens};

/// A server, and a client of its API.
struct Mlflow {
    server: Server,
    url: String,
    http: Client,
    login: Option<(&'static str, &'static str)>,
}

/// What makes a version: ONNX, as MLflow writes it.
const MLMODEL: &str = "artifact_path: model
flavors:
  onnx:
    code: null
    data: model.onnx
    onnx_version: 1.20.1
  python_function:
    loader_module: mlflow.onnx
mlflow_version: 3.17.0
signature:
  inputs: '[{\"type\": \"tensor\", \"name\": \"x\", \"tensor-spec\": {\"dtype\": \"float32\", \"shape\": [-1, 4]}}]'
  outputs: '[{\"type\": \"tensor\", \"name\": \"y\", \"tensor-spec\": {\"dtype\": \"float32\", \"shape\": [-1, 3]}}]'
  params: null
";

impl Mlflow {
    /// Starts one, or counts the test as skipped.
    fn start(more: &[&str]) -> Option<Mlflow> {
        let python = find_or_skip("mlflow/bin/python")?;
        let port = free_port();
        let prepare = |folder: &Path| {
            let mut command = Command::new(python);
            let text = |name: &str| folder.join(name).display().to_string();
            let (database, files) = (format!("sqlite:///{}", text("mlflow.db")), format!("file://{}", text("artifacts")));
            command.args(["-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1", "--serve-artifacts"]);
            command.args(["--port", &port.to_string(), "--backend-store-uri", &database, "--artifacts-destination", &files]);
            command.args(more).current_dir(folder);
            let auth = folder.join("auth.ini");
            let auth_database = format!("sqlite:///{}", text("auth.db"));
            std::fs::write(&auth, auth_settings(&auth_database)).unwrap();
            command.env("MLFLOW_AUTH_CONFIG_PATH", auth).env("MLFLOW_FLASK_SERVER_SECRET_KEY", "only a test");
            command.env("MLFLOW_DISABLE_TELEMETRY", "true").env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false");
            command.env("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https").env("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true");
            command
        };
        let server = Server::start(prepare, || listens(port));
        let login = more.contains(&"--app-name").then_some((USER, PASSWORD));
        Some(Mlflow { server, url: format!("http://127.0.0.1:{port}"), http: Client::new(), login })
    }

    fn source(&self, options: MlflowOptions) -> MlflowSource {
        MlflowSource::new(&format!("mlflow+{}", self.url), options).unwrap()
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Value {
        let mut request = self.http.request(method.clone(), format!("{}/api/2.0/mlflow/{path}", self.url));
        request = if method == Method::GET { request.query(&body) } else { request.json(&body) };
        if let Some((user, password)) = self.login {
            request = request.basic_auth(user, Some(password));
        }
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, StatusCode::OK, "{path} {body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Puts a file behind the proxy.
    async fn put(&self, path: &str, content: impl Into<reqwest::Body>) {
        let mut request = self.http.put(format!("{}/api/2.0/mlflow-artifacts/artifacts/{path}", self.url)).body(content);
        if let Some((user, password)) = self.login {
            request = request.basic_auth(user, Some(password));
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }

    /// Makes the next version of a model out of these files, and returns its number and where its files are.
    async fn register(&self, model: &str, files: &[(&str, &[u8])]) -> (u64, String) {
        let run = self.call(Method::POST, "runs/create", json!({ "experiment_id": "0", "start_time": 1 })).await;
        let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
        let metric = json!({ "run_id": run, "key": "accuracy", "value": 0.5, "timestamp": 1 });
        self.call(Method::POST, "runs/log-metric", metric).await;
        let commit = json!({ "run_id": run, "key": "mlflow.source.git.commit", "value": "abc123" });
        self.call(Method::POST, "runs/set-tag", commit).await;
        let folder = format!("0/{run}/artifacts/model");
        for (path, content) in files {
            self.put(&format!("{folder}/{path}"), content.to_vec()).await;
        }
        if self.find(model).await.is_none() {
            self.call(Method::POST, "registered-models/create", json!({ "name": model })).await;
        }
        let made = json!({ "name": model, "source": format!("mlflow-artifacts:/{folder}"), "run_id": run });
        (self.make(made).await, folder)
    }

    /// The number of a version that is made so.
    async fn make(&self, version: Value) -> u64 {
        let made = self.call(Method::POST, "model-versions/create", version).await;
        made["model_version"]["version"].as_str().unwrap().parse().unwrap()
    }

    async fn find(&self, model: &str) -> Option<Value> {
        let found = self.call(Method::GET, "registered-models/search", json!({ "max_results": 100 })).await;
        found["registered_models"].as_array()?.iter().find(|one| one["name"] == model).cloned()
    }

    async fn alias(&self, model: &str, alias: &str, version: u64) {
        let body = json!({ "name": model, "alias": alias, "version": version.to_string() });
        self.call(Method::POST, "registered-models/alias", body).await;
    }

    async fn delete(&self, model: &str, version: u64) {
        let body = json!({ "name": model, "version": version.to_string() });
        self.call(Method::DELETE, "model-versions/delete", body).await;
    }

    async fn tags(&self, model: &str, version: u64) -> Value {
        let asked = json!({ "name": model, "version": version.to_string() });
        self.call(Method::GET, "model-versions/get", asked).await["model_version"]["tags"].clone()
    }
}

const USER: &str = "admin";
const PASSWORD: &str = "a long enough password";

fn auth_settings(database: &str) -> String {
    format!(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}\nadmin_username = {USER}\nadmin_password = {PASSWORD}\n\
         authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
}

/// The suite asks for versions by number; MLflow gives them.
struct Registered {
    server: Mlflow,
    source: MlflowSource,
    clock: Arc<ManualClock>,
    folders: tokio::sync::Mutex<Vec<(VersionKey, String)>>,
}

#[async_trait]
impl Fixture for Registered {
    fn source(&self) -> &dyn VersionSource {
        &self.source
    }

    async fn add(&self, key: &VersionKey, files: &[(&str, &[u8])]) {
        let mut all = vec![("MLmodel", MLMODEL.as_bytes())];
        all.extend(files);
        loop {
            let (version, folder) = self.server.register(key.model.as_str(), &all).await;
            if version == key.version {
                return self.folders.lock().await.push((key.clone(), folder));
            }
            // A number on the way there, which nobody asked for.
            assert!(version < key.version, "{key} can't be made after {version}");
            self.server.delete(key.model.as_str(), version).await;
        }
    }

    async fn withdraw(&self, key: &VersionKey) {
        self.server.delete(key.model.as_str(), key.version).await;
    }

    fn pass_time(&self) {
        self.clock.advance(Duration::from_secs(1));
    }

    /// MLflow tells neither digests nor times of what lies behind its proxy, and takes artifacts for immutable: what it can show is a
    /// file of another size.
    async fn damage(&self, key: &VersionKey, path: &str) {
        let folders = self.folders.lock().await;
        let (_, folder) = folders.iter().find(|(one, _)| one == key).unwrap();
        let file = self.server.server.folder().join("artifacts").join(folder).join(path);
        std::fs::write(file, "something else").unwrap();
    }

    async fn break_off(&self) -> bool {
        false
    }
}

#[tokio::test]
#[ignore = "long: needs MLflow, which takes long to start"]
async fn the_suite() {
    let Some(server) = Mlflow::start(&[]) else { return };
    let clock = Arc::new(ManualClock::default());
    let source = server.source(MlflowOptions { clock: Arc::<ManualClock>::clone(&clock), ..MlflowOptions::default() });
    let fixture = Registered { server, source, clock, folders: tokio::sync::Mutex::default() };
    check(&fixture).await;
    let Registered { server, source, .. } = fixture;
    let digits = model(&source, "digits").await;
    let manifest = &digits.versions.get(&1).unwrap().manifest;
    assert_eq!(manifest.lineage.code.as_deref(), Some("abc123"));
    assert_eq!(manifest.metrics.get("accuracy"), Some(&0.5));
    assert_eq!(manifest.lineage.run_id.as_ref().map(String::len), Some(32));
    let tensor = |name: &str, size: i64| json!([{ "name": name, "datatype": "FP32", "shape": [-1, size] }]);
    let signature = json!({ "inputs": tensor("x", 4), "outputs": tensor("y", 3), "batch_axis": 0 });
    assert_eq!(manifest.signature, Some(signature));
    // Gone, and an error that says so.
    let last = source.list(None).await.unwrap().unwrap();
    drop(server);
    let error = source.list(Some(&last.cursor)).await.unwrap_err();
    assert!(error.to_string().contains("can't be read"), "{error}");
}

async fn listing(source: &MlflowSource) -> Listing {
    source.list(None).await.unwrap().unwrap()
}

async fn model(source: &MlflowSource, name: &str) -> Arc<bascule_registry::ListedModel> {
    let listing = listing(source).await;
    listing.models.values().find(|model| model.name.as_str() == name).unwrap_or_else(|| panic!("{listing:?}")).clone()
}

#[tokio::test]
#[ignore = "long: needs MLflow, which takes long to start"]
async fn aliases_flavors_and_what_is_written_back() {
    let Some(server) = Mlflow::start(&[]) else { return };
    let source = server.source(MlflowOptions::default());
    let onnx: [(&str, &[u8]); 2] = [("MLmodel", MLMODEL.as_bytes()), ("model.onnx", b"one")];
    for _ in 0..3 {
        server.register("digits", &onnx).await;
    }
    server.alias("digits", "champion", 1).await;
    server.alias("digits", "nightly", 3).await;
    let steering = model(&source, "digits").await.steering.clone().unwrap();
    assert_eq!((steering.stable.version, steering.candidate.version), (Some(1), None));
    let before = listing(&source).await;
    assert!(source.list(Some(&before.cursor)).await.unwrap().is_none(), "nothing has changed");
    server.alias("digits", "champion", 2).await;
    server.alias("digits", "challenger", 3).await;
    let after = source.list(Some(&before.cursor)).await.unwrap().expect("aliases have moved");
    let moved = after.models.values().next().unwrap();
    let steering = moved.steering.as_ref().unwrap();
    assert_eq!((steering.stable.version, steering.candidate.version), (Some(2), Some(3)));
    assert_eq!(moved.aliases, [("nightly".to_owned(), 3)].into());

    let name = ModelName::new("digits").unwrap();
    let decided = |version, verdict, by: &str| {
        let at = DateTime::from_timestamp(1_760_000_000, 0).unwrap();
        let stable_from = [Some(2)].into();
        Decided { version, verdict, by: by.into(), at, reason: "it is better".into(), stable_from }
    };
    source.tell(&name, &decided(3, Verdict::Promoted, "ann")).await.unwrap();
    source.tell(&name, &decided(3, Verdict::Promoted, "ann")).await.unwrap();
    let steering = model(&source, "digits").await.steering.clone().unwrap();
    assert_eq!((steering.stable.version, steering.candidate.version), (Some(3), None));
    let tag = |tags: &Value, key: &str| tags.as_array().unwrap().iter().find(|tag| tag["key"] == key).unwrap()["value"].clone();
    let tags = server.tags("digits", 3).await;
    for (key, value) in [("verdict", "promoted"), ("by", "ann"), ("at", "2025-10-09T08:53:20+00:00"), ("reason", "it is better")] {
        assert_eq!(tag(&tags, &format!("bascule.{key}")), value);
    }
    server.alias("digits", "challenger", 1).await;
    source.tell(&name, &decided(1, Verdict::Aborted, "bob")).await.unwrap();
    let steering = model(&source, "digits").await.steering.clone().unwrap();
    assert_eq!((steering.stable.version, steering.candidate.version), (Some(3), None));
    assert_eq!(tag(&server.tags("digits", 1).await, "bascule.verdict"), "aborted");
    // What others have moved since stays, and a version that is gone is as good as told.
    source.tell(&name, &decided(1, Verdict::Promoted, "ann")).await.unwrap();
    let steering = model(&source, "digits").await.steering.clone().unwrap();
    assert_eq!(steering.stable.version, Some(3));
    assert_eq!(tag(&server.tags("digits", 1).await, "bascule.verdict"), "promoted");
    server.delete("digits", 2).await;
    source.tell(&name, &decided(2, Verdict::RolledBack, "ann")).await.unwrap();

    let sklearn = "flavors:\n  sklearn:\n    pickled_model: model.pkl\n  python_function: {}\n";
    server.register("trees", &[("MLmodel", sklearn.as_bytes()), ("model.pkl", b"x")]).await;
    let pickled = "flavors:\n  pytorch:\n    model_data: data\nsignature:\n  inputs: '[{\"type\": \"tensor\", \"tensor-spec\": \
                   {\"dtype\": \"float32\", \"shape\": [-1, 4]}}]'\n  outputs: '[{\"type\": \"tensor\", \"tensor-spec\": {\"dtype\": \
                   \"float32\", \"shape\": [-1, 4]}}]'\n";
    server.register("pickled", &[("MLmodel", pickled.as_bytes()), ("data/model.pth", b"PK archive/data.pkl")]).await;
    let scripted: &[u8] = b"PK archive/code/__torch__.py archive/constants.pkl";
    server.register("scripted", &[("MLmodel", pickled.as_bytes()), ("data/model.pth", scripted)]).await;
    server.call(Method::POST, "registered-models/create", json!({ "name": "not ours" })).await;
    let trees = model(&source, "trees").await;
    assert!(trees.versions.is_empty() && trees.problems[0].contains("python_function, sklearn"), "{:?}", trees.problems);
    let pickled = model(&source, "pickled").await;
    assert!(pickled.versions.is_empty() && pickled.problems[0].contains("torch.jit.script"), "{:?}", pickled.problems);
    let scripted = model(&source, "scripted").await;
    let manifest = &scripted.versions.get(&1).unwrap_or_else(|| panic!("{:?}", scripted.problems)).manifest;
    assert_eq!((manifest.format.as_str(), manifest.entrypoint.as_str()), ("torchscript", "data/model.pth"));
    assert_eq!(manifest.signature.as_ref().unwrap()["inputs"][0]["name"], "INPUT__0");
    let problems = listing(&source).await.problems;
    assert!(problems.len() == 1 && problems[0].contains("not ours"), "{problems:?}");
}

#[tokio::test]
#[ignore = "long: needs MLflow, which takes long to start"]
async fn a_server_that_asks_who_we_are() {
    let Some(server) = Mlflow::start(&["--app-name", "basic-auth"]) else { return };
    let (_, folder) = server.register("digits", &[("MLmodel", MLMODEL.as_bytes()), ("model.onnx", b"one")]).await;
    let basic = |password: &str| MlflowCredentials::Basic { username: USER.into(), password: password.into() };
    let with = |credentials| server.source(MlflowOptions { credentials, ..MlflowOptions::default() });
    let source = with(basic(PASSWORD));
    let generation = Arc::clone(&model(&source, "digits").await.versions[&1]);
    let dest = tempfile::tempdir().unwrap();
    source.fetch(&generation, dest.path(), &NoProgress).await.unwrap();
    assert_eq!(std::fs::read(dest.path().join("model.onnx")).unwrap(), b"one", "{folder}");
    for (credentials, tried) in [
        (MlflowCredentials::None, "no credentials"),
        (MlflowCredentials::Token("not a token".into()), "the token of mlflow.token"),
        (basic("hunter2"), "mlflow.username and mlflow.password"),
    ] {
        let stranger = with(credentials);
        let error = anyhow_text(&stranger.list(None).await.unwrap_err());
        assert!(error.contains("status 401") && error.contains(tried), "{error}");
        let dest = tempfile::tempdir().unwrap();
        let refused = stranger.fetch(&generation, dest.path(), &NoProgress).await.unwrap_err();
        assert!(matches!(refused, FetchError::Unavailable { .. }), "{refused}");
        for text in [error, anyhow_text(&refused)] {
            assert!(!text.contains("hunter2") && !text.contains("not a token"), "{text}");
        }
    }
}

/// An error with all its causes.
fn anyhow_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[tokio::test]
#[ignore = "long: needs MLflow, which takes long to start"]
async fn artifacts_in_a_store_that_the_server_names() {
    let Some(server) = Mlflow::start(&[]) else { return };
    let Some((_weed, weed)) = SeaweedFs::start().await else { return };
    weed.make_bucket("artifacts").await;
    let store = weed.store("artifacts");
    // More than one range.
    let large = vec![7_u8; 20 << 20];
    for (path, content) in [("MLmodel", MLMODEL.as_bytes()), ("model.onnx", &large)] {
        store.put(&format!("team/m-1/artifacts/{path}").into(), content.to_vec().into()).await.unwrap();
    }
    server.call(Method::POST, "registered-models/create", json!({ "name": "digits" })).await;
    let version = server.make(json!({ "name": "digits", "source": "s3://artifacts/team/m-1/artifacts" })).await;

    let source = server.source(MlflowOptions { stores: weed.environment(), ..MlflowOptions::default() });
    let generation = Arc::clone(&model(&source, "digits").await.versions[&version]);
    let dest = tempfile::tempdir().unwrap();
    source.fetch(&generation, dest.path(), &NoProgress).await.unwrap();
    assert_eq!(std::fs::read(dest.path().join("model.onnx")).unwrap(), large);

    let stranger = weed.environment_with(ACCESS_KEY, "wrong-secret");
    let stranger = server.source(MlflowOptions { stores: stranger, ..MlflowOptions::default() });
    let listing = listing(&stranger).await;
    let told = format!("{:?} {:?}", listing.problems, listing.models.values().map(|model| &model.problems).collect::<Vec<_>>());
    assert!(
        told.contains("SignatureDoesNotMatch") && told.contains("AWS_ACCESS_KEY_ID") && !told.contains("wrong-secret"),
        "{told}"
    );
    assert!(!listing.complete || listing.models.values().all(|model| model.versions.is_empty()), "{told}");
}
