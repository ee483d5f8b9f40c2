//! Triton's `config.pbtxt` → the settings of a model.
//!
//! A field that means something here is honoured, a field that can't be served is an error, and every other field that the file sets is
//! named in a warning: nothing is left out in silence. The file's syntax and schema are `bascule_proto`'s.

mod accelerators;
mod instances;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bascule_proto::datatype::protocol_name;
use bascule_proto::inference::model_config::SchedulingChoice;
use bascule_proto::inference::model_queue_policy::TimeoutAction;
use bascule_proto::inference::model_version_policy::PolicyChoice;
use bascule_proto::inference::model_warmup::input::InputDataType;
use bascule_proto::inference::{
    ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup, ModelOutput, ModelQueuePolicy, ModelTensorReshape,
    ModelVersionPolicy, ModelWarmup,
};
use bascule_proto::model_config::{parse_model_config, set_fields};
use bascule_registry::check_file_path;
use bascule_runtime_api::{DataType, Signature, TensorSpec};
use bascule_serving::{ModelSettings, Reshape, VersionPolicy, WarmupContent, WarmupSample};

use super::warmup;

/// The file's name.
pub(crate) const FILE: &str = "config.pbtxt";

/// What Triton calls a runtime.
struct Backend {
    runtime: &'static str,
    backend: &'static str,
    platform: &'static str,
    /// Entries of `parameters` that the runtime honours.
    parameters: &'static [&'static str],
}

const BACKENDS: [Backend; 2] = [
    Backend {
        runtime: "onnxruntime",
        backend: "onnxruntime",
        platform: "onnxruntime_onnx",
        parameters: &[
            "intra_op_thread_count",
            "inter_op_thread_count",
            "execution_mode",
            "enable_mem_arena",
            "enable_mem_pattern",
            "session.use_device_allocator_for_initializers",
            "memory.enable_memory_arena_shrinkage",
        ],
    },
    Backend {
        runtime: "torch",
        backend: "pytorch",
        platform: "pytorch_libtorch",
        parameters: &["DISABLE_OPTIMIZED_EXECUTION", "FREEZE", "INFERENCE_MODE"],
    },
];

/// Fields that are honoured. A field below one that is named here counts too where the name ends with a point.
const HONOURED: [&str; 36] = [
    "name",
    "platform",
    "backend",
    "max_batch_size",
    "version_policy.",
    "input.name",
    "input.data_type",
    "input.dims",
    "input.reshape",
    "input.reshape.",
    "output.name",
    "output.data_type",
    "output.dims",
    "output.reshape",
    "output.reshape.",
    "output.label_filename",
    "instance_group.kind",
    "instance_group.count",
    "instance_group.gpus",
    "default_model_filename",
    "optimization.graph.level",
    // Their own words where they are not honoured.
    "optimization.execution_accelerators.",
    "optimization.execution_accelerators",
    "dynamic_batching",
    "dynamic_batching.preferred_batch_size",
    "dynamic_batching.max_queue_delay_microseconds",
    "dynamic_batching.priority_levels",
    "dynamic_batching.default_priority_level",
    "dynamic_batching.default_queue_policy",
    "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    "dynamic_batching.default_queue_policy.max_queue_size",
    // The `timeout` of a request always counts.
    "dynamic_batching.default_queue_policy.allow_timeout_override",
    // Each of these has its own word below where it is not honoured.
    "parameters.string_value",
    "parameters",
    "model_warmup.",
    "model_warmup",
];

/// What the file says, and what is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// The settings; right only where there are no problems.
    pub(crate) settings: ModelSettings,
    /// What can't be served.
    pub(crate) problems: Vec<String>,
}

/// What the file is read with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    /// The model.
    pub(crate) name: &'a str,
    /// The runtimes that exist.
    pub(crate) backends: &'a [&'a str],
    /// The small files beside the model.
    pub(crate) files: &'a BTreeMap<String, Arc<[u8]>>,
    /// The user says that the model keeps nothing between requests.
    pub(crate) stateless: bool,
}

