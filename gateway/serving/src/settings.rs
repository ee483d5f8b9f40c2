//! The settings of a model, as `model.toml` or a Triton `config.pbtxt` gives them. Reading those files is the gateway's part.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::VersionNumber;
use bascule_runtime_api::{DataType, Signature};
use serde::{Deserialize, Serialize};

use crate::devices::Devices;

/// Which of the versions that exist are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionPolicy {
    /// The `n` highest.
    Latest(u32),
    /// Every one.
    All,
    /// Exactly these.
    Specific(Vec<VersionNumber>),
}

impl Default for VersionPolicy {
    fn default() -> Self {
        VersionPolicy::Latest(1)
    }
}

/// Whether a new version takes traffic by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutStrategy {
    /// Stable follows the highest ready version that the policy allows.
    #[default]
    Immediate,
    /// A new version becomes ready and takes no traffic until it is told to.
    Manual,
}

/// In which order versions come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TransitionPolicy {
    /// Load the new one, then unload the old one: never without a ready version.
    #[default]
    AvailabilityPreserving,
    /// Unload the old one, then load the new one: never two at once.
    ResourcePreserving,
}

/// What makes models load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadMode {
    /// Everything that the source has.
    #[default]
    Watch,
    /// What the operator loads.
    Explicit,
    /// What is asked for, until it is idle and memory is needed.
    OnDemand,
}

/// Whether a request may run on the thread that brought it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inline {
    /// Where the measured run time at this size is short and a run can be interrupted. One that takes 5 ms all the same is stopped and
    /// goes on in the queue.
    #[default]
    Auto,
    /// Whenever an instance is free. A run that takes a second is stopped, where it can be, and goes on in the queue.
    Always,
    /// Never.
    Never,
}

/// One input of a warm-up run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmupInput {
    /// The input's name.
    pub name: String,
    /// Its element type.
    pub datatype: DataType,
    /// Its shape, every size of it.
    pub shape: Vec<i64>,
    /// What is in it. Made when it is sent, by the thread that loads: it may be large.
    pub content: WarmupContent,
}

/// What a tensor for a warm-up run holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WarmupContent {
    /// Zeros, or empty texts.
    Zero,
    /// Floats from 0 to 1, whole numbers from 0 to 127, texts of eight letters; the same each time.
    Random,
    /// These bytes, as the protocol's binary form has them.
    Raw(Arc<[u8]>),
}

/// A run made before a version takes traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmupSample {
    /// For logs.
    pub name: String,
    /// Every input.
    pub inputs: Vec<WarmupInput>,
    /// How often.
    pub count: u32,
}

/// Two shapes of one tensor with the same number of elements, without the batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reshape {
    /// What callers see.
    pub(crate) outward: Vec<i64>,
    /// What the model has.
    pub(crate) own: Vec<i64>,
}

impl Reshape {
    /// Both shapes; an open size is −1. `None` where they may differ in their number of elements: open sizes keep their order, and
    /// what lies between two of them has to have the same number on both sides.
    pub fn new(outward: &[i64], own: &[i64]) -> Option<Reshape> {
        let counts = |shape: &[i64]| -> Option<Vec<i64>> {
            let product = |part: &[i64]| part.iter().try_fold(1_i64, |product, size| product.checked_mul(*size));
            shape.split(|size| *size < 0).map(product).collect()
        };
        let fits = counts(outward)? == counts(own)?;
        fits.then(|| Reshape { outward: outward.to_vec(), own: own.to_vec() })
    }
}

/// The tensors that callers see in another shape than the model's own, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reshapes {
    /// Inputs.
    pub inputs: BTreeMap<String, Reshape>,
    /// Outputs.
    pub outputs: BTreeMap<String, Reshape>,
    /// Whether all of these have a batch before their shapes.
    pub batched: bool,
}

