use bascule_runtime_api::Device;
use bascule_serving::Devices;

use super::*;

fn read(text: &str) -> Reading {
    let given = Circumstances { name: "m", backends: &["onnxruntime"], files: &BTreeMap::new(), stateless: false };
    super::read(text, &given, ModelSettings::default())
}

fn settings(text: &str) -> ModelSettings {
    let reading = read(text);
    assert_eq!(reading.problems, [""; 0], "{text}");
    reading.settings
}

/// The only problem of a text.
fn problem(text: &str) -> String {
    let problems = read(text).problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

const FULL: &str = r#"
    name: "m"
    platform: "onnxruntime_onnx"
    backend: "onnxruntime"
    max_batch_size: 8
    input [ { name: "x" data_type: TYPE_FP32 dims: [ 4, -1 ] } ]
    output [
      { name: "y" data_type: TYPE_INT64 dims: [ 1 ] label_filename: "labels.txt" },
      { name: "z" data_type: TYPE_STRING dims: [ 2 ] }
    ]
    default_model_filename: "net.onnx"
    version_policy: { specific: { versions: [1, 3] } }
    instance_group [ { kind: KIND_CPU count: 2 }, { kind: KIND_CPU } ]
    dynamic_batching {
      preferred_batch_size: [ 4, 8 ]
      max_queue_delay_microseconds: 100
      priority_levels: 3
      default_priority_level: 2
      default_queue_policy { default_timeout_microseconds: 5000 max_queue_size: 16 allow_timeout_override: true }
    }
    optimization { graph { level: -1 } }
    parameters { key: "intra_op_thread_count" value: { string_value: "2" } }
    model_warmup [ {
      name: "zeros" batch_size: 3 count: 2
      inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 4, 5 ] zero_data: true } }
    } ]
"#;

#[test]
fn every_honoured_field_arrives() {
    let input = warmup::input("x", DataType::Fp32, vec![3, 4, 5], WarmupContent::Zero).unwrap();
    let expected = ModelSettings {
        max_batch_size: Some(8),
        max_queue_delay: Duration::from_micros(100),
        preferred_batch_sizes: vec![4, 8],
        dynamic_batching: true,
        instances: 3,
        priority_levels: 3,
        default_priority: 2,
        queue_capacity: 16,
        queue_timeout: Some(Duration::from_millis(5)),
        version_policy: VersionPolicy::Specific(vec![1, 3]),
        declared: Some(Signature {
            inputs: vec![TensorSpec::new("x", DataType::Fp32, [-1, 4, -1])],
            outputs: vec![TensorSpec::new("y", DataType::Int64, [-1, 1]), TensorSpec::new("z", DataType::Bytes, [-1, 2])],
            batch_axis: Some(0),
        }),
        warmup: vec![WarmupSample { name: "zeros".into(), inputs: vec![input], count: 2 }],
        label_filenames: [("y".into(), "labels.txt".into())].into(),
        entrypoint: Some("net.onnx".into()),
        runtime: Some("onnxruntime".into()),
        runtime_options: [("intra_op_thread_count", "2"), ("graph_optimization_level", "-1")]
            .map(|(key, value)| (key.into(), value.into()))
            .into(),
        parameters: [("intra_op_thread_count".into(), "2".into())].into(),
        ..ModelSettings::default()
    };
    assert_eq!(settings(FULL), expected);
}