/// Reads the file over these settings.
pub(crate) fn read(text: &str, given: &Circumstances<'_>, settings: ModelSettings) -> Reading {
    let mut reading = Reading { settings, problems: Vec::new() };
    match parse_model_config(text) {
        Ok(config) => reading.take(&config, given),
        Err(error) => reading.refuse(format_args!("{error}")),
    }
    reading
}

impl Reading {
    fn refuse(&mut self, problem: std::fmt::Arguments<'_>) {
        self.problems.push(format!("{FILE}: {problem}"));
    }

    fn warn(&mut self, warning: std::fmt::Arguments<'_>) {
        self.settings.warnings.push(format!("{FILE}: {warning}"));
    }

    fn take(&mut self, config: &ModelConfig, given: &Circumstances<'_>) {
        self.take_identity(config, given);
        self.take_batching(config);
        self.take_signature(config);
        let labelled = config.output.iter().filter(|output| !output.label_filename.is_empty());
        self.settings.label_filenames = labelled.map(|output| (output.name.clone(), output.label_filename.clone())).collect();
        self.take_instances(&config.instance_group);
        self.take_version_policy(config.version_policy.as_ref());
        self.take_parameters(config);
        for (at, warmup) in config.model_warmup.iter().enumerate() {
            self.take_warmup(at, warmup, given.files);
        }
        self.take_entrypoint(&config.default_model_filename);
        for set in set_fields(config) {
            let honoured = |known: &str| set.field == known || (known.ends_with('.') && set.field.starts_with(known));
            if !HONOURED.into_iter().any(honoured) {
                self.warn(format_args!("`{}` is not honoured", set.path));
            }
        }
    }

    fn take_entrypoint(&mut self, name: &str) {
        if name.is_empty() {
            return;
        }
        match check_file_path(name) {
            Ok(()) => self.settings.entrypoint = Some(name.to_owned()),
            Err(error) => self.refuse(format_args!("`default_model_filename`: {error}")),
        }
    }

    fn take_identity(&mut self, config: &ModelConfig, given: &Circumstances<'_>) {
        let Circumstances { name, backends, stateless, .. } = *given;
        if !config.name.is_empty() && config.name != name {
            self.refuse(format_args!("`name`: expected {name:?}, the name of the directory, got {:?}", config.name));
        }
        self.settings.runtime = self.runtime(config, backends);
        if let Some(SchedulingChoice::EnsembleScheduling(_)) = config.scheduling_choice {
            self.refuse(format_args!("`ensemble_scheduling`: ensembles are not served"));
        }
        // Of all that is not honoured, this alone gives other answers and no error.
        if let Some(SchedulingChoice::SequenceBatching(_)) = config.scheduling_choice
            && !stateless
        {
            self.refuse(format_args!(
                "`sequence_batching`: nothing is kept between the requests of a sequence, so a model that needs that would answer wrong; \
                 `stateless = true` in model.toml says that this one does not"
            ));
        }
    }

    fn take_batching(&mut self, config: &ModelConfig) {
        // Triton completes a configuration that says nothing of the model's shape from the file; so does the engine.
        let silent = config.max_batch_size == 0 && config.input.is_empty() && config.output.is_empty();
        self.settings.max_batch_size = match u32::try_from(config.max_batch_size) {
            Ok(_) if silent => None,
            Ok(size) => Some(size),
            Err(_) => {
                self.refuse(format_args!("`max_batch_size`: expected 0 or more, got {}", config.max_batch_size));
                None
            }
        };
        match &config.scheduling_choice {
            Some(SchedulingChoice::DynamicBatching(batching)) => self.take_dynamic_batching(batching),
            _ => self.settings.dynamic_batching = silent,
        }
    }

