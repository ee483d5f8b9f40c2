//! One loaded model.

use std::sync::{Arc, Mutex, PoisonError};

use bascule_runtime_api::{Device, Footprint, Interrupt, RunContext, RunError, Session, Signature, Tensor, TensorSpec};
use ort::ErrorCode;
use ort::session::{RunOptions, Session as OrtSession, SessionInputValue, SessionOutputs};

use crate::settings::Settings;
use crate::{message, value};

/// What operators say of sizes that don't go together where they report no more than a failure: element by element, MatMul, Concat,
/// Reshape, LSTM. Words that a later version changes make the error one of the model.
const SIZES_DIFFER: [&str; 7] = [
    "to broadcast an axis by a dimension other than 1",
    "Can broadcast 0 by 0 or 1",
    "operand cannot broadcast",
    "imension mismatch",
    "dimensions must match",
    "cannot be reshaped",
    "must have shape",
];

/// A session of the library, and what its runs share with interrupters.
pub(crate) struct OnnxSession {
    session: OrtSession,
    about: About,
    runs: Arc<Runs>,
}

/// What is known of a session when it is made.
pub(crate) struct About {
    pub(crate) signature: Signature,
    pub(crate) footprint: Footprint,
    /// The device that really runs it: nodes that it does not run are a warning, or there is no session.
    pub(crate) device: Device,
    pub(crate) warning: Option<String>,
}

impl OnnxSession {
    pub(crate) fn new(session: OrtSession, about: About, settings: &Settings) -> ort::Result<OnnxSession> {
        let runs = Arc::new(Runs { options: settings.run_options()?, state: Mutex::new(RunState::Idle) });
        Ok(OnnxSession { session, about, runs })
    }
}

/// Whose fault an error of the library is. Sizes that don't go together are the caller's where the signature leaves sizes open; where
/// it names them all they have been checked, and what fails then is the model.
fn fault(error: &ort::Error, signature: &Signature) -> RunError {
    let message = message::without_source_folders(error.message());
    let leaves_sizes_open = signature.inputs.iter().any(|spec| spec.shape.iter().any(|dim| *dim < 0));
    let sizes_differ = leaves_sizes_open && SIZES_DIFFER.iter().any(|words| message.contains(words));
    match error.code() {
        ErrorCode::InvalidArgument => RunError::InvalidInput { message },
        _ if sizes_differ => RunError::InvalidInput { message },
        _ => RunError::Failed { message },
    }
}

impl Session for OnnxSession {
    fn signature(&self) -> &Signature {
        &self.about.signature
    }

    fn run(&mut self, inputs: &[Tensor], context: &RunContext<'_>) -> Result<Vec<Tensor>, RunError> {
        self.about.signature.check_inputs(inputs)?;
        let values = self.about.signature.inputs.iter().zip(inputs).map(|(spec, tensor)| lend(spec, tensor));
        let values = values.collect::<Result<Vec<SessionInputValue<'_>>, RunError>>()?;
        let under_way = self.runs.begin();
        // From here on interrupts reach the run.
        if context.is_cancelled() {
            return Err(RunError::Interrupted);
        }
        let result = self.session.run_with_options(values.as_slice(), &self.runs.options);
        let interrupted = under_way.end();
        match result {
            Ok(outputs) => self.about.signature.outputs.iter().map(|spec| take(spec, &outputs)).collect(),
            Err(_) if interrupted => Err(RunError::Interrupted),
            Err(error) => Err(fault(&error, &self.about.signature)),
        }
    }

    fn interrupter(&self) -> Option<Arc<dyn Interrupt>> {
        let runs: Arc<dyn Interrupt> = self.runs.clone();
        Some(runs)
    }

    fn footprint(&self) -> Footprint {
        self.about.footprint
    }

    fn device(&self) -> Device {
        self.about.device
    }

    fn warnings(&self) -> Vec<String> {
        self.about.warning.iter().cloned().collect()
    }
}

fn lend<'a>(spec: &TensorSpec, tensor: &'a Tensor) -> Result<SessionInputValue<'a>, RunError> {
    value::lend(tensor).map_err(|error| RunError::Failed { message: format!("input '{}': {}", spec.name, error.message()) })
}

fn take(spec: &TensorSpec, outputs: &SessionOutputs<'_>) -> Result<Tensor, RunError> {
    match outputs.get(&spec.name) {
        Some(output) => value::take(output, spec),
        None => Err(RunError::Failed { message: format!("output '{}' is missing", spec.name) }),
    }
}

/// The session's runs, one after the other. The library's terminate flag is set only while a run is under way, and cleared when it
/// ends; both happen under the lock, so that an interrupt reaches no later run.
struct Runs {
    options: RunOptions,
    state: Mutex<RunState>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RunState {
    Idle,
    UnderWay,
    Interrupted,
}

impl Runs {
    fn begin(&self) -> UnderWay<'_> {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = RunState::UnderWay;
        UnderWay(self)
    }
}

/// Ends the run where it is dropped, after a panic as well.
struct UnderWay<'a>(&'a Runs);

impl UnderWay<'_> {
    /// Whether the run was interrupted.
    fn end(self) -> bool {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) == RunState::Interrupted
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == RunState::Interrupted
            && let Err(error) = self.0.options.unterminate()
        {
            tracing::error!(%error, "a session can't be used again after an interrupt");
        }
        *state = RunState::Idle;
    }
}

impl Interrupt for Runs {
    fn interrupt(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == RunState::UnderWay {
            match self.options.terminate() {
                Ok(()) => *state = RunState::Interrupted,
                Err(error) => tracing::error!(%error, "a run can't be interrupted"),
            }
        }
    }
}