#[test]
fn every_other_field_is_named_in_a_warning() {
    let text = r#"
        runtime: "python"
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] format: FORMAT_NCHW optional: true reshape { shape: [ ] } } ]
        instance_group [ { name: "g" kind: KIND_MODEL rate_limiter { priority: 2 } passive: true } ]
        dynamic_batching {
          preserve_ordering: true
          default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 9 }
          priority_queue_policy { key: 1 value: { max_queue_size: 2 } }
        }
        optimization { cuda { graphs: true } }
        parameters { key: "colour" value: { string_value: "red" } }
        response_cache { enable: true }
        model_transaction_policy { decoupled: true }
        metric_tags { key: "a" value: "b" }
        model_warmup [ { name: "w" inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 1 ] input_data_file: "f" } } } ]
    "#;
    let settings = settings(text);
    let mut warnings = settings.warnings;
    warnings.sort_unstable();
    assert_eq!(
        warnings,
        [
            "config.pbtxt: `dynamic_batching.default_queue_policy.default_timeout_microseconds` is not honoured with DELAY",
            "config.pbtxt: `dynamic_batching.default_queue_policy.timeout_action` is not honoured",
            "config.pbtxt: `dynamic_batching.preserve_ordering` is not honoured",
            "config.pbtxt: `dynamic_batching.priority_queue_policy[1].max_queue_size` is not honoured",
            "config.pbtxt: `input[0].format` is not honoured",
            "config.pbtxt: `input[0].optional` is not honoured",
            "config.pbtxt: `instance_group[0].kind`: KIND_MODEL is served as KIND_CPU",
            "config.pbtxt: `instance_group[0].name` is not honoured",
            "config.pbtxt: `instance_group[0].passive` is not honoured",
            "config.pbtxt: `instance_group[0].rate_limiter.priority` is not honoured",
            "config.pbtxt: `metric_tags[\"a\"]` is not honoured",
            "config.pbtxt: `model_transaction_policy.decoupled` is not honoured",
            "config.pbtxt: `model_warmup[0].inputs[\"x\"].input_data_file`: warmup/f can't be read or is too large, so this warm-up does not run",
            "config.pbtxt: `optimization.cuda.graphs` is not honoured",
            "config.pbtxt: `parameters[\"colour\"]` is shown and has no effect",
            "config.pbtxt: `response_cache.enable` is not honoured",
            "config.pbtxt: `runtime` is not honoured",
        ]
    );
    assert_eq!(settings.queue_timeout, None, "a timeout that delays must not refuse");
    assert_eq!(settings.warmup, []);
    assert_eq!(settings.parameters["colour"], "red");
}

#[test]
fn what_the_file_does_not_say_is_triton_s_default() {
    let silent = settings("");
    assert_eq!((silent.max_batch_size, silent.dynamic_batching, silent.declared), (None, true, None));
    let fixed = settings("input [ { name: \"x\" data_type: TYPE_INT8 dims: [ -1 ] } ]");
    assert_eq!((fixed.max_batch_size, fixed.dynamic_batching), (Some(0), false));
    assert_eq!(fixed.declared.unwrap().inputs[0].shape, [-1]);
    assert_eq!(settings("platform: \"onnxruntime_onnx\"").runtime.as_deref(), Some("onnxruntime"));
    let batched = settings("max_batch_size: 4");
    assert_eq!((batched.max_batch_size, batched.dynamic_batching, batched.declared), (Some(4), false, None));
    assert_eq!(settings("max_batch_size: 4 dynamic_batching { }").warnings, [""; 0]);
    assert_eq!(settings("version_policy { latest { } }").version_policy, VersionPolicy::Latest(1));
    assert_eq!(settings("version_policy { all { } }").version_policy, VersionPolicy::All);
}

