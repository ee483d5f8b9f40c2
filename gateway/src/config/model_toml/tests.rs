use bascule_runtime_api::Device;

use super::*;

fn settings(text: &str, version: Option<VersionNumber>) -> ModelSettings {
    let file = parse(text);
    assert_eq!(file.problems, [""; 0]);
    let mut settings = ModelSettings::default();
    file.apply(&mut settings, version, true);
    settings
}

const FULL: &str = r#"
max_batch_size = 16
max_queue_delay = "2ms"
preferred_batch_sizes = [4, 16]
dynamic_batching = false
instances = 2
priority_levels = 3
default_priority = 2
queue_capacity = 10
queue_timeout = "1s"
device = ["cuda:1", "cpu"]
intra_op_threads = 4
inline = "never"
version_policy = { latest = 2 }
entrypoint = "net.onnx"

[rollout]
strategy = "manual"

[[warmup]]
name = "one"
count = 3
[warmup.inputs.x]
datatype = "FP32"
shape = [1, 4]
fill = "random"

[signature]
batch_axis = 0
inputs = [{ name = "x", datatype = "FP32", shape = [-1, 4] }]
outputs = [{ name = "y", datatype = "BYTES", shape = [-1] }]

[labels]
y = "labels.txt"

[runtime]
intra_op_thread_count = 2
enable_mem_arena = "0"

[parameters]
colour = "red"

[version."3"]
max_batch_size = 1
queue_timeout = ""
[version.3.runtime]
enable_mem_arena = 1
"#;

#[test]
fn every_key_arrives() {
    let strings = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let input = warmup::input("x", DataType::Fp32, vec![1, 4], Fill::Random.into()).unwrap();
    let expected = ModelSettings {
        max_batch_size: Some(16),
        max_queue_delay: Duration::from_millis(2),
        preferred_batch_sizes: vec![4, 16],
        dynamic_batching: false,
        instances: 2,
        priority_levels: 3,
        default_priority: 2,
        queue_capacity: 10,
        queue_timeout: Some(Duration::from_secs(1)),
        devices: Devices::These(vec![Device::Cuda(1), Device::Cpu]),
        intra_op_threads: 4,
        inline: Inline::Never,
        version_policy: VersionPolicy::Latest(2),
        rollout: RolloutStrategy::Manual,
        warmup: vec![WarmupSample { name: "one".into(), inputs: vec![input], count: 3 }],
        declared: Some(Signature {
            inputs: vec![TensorSpec::new("x", DataType::Fp32, [-1, 4])],
            outputs: vec![TensorSpec::new("y", DataType::Bytes, [-1])],
            batch_axis: Some(0),
        }),
        reshapes: bascule_serving::Reshapes::default(),
        labels: BTreeMap::new(),
        label_filenames: strings(&[("y", "labels.txt")]),
        entrypoint: Some("net.onnx".into()),
        runtime: None,
        runtime_options: strings(&[("intra_op_thread_count", "2"), ("enable_mem_arena", "0")]),
        parameters: strings(&[("colour", "red")]),
        warnings: Vec::new(),
    };
    assert_eq!(settings(FULL, None), expected);
    assert_eq!(settings(FULL, Some(2)), expected);
    let third = settings(FULL, Some(3));
    assert_eq!((third.max_batch_size, third.queue_timeout, third.instances), (Some(1), None, 2));
    assert_eq!(third.runtime_options, strings(&[("intra_op_thread_count", "2"), ("enable_mem_arena", "1")]));
}

#[test]
fn an_empty_file_changes_nothing() {
    assert_eq!(settings("", None), ModelSettings::default());
}

#[test]
fn every_problem_is_reported_at_once_with_its_line() {
    let text = r#"
max_batch_sise = 1
instances = "two"
version_policy = { latest = 0 }
inline = "allways"
device = "gpu"
[rollout]
stratgy = "manual"
[[warmup]]
inputs.x = { datatype = "FP32", shape = [-1] }
inputs.y = { shape = [1] }
[signature]
inputs = [{ name = "x", datatype = "FLOAT", shape = [1] }]
[version.0]
instances = 1
[version.2]
version_policy = "all"
"#;
    assert_eq!(
        parse(text).problems,
        [
            "model.toml:4: `version_policy`: expected 1 version or more for `latest`, got 0",
            "model.toml:3: `instances`: expected a whole number from 0 to 4294967295, got \"two\"",
            "model.toml:6: `device`: expected \"auto\", \"cpu\", a GPU such as \"cuda:0\", or a list of devices, got \"gpu\"",
            "model.toml:5: `inline`: expected one of auto, always, never, got \"allways\", did you mean `always`?",
            "model.toml:10: `warmup[0].inputs.x.shape`: expected a shape without open or negative sizes and at most 268435456 bytes, got [-1]",
            "model.toml:11: `warmup[0].inputs.y.datatype`: is missing",
            "model.toml:13: `signature.inputs[0].datatype`: unknown datatype 'FLOAT', expected one of BOOL, UINT8, UINT16, UINT32, \
             UINT64, INT8, INT16, INT32, INT64, FP16, FP32, FP64, BF16, BYTES",
            "model.toml:2: `max_batch_sise` is not a setting, did you mean `max_batch_size`?",
            "model.toml:8: `rollout.stratgy` is not a setting, did you mean `strategy`?",
            "model.toml:14: [version.\"0\"]: version \"0\" is not a whole number from 1 to 9223372036854775807",
            "model.toml:17: `version.2.version_policy` is not a setting",
        ]
    );
}

#[test]
fn what_has_no_effect_is_named() {
    let file = parse("[placement]\nreplicas = 2\n[signature]\ninputs = []\n");
    assert_eq!(file.problems, [""; 0]);
    let mut settings = ModelSettings::default();
    file.apply(&mut settings, None, false);
    assert_eq!(
        settings.warnings,
        [
            "model.toml: [placement] has no effect in this release",
            "model.toml: [signature] has no effect: the model file has its own"
        ]
    );
    assert_eq!(settings.declared, None);
}