    fn take_dynamic_batching(&mut self, batching: &ModelDynamicBatching) {
        self.settings.dynamic_batching = true;
        self.settings.max_queue_delay = Duration::from_micros(batching.max_queue_delay_microseconds);
        for size in &batching.preferred_batch_size {
            match u32::try_from(*size) {
                Ok(size) if size > 0 => self.settings.preferred_batch_sizes.push(size),
                _ => self.refuse(format_args!("`dynamic_batching.preferred_batch_size`: expected 1 or more, got {size}")),
            }
        }
        self.settings.priority_levels = self.number("dynamic_batching.priority_levels", batching.priority_levels);
        let default = self.number("dynamic_batching.default_priority_level", batching.default_priority_level);
        self.settings.default_priority = match (self.settings.priority_levels, default) {
            (0, _) => 1,
            (_, 0) => {
                self.refuse(format_args!("`dynamic_batching.default_priority_level`: is needed where `priority_levels` is set"));
                1
            }
            (_, default) => default,
        };
        if let Some(policy) = &batching.default_queue_policy {
            self.take_queue_policy(policy);
        }
    }

    fn number(&mut self, field: &str, number: u64) -> u32 {
        u32::try_from(number).unwrap_or_else(|_| {
            self.refuse(format_args!("`{field}`: expected at most {}, got {number}", u32::MAX));
            0
        })
    }

    fn take_queue_policy(&mut self, policy: &ModelQueuePolicy) {
        if policy.max_queue_size > 0 {
            self.settings.queue_capacity = policy.max_queue_size as usize;
        }
        if policy.default_timeout_microseconds > 0 {
            // A timeout that only delays must not become one that refuses; the field itself is warned of with all the others.
            if policy.timeout_action() == TimeoutAction::Reject {
                self.settings.queue_timeout = Some(Duration::from_micros(policy.default_timeout_microseconds));
            } else {
                self.warn(format_args!(
                    "`dynamic_batching.default_queue_policy.default_timeout_microseconds` is not honoured with DELAY"
                ));
            }
        }
    }

    fn take_signature(&mut self, config: &ModelConfig) {
        let batched = config.max_batch_size > 0;
        let inputs: Vec<TensorSpec> =
            config.input.iter().enumerate().filter_map(|(at, input)| self.spec(&input.described(at), batched)).collect();
        let outputs: Vec<TensorSpec> =
            config.output.iter().enumerate().filter_map(|(at, output)| self.spec(&output.described(at), batched)).collect();
        if inputs.is_empty() {
            if !outputs.is_empty() {
                self.warn(format_args!("`output` is not compared with the model, because there is no `input`"));
            }
            return;
        }
        self.settings.declared = Some(Signature { inputs, outputs, batch_axis: batched.then_some(0) });
    }

    fn spec(&mut self, tensor: &Described<'_>, batched: bool) -> Option<TensorSpec> {
        let path = &tensor.path;
        if tensor.name.is_empty() {
            self.refuse(format_args!("`{path}.name`: is needed"));
            return None;
        }
        let Some(datatype) = datatype(tensor.data_type) else {
            self.refuse(format_args!("`{path}.data_type`: is needed for {:?}", tensor.name));
            return None;
        };
        let dims = tensor.reshape.map_or(tensor.dims, |reshape| &reshape.shape);
        if tensor.dims.is_empty() || tensor.dims.iter().chain(dims).any(|dim| *dim == 0 || *dim < -1) {
            self.refuse(format_args!("`{path}.dims`: expected sizes of 1 or more, or -1 for an open one, got {:?}", tensor.dims));
            return None;
        }
        if tensor.reshape.is_some() {
            let Some(reshape) = Reshape::new(tensor.dims, dims) else {
                let (from, to) = (tensor.dims, dims);
                self.refuse(format_args!("`{path}.reshape`: expected a shape with as many elements as {from:?}, got {to:?}"));
                return None;
            };
            let side = if tensor.is_input { &mut self.settings.reshapes.inputs } else { &mut self.settings.reshapes.outputs };
            side.insert(tensor.name.to_owned(), reshape);
            self.settings.reshapes.batched = batched;
        }
        let batch = batched.then_some(-1);
        Some(TensorSpec::new(tensor.name, datatype, batch.into_iter().chain(dims.iter().copied()).collect::<Vec<i64>>()))
    }

