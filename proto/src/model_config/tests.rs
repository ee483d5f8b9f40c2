use serde_json::json;

use super::*;
use crate::inference::model_config::SchedulingChoice;
use crate::inference::model_version_policy::PolicyChoice;
use crate::inference::{DataType, ModelParameter};

/// Uses every part of the schema that a repository commonly does.
const SAMPLE: &str = r#"
    # A classifier.
    name: "mlp"
    backend: "onnxruntime"
    max_batch_size: 8
    input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
    output [
      { name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" },
      { name: "z" data_type: TYPE_STRING dims: [ -1 ] reshape { shape: [] } }
    ]
    version_policy: { specific: { versions: [1, 3] } }
    instance_group [ { kind: KIND_CPU count: 2 } ]
    dynamic_batching {
      preferred_batch_size: [ 4, 8 ]
      max_queue_delay_microseconds: 100
      default_queue_policy { timeout_action: DELAY max_queue_size: 16 }
    }
    parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
    parameters { key: "b \"q\"" value: { string_value: "2" } }
    optimization { graph { level: 1 } }
"#;

#[test]
fn a_sample_is_read_whole() {
    let config = parse_model_config(SAMPLE).unwrap();
    assert_eq!(config.name, "mlp");
    assert_eq!(config.backend, "onnxruntime");
    assert_eq!(config.max_batch_size, 8);
    assert_eq!(config.input.len(), 1);
    assert_eq!(config.input[0].dims, [4]);
    assert_eq!(config.output[0].label_filename, "labels.txt");
    assert_eq!(config.output[1].data_type(), DataType::TypeString);
    assert_eq!(config.output[1].reshape.as_ref().unwrap().shape, [0; 0]);
    assert_eq!(config.instance_group[0].count, 2);
    let policy = config.version_policy.as_ref().unwrap();
    let Some(PolicyChoice::Specific(specific)) = &policy.policy_choice else {
        panic!("{policy:?}");
    };
    assert_eq!(specific.versions, [1, 3]);
    let Some(SchedulingChoice::DynamicBatching(batching)) = &config.scheduling_choice else {
        panic!("{:?}", config.scheduling_choice);
    };
    assert_eq!(batching.preferred_batch_size, [4, 8]);
    assert_eq!(batching.max_queue_delay_microseconds, 100);
    assert_eq!(batching.default_queue_policy.as_ref().unwrap().max_queue_size, 16);
    assert_eq!(config.parameters["intra_op_thread_count"], ModelParameter { string_value: "1".to_owned() });
    assert_eq!(config.parameters.len(), 2);
}

#[test]
fn an_error_names_the_line_and_the_field() {
    let text = SAMPLE.replace("count: 2", "cuont: 2");
    let error = parse_model_config(&text).unwrap_err();
    assert_eq!((error.line, error.field.as_str()), (12, "instance_group[0]"));
    assert!(error.to_string().ends_with("unknown field cuont in inference.ModelInstanceGroup"));
}

#[test]
fn every_set_field_is_listed_by_path() {
    let config = parse_model_config(SAMPLE).unwrap();
    let found: Vec<_> = set_fields(&config).iter().map(SetField::to_string).collect();
    assert_eq!(
        found,
        [
            "name",
            "version_policy.specific.versions",
            "max_batch_size",
            "input[0].name",
            "input[0].data_type",
            "input[0].dims",
            "output[0].name",
            "output[0].data_type",
            "output[0].dims",
            "output[0].label_filename",
            "output[1].name",
            "output[1].data_type",
            "output[1].dims",
            "output[1].reshape",
            "instance_group[0].count",
            "instance_group[0].kind",
            "dynamic_batching.preferred_batch_size",
            "dynamic_batching.max_queue_delay_microseconds",
            "dynamic_batching.default_queue_policy.timeout_action",
            "dynamic_batching.default_queue_policy.max_queue_size",
            "optimization.graph.level",
            r#"parameters["b \"q\""].string_value"#,
            r#"parameters["intra_op_thread_count"].string_value"#,
            "backend",
        ]
    );
}

#[test]
fn a_set_field_also_says_its_place_in_the_schema() {
    let check = |text: &str, path: &str, field: &str| {
        let expected = SetField { path: path.to_owned(), field: field.to_owned() };
        assert_eq!(set_fields(&parse_model_config(text).unwrap()), [expected], "{text}");
    };
    check("instance_group { gpus: [ 0, 1 ] }", "instance_group[0].gpus", "instance_group.gpus");
    check("metric_tags { key: 'a.b' value: '' }", r#"metric_tags["a.b"]"#, "metric_tags");
    check(
        "dynamic_batching { priority_queue_policy { key: 2 value { max_queue_size: 1 } } }",
        "dynamic_batching.priority_queue_policy[2].max_queue_size",
        "dynamic_batching.priority_queue_policy.max_queue_size",
    );
    check("dynamic_batching {}", "dynamic_batching", "dynamic_batching");
    check("version_policy { all {} }", "version_policy.all", "version_policy.all");
    check("instance_group {}", "instance_group[0]", "instance_group");
    // A choice that holds a default is a choice.
    check(
        "model_warmup { inputs { key: 'x' value { zero_data: false } } }",
        r#"model_warmup[0].inputs["x"].zero_data"#,
        "model_warmup.inputs.zero_data",
    );
}

#[test]
fn nothing_set_lists_nothing() {
    assert_eq!(set_fields(&ModelConfig::default()), []);
    let defaults = parse_model_config("max_batch_size: 0 name: '' input []").unwrap();
    assert_eq!(set_fields(&defaults), []);
}

#[test]
fn json_is_rendered_as_clients_know_it() {
    // The answer of a Triton server for this configuration, completed by its defaults.
    let text = r#"
        name: "mlp" platform: "onnxruntime_onnx" backend: "onnxruntime"
        version_policy { latest { num_versions: 1 } }
        max_batch_size: 8
        input { name: "x" data_type: TYPE_INT64 dims: 1 reshape {} }
        output { name: "y" data_type: TYPE_FP32 dims: 3 label_filename: "labels.txt" }
        optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
        dynamic_batching { preferred_batch_size: 8 }
        instance_group { name: "mlp_0" kind: KIND_CPU count: 1 }
        default_model_filename: "model.onnx"
        parameters { key: "intra_op_thread_count" value { string_value: "1" } }
    "#;
    let expected = json!({
        "name": "mlp",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 8,
        "input": [{
            "name": "x", "data_type": "TYPE_INT64", "format": "FORMAT_NONE", "dims": [1],
            "reshape": {"shape": []}, "is_shape_tensor": false, "allow_ragged_batch": false,
            "optional": false, "is_non_linear_format_io": false
        }],
        "output": [{
            "name": "y", "data_type": "TYPE_FP32", "dims": [3], "label_filename": "labels.txt",
            "is_shape_tensor": false, "is_non_linear_format_io": false
        }],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": {"enable": true},
            "output_pinned_memory": {"enable": true},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": false
        },
        "dynamic_batching": {
            "preferred_batch_size": [8],
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": false,
            "priority_levels": 0,
            "default_priority_level": 0,
            "priority_queue_policy": {}
        },
        "instance_group": [{
            "name": "mlp_0", "kind": "KIND_CPU", "count": 1, "gpus": [], "secondary_devices": [],
            "profile": [], "passive": false, "host_policy": ""
        }],
        "default_model_filename": "model.onnx",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {"intra_op_thread_count": {"string_value": "1"}},
        "model_warmup": []
    });
    let config = parse_model_config(text).unwrap();
    assert_eq!(to_json(&config).unwrap(), expected);
    assert_eq!(from_json(&expected.to_string()).unwrap(), config);
}

#[test]
fn json_keeps_the_digits_of_numbers() {
    let text = "sequence_batching { direct { minimum_slot_utilization: 0.1 } } \
                version_policy { specific { versions: 9223372036854775807 } }";
    let json = to_json(&parse_model_config(text).unwrap()).unwrap();
    assert_eq!(json["sequence_batching"]["direct"]["minimum_slot_utilization"], json!(0.1));
    assert_eq!(json["version_policy"]["specific"]["versions"], json!([i64::MAX]));
}

#[test]
fn json_of_unusual_values_is_still_json() {
    let mut config = ModelConfig::default();
    config.input.push(crate::inference::ModelInput { data_type: 99, ..Default::default() });
    let text = "sequence_batching { direct { minimum_slot_utilization: nan } }";
    config.scheduling_choice = parse_model_config(text).unwrap().scheduling_choice;
    let json = to_json(&config).unwrap();
    assert_eq!(json["input"][0]["data_type"], json!(99));
    assert_eq!(json["sequence_batching"]["direct"]["minimum_slot_utilization"], json!("NaN"));
}

#[test]
fn json_is_read_in_either_spelling() {
    let check = |json: &str, text: &str| {
        assert_eq!(from_json(json).unwrap(), parse_model_config(text).unwrap(), "{json}");
    };
    check(r#"{"maxBatchSize": 4}"#, "max_batch_size: 4");
    check(r#"{"max_batch_size": 4}"#, "max_batch_size: 4");
    check(r#"{"input": [{"dims": ["-1", 2], "data_type": 11}]}"#, "input { dims: [-1, 2] data_type: TYPE_FP32 }");
    check(r#"{"name": null}"#, "");
}

#[test]
fn json_that_does_not_fit_is_refused_by_field() {
    let check = |json: &str, field: &str, cause: &str| {
        let error = from_json(json).unwrap_err();
        assert_eq!(error.field, field, "{json}: {error:?}");
        let source = error.source.to_string();
        assert!(source.contains(cause), "{json}: {source}");
        assert!(!error.to_string().contains(&source));
    };
    check(r#"{"nam": "x"}"#, "", "'nam'");
    check(r#"{"input": [{"nam": "x"}]}"#, "input[0]", "'nam'");
    check(r#"{"max_batch_size": true}"#, "max_batch_size", "32-bit signed integer");
    check(r#"{"input": [{}, {"dims": [1, {}]}]}"#, "input[1].dims[1]", "integer");
    check(r#"{"input": [{"data_type": "FP32"}]}"#, "input[0].data_type", "'FP32'");
    check(r#"{"parameters": {"a": {"string_value": 1}}}"#, "parameters.a.string_value", "string");
    check("[]", "", "map");
    check("{} {}", "", "trailing");
    check("{", "", "EOF");
    let deep = "[".repeat(100_000);
    check(&format!(r#"{{"name": {deep}"#), "name", "");
}