impl Reshapes {
    pub(crate) fn is_empty(&self) -> bool {
        self.inputs.is_empty() && self.outputs.is_empty()
    }
}

/// The settings of a model with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSettings {
    /// Rows in one run at the most. `None`: decided by the signature (32 where it can be batched, and a larger request runs alone);
    /// `Some(0)`: shapes have no batch axis, nothing is joined.
    pub max_batch_size: Option<u32>,
    /// How long a request may wait for others to share its run.
    pub max_queue_delay: Duration,
    /// Batch sizes worth waiting for; empty: as many as wait.
    pub preferred_batch_sizes: Vec<u32>,
    /// Whether requests may be joined at all.
    pub dynamic_batching: bool,
    /// Sessions that run side by side, on each device.
    pub instances: u32,
    /// Number of priorities; 0 and 1 are the same.
    pub priority_levels: u32,
    /// The priority of a request that names none, from 1.
    pub default_priority: u32,
    /// Requests that may wait.
    pub queue_capacity: usize,
    /// How long a request may wait before it is refused.
    pub queue_timeout: Option<Duration>,
    /// Where sessions run.
    pub devices: Devices,
    /// Threads of one operator.
    pub intra_op_threads: usize,
    /// Whether requests may run on the thread that brought them.
    pub inline: Inline,
    /// Which versions are wanted.
    pub version_policy: VersionPolicy,
    /// Whether a new version takes traffic by itself.
    pub rollout: RolloutStrategy,
    /// Runs made before a version takes traffic.
    pub warmup: Vec<WarmupSample>,
    /// What the settings say of the signature. A contradiction with the model is a load error.
    pub declared: Option<Signature>,
    /// The shapes that callers see.
    pub reshapes: Reshapes,
    /// Class names by output.
    pub labels: BTreeMap<String, Vec<String>>,
    /// The label file's name by output, as written.
    pub label_filenames: BTreeMap<String, String>,
    /// The model file, where it is not the format's usual one. A path inside the version.
    pub entrypoint: Option<String>,
    /// The runtime's name, where the settings give one: it counts for a version whose format its files don't tell.
    pub runtime: Option<String>,
    /// Settings for the runtime.
    pub runtime_options: BTreeMap<String, String>,
    /// Free parameters, shown in the model's configuration.
    pub parameters: BTreeMap<String, String>,
    /// What was read and is not honoured, by field name.
    pub warnings: Vec<String>,
}

impl Default for ModelSettings {
    fn default() -> Self {
        ModelSettings {
            max_batch_size: None,
            max_queue_delay: Duration::ZERO,
            preferred_batch_sizes: Vec::new(),
            dynamic_batching: true,
            instances: 1,
            priority_levels: 0,
            default_priority: 1,
            queue_capacity: 1024,
            queue_timeout: None,
            devices: Devices::default(),
            intra_op_threads: 1,
            inline: Inline::Auto,
            version_policy: VersionPolicy::default(),
            rollout: RolloutStrategy::default(),
            warmup: Vec::new(),
            declared: None,
            reshapes: Reshapes::default(),
            labels: BTreeMap::new(),
            label_filenames: BTreeMap::new(),
            entrypoint: None,
            runtime: None,
            runtime_options: BTreeMap::new(),
            parameters: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }
}

impl ModelSettings {
    /// Whether a version that is loaded under the other settings would be loaded alike under these: all the rest applies at once.
    pub(crate) fn loads_like(&self, other: &ModelSettings) -> bool {
        let relevant = |settings: &ModelSettings| ModelSettings {
            version_policy: VersionPolicy::default(),
            rollout: RolloutStrategy::default(),
            warmup: Vec::new(),
            warnings: Vec::new(),
            ..settings.clone()
        };
        std::ptr::eq(self, other) || relevant(self) == relevant(other)
    }
}

/// Rows in one run where neither file nor settings name a limit.
pub(crate) const DEFAULT_MAX_BATCH_SIZE: u32 = 32;
