//! The border between host and plugin: what a runtime promises holds across it as well. The fake runtime stands behind the table, in
//! this program; a real plugin is tested where libtorch is.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::cell::Cell;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use bascule_runtime_api::conformance::{self, Endless, Fixture, Model};
use bascule_runtime_api::plugin::{Plugin, guest};
use bascule_runtime_api::{
    DataType, Footprint, LoadError, LoadOptions, RunContext, RunError, Runtime, Session, Tensor, TensorSpec,
};
use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};
use bascule_runtime_plugin::Host;

static FAKE: LazyLock<FakeRuntime> = LazyLock::new(FakeRuntime::new);
static TABLE: Plugin = guest::table::<Guest>();

struct Guest;

impl guest::Open for Guest {
    fn open(settings: &[u8]) -> Result<Box<dyn Runtime>, LoadError> {
        match serde_json::from_slice(settings) {
            Ok("fake") => Ok(Box::new(FAKE.clone())),
            Ok("panic") => panic!("as it was told"),
            _ => Err(LoadError::Unavailable { message: "no library".to_owned(), hint: "install it".to_owned() }),
        }
    }
}

/// The host as a runtime.
struct Hosted(Arc<Host>);

impl Runtime for Hosted {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn format(&self) -> &'static str {
        "fake"
    }

    fn version(&self) -> Result<String, LoadError> {
        self.0.version()
    }

    fn estimate(&self, dir: &Path, options: &LoadOptions) -> Result<Footprint, LoadError> {
        self.0.estimate(dir, options)
    }

    fn load(&self, dir: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, LoadError> {
        self.0.load(dir, options)
    }
}

struct Folders {
    root: tempfile::TempDir,
    next: Cell<u32>,
}

impl Folders {
    fn new() -> Folders {
        Folders { root: tempfile::tempdir().unwrap(), next: Cell::new(0) }
    }

    fn file(&self, content: impl AsRef<[u8]>) -> Model {
        self.next.set(self.next.get() + 1);
        let dir = self.root.path().join(self.next.get().to_string());
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("model.json"), content).unwrap();
        Model { dir, options: LoadOptions { entrypoint: "model.json".into(), ..LoadOptions::default() } }
    }

    fn model(&self, model: &FakeModel) -> Model {
        self.file(serde_json::to_vec(model).unwrap())
    }
}

impl Fixture for Folders {
    fn identity(&self, datatype: DataType, shape: &[i64]) -> Model {
        let batch_axis = (shape.first() == Some(&-1)).then_some(0);
        self.model(&FakeModel { batch_axis, ..identity(datatype, shape) })
    }

    fn broken(&self) -> Vec<(&'static str, Model)> {
        vec![("empty", self.file("")), ("of another format", self.file([0xff, 0x00]))]
    }

    fn endless(&self) -> Option<Endless> {
        let model = self.model(&FakeModel { block: true, ..identity(DataType::Fp32, &[1]) });
        let inputs = vec![Tensor::from_elements([1], &[1.0f32]).unwrap()];
        Some(Endless { model, forever: inputs.clone(), brief: inputs })
    }

    fn unblock(&self) {
        FAKE.log().release();
    }

    fn live_sessions(&self) -> Option<usize> {
        Some(FAKE.log().counts().live)
    }
}

fn identity(datatype: DataType, shape: &[i64]) -> FakeModel {
    let spec = |name: &str| vec![TensorSpec::new(name, datatype, shape)];
    FakeModel::new(FakeOp::Identity, spec("x"), spec("y"))
}

fn host() -> Arc<Host> {
    Arc::new(Host::open(&TABLE, &"fake").unwrap())
}

#[test]
fn a_hosted_runtime_keeps_the_promises_of_every_runtime() {
    let host = host();
    assert_eq!(host.about().unwrap().format, "fake");
    conformance::check(&Hosted(host), &Folders::new());
    panics_and_failures_cross_as_errors();
    outputs_outlive_their_session();
}

/// Runs after the suite and not beside it: the fake runtime's log counts the sessions of all.
fn panics_and_failures_cross_as_errors() {
    let error = |settings: &str| Host::open(&TABLE, &settings).err().unwrap();
    assert!(error("panic").to_string().contains("the runtime panicked: as it was told"));
    let LoadError::Unavailable { message, hint } = error("other") else { panic!("another error") };
    assert_eq!((message.as_str(), hint.as_str()), ("no library", "install it"));
    let folders = Folders::new();
    let failing = folders.model(&FakeModel { fail_run_every: Some(1), ..identity(DataType::Fp32, &[1]) });
    let mut session = host().load(&failing.dir, &failing.options).unwrap();
    let input = Tensor::from_elements([1], &[1.0f32]).unwrap();
    let failed = session.run(&[input], &RunContext::default()).unwrap_err();
    assert!(matches!(&failed, RunError::Failed { message } if !message.is_empty()), "{failed:?}");
}

fn outputs_outlive_their_session() {
    let folders = Folders::new();
    let model = folders.model(&identity(DataType::Fp32, &[-1]));
    let host = host();
    let mut session = host.load(&model.dir, &model.options).unwrap();
    let input = Tensor::from_elements([3], &[1.0f32, 2.0, 3.0]).unwrap();
    let outputs = session.run(std::slice::from_ref(&input), &RunContext::default()).unwrap();
    drop((session, host, input));
    assert_eq!(outputs[0].elements::<f32>().unwrap().as_ref(), [1.0, 2.0, 3.0]);
}