#[test]
fn a_reshape_gives_callers_another_shape_than_the_model_has() {
    let tensor = |dims: &str, shape: &str| {
        let text =
            format!("max_batch_size: 4 input [ {{ name: \"x\" data_type: TYPE_FP32 dims: {dims} reshape {{ shape: {shape} }} }} ]");
        read(&text)
    };
    for (dims, shape, own) in
        [("[ 1 ]", "[ ]", &[-1][..]), ("[ 2, 6 ]", "[ 12 ]", &[-1, 12]), ("[ -1, 4 ]", "[ -1, 2, 2 ]", &[-1, -1, 2, 2])]
    {
        let reading = tensor(dims, shape);
        assert_eq!((reading.problems, reading.settings.warnings), (Vec::<String>::new(), Vec::new()), "{dims}");
        assert_eq!(reading.settings.declared.unwrap().inputs[0].shape, own, "the model's own shape");
        assert!(reading.settings.reshapes.batched && reading.settings.reshapes.inputs.contains_key("x"));
    }
    for (dims, shape) in [("[ 2 ]", "[ ]"), ("[ -1 ]", "[ 4 ]"), ("[ -1, 4 ]", "[ 4, -1 ]")] {
        let problems = tensor(dims, shape).problems;
        assert!(problems.len() == 1 && problems[0].contains("`input[0].reshape`: expected a shape with as many"), "{problems:?}");
    }
}

#[test]
fn a_gpu_is_asked_for_and_never_dropped() {
    let check = |groups: &str, devices: Devices, instances: u32, warnings: usize| {
        let read = settings(&format!("instance_group [ {groups} ]"));
        assert_eq!((read.devices, read.instances), (devices, instances), "{groups}");
        assert_eq!(read.warnings.len(), warnings, "{groups}: {:?}", read.warnings);
    };
    let on = |devices: &[Device]| Devices::These(devices.to_vec());
    let (first, second) = (Device::Cuda(0), Device::Cuda(1));
    check("{ kind: KIND_GPU gpus: [ 1 ] count: 2 }", on(&[second]), 2, 0);
    check("{ kind: KIND_GPU gpus: [ 0, 1 ] count: 2 }", on(&[first, second]), 2, 0);
    check("{ kind: KIND_GPU gpus: [ 0 ] }, { kind: KIND_GPU gpus: [ 0 ] count: 2 }", on(&[first]), 3, 0);
    check("{ kind: KIND_GPU gpus: [ 0 ] }, { kind: KIND_CPU count: 1 }", on(&[Device::Cpu, first]), 1, 0);
    check("{ kind: KIND_GPU gpus: [ 0 ] }, { kind: KIND_CPU count: 4 }", on(&[Device::Cpu, first]), 4, 1);
    check("{ kind: KIND_GPU }", Devices::EveryGpu, 1, 0);
    check("{ kind: KIND_GPU }, { kind: KIND_CPU }", Devices::EveryGpu, 1, 1);
    check("{ kind: KIND_CPU }, { kind: KIND_GPU }", on(&[Device::Cpu]), 1, 1);
    check("{ count: 2 }", Devices::Auto, 2, 0);
    check("{ kind: KIND_AUTO gpus: [ 0 ] }", Devices::Auto, 1, 1);
}

#[test]
fn accelerators_are_asked_for_by_name_with_their_options() {
    let text = r#"optimization { execution_accelerators {
        gpu_execution_accelerator : [ {
            name : "tensorrt"
            parameters { key: "precision_mode" value: "FP16" }
            parameters { key: "max_workspace_size_bytes" value: "1073741824" }
        } ]
    } }"#;
    let read = settings(text);
    let expected =
        [("providers", "tensorrt,cuda"), ("tensorrt.trt_fp16_enable", "1"), ("tensorrt.trt_max_workspace_size", "1073741824")];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!((read.runtime_options, read.warnings), (expected, Vec::<String>::new()));
    let other = settings("optimization { execution_accelerators { cpu_execution_accelerator : [ { name: \"openvino\" } ] } }");
    let warning = "config.pbtxt: `optimization.execution_accelerators.cpu_execution_accelerator[0]`: \"openvino\" has no effect";
    assert_eq!((other.runtime_options, other.warnings), (Default::default(), vec![warning.to_owned()]));
}

