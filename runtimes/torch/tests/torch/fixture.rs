//! Folders with models, and the runtime that loads them: the plugin as the gateway opens it.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use bascule_runtime_api::conformance::{Endless, Fixture, Model};
use bascule_runtime_api::{
    DataType, LoadError, LoadOptions, RunContext, RunError, Runtime, Session, Signature, Tensor, TensorSpec,
};
use bascule_runtime_plugin::{PluginConfig, PluginRuntime};
use tempfile::TempDir;

use crate::archive::{self, Script};

/// Names a folder with libtorch_cpu.so.
const LIBRARY_VARIABLE: &str = "BASCULE_TEST_TORCH";

pub(crate) struct Folders {
    pub(crate) runtime: PluginRuntime,
    root: TempDir,
    next: Cell<u32>,
}

/// The plugin, which has to be built before these tests: it lies in the folder above that of their program.
fn plugin() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().parent().unwrap().join("libbascule_torch.so")
}

/// Where libtorch is: these tests are built against it, so it is there.
fn libraries() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.deps/torch/lib");
    std::env::var_os(LIBRARY_VARIABLE).map_or_else(beside, PathBuf::from)
}

pub(crate) fn runtime() -> PluginRuntime {
    PluginRuntime::new(PluginConfig {
        name: "torch",
        format: "torchscript",
        plugin: vec![plugin()],
        libraries: vec![libraries()],
        needs: vec!["libtorch_cpu.so"],
        wants: vec!["libtorch_cuda.so"],
        settings: serde_json::json!({ "threads": 1 }),
        hint: "run `make torch`, which builds the plugin",
    })
}

impl Folders {
    pub(crate) fn new() -> Folders {
        Folders { runtime: runtime(), root: TempDir::new().unwrap(), next: Cell::new(0) }
    }

    pub(crate) fn file(&self, content: &[u8], inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> Model {
        self.next.set(self.next.get() + 1);
        let dir = self.root.path().join(self.next.get().to_string());
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("model.pt"), content).unwrap();
        let declared = Signature { inputs, outputs, batch_axis: None };
        let batch_axis = declared.has_dynamic_leading_axis().then_some(0);
        let declared = Some(Signature { batch_axis, ..declared });
        Model { dir, options: LoadOptions { entrypoint: "model.pt".into(), declared, ..LoadOptions::default() } }
    }

    pub(crate) fn script(&self, forward: &str, inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> Model {
        self.file(&archive::write(&Script { forward, weight: &[] }), inputs, outputs)
    }

    pub(crate) fn try_load(&self, model: &Model) -> Result<Box<dyn Session>, LoadError> {
        self.runtime.load(&model.dir, &model.options)
    }

    pub(crate) fn load(&self, model: &Model) -> Box<dyn Session> {
        self.try_load(model).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The error of a model that must not load.
    pub(crate) fn refused(&self, model: &Model) -> String {
        self.try_load(model).err().expect("the model was loaded").to_string()
    }
}

impl Fixture for Folders {
    fn identity(&self, datatype: DataType, shape: &[i64]) -> Model {
        let spec = |name: &str| vec![TensorSpec::new(name, datatype, shape)];
        self.script("x: Tensor) -> Tensor:\n    return x", spec("x"), spec("y"))
    }

    fn datatypes(&self) -> Vec<DataType> {
        use DataType::{Bf16, Bool, Fp16, Fp32, Fp64, Int8, Int16, Int32, Int64, Uint8};
        vec![Bool, Uint8, Int8, Int16, Int32, Int64, Fp16, Fp32, Fp64, Bf16]
    }

    fn has_schema(&self) -> bool {
        false
    }

    fn broken(&self) -> Vec<(&'static str, Model)> {
        let whole = archive::write(&Script { forward: "x: Tensor) -> Tensor:\n    return x", weight: &[1.0; 64] });
        let wrong = archive::write(&Script { forward: "x: Tensor) -> Tensor:\n    return nothing_known", weight: &[] });
        let model = |content: &[u8]| self.file(content, vec![floats_spec("x", &[1])], vec![floats_spec("y", &[1])]);
        vec![
            ("empty", model(b"")),
            ("truncated in the middle", model(&whole[..whole.len() / 2])),
            ("truncated by one byte", model(&whole[..whole.len() - 1])),
            ("a web page", model(b"<!DOCTYPE html><html><body>404</body></html>")),
            ("zeroes", model(&[0; 4096])),
            ("pickled objects", model(b"\x80\x02}q\x00.")),
            ("code that means nothing", model(&wrong)),
        ]
    }

    fn endless(&self) -> Option<Endless> {
        None
    }
}

pub(crate) fn floats_spec(name: &str, shape: &[i64]) -> TensorSpec {
    TensorSpec::new(name, DataType::Fp32, shape)
}

pub(crate) fn floats(shape: &[i64], elements: &[f32]) -> Tensor {
    Tensor::from_elements(shape, elements).unwrap()
}

pub(crate) fn run(session: &mut dyn Session, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
    session.run(inputs, &RunContext::default())
}
