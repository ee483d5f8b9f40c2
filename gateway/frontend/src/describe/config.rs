//! A version's configuration in Triton's schema, the way Triton shows it: with what it would have filled in.

use bascule_proto::datatype::from_protocol_name;
use bascule_proto::inference::model_config::SchedulingChoice;
use bascule_proto::inference::model_instance_group::Kind;
use bascule_proto::inference::model_optimization_policy::PinnedMemoryBuffer;
use bascule_proto::inference::model_version_policy::{All, Latest, PolicyChoice, Specific};
use bascule_proto::inference::{
    DataType, ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup, ModelOptimizationPolicy, ModelOutput,
    ModelParameter, ModelQueuePolicy, ModelVersionPolicy, ModelWarmup, model_warmup,
};
use bascule_runtime_api::{Device, TensorSpec};
use bascule_serving::{InferError, ModelSettings, Servable, VersionPolicy, WarmupSample};

use super::metadata::platform;

/// The configuration that a version is served with.
pub fn model_config(servable: &Servable) -> ModelConfig {
    let settings = &*servable.spec().settings;
    let runtime = servable.spec().runtime;
    let rows = servable.max_batch_size();
    ModelConfig {
        name: servable.model().to_owned(),
        platform: platform(runtime).to_owned(),
        backend: backend(runtime).to_owned(),
        version_policy: Some(version_policy(&settings.version_policy)),
        max_batch_size: clamped(rows),
        input: servable.signature().inputs.iter().map(|spec| input(servable, spec)).collect(),
        output: servable.signature().outputs.iter().map(|spec| output(servable, spec)).collect(),
        optimization: Some(ModelOptimizationPolicy {
            input_pinned_memory: Some(PinnedMemoryBuffer { enable: true }),
            output_pinned_memory: Some(PinnedMemoryBuffer { enable: true }),
            ..ModelOptimizationPolicy::default()
        }),
        scheduling_choice: (settings.dynamic_batching && rows > 0).then(|| dynamic_batching(settings, rows)),
        instance_group: instance_groups(servable),
        default_model_filename: settings.entrypoint.clone().unwrap_or_else(|| default_filename(runtime).to_owned()),
        parameters: settings
            .parameters
            .iter()
            .map(|(key, value)| (key.clone(), ModelParameter { string_value: value.clone() }))
            .collect(),
        model_warmup: settings.warmup.iter().map(|sample| warmup(servable, sample)).collect(),
        ..ModelConfig::default()
    }
}

/// The same as JSON.
///
/// # Errors
/// None that is known of; a writer's failure is passed on.
pub fn model_config_json(servable: &Servable) -> Result<serde_json::Value, InferError> {
    bascule_proto::model_config::to_json(&model_config(servable))
        .map_err(|error| InferError::Internal { message: format!("can't write the configuration of {servable:?}: {error}") })
}

fn backend(runtime: &'static str) -> &'static str {
    match runtime {
        "torch" => "pytorch",
        other => other,
    }
}

fn default_filename(runtime: &str) -> &'static str {
    match runtime {
        "onnxruntime" => "model.onnx",
        "torch" => "model.pt",
        _ => "",
    }
}