#[test]
fn what_can_not_be_served_is_an_error_that_names_the_field() {
    let cases = [
        ("name: \"other\"", "config.pbtxt: `name`: expected \"m\", the name of the directory, got \"other\""),
        ("backend: \"python\"", "config.pbtxt: `backend`: expected one of onnxruntime, got \"python\""),
        ("platform: \"ensemble\"", "config.pbtxt: `platform`: expected one of onnxruntime_onnx, got \"ensemble\""),
        (
            "optimization { execution_accelerators { gpu_execution_accelerator : [ { name: \"rocm\" } ] } }",
            "config.pbtxt: `optimization.execution_accelerators.gpu_execution_accelerator[0].name`: expected cuda or tensorrt, got \"rocm\"",
        ),
        ("max_batch_size: -1", "config.pbtxt: `max_batch_size`: expected 0 or more, got -1"),
        (
            "input [ { name: \"x\" data_type: TYPE_FP32 dims: [ -2 ] } ]",
            "config.pbtxt: `input[0].dims`: expected sizes of 1 or more, or -1 for an open one, got [-2]",
        ),
        ("input [ { name: \"x\" dims: [ 1 ] } ]", "config.pbtxt: `input[0].data_type`: is needed for \"x\""),
        (
            "dynamic_batching { preferred_batch_size: [ 0 ] }",
            "config.pbtxt: `dynamic_batching.preferred_batch_size`: expected 1 or more, got 0",
        ),
        (
            "dynamic_batching { priority_levels: 2 }",
            "config.pbtxt: `dynamic_batching.default_priority_level`: is needed where `priority_levels` is set",
        ),
        (
            "version_policy { specific { versions: [ 0 ] } }",
            "config.pbtxt: `version_policy.specific.versions`: expected versions from 1, got 0",
        ),
        (
            "default_model_filename: \"../model.onnx\"",
            "config.pbtxt: `default_model_filename`: file path \"../model.onnx\" has `.` or `..` as a part",
        ),
        ("ensemble_scheduling { }", "config.pbtxt: `ensemble_scheduling`: ensembles are not served"),
        ("max_batch_size: 1\nnmae: \"m\"", "config.pbtxt: line 2, column 1: unknown field nmae in inference.ModelConfig"),
    ];
    for (text, expected) in cases {
        assert_eq!(problem(text), expected, "{text}");
    }
    let hostile =
        "model_warmup [ { name: \"w\" inputs { key: \"x\" value: { data_type: TYPE_FP32 dims: [ 9223372036854775807 ] } } } ]";
    assert!(problem(hostile).starts_with("config.pbtxt: `model_warmup[0].inputs[\"x\"].dims`: expected a shape"));
    assert_eq!(read("name: \"a\" backend: \"b\"").problems.len(), 2, "all problems at once");
}

#[test]
fn runtimes_go_by_triton_s_names_and_parameters_by_their_runtime() {
    let given = Circumstances { name: "m", backends: &["onnxruntime", "torch"], files: &BTreeMap::new(), stateless: false };
    let parameter = "parameters { key: \"INFERENCE_MODE\" value { string_value: \"true\" } } optimization { graph { level: 1 } }";
    for (named, runtime, honoured) in [
        ("backend: \"pytorch\"", Some("torch"), true),
        ("platform: \"pytorch_libtorch\"", Some("torch"), true),
        ("backend: \"onnxruntime\"", Some("onnxruntime"), false),
        ("", None, false),
    ] {
        let reading = super::read(&format!("{named} {parameter}"), &given, ModelSettings::default());
        assert_eq!((reading.settings.runtime.as_deref(), reading.problems.len()), (runtime, 0), "{named}");
        assert_eq!(reading.settings.runtime_options.contains_key("INFERENCE_MODE"), honoured, "{named}");
        assert_eq!(reading.settings.runtime_options.contains_key("graph_optimization_level"), !honoured, "{named}");
    }
    let wrong = super::read("backend: \"tensorrt\"", &given, ModelSettings::default());
    assert_eq!(wrong.problems, ["config.pbtxt: `backend`: expected one of onnxruntime, pytorch, got \"tensorrt\""]);
}
