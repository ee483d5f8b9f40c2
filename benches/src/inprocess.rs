//! What a model takes without a server around it: the same session, driven by one thread on the servers' core.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bascule_runtime_api::{DataType, LoadOptions, RunContext, Runtime, Session, Tensor};
use bascule_runtime_onnx::{OnnxConfig, OnnxRuntime};

use crate::calls::Input;
use crate::cores::{Cores, hold_this_thread};
use crate::process::thread_cpu;

/// Loads models in this process.
pub(crate) struct InProcess {
    runtime: OnnxRuntime,
    core: usize,
}

/// What runs took, in microseconds each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) cpu: f64,
    pub(crate) wall: f64,
}

impl InProcess {
    /// Finds the library where the gateway does.
    pub(crate) fn new(cores: Cores) -> InProcess {
        let library = std::env::var_os("BASCULE_ONNXRUNTIME_LIBRARY").map(PathBuf::from);
        let search = vec![PathBuf::from(".deps/onnxruntime/lib")];
        InProcess { runtime: OnnxRuntime::new(OnnxConfig { library, search, ..OnnxConfig::default() }), core: cores.server }
    }

    /// Loads the model in a version's folder, with one thread.
    pub(crate) fn load(&self, dir: &Path) -> Result<Box<dyn Session>> {
        let options =
            LoadOptions { entrypoint: "model.onnx".into(), intra_op_threads: 1, inter_op_threads: 1, ..LoadOptions::default() };
        self.runtime.load(dir, &options).with_context(|| format!("can't load the model in {}", dir.display()))
    }

    /// Runs again and again for `length`.
    pub(crate) fn run(&self, session: &mut dyn Session, input: &Input<'_>, length: Duration) -> Result<Ran> {
        let values: Vec<f32> = input.values().collect();
        let inputs = [Tensor::from_elements(input.shape, &values)?];
        ensure!(inputs[0].datatype() == DataType::Fp32, "the benchmarks' models take FP32");
        let mut measured = || -> Result<Ran> {
            hold_this_thread(self.core)?;
            let (began, cpu) = (Instant::now(), thread_cpu()?);
            let mut runs = 0u32;
            while began.elapsed() < length {
                session.run(&inputs, &RunContext::default())?;
                runs += 1;
            }
            let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(runs);
            Ok(Ran { cpu: each(thread_cpu()? - cpu), wall: each(began.elapsed()) })
        };
        // A thread of its own: what holds it to a core must not hold the rest.
        std::thread::scope(|scope| scope.spawn(&mut measured).join())
            .map_err(|_| anyhow::anyhow!("a run in this process panicked"))?
    }
}
