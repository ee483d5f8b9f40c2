//! Folders with models, and the runtime that loads them.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use bascule_onnx_writer::{OnnxModel, library, models};
use bascule_runtime_api::conformance::{Endless, Fixture, Model};
use bascule_runtime_api::{DataType, LoadError, LoadOptions, RunContext, RunError, Runtime, Session, Tensor};
use bascule_runtime_onnx::{OnnxConfig, OnnxRuntime};
use tempfile::TempDir;

pub(crate) struct Folders {
    pub(crate) runtime: OnnxRuntime,
    root: TempDir,
    next: Cell<u32>,
}

impl Folders {
    /// Folders and a runtime, or a report that the test is skipped.
    pub(crate) fn new() -> Option<Folders> {
        let library = Some(library::find_or_skip()?);
        let runtime = OnnxRuntime::new(OnnxConfig { library, ..OnnxConfig::default() });
        Some(Folders { runtime, root: TempDir::new().unwrap(), next: Cell::new(0) })
    }

    pub(crate) fn write(&self, model: &OnnxModel) -> Model {
        self.next.set(self.next.get() + 1);
        let dir: PathBuf = self.root.path().join(self.next.get().to_string());
        fs::create_dir(&dir).unwrap();
        model.write_to(&dir).unwrap();
        Model { dir, options: LoadOptions { entrypoint: "model.onnx".into(), ..LoadOptions::default() } }
    }

    pub(crate) fn file(&self, bytes: impl Into<Vec<u8>>) -> Model {
        self.write(&OnnxModel { bytes: bytes.into(), files: Vec::new() })
    }

    pub(crate) fn load(&self, model: &OnnxModel) -> Box<dyn Session> {
        self.try_load(&self.write(model)).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn try_load(&self, model: &Model) -> Result<Box<dyn Session>, LoadError> {
        self.runtime.load(&model.dir, &model.options)
    }

    /// The error of a model that must not load.
    pub(crate) fn refused(&self, model: &Model) -> LoadError {
        self.try_load(model).err().expect("the model was loaded")
    }
}

impl Fixture for Folders {
    fn identity(&self, datatype: DataType, shape: &[i64]) -> Model {
        self.write(&models::identity(datatype, shape))
    }

    fn broken(&self) -> Vec<(&'static str, Model)> {
        let whole = models::linear(&[1.0; 64], &[0.0; 8]).bytes;
        vec![
            ("empty", self.file([])),
            ("truncated in the middle", self.file(&whole[..whole.len() / 2])),
            ("truncated by one byte", self.file(&whole[..whole.len() - 1])),
            ("a web page", self.file("<!DOCTYPE html><html><body>404</body></html>")),
            ("zeroes", self.file([0; 4096])),
            ("an archive of another format", self.file(*b"PK\x03\x04\x00\x00\x00\x00\x00\x00model/data.pkl")),
            ("pickled objects", self.file(*b"\x80\x02}q\x00.")),
        ]
    }

    fn endless(&self) -> Option<Endless> {
        let x = Tensor::from_elements([2], &[1.0f32, 2.0]).unwrap();
        let inputs = |iterations: i64| vec![Tensor::from_elements([], &[iterations]).unwrap(), x.clone()];
        Some(Endless { model: self.write(&models::slow()), forever: inputs(i64::MAX), brief: inputs(3) })
    }
}

pub(crate) fn floats(shape: &[i64], elements: &[f32]) -> Tensor {
    Tensor::from_elements(shape, elements).unwrap()
}

pub(crate) fn run(session: &mut dyn Session, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
    session.run(inputs, &RunContext::default())
}