    fn take_instances(&mut self, groups: &[ModelInstanceGroup]) {
        let Some(read) = instances::read(groups) else { return };
        read.problems.into_iter().for_each(|problem| self.refuse(format_args!("{problem}")));
        read.warnings.into_iter().for_each(|warning| self.warn(format_args!("{warning}")));
        self.settings.devices = read.devices;
        self.settings.instances = read.count;
    }

    fn take_version_policy(&mut self, policy: Option<&ModelVersionPolicy>) {
        self.settings.version_policy = match policy.and_then(|policy| policy.policy_choice.as_ref()) {
            None => return,
            Some(PolicyChoice::All(_)) => VersionPolicy::All,
            Some(PolicyChoice::Latest(latest)) => VersionPolicy::Latest(latest.num_versions.max(1)),
            Some(PolicyChoice::Specific(specific)) => {
                let mut versions = Vec::new();
                for number in &specific.versions {
                    match warmup::version(*number) {
                        Some(version) => versions.push(version),
                        None => {
                            self.refuse(format_args!("`version_policy.specific.versions`: expected versions from 1, got {number}"))
                        }
                    }
                }
                VersionPolicy::Specific(versions)
            }
        };
    }

    /// The runtime that `backend` names, or else `platform`: by Triton's names, or by ours.
    fn runtime(&mut self, config: &ModelConfig, runtimes: &[&str]) -> Option<String> {
        let (backend, platform) = (config.backend.as_str(), config.platform.as_str());
        let exists = |known: &&Backend| runtimes.contains(&known.runtime);
        let by_platform = BACKENDS.iter().filter(exists).find(|known| known.platform == platform);
        if !platform.is_empty() && by_platform.is_none() {
            let expected: Vec<&str> = BACKENDS.iter().filter(exists).map(|known| known.platform).collect();
            self.refuse(format_args!("`platform`: expected one of {}, got {platform:?}", expected.join(", ")));
        }
        if backend.is_empty() {
            return by_platform.map(|known| known.runtime.to_owned());
        }
        if let Some(known) = BACKENDS.iter().filter(exists).find(|known| known.backend == backend) {
            return Some(known.runtime.to_owned());
        }
        if !runtimes.contains(&backend) {
            let named = |runtime: &str| BACKENDS.iter().find(|known| known.runtime == runtime).map(|known| known.backend);
            let expected: Vec<&str> = runtimes.iter().map(|runtime| named(runtime).unwrap_or(runtime)).collect();
            self.refuse(format_args!("`backend`: expected one of {}, got {backend:?}", expected.join(", ")));
        }
        Some(backend.to_owned())
    }

