//! Commands against a gateway in this process, with models that need no library.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bascule_registry::{ModelName, Registry};
use bascule_runtime_api::{DataType, Tensor, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::compose::Retrust;
use crate::config::{self, Effective, Given};
use crate::npy;
use crate::server::Server;
use crate::supervise::Supervised;

/// A trial starts the program again, which here is that of the tests.
const NO_TRIAL: &str = "trial.mode=off";

pub(super) struct Live {
    pub(super) runtime: Runtime,
    server: Option<Server>,
    folder: TempDir,
}

impl Live {
    pub(super) fn start() -> Live {
        Live::start_with(&[])
    }

    /// With more settings.
    pub(super) fn start_with(sets: &[&str]) -> Live {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("registry")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let mut live = Live { runtime, server: None, folder };
        live.server = Some(live.serve(sets).unwrap());
        live
    }

    /// Stops the gateway and starts another over the same folders.
    pub(super) fn restart(&mut self, between: impl FnOnce(&Live), sets: &[&str]) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
        // What was under way when it stopped lets go of the cache a moment later.
        let cache = self.path("state").join("cache");
        let began = std::time::Instant::now();
        while let Err(error) = bascule_registry::Cache::open(&cache) {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "{error}");
            std::thread::yield_now();
        }
        between(self);
        self.server = Some(self.serve(sets).unwrap());
    }

    fn serve(&self, sets: &[&str]) -> anyhow::Result<Server> {
        let effective = self.effective(sets);
        self.runtime.block_on(Server::start(&effective, vec![Arc::new(FakeRuntime::new())], Supervised::No))
    }

    /// Reads the trusted keys again, as a reload with these settings does.
    pub(super) fn retrust(&self, sets: &[&str]) -> Retrust {
        let effective = self.effective(sets);
        self.runtime.block_on(async {
            let retrust = self.server().retrust(&effective).await.unwrap();
            self.server().change(&effective).await.unwrap();
            retrust
        })
    }

    fn effective(&self, sets: &[&str]) -> Effective {
        let any = || "127.0.0.1:0".to_owned();
        let flags = vec![
            ("server.http", "--http", any()),
            ("server.grpc", "--grpc", any()),
            ("server.admin", "--admin", any()),
            ("registry.url", "--registry", self.registry()),
            ("state.dir", "--state-dir", self.path("state").display().to_string()),
        ];
        let sets = ["registry.poll_interval=100ms", NO_TRIAL].iter().chain(sets).map(|set| (*set).to_owned()).collect();
        let given = Given { flags, sets, ..Given::default() };
        config::load(&given, &Environment::default()).unwrap()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn registry(&self) -> String {
        self.path("registry").display().to_string()
    }

    pub(super) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Runs a command against this gateway.
    pub(super) fn run(&self, arguments: &[&str]) -> ExitCode {
        let gateway = format!("http://{}", self.server().addresses.admin);
        code(&[arguments, &["--gateway", &gateway]].concat())
    }

    /// Publishes a model and waits for it.
    pub(super) fn publish(&self, version: &str, model: &FakeModel) -> ExitCode {
        let file = self.path("model.fake.json");
        std::fs::write(&file, serde_json::to_vec(model).unwrap()).unwrap();
        let file = file.display().to_string();
        self.run(&["publish", "m", &file, "--registry", &self.registry(), "--version", version, "--wait=any"])
    }

    pub(super) fn model(&self) -> bascule_serving::ModelStatus {
        self.server().serving.status().model("m").cloned().unwrap()
    }

    /// Waits until the engine shows what a command has asked for.
    pub(super) fn until(&self, met: impl Fn(&bascule_serving::ModelStatus) -> bool) {
        self.runtime.block_on(async {
            let waited = async {
                let mut changes = self.server().serving.changes();
                while !self.server().serving.status().model("m").is_some_and(&met) {
                    assert!(changes.next().await, "the engine has ended");
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(60), waited).await.expect("the engine gets there");
        });
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }
}

pub(super) fn constant(value: f64) -> FakeModel {
    let spec = |name: &str| TensorSpec::new(name, DataType::Fp32, [-1, 2]);
    FakeModel { batch_axis: Some(0), value, ..FakeModel::new(FakeOp::Constant, vec![spec("x")], vec![spec("y")]) }
}

fn answered(file: &Path) -> Vec<f32> {
    npy::read(&std::fs::read(file).unwrap()).unwrap().elements::<f32>().unwrap().into_owned()
}

pub(super) const DONE: ExitCode = ExitCode::SUCCESS;

#[test]
fn a_version_is_published_asked_split_and_unloaded() {
    let live = Live::start();
    assert_eq!(live.publish("1", &constant(1.0)), DONE);
    assert_eq!(live.publish("1", &constant(1.0)), ExitCode::from(1), "versions never change");
    assert_eq!(live.publish("2", &constant(2.0)), DONE);
    live.until(|model| model.stable == Some(2));

    let (input, output) = (live.path("x.npy"), live.path("y.npy"));
    std::fs::write(&input, npy::write(&Tensor::from_elements([1, 2], &[1f32, 2.0]).unwrap()).unwrap()).unwrap();
    std::fs::write(live.path("x.json"), "[[1, 2]]").unwrap();
    let from = |name: &str| format!("x=@{}", live.path(name).display());
    let to = format!("y=@{}", output.display());
    for input in [from("x.npy"), from("x.json"), "x=[[1, 2]]".to_owned()] {
        for protocol in [&[][..], &["--grpc"], &["--json", "--key", "a"]] {
            drop(std::fs::remove_file(&output));
            assert_eq!(live.run(&[&["infer", "m", "--input", &input, "--output", &to], protocol].concat()), DONE, "{input}");
            assert_eq!(answered(&output), [2.0, 2.0], "{input} {protocol:?}");
        }
    }
    for wrong in ["x=[[1, 2, 3]]", "z=[[1, 2]]", "x=[[\"a\", 2]]", "x=nothing"] {
        assert_eq!(live.run(&["infer", "m", "--input", wrong]), ExitCode::from(1), "{wrong}");
        assert_eq!(live.run(&["infer", "m", "--input", wrong, "--grpc"]), ExitCode::from(1), "{wrong}");
    }

    assert_eq!(live.run(&["rollout", "weight", "m", "1", "25%", "--reason", "try"]), DONE);
    live.until(|model| model.candidate.as_ref().is_some_and(|candidate| (candidate.version, candidate.weight_bp) == (1, 2_500)));
    assert_eq!(live.run(&["infer", "m", "--version", "1", "--input", "x=[[1, 2]]", "--output", &to]), DONE);
    assert_eq!(answered(&output), [1.0, 1.0]);
    for shown in [&["rollout", "status", "m"][..], &["status"], &["status", "m", "--json"], &["models"], &["models", "--json"]] {
        assert_eq!(live.run(shown), DONE, "{shown:?}");
    }
    assert_eq!(live.run(&["rollout", "pin", "m", "7"]), ExitCode::from(1));
    assert_eq!(live.run(&["rollout", "pin", "m", "1"]), DONE);
    live.until(|model| model.pinned == Some(1));
    assert_eq!(live.run(&["rollout", "unpin", "m"]), DONE);
    live.until(|model| model.pinned.is_none());

    assert_eq!(live.run(&["unload", "m", "--wait"]), DONE);
    live.until(|model| model.held.is_some());
    assert_eq!(live.run(&["infer", "m", "--input", "x=[[1, 2]]"]), ExitCode::from(1));
    assert_eq!(live.run(&["load", "m"]), DONE);
    live.until(|model| model.stable == Some(2));
    assert_eq!(live.run(&["load", "nobody"]), ExitCode::from(1));
    assert_eq!(live.run(&["status", "nobody"]), ExitCode::from(1));
}

#[test]
fn a_version_that_does_not_load_fails_the_publish_that_waits() {
    let live = Live::start();
    assert_eq!(live.publish("1", &constant(1.0)), DONE);
    let broken = FakeModel { fail_load: Some("out of luck".into()), ..constant(2.0) };
    assert_eq!(live.publish("2", &broken), ExitCode::from(1));
    let failed = live.model().version(2).cloned().unwrap();
    assert!(failed.cause.is_some_and(|cause| cause.contains("out of luck")));
    assert_eq!(live.model().stable, Some(1));
}

#[test]
fn a_decision_in_the_registry_s_journal_reaches_the_gateway() {
    let live = Live::start();
    assert_eq!(live.publish("1", &constant(1.0)), DONE);
    assert_eq!(live.publish("2", &constant(2.0)), DONE);
    let registry = live.registry();
    assert_eq!(code(&["rollout", "pin", "m", "1", "--registry", &registry]), DONE);
    live.until(|model| model.pinned == Some(1));
    assert_eq!(live.run(&["rollout", "unpin", "m"]), DONE);
    assert_eq!(code(&["rollout", "status", "m", "--registry", &registry]), DONE);
    assert_eq!(code(&["rollout", "pin", "m", "9", "--registry", &registry]), ExitCode::from(1));
    assert_eq!(code(&["models", "--registry", &registry]), DONE);
    // The program itself has no runtime for these models, as `check` finds out.
    assert_eq!(code(&["check", "--registry", &registry, "--set", "trial.mode=off"]), ExitCode::from(1));
    let entries = Registry::open(&registry).unwrap();
    let entries = live.runtime.block_on(entries.journal(&ModelName::new("m").unwrap())).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.op.name()).collect::<Vec<_>>(), ["pin", "unpin"]);
}

