//! Golden samples: inputs whose outputs the publisher recorded. A version that answers otherwise here than where it was trained never
//! takes traffic.
//!
//! The file is JSON: `{"schema": 1, "samples": [{"inputs": {name: {"datatype", "shape", "data"}}, "outputs": {…}, "tolerance": {name:
//! largest absolute difference}}]}`, with `data` as [`stored`] says. Outputs that a sample does not name are not compared; without a
//! tolerance floating-point outputs may differ by the width of a few roundings, everything else not at all. NaN equals NaN, and an
//! infinity itself.

mod difference;
mod record;
mod stored;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use bascule_runtime_api::{RunContext, Session, Signature, Tensor};
use serde::{Deserialize, Serialize};

use self::difference::difference;
use crate::error::with_causes;
use crate::nan::NanOutputs;

pub(crate) use self::record::record;
pub use self::record::{Asked, AskedInputs, RecordPlan, RecordedOutput, Recording};
pub use self::stored::GoldenTensor;

const SCHEMA: u64 = 1;

/// The largest file of golden samples that is read, in bytes.
pub const MAX_GOLDEN_BYTES: u64 = 64 << 20;

/// A file of samples, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Golden {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    inputs: BTreeMap<String, Tensor>,
    outputs: BTreeMap<String, Tensor>,
    tolerance: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct StoredGolden {
    schema: u64,
    samples: Vec<StoredSample>,
}

#[derive(Serialize, Deserialize)]
struct StoredSample {
    inputs: BTreeMap<String, GoldenTensor>,
    outputs: BTreeMap<String, GoldenTensor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tolerance: BTreeMap<String, f64>,
}

impl Golden {
    /// Reads a file. Blocks.
    ///
    /// # Errors
    /// What is wrong with it, by sample and tensor.
    pub(super) fn read(path: &Path) -> Result<Golden, String> {
        let bytes = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
        if bytes > MAX_GOLDEN_BYTES {
            return Err(format!("it has {bytes} bytes, at most {MAX_GOLDEN_BYTES} are read"));
        }
        let text = std::fs::read(path).map_err(|error| error.to_string())?;
        Golden::parse(&text)
    }

    fn parse(text: &[u8]) -> Result<Golden, String> {
        let stored: StoredGolden = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if stored.schema != SCHEMA {
            return Err(format!("schema {} is not known, expected {SCHEMA}", stored.schema));
        }
        let samples = stored.samples.into_iter().enumerate().map(|(index, sample)| {
            let read = |side: &str, tensors: BTreeMap<String, GoldenTensor>| {
                let tensors = tensors.into_iter().map(|(name, stored)| match stored.tensor() {
                    Ok(tensor) => Ok((name, tensor)),
                    Err(error) => Err(format!("sample {index}: {side} '{name}': {error}")),
                });
                tensors.collect::<Result<BTreeMap<_, _>, _>>()
            };
            Ok(Sample {
                inputs: read("input", sample.inputs)?,
                outputs: read("output", sample.outputs)?,
                tolerance: sample.tolerance,
            })
        });
        Ok(Golden { samples: samples.collect::<Result<_, String>>()? })
    }

    /// Runs every sample; none begins once `is_over` is set. What has NaN is noted, and no error where it was recorded so.
    ///
    /// # Errors
    /// The first answer that differs: the sample, the output, the element, what was expected and what came.
    pub(super) fn compare(&self, session: &mut dyn Session, is_over: &AtomicBool, nan: &mut NanOutputs) -> Result<(), String> {
        let context = RunContext { cancelled: Some(is_over), ..RunContext::default() };
        self.samples.iter().enumerate().try_for_each(|(index, sample)| {
            sample.compare(session, &context, nan).map_err(|error| format!("golden sample {index}: {error}"))
        })
    }
}

impl Sample {
    fn compare(&self, session: &mut dyn Session, context: &RunContext<'_>, nan: &mut NanOutputs) -> Result<(), String> {
        let signature = session.signature().clone();
        let outputs = run(session, &signature, &self.inputs, context)?;
        nan.look(&signature, &outputs);
        for (name, expected) in &self.outputs {
            let position = signature.outputs.iter().position(|spec| spec.name == *name);
            let got =
                position.and_then(|position| outputs.get(position)).ok_or_else(|| format!("the model has no output '{name}'"))?;
            difference(expected, got, self.tolerance.get(name).copied())
                .map_or(Ok(()), |text| Err(format!("output '{name}': {text}")))?;
        }
        Ok(())
    }
}

/// Runs a session with these inputs and no others.
fn run(
    session: &mut dyn Session,
    signature: &Signature,
    given: &BTreeMap<String, Tensor>,
    context: &RunContext<'_>,
) -> Result<Vec<Tensor>, String> {
    let input = |name: &str| given.get(name).cloned().ok_or_else(|| format!("it has no input '{name}'"));
    let inputs: Vec<Tensor> = signature.inputs.iter().map(|spec| input(&spec.name)).collect::<Result<_, _>>()?;
    if let Some(unknown) = given.keys().find(|name| !signature.inputs.iter().any(|spec| spec.name == **name)) {
        return Err(format!("the model has no input '{unknown}'"));
    }
    session.run(&inputs, context).map_err(|error| format!("the run failed: {}", with_causes(&error)))
}

#[cfg(test)]
mod tests;
