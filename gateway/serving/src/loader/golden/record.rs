//! Writes golden samples: runs a warm session with what the publisher asks, and keeps what it answers.
//!
//! Each sample runs twice. What differs between the two by more than its tolerance would differ in a gateway as well, and fail a version
//! that is right; so it is refused. Deliberately absent: files, and any judgement of whether the answers are good.

use std::collections::{BTreeMap, BTreeSet};

use bascule_runtime_api::{RunContext, Session, Signature, Tensor, TensorSpec};
use serde::{Deserialize, Serialize};

use super::difference::{BetweenRuns, difference};
use super::{GoldenTensor, MAX_GOLDEN_BYTES, SCHEMA, StoredSample};
use crate::TrialFailure;
use crate::nan::has_nan;

/// What is to be recorded.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RecordPlan {
    /// The samples, in the order of the file.
    pub samples: Vec<Asked>,
    /// The outputs to record; all where none is named.
    pub only: Vec<String>,
    /// The largest difference of every floating-point output that `tolerances` does not name.
    pub tolerance: Option<f64>,
    /// The largest difference of an output.
    pub tolerances: BTreeMap<String, f64>,
}

/// The inputs of one sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Where they come from, for messages.
    pub origin: String,
    /// What they are.
    pub inputs: AskedInputs,
}

/// Inputs as they are known before the model is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskedInputs {
    /// By name.
    Named(BTreeMap<String, GoldenTensor>),
    /// Of a model that has no other.
    Only(GoldenTensor),
}

/// Samples that were recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// The file's content.
    pub text: String,
    /// How many samples it holds.
    pub samples: usize,
    /// The model's inputs.
    pub inputs: Vec<TensorSpec>,
    /// The outputs that were recorded.
    pub outputs: Vec<RecordedOutput>,
    /// What the publisher should know.
    pub warnings: Vec<String>,
}

/// An output that was recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedOutput {
    /// As the model gives it.
    pub spec: TensorSpec,
    /// The largest difference that is allowed, where the file says one.
    pub tolerance: Option<f64>,
    /// Samples in which it has NaN.
    pub nan_samples: usize,
}

/// Runs every sample twice, and writes what came.
///
/// # Errors
/// At the step `recording` where a sample can't be recorded, at `repeating` where two runs differ.
pub(crate) fn record(session: &mut dyn Session, plan: &RecordPlan) -> Result<Recording, TrialFailure> {
    let signature = session.signature().clone();
    let mut outputs = chosen(&signature, plan).map_err(refused)?;
    let mut document = Document::default();
    for asked in &plan.samples {
        let at = |cause: String| format!("{}: {cause}", asked.origin);
        let inputs = named(&asked.inputs, &signature).map_err(|cause| refused(at(cause)))?;
        let first = run_once(session, &signature, &inputs).map_err(|cause| refused(at(cause)))?;
        let again = run_once(session, &signature, &inputs).map_err(|cause| refused(at(cause)))?;
        let mut answer = BTreeMap::new();
        for (spec, first, again) in
            signature.outputs.iter().zip(first).zip(&again).map(|((spec, first), again)| (spec, first, again))
        {
            let Some(output) = outputs.iter_mut().find(|output| output.spec.name == spec.name) else { continue };
            if let Some(difference) = difference(&first, again, output.tolerance) {
                let differs = format!("output '{}' differs between two runs: {}", spec.name, BetweenRuns(&difference));
                return Err(TrialFailure { step: TrialFailure::REPEATING.to_owned(), cause: at(differs) });
            }
            output.nan_samples += usize::from(has_nan(&first, usize::MAX));
            answer.insert(spec.name.clone(), first);
        }
        document.add(&inputs, &answer, &outputs).map_err(|cause| refused(at(cause)))?;
    }
    let nan = outputs.iter().filter(|output| output.nan_samples > 0);
    let warnings = nan.map(|output| {
        let (name, samples, all) = (&output.spec.name, output.nan_samples, plan.samples.len());
        format!("output '{name}' has NaN in {samples} of {all} samples")
    });
    Ok(Recording {
        samples: plan.samples.len(),
        inputs: signature.inputs.clone(),
        warnings: warnings.collect(),
        text: document.end(),
        outputs,
    })
}

fn refused(cause: String) -> TrialFailure {
    TrialFailure { step: TrialFailure::RECORDING.to_owned(), cause }
}

