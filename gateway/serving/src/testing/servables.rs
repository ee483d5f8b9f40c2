//! Versions that are loaded, and sessions that do what a test says.

use std::sync::Arc;

use bascule_runtime_api::{
    DataType, Device, Footprint, Interrupt, LoadOptions, RunContext, RunError, Runtime, Session, Signature, Tensor, TensorSpec,
};
use bascule_runtime_fake::{FakeModel, FakeRuntime};
use chrono::DateTime;

use super::{ENTRYPOINT, folder, generation, name};
use crate::{ModelSettings, Servable, ServableSpec};

/// Sessions of a fake model.
pub(crate) fn sessions(runtime: &FakeRuntime, model: &FakeModel, count: usize) -> Vec<Box<dyn Session>> {
    let dir = folder(model);
    let options = LoadOptions { entrypoint: ENTRYPOINT.into(), ..LoadOptions::default() };
    (0..count).map(|_| runtime.load(dir.path(), &options).unwrap()).collect()
}

/// Version 1 of model `m`.
pub(crate) fn started(settings: ModelSettings, sessions: Vec<Box<dyn Session>>) -> Arc<Servable> {
    let spec = ServableSpec {
        generation: Arc::new(generation(&name("m"), 1, "")),
        settings: Arc::new(settings),
        runtime: "fake",
        runtime_version: "1".to_owned(),
        footprint: Footprint::default(),
        loaded_at: DateTime::UNIX_EPOCH,
    };
    Servable::start(spec, sessions).unwrap()
}

/// Zeros for [`super::constant`].
pub(crate) fn zeros(rows: i64) -> Tensor {
    Tensor::from_elements([rows, 2], &vec![0f32; usize::try_from(rows).unwrap() * 2]).unwrap()
}

/// A session that can't be interrupted and never hears that a run is cancelled.
pub(crate) struct Stubborn(pub(crate) Box<dyn Session>);

impl Session for Stubborn {
    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn run(&mut self, inputs: &[Tensor], _: &RunContext<'_>) -> Result<Vec<Tensor>, RunError> {
        self.0.run(inputs, &RunContext::default())
    }

    fn interrupter(&self) -> Option<Arc<dyn Interrupt>> {
        None
    }

    fn footprint(&self) -> Footprint {
        self.0.footprint()
    }

    fn device(&self) -> Device {
        self.0.device()
    }
}

type Script = Box<dyn FnMut(usize, &Tensor, &RunContext<'_>) -> Result<(), RunError> + Send>;

/// An identity of FP32 `x` and `y` of shape [-1, 2] that asks a script, run by run from 1, whether the run succeeds.
pub(crate) struct Scripted {
    signature: Signature,
    runs: usize,
    script: Script,
}

impl Scripted {
    pub(crate) fn new(script: impl FnMut(usize, &Tensor, &RunContext<'_>) -> Result<(), RunError> + Send + 'static) -> Scripted {
        let spec = |name: &str| vec![TensorSpec::new(name, DataType::Fp32, [-1, 2])];
        let signature = Signature { inputs: spec("x"), outputs: spec("y"), batch_axis: Some(0) };
        Scripted { signature, runs: 0, script: Box::new(script) }
    }
}

impl Session for Scripted {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor], context: &RunContext<'_>) -> Result<Vec<Tensor>, RunError> {
        self.runs += 1;
        (self.script)(self.runs, &inputs[0], context).map(|()| inputs.to_vec())
    }

    fn interrupter(&self) -> Option<Arc<dyn Interrupt>> {
        None
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}