#[test]
fn plain_models_have_their_journal_in_the_state_directory() {
    let live = Live::start();
    for version in ["1", "2"] {
        let folder = live.path("registry").join("m").join(version);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("model.fake.json"), serde_json::to_vec(&constant(1.0)).unwrap()).unwrap();
    }
    live.runtime.block_on(async {
        let mut changes = live.server().serving.changes();
        while live.server().serving.status().model("m").is_none_or(|model| model.stable != Some(2)) {
            assert!(changes.next().await, "the engine has ended");
        }
    });
    assert_eq!(live.run(&["rollout", "pin", "m", "1"]), DONE);
    live.until(|model| model.stable == Some(1));
    let kept = live.path("state").read_dir().unwrap().map(|entry| entry.unwrap().path().join("journal/m"));
    assert_eq!(kept.filter(|journal| journal.is_dir()).count(), 1, "in what is kept of this registry");
    assert!(!live.path("registry/m/rollout").exists());
    let refused = live.publish("3", &constant(3.0));
    assert_eq!(refused, ExitCode::from(1), "publishing into a plain model would hide it");
}

#[test]
fn a_second_gateway_does_not_share_the_state_directory() {
    let live = Live::start();
    let error = live.serve(&[]).err().unwrap();
    assert!(error.to_string().contains("is used by another gateway (process "), "{error:#}");
}