/// The outputs to record, with their tolerances. Every name in the plan has to be one of them.
fn chosen(signature: &Signature, plan: &RecordPlan) -> Result<Vec<RecordedOutput>, String> {
    let all = || signature.outputs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ");
    let is_output = |name: &&String| signature.outputs.iter().any(|spec| spec.name == **name);
    let only: BTreeSet<&String> = plan.only.iter().collect();
    if let Some(unknown) = only.iter().copied().chain(plan.tolerances.keys()).find(|name| !is_output(name)) {
        return Err(format!("the model has no output '{unknown}', only {}", all()));
    }
    if let Some(left_out) = plan.tolerances.keys().find(|name| !only.is_empty() && !only.contains(name)) {
        return Err(format!("output '{left_out}' has a tolerance and is not recorded"));
    }
    let outputs = signature.outputs.iter().filter(|spec| only.is_empty() || only.contains(&spec.name));
    let outputs = outputs.map(|spec| {
        let general = plan.tolerance.filter(|_| spec.datatype.is_float());
        RecordedOutput { spec: spec.clone(), tolerance: plan.tolerances.get(&spec.name).copied().or(general), nan_samples: 0 }
    });
    Ok(outputs.collect())
}

fn named(inputs: &AskedInputs, signature: &Signature) -> Result<BTreeMap<String, Tensor>, String> {
    let read = |name: &str, stored: &GoldenTensor| match stored.tensor() {
        Ok(tensor) => Ok((name.to_owned(), tensor)),
        Err(error) => Err(format!("input '{name}': {error}")),
    };
    match inputs {
        AskedInputs::Named(inputs) => inputs.iter().map(|(name, stored)| read(name, stored)).collect(),
        AskedInputs::Only(stored) => match signature.inputs.as_slice() {
            [only] => Ok([read(&only.name, stored)?].into()),
            several => Err(format!("it names no input, and the model has {} of them", several.len())),
        },
    }
}

fn run_once(session: &mut dyn Session, signature: &Signature, inputs: &BTreeMap<String, Tensor>) -> Result<Vec<Tensor>, String> {
    let outputs = super::run(session, signature, inputs, &RunContext::default())?;
    let expected = signature.outputs.len();
    if outputs.len() != expected {
        return Err(format!("expected {expected} outputs, got {}", outputs.len()));
    }
    Ok(outputs)
}

/// The file while it is written: a sample a line.
#[derive(Default)]
struct Document {
    lines: Vec<String>,
    bytes: u64,
}

impl Document {
    /// Adds a sample, as long as the file can still be read.
    fn add(
        &mut self,
        inputs: &BTreeMap<String, Tensor>,
        answer: &BTreeMap<String, Tensor>,
        outputs: &[RecordedOutput],
    ) -> Result<(), String> {
        // Each element takes two bytes at the least. To write a huge tensor only to refuse it would take many times its memory.
        let elements = inputs.values().chain(answer.values()).map(|tensor| tensor.element_count() as u64);
        self.grow(elements.sum::<u64>().saturating_mul(2), 0)?;
        let stored = |tensors: &BTreeMap<String, Tensor>| {
            tensors.iter().map(|(name, tensor)| (name.clone(), GoldenTensor::of(tensor))).collect()
        };
        let tolerance = outputs.iter().filter_map(|output| Some((output.spec.name.clone(), output.tolerance?)));
        let sample = StoredSample { inputs: stored(inputs), outputs: stored(answer), tolerance: tolerance.collect() };
        let line = serde_json::to_string(&sample).map_err(|error| format!("it can't be written: {error}"))?;
        self.bytes = self.grow(line.len() as u64, 2)?;
        self.lines.push(line);
        Ok(())
    }

    /// How large the file is with so much more.
    fn grow(&self, more: u64, separator: u64) -> Result<u64, String> {
        // What is around the samples is shorter than this.
        const AROUND: u64 = 64;
        let bytes = self.bytes.saturating_add(more).saturating_add(separator);
        if bytes.saturating_add(AROUND) > MAX_GOLDEN_BYTES {
            return Err(format!("the file would have more than the {MAX_GOLDEN_BYTES} bytes that are read of it"));
        }
        Ok(bytes)
    }

    fn end(self) -> String {
        format!("{{\"schema\":{SCHEMA},\"samples\":[\n{}\n]}}\n", self.lines.join(",\n"))
    }
}

#[cfg(test)]
mod tests;