    fn take_parameters(&mut self, config: &ModelConfig) {
        // A file that names no runtime is one of ONNX, unless the model's own file says otherwise, and that is not known here.
        let runtime = self.settings.runtime.as_deref().unwrap_or(BACKENDS[0].runtime);
        let honoured = BACKENDS.iter().find(|known| known.runtime == runtime).map_or(&[][..], |known| known.parameters);
        let has_graph_levels = runtime == BACKENDS[0].runtime;
        let mut parameters: Vec<_> = config.parameters.iter().collect();
        parameters.sort_by_key(|(name, _)| *name);
        for (name, parameter) in parameters {
            let value = parameter.string_value.clone();
            if honoured.contains(&name.as_str()) {
                self.settings.runtime_options.insert(name.clone(), value.clone());
            } else {
                self.warn(format_args!("`parameters[{name:?}]` is shown and has no effect"));
            }
            self.settings.parameters.insert(name.clone(), value);
        }
        let accelerators = config.optimization.as_ref().and_then(|optimization| optimization.execution_accelerators.as_ref());
        if accelerators.is_some() && !has_graph_levels {
            self.warn(format_args!("`optimization.execution_accelerators` is not honoured"));
        }
        if let Some(accelerators) = accelerators.filter(|_| has_graph_levels) {
            let read = accelerators::read(accelerators);
            read.problems.into_iter().for_each(|problem| self.refuse(format_args!("{problem}")));
            read.warnings.into_iter().for_each(|warning| self.warn(format_args!("{warning}")));
            self.settings.runtime_options.extend(read.options);
        }
        let level = config.optimization.as_ref().and_then(|optimization| optimization.graph.as_ref()).map(|graph| graph.level);
        if let Some(level) = level.filter(|level| *level != 0 && has_graph_levels) {
            self.settings.runtime_options.insert("graph_optimization_level".to_owned(), level.to_string());
        }
    }

    fn take_warmup(&mut self, at: usize, warmup: &ModelWarmup, files: &BTreeMap<String, Arc<[u8]>>) {
        let batched = self.settings.max_batch_size.is_some_and(|size| size > 0);
        let mut inputs = Vec::new();
        let mut named: Vec<_> = warmup.inputs.iter().collect();
        named.sort_by_key(|(name, _)| *name);
        for (name, input) in named {
            let path = format!("model_warmup[{at}].inputs[{name:?}]");
            let content = match &input.input_data_type {
                Some(InputDataType::RandomData(true)) => WarmupContent::Random,
                Some(InputDataType::InputDataFile(file)) => match files.get(&format!("warmup/{file}")) {
                    Some(bytes) => WarmupContent::Raw(Arc::clone(bytes)),
                    None => {
                        self.warn(format_args!(
                            "`{path}.input_data_file`: warmup/{file} can't be read or is too large, so this warm-up does not run"
                        ));
                        return;
                    }
                },
                _ => WarmupContent::Zero,
            };
            let Some(datatype) = datatype(input.data_type()) else {
                self.refuse(format_args!("`{path}.data_type`: is needed"));
                return;
            };
            let batch = batched.then(|| i64::from(warmup.batch_size.max(1)));
            let shape: Vec<i64> = batch.into_iter().chain(input.dims.iter().copied()).collect();
            match warmup::input(name, datatype, shape, content) {
                Ok(input) => inputs.push(input),
                Err(problem) => self.refuse(format_args!("`{path}.dims`: {problem}")),
            }
        }
        self.settings.warmup.push(WarmupSample { name: warmup.name.clone(), inputs, count: warmup.count.max(1) });
    }
}

/// What inputs and outputs have in common.
struct Described<'a> {
    path: String,
    name: &'a str,
    data_type: bascule_proto::inference::DataType,
    dims: &'a [i64],
    reshape: Option<&'a ModelTensorReshape>,
    is_input: bool,
}

trait Describe {
    fn described(&self, at: usize) -> Described<'_>;
}

impl Describe for ModelInput {
    fn described(&self, at: usize) -> Described<'_> {
        let path = format!("input[{at}]");
        let (dims, reshape) = (&self.dims, self.reshape.as_ref());
        Described { path, name: &self.name, data_type: self.data_type(), dims, reshape, is_input: true }
    }
}

impl Describe for ModelOutput {
    fn described(&self, at: usize) -> Described<'_> {
        let path = format!("output[{at}]");
        let (dims, reshape) = (&self.dims, self.reshape.as_ref());
        Described { path, name: &self.name, data_type: self.data_type(), dims, reshape, is_input: false }
    }
}

fn datatype(data_type: bascule_proto::inference::DataType) -> Option<DataType> {
    protocol_name(data_type)?.parse().ok()
}

#[cfg(test)]
mod tests;
