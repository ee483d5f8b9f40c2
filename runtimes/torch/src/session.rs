//! One loaded module.

use std::sync::Arc;

use bascule_runtime_api::{Device, Footprint, Interrupt, RunContext, RunError, Session, Signature, Tensor};

use crate::module::{Argument, Module, Results, first_line};
use crate::settings::Settings;
use crate::shim;
use crate::signature::{Call, Placed};
use crate::value;

/// What operators say of sizes that don't go together. Words that a later version changes make the error one of the model.
const SIZES_DIFFER: [&str; 9] = [
    "must match the size of tensor",
    "shapes cannot be multiplied",
    "size mismatch",
    "Sizes of tensors must match",
    "is invalid for input of size",
    "expected input",
    "to have",
    "out of range",
    "sizes must be",
];

/// A module, and how requests fit it.
pub(crate) struct TorchSession {
    pub(crate) module: Module,
    pub(crate) placed: Placed,
    pub(crate) device: Device,
    pub(crate) footprint: Footprint,
    pub(crate) settings: Settings,
    /// Why the module is not frozen, where it was to be.
    pub(crate) remarks: Vec<String>,
    /// The last field: it is dropped when the module has gone.
    pub(crate) _on_gone: OnGone,
}

/// Gives memory of the module's GPU back once that has gone.
pub(crate) struct OnGone(pub(crate) Device);

impl Drop for OnGone {
    fn drop(&mut self) {
        if self.0 != Device::Cpu {
            // What is not given back is there for the next module, and there is nobody to tell.
            drop(shim::empty_cache());
        }
    }
}

impl Session for TorchSession {
    fn signature(&self) -> &Signature {
        &self.placed.signature
    }

    /// A run that is under way can't be stopped; one that is not wanted any more does not begin.
    fn run(&mut self, inputs: &[Tensor], context: &RunContext<'_>) -> Result<Vec<Tensor>, RunError> {
        if context.is_cancelled() {
            return Err(RunError::Interrupted);
        }
        let signature = &self.placed.signature;
        signature.check_inputs(inputs)?;
        let device = crate::runtime::torch_device(self.device);
        let give = |input: usize| value::give(&inputs[input], &signature.inputs[input], device);
        let given = match &self.placed.call {
            Call::Each(arguments) => {
                let each =
                    arguments.iter().map(|(input, kind)| value::argument(&inputs[*input], &signature.inputs[*input], kind, device));
                each.collect::<Result<Vec<Argument>, RunError>>()?
            }
            Call::List(order) => {
                let tensors = order.iter().map(|input| give(*input)).collect::<Result<Vec<tch::Tensor>, RunError>>()?;
                vec![Argument::Tensors(tensors)]
            }
            Call::Dictionary => {
                let named = signature.inputs.iter().enumerate().map(|(input, spec)| Ok((spec.name.clone(), give(input)?)));
                vec![Argument::Named(named.collect::<Result<Vec<(String, tch::Tensor)>, RunError>>()?)]
            }
        };
        // The thread's own, so it is said for each run.
        let Settings { optimized, inference_mode, .. } = self.settings;
        tch::jit::f_set_graph_executor_optimize(optimized).map_err(|error| RunError::Failed { message: error.to_string() })?;
        let results = self.module.forward(&given, inference_mode).map_err(|said| fault(&said, signature))?;
        match results {
            Results::Listed(listed) => take_listed(&listed, &self.placed),
            Results::Named(named) => take_named(&named, signature),
        }
    }

    /// libtorch can't stop a module.
    fn interrupter(&self) -> Option<Arc<dyn Interrupt>> {
        None
    }

    fn footprint(&self) -> Footprint {
        self.footprint
    }

    fn device(&self) -> Device {
        self.device
    }

    fn remarks(&self) -> &[String] {
        &self.remarks
    }
}

fn take_listed(listed: &[tch::Tensor], placed: &Placed) -> Result<Vec<Tensor>, RunError> {
    let outputs = &placed.signature.outputs;
    // More than are declared may be there: a model's last results need not be served.
    if listed.len() < outputs.len() {
        let message = format!("the model returned {} tensors, expected {}", listed.len(), outputs.len());
        return Err(RunError::Failed { message });
    }
    outputs.iter().zip(&placed.places).map(|(spec, place)| value::take(&listed[*place], spec)).collect()
}

fn take_named(named: &[(String, tch::Tensor)], signature: &Signature) -> Result<Vec<Tensor>, RunError> {
    let find = |name: &str| named.iter().find(|(found, _)| found == name).map(|(_, tensor)| tensor);
    let missing = |name: &str| {
        let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        RunError::Failed { message: format!("output '{name}': the model returned a dictionary with {names:?} and without it") }
    };
    signature.outputs.iter().map(|spec| value::take(find(&spec.name).ok_or_else(|| missing(&spec.name))?, spec)).collect()
}

/// Whose fault an error is. Sizes that don't go together are the caller's where the signature leaves sizes open; where it names them all
/// they have been checked, and what fails then is the model.
fn fault(said: &str, signature: &Signature) -> RunError {
    let message = first_line(said).to_owned();
    let leaves_sizes_open = signature.inputs.iter().any(|spec| spec.shape.iter().any(|dim| *dim < 0));
    if leaves_sizes_open && SIZES_DIFFER.iter().any(|words| message.contains(words)) {
        return RunError::InvalidInput { message };
    }
    RunError::Failed { message }
}
