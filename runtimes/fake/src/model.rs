//! The model file.

use std::time::Duration;

use bascule_runtime_api::{DataType, Device, Footprint, Signature, TensorSpec};
use serde::{Deserialize, Serialize};

/// What a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FakeOp {
    /// Output `i` is input `i`; a BOOL byte other than 0 becomes 1.
    Identity,
    /// Every output is the sum of all inputs, element by element; integers wrap. All tensors have one numeric datatype.
    Add,
    /// Every element of every output is [`FakeModel::value`]. An output takes its shape from its spec; where that leaves the first
    /// size open, it is the first input's.
    Constant,
}

/// A model file, as JSON. Every key but `op`, `inputs` and `outputs` is optional; an unknown key is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FakeModel {
    /// What it computes.
    pub op: FakeOp,
    /// Its inputs.
    pub inputs: Vec<TensorSpec>,
    /// Its outputs.
    pub outputs: Vec<TensorSpec>,
    /// Whether requests may be joined along the first axis.
    #[serde(default)]
    pub batch_axis: Option<u8>,
    /// What [`FakeOp::Constant`] answers: a number, converted to the output's datatype as Rust's `as` does.
    #[serde(default)]
    pub value: f64,
    /// Time that a run waits, in microseconds.
    #[serde(default)]
    pub delay_us: u64,
    /// Loading fails with this message.
    #[serde(default)]
    pub fail_load: Option<String>,
    /// The n-th, 2n-th, 3n-th … run of a session fails; absent for never.
    #[serde(default)]
    pub fail_run_every: Option<u64>,
    /// Every run panics.
    #[serde(default)]
    pub panic_on_run: bool,
    /// A run waits at the gate of [`crate::FakeLog`] before it does anything else.
    #[serde(default)]
    pub block: bool,
    /// Main memory that a session really takes, in bytes.
    #[serde(default)]
    pub bytes: u64,
    /// A word by which the log names the model.
    #[serde(default)]
    pub tag: String,
}

impl FakeModel {
    /// What a session takes: its bytes are on its device.
    pub(crate) fn footprint(&self, device: Device) -> Footprint {
        match device {
            Device::Cpu => Footprint { host_bytes: self.bytes, device_bytes: 0, measured: true },
            Device::Cuda(_) => Footprint { host_bytes: 0, device_bytes: self.bytes, measured: true },
        }
    }

    /// A model that does nothing beside its operation.
    pub fn new(op: FakeOp, inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> FakeModel {
        FakeModel {
            op,
            inputs,
            outputs,
            batch_axis: None,
            value: 0.0,
            delay_us: 0,
            fail_load: None,
            fail_run_every: None,
            panic_on_run: false,
            block: false,
            bytes: 0,
            tag: String::new(),
        }
    }

    /// How long a run waits.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_us)
    }

    /// The signature, or why inputs, outputs and operation don't go together.
    pub(crate) fn signature(&self) -> Result<Signature, String> {
        if self.fail_run_every == Some(0) {
            return Err("'fail_run_every' is 0, expected 1 or more".into());
        }
        match self.op {
            FakeOp::Identity => self.check_identity()?,
            FakeOp::Add => self.check_add()?,
            FakeOp::Constant => self.check_constant()?,
        }
        Ok(Signature { inputs: self.inputs.clone(), outputs: self.outputs.clone(), batch_axis: self.batch_axis })
    }

    fn check_identity(&self) -> Result<(), String> {
        if self.inputs.len() != self.outputs.len() {
            return Err(format!("an identity of {} inputs has {} outputs", self.inputs.len(), self.outputs.len()));
        }
        match self.inputs.iter().zip(&self.outputs).find(|(input, output)| input.datatype != output.datatype) {
            None => Ok(()),
            Some((input, output)) => {
                Err(format!("output '{}' is {} but its input '{}' is {}", output.name, output.datatype, input.name, input.datatype))
            }
        }
    }

    fn check_add(&self) -> Result<(), String> {
        let Some(first) = self.inputs.first() else { return Err("add needs an input".into()) };
        if matches!(first.datatype, DataType::Bool | DataType::Bytes) {
            return Err(format!("add can't sum {}", first.datatype));
        }
        match self.inputs.iter().chain(&self.outputs).find(|spec| spec.datatype != first.datatype) {
            None => Ok(()),
            Some(spec) => Err(format!("'{}' is {}, expected {} as the first input", spec.name, spec.datatype, first.datatype)),
        }
    }

    fn check_constant(&self) -> Result<(), String> {
        let open_rows = self.inputs.first().is_some_and(|spec| !spec.shape.is_empty());
        for spec in &self.outputs {
            let (first, rest) = spec.shape.split_first().map_or((&0, [].as_slice()), |(first, rest)| (first, rest));
            if (*first < 0 && !open_rows) || rest.iter().any(|dim| *dim < 0) {
                let name = &spec.name;
                return Err(format!(
                    "output '{name}' of a constant has shape {:?}, expected sizes (the first may be the first input's)",
                    spec.shape
                ));
            }
        }
        Ok(())
    }
}