fn clamped(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn version_policy(policy: &VersionPolicy) -> ModelVersionPolicy {
    let choice = match policy {
        VersionPolicy::Latest(count) => PolicyChoice::Latest(Latest { num_versions: *count }),
        VersionPolicy::All => PolicyChoice::All(All {}),
        VersionPolicy::Specific(versions) => {
            let versions = versions.iter().map(|version| i64::try_from(*version).unwrap_or(i64::MAX)).collect();
            PolicyChoice::Specific(Specific { versions })
        }
    };
    ModelVersionPolicy { policy_choice: Some(choice) }
}

/// The shape without the batch: `max_batch_size` says that there is one.
fn dims(servable: &Servable, shape: &[i64]) -> Vec<i64> {
    let batch = usize::from(servable.is_batched());
    shape.iter().skip(batch).copied().collect()
}

fn data_type(spec: &TensorSpec) -> i32 {
    from_protocol_name(spec.datatype.name()).unwrap_or(DataType::TypeInvalid).into()
}

fn input(servable: &Servable, spec: &TensorSpec) -> ModelInput {
    ModelInput { name: spec.name.clone(), data_type: data_type(spec), dims: dims(servable, &spec.shape), ..ModelInput::default() }
}

fn output(servable: &Servable, spec: &TensorSpec) -> ModelOutput {
    ModelOutput {
        name: spec.name.clone(),
        data_type: data_type(spec),
        dims: dims(servable, &spec.shape),
        label_filename: servable.spec().settings.label_filenames.get(&spec.name).cloned().unwrap_or_default(),
        ..ModelOutput::default()
    }
}

fn dynamic_batching(settings: &ModelSettings, rows: u32) -> SchedulingChoice {
    let preferred = if settings.preferred_batch_sizes.is_empty() { &[rows][..] } else { &settings.preferred_batch_sizes };
    let levels = settings.priority_levels;
    SchedulingChoice::DynamicBatching(ModelDynamicBatching {
        preferred_batch_size: preferred.iter().copied().map(clamped).collect(),
        max_queue_delay_microseconds: micros(settings.max_queue_delay),
        priority_levels: levels.into(),
        default_priority_level: if levels == 0 { 0 } else { settings.default_priority.into() },
        default_queue_policy: queue_policy(settings),
        ..ModelDynamicBatching::default()
    })
}

/// Left out where it is the default, as in a configuration that does not name it.
fn queue_policy(settings: &ModelSettings) -> Option<ModelQueuePolicy> {
    let default = ModelSettings::default();
    if settings.queue_timeout == default.queue_timeout && settings.queue_capacity == default.queue_capacity {
        return None;
    }
    Some(ModelQueuePolicy {
        default_timeout_microseconds: settings.queue_timeout.map_or(0, micros),
        max_queue_size: u32::try_from(settings.queue_capacity).unwrap_or(u32::MAX),
        ..ModelQueuePolicy::default()
    })
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// One for the processor and one for all GPUs: each device has as many sessions.
fn instance_groups(servable: &Servable) -> Vec<ModelInstanceGroup> {
    let devices = servable.devices();
    let each = servable.instances() / devices.len().max(1);
    let gpus = devices.iter().filter_map(|device| match device {
        Device::Cpu => None,
        Device::Cuda(ordinal) => Some(clamped(*ordinal)),
    });
    let gpus: Vec<i32> = gpus.collect();
    let on_cpu = devices.contains(&Device::Cpu).then_some((Kind::Cpu, Vec::new()));
    let on_gpus = (!gpus.is_empty()).then_some((Kind::Gpu, gpus));
    let group = |(at, (kind, gpus)): (usize, (Kind, Vec<i32>))| ModelInstanceGroup {
        name: format!("{}_{at}", servable.model()),
        kind: kind.into(),
        count: i32::try_from(each).unwrap_or(i32::MAX),
        gpus,
        ..ModelInstanceGroup::default()
    };
    on_cpu.into_iter().chain(on_gpus).enumerate().map(group).collect()
}

fn warmup(servable: &Servable, sample: &WarmupSample) -> ModelWarmup {
    let rows = sample.inputs.first().filter(|_| servable.is_batched()).and_then(|input| input.shape.first());
    let inputs = sample.inputs.iter().map(|input| {
        let spec = TensorSpec::new(input.name.clone(), input.datatype, input.shape.clone());
        let shown = model_warmup::Input { data_type: data_type(&spec), dims: dims(servable, &spec.shape), ..Default::default() };
        (spec.name, shown)
    });
    ModelWarmup {
        name: sample.name.clone(),
        batch_size: rows.and_then(|rows| u32::try_from(*rows).ok()).unwrap_or_default(),
        inputs: inputs.collect(),
        count: sample.count,
    }
}
