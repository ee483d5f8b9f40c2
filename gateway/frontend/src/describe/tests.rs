use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bascule_runtime_api::{DataType, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp};
use bascule_serving::{
    CommandError, ErrorCode, InferRequest, LoadMode, ModelSettings, ModelStatus, NamedTensor, Publisher, Router, Status,
    VersionPolicy, VersionStatus,
};
use serde_json::{Value, json};

use super::*;
use crate::sandbox;

const MLP_CONFIG: &str = r#"{"name":"mlp","platform":"onnxruntime_onnx","backend":"onnxruntime","runtime":"","version_policy":{"latest":{"num_versions":1}},"max_batch_size":8,"input":[{"name":"x","data_type":"TYPE_FP32","format":"FORMAT_NONE","dims":[4],"is_shape_tensor":false,"allow_ragged_batch":false,"optional":false,"is_non_linear_format_io":false}],"output":[{"name":"y","data_type":"TYPE_FP32","dims":[3],"label_filename":"labels.txt","is_shape_tensor":false,"is_non_linear_format_io":false}],"batch_input":[],"batch_output":[],"optimization":{"priority":"PRIORITY_DEFAULT","input_pinned_memory":{"enable":true},"output_pinned_memory":{"enable":true},"gather_kernel_buffer_threshold":0,"eager_batching":false},"dynamic_batching":{"preferred_batch_size":[8],"max_queue_delay_microseconds":0,"preserve_ordering":false,"priority_levels":0,"default_priority_level":0,"priority_queue_policy":{}},"instance_group":[{"name":"mlp_0","kind":"KIND_CPU","count":1,"gpus":[],"secondary_devices":[],"profile":[],"passive":false,"host_policy":""}],"default_model_filename":"model.onnx","cc_model_filenames":{},"metric_tags":{},"parameters":{"intra_op_thread_count":{"string_value":"1"},"inter_op_thread_count":{"string_value":"1"}},"model_warmup":[]}"#;

const SIMPLE_CONFIG: &str = r#"{"name":"simple","platform":"onnxruntime_onnx","backend":"onnxruntime","runtime":"","version_policy":{"latest":{"num_versions":1}},"max_batch_size":8,"input":[{"name":"INPUT0","data_type":"TYPE_INT32","format":"FORMAT_NONE","dims":[16],"is_shape_tensor":false,"allow_ragged_batch":false,"optional":false,"is_non_linear_format_io":false},{"name":"INPUT1","data_type":"TYPE_INT32","format":"FORMAT_NONE","dims":[16],"is_shape_tensor":false,"allow_ragged_batch":false,"optional":false,"is_non_linear_format_io":false}],"output":[{"name":"OUTPUT0","data_type":"TYPE_INT32","dims":[16],"label_filename":"","is_shape_tensor":false,"is_non_linear_format_io":false},{"name":"OUTPUT1","data_type":"TYPE_INT32","dims":[16],"label_filename":"","is_shape_tensor":false,"is_non_linear_format_io":false}],"batch_input":[],"batch_output":[],"optimization":{"priority":"PRIORITY_DEFAULT","input_pinned_memory":{"enable":true},"output_pinned_memory":{"enable":true},"gather_kernel_buffer_threshold":0,"eager_batching":false},"instance_group":[{"name":"simple_0","kind":"KIND_CPU","count":1,"gpus":[],"secondary_devices":[],"profile":[],"passive":false,"host_policy":""}],"default_model_filename":"model.onnx","cc_model_filenames":{},"metric_tags":{},"parameters":{"inter_op_thread_count":{"string_value":"1"},"intra_op_thread_count":{"string_value":"1"}},"model_warmup":[]}"#;

fn threads() -> BTreeMap<String, String> {
    ["intra_op_thread_count", "inter_op_thread_count"].map(|name| (name.to_owned(), "1".to_owned())).into()
}

fn mlp_settings() -> ModelSettings {
    ModelSettings {
        max_batch_size: Some(8),
        label_filenames: [("y".to_owned(), "labels.txt".to_owned())].into(),
        parameters: threads(),
        ..ModelSettings::default()
    }
}

fn mlp(version: u64) -> Arc<Servable> {
    sandbox::servable("mlp", version, &sandbox::constant(1.0), mlp_settings(), "onnxruntime")
}

fn simple() -> Arc<Servable> {
    let specs = |prefix: &str| (0..2).map(|index| TensorSpec::new(format!("{prefix}{index}"), DataType::Int32, [-1, 16])).collect();
    let fake = FakeModel { batch_axis: Some(0), ..FakeModel::new(FakeOp::Identity, specs("INPUT"), specs("OUTPUT")) };
    let settings =
        ModelSettings { max_batch_size: Some(8), dynamic_batching: false, parameters: threads(), ..ModelSettings::default() };
    sandbox::servable("simple", 1, &fake, settings, "onnxruntime")
}

/// `mlp` with version 1, `multi` with 1 and 3, and models without a version.
fn served() -> (Router, Publisher) {
    let multi = |version| {
        sandbox::servable(
            "multi",
            version,
            &sandbox::constant(3.0),
            ModelSettings { max_batch_size: Some(8), ..mlp_settings() },
            "onnxruntime",
        )
    };
    let mut loading = sandbox::route(
        "loading",
        Vec::new(),
        Standing::NotReady { reason: "version 2 is fetching".to_owned(), retry_after: Duration::from_secs(7) },
    );
    loading.pending.insert(2, "fetching".to_owned());
    sandbox::table(vec![
        sandbox::route("mlp", vec![mlp(1)], Standing::Serving),
        sandbox::route("multi", vec![multi(1), multi(3)], Standing::Serving),
        sandbox::route("off", Vec::new(), Standing::Unloaded),
        sandbox::route("lazy", Vec::new(), Standing::OnDemand),
        loading,
    ])
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_configuration_is_shown_as_triton_shows_it() {
    assert_eq!(model_config_json(&mlp(1)).unwrap(), value(MLP_CONFIG));
    assert_eq!(model_config_json(&simple()).unwrap(), value(SIMPLE_CONFIG));
}

#[test]
fn a_configuration_shows_what_settings_say() {
    let settings = ModelSettings {
        max_batch_size: Some(0),
        instances: 2,
        version_policy: VersionPolicy::Specific(vec![1, 3]),
        entrypoint: Some("other.onnx".to_owned()),
        ..ModelSettings::default()
    };
    let config = model_config(&sandbox::servable("m", 1, &sandbox::identity(DataType::Bytes, &[-1, 2]), settings, "onnxruntime"));
    let shown = bascule_proto::model_config::to_json(&config).unwrap();
    assert_eq!(shown["max_batch_size"], 0);
    assert_eq!(shown["input"][0]["dims"], json!([-1, 2]));
    assert_eq!(shown["input"][0]["data_type"], "TYPE_STRING");
    assert_eq!(shown["version_policy"], json!({ "specific": { "versions": [1, 3] } }));
    assert_eq!(shown["instance_group"][0]["count"], 2);
    assert_eq!(shown["default_model_filename"], "other.onnx");
    assert_eq!(shown.get("dynamic_batching"), None);

    let settings = ModelSettings {
        max_batch_size: Some(16),
        preferred_batch_sizes: vec![4, 8],
        max_queue_delay: Duration::from_micros(250),
        priority_levels: 3,
        default_priority: 2,
        queue_capacity: 5,
        queue_timeout: Some(Duration::from_millis(1)),
        ..ModelSettings::default()
    };
    let config = model_config(&sandbox::servable("m", 1, &sandbox::constant(0.0), settings, "torch"));
    let shown = bascule_proto::model_config::to_json(&config).unwrap();
    assert_eq!((&shown["platform"], &shown["backend"]), (&json!("pytorch_libtorch"), &json!("pytorch")));
    let batching = &shown["dynamic_batching"];
    assert_eq!(batching["preferred_batch_size"], json!([4, 8]));
    assert_eq!(batching["max_queue_delay_microseconds"], 250);
    assert_eq!((&batching["priority_levels"], &batching["default_priority_level"]), (&json!(3), &json!(2)));
    assert_eq!(batching["default_queue_policy"]["max_queue_size"], 5);
    assert_eq!(batching["default_queue_policy"]["default_timeout_microseconds"], 1000);
}

#[test]
fn metadata_are_shown_as_triton_shows_them() {
    let (router, _publisher) = served();
    let table = router.table();
    let shown = |model: &str, version: Option<u64>| {
        known(&table, model)
            .and_then(|route| metadata::model_metadata(route, version))
            .map(|model| serde_json::to_string(&model).unwrap())
    };
    assert_eq!(
        shown("multi", None).unwrap(),
        r#"{"name":"multi","versions":["1","3"],"platform":"onnxruntime_onnx","inputs":[{"name":"x","datatype":"FP32","shape":[-1,4]}],"outputs":[{"name":"y","datatype":"FP32","shape":[-1,3]}]}"#
    );
    assert_eq!(
        shown("multi", Some(1)).unwrap(),
        r#"{"name":"multi","versions":["1"],"platform":"onnxruntime_onnx","inputs":[{"name":"x","datatype":"FP32","shape":[-1,4]}],"outputs":[{"name":"y","datatype":"FP32","shape":[-1,3]}]}"#
    );
    let code = |model, version| shown(model, version).unwrap_err().code();
    assert_eq!(code("nope", None), ErrorCode::NotFound);
    assert_eq!(code("multi", Some(2)), ErrorCode::NotFound);
    assert_eq!(code("off", None), ErrorCode::NotFound);
    assert_eq!(code("loading", None), ErrorCode::NotReady);
}

#[test]
fn only_extensions_that_are_served_are_named() {
    let server = serde_json::to_value(server_metadata()).unwrap();
    assert_eq!(server["name"], "bascule");
    assert_eq!(server["version"], env!("CARGO_PKG_VERSION"));
    let expected =
        ["classification", "model_repository", "schedule_policy", "model_configuration", "binary_tensor_data", "statistics"];
    assert_eq!(server["extensions"], json!(expected));
}

#[test]
fn readiness_is_that_of_the_version_asked_for() {
    let (router, _publisher) = served();
    let table = router.table();
    let check = |model: &str, version: Option<u64>| {
        ready_by(&table, model, version, |version| version == 1).map_err(|error| error.to_string())
    };
    let ready = [("mlp", None), ("mlp", Some(1)), ("multi", None), ("multi", Some(1)), ("lazy", None), ("lazy", Some(1))];
    for (model, version) in ready {
        assert_eq!(check(model, version), Ok(()), "{model} {version:?}");
    }
    for (model, version, error) in [
        ("nope", None, "model 'nope' is not known"),
        ("mlp", Some(0), "model 'mlp' has no version 0 that is served; served: 1"),
        ("multi", Some(2), "model 'multi' has no version 2 that is served; served: 1, 3"),
        ("off", None, "model 'off' is unloaded"),
        ("off", Some(1), "model 'off' has no version 1 that is served; served: none"),
        ("lazy", Some(2), "model 'lazy' has no version 2 that is served; served: none"),
        ("loading", None, "model 'loading' is not ready: version 2 is fetching"),
        ("loading", Some(2), "model 'loading' is not ready: version 2 is fetching"),
    ] {
        assert_eq!(check(model, version), Err(error.to_owned()), "{model} {version:?}");
    }
}

#[tokio::test]
async fn describing_is_no_use_of_a_model() {
    let stocked = sandbox::Stocked("mlp", 1, sandbox::constant(7.0), ModelSettings::default());
    let sandbox = sandbox::Sandbox::start([stocked]).await;
    let table = sandbox.serving.router().table();
    ready(&sandbox.serving, "mlp", None).unwrap();
    statistics(&table, None, None).unwrap();
    metadata(&sandbox.serving, "mlp", None, None).await.unwrap();
    let route = described(&sandbox.serving, "mlp", None).await.unwrap();
    model_config(chosen(&route, Some(1)).unwrap());
    assert_eq!(route.last_use.millis(), 0);
}

#[tokio::test]
async fn a_model_that_sleeps_is_ready_and_is_loaded_only_where_it_must_be() {
    let stocked = sandbox::Stocked("mlp", 1, sandbox::constant(7.0), ModelSettings::default());
    let sandbox = sandbox::Sandbox::with_mode([stocked], LoadMode::OnDemand).await;
    for (version, is_ready) in [(None, true), (Some(1), true), (Some(2), false)] {
        assert_eq!(ready(&sandbox.serving, "mlp", version).is_ok(), is_ready, "{version:?}");
    }
    let table = sandbox.serving.router().table();
    assert_eq!(statistics(&table, Some("mlp"), None).unwrap_err().code(), ErrorCode::NotReady);
    assert_eq!((sandbox.runtime.log().counts().live, table.route("mlp").unwrap().last_use.millis()), (0, 0));
    sandbox.runtime.log().release();
    let loaded = metadata(&sandbox.serving, "mlp", None, None).await.unwrap();
    assert_eq!((loaded.versions.as_slice(), sandbox.runtime.log().counts().live), (&["1".to_owned()][..], 1));
}

#[tokio::test]
async fn manifests_tell_of_a_model_that_sleeps() {
    let sandbox = sandbox::Sandbox::with_mode([], LoadMode::OnDemand).await;
    let told = async |version: u64, asked: Option<u64>| {
        sandbox.serving.kick();
        let mut changes = sandbox.serving.changes();
        while sandbox.serving.listed("mlp").is_none_or(|model| !model.versions.contains_key(&version)) {
            assert!(changes.next().await, "the engine has ended");
        }
        metadata(&sandbox.serving, "mlp", asked, None).await
    };
    sandbox.shelf.put_declared("mlp", 1, &sandbox::constant(7.0));
    let mut first = told(1, Some(1)).await.unwrap();
    assert_eq!((first.inputs[0].name.as_str(), first.inputs[0].shape.as_slice(), first.outputs.len()), ("x", &[-1, 4][..], 1));
    assert_eq!((first.versions.as_slice(), first.platform.as_str()), (&["1".to_owned()][..], "fake"));
    // Which version would answer is not known, and makes no difference.
    sandbox.shelf.put_declared("mlp", 2, &sandbox::constant(8.0));
    first.versions.clear();
    assert_eq!(told(2, None).await, Ok(first));
    assert_eq!(sandbox.runtime.log().counts().live, 0);
    // Now it does, so it is loaded, and what it is made of tells.
    sandbox.shelf.put_declared("mlp", 3, &sandbox::identity(DataType::Bytes, &[-1]));
    sandbox.runtime.log().release();
    let loaded = told(3, None).await.unwrap();
    assert_eq!((loaded.versions.as_slice(), loaded.inputs[0].datatype), (&["3".to_owned()][..], "BYTES"));
    assert_eq!(sandbox.runtime.log().counts().live, 1);
}

#[tokio::test]
async fn statistics_have_tritons_shape() {
    const NEVER_RUN: &str = r#"{"model_stats":[{"name":"mlp","version":"1","last_inference":0,"inference_count":0,"execution_count":0,"inference_stats":{"success":{"count":0,"ns":0},"fail":{"count":0,"ns":0},"queue":{"count":0,"ns":0},"compute_input":{"count":0,"ns":0},"compute_infer":{"count":0,"ns":0},"compute_output":{"count":0,"ns":0},"cache_hit":{"count":0,"ns":0},"cache_miss":{"count":0,"ns":0}},"response_stats":{},"batch_stats":[],"memory_usage":[]}]}"#;
    let (router, _publisher) = served();
    let report = |model, version| statistics(&router.table(), model, version);
    assert_eq!(serde_json::to_string(&report(Some("mlp"), Some(1)).unwrap()).unwrap(), NEVER_RUN);

    let tensor = bascule_runtime_api::Tensor::from_elements([2, 4], &[0f32; 8]).unwrap();
    let inputs = [NamedTensor { name: "x".to_owned(), tensor }].into_iter().collect();
    let request = InferRequest { inputs, ..InferRequest::default() };
    router.infer(router.route("mlp").unwrap(), &request).await.unwrap();
    let ran = &report(Some("mlp"), None).unwrap().model_stats[0];
    assert_eq!((ran.inference_count, ran.execution_count, ran.inference_stats.success.count), (2, 1, 1));
    assert!(ran.last_inference > 1_600_000_000_000, "milliseconds since 1970");
    let batches: Vec<(u64, u64)> = ran.batch_stats.iter().map(|batch| (batch.batch_size, batch.compute_infer.count)).collect();
    assert_eq!(batches, [(2, 1)]);

    let everything = report(None, None).unwrap().model_stats;
    let keys: Vec<(&str, &str)> = everything.iter().map(|stats| (stats.name.as_str(), stats.version.as_str())).collect();
    assert_eq!(keys, [("mlp", "1"), ("multi", "1"), ("multi", "3")]);
    for (model, version) in [("nope", None), ("mlp", Some(99)), ("off", None)] {
        assert_eq!(report(Some(model), version).unwrap_err().code(), ErrorCode::NotFound, "{model}");
    }
}

#[test]
fn versions_are_read_strictly() {
    assert_eq!(parse_version(""), Ok(None));
    assert_eq!(parse_version("3"), Ok(Some(3)));
    assert_eq!(parse_version("0"), Ok(Some(0)));
    assert_eq!(parse_version("9223372036854775807"), Ok(Some(9_223_372_036_854_775_807)));
    for wrong in ["abc", "1abc", "-1", "+1", " 1", "1.0", "99999999999999999999", "１"] {
        let error = parse_version(wrong).unwrap_err();
        assert_eq!(error.to_string(), format!("version '{wrong}' is not a whole number above 0"));
    }
}

fn version(version: u64, stage: &str, state: &str, cause: Option<&str>) -> VersionStatus {
    let mut status = VersionStatus::default();
    status.version = version;
    status.stage = stage.to_owned();
    status.state = state.to_owned();
    status.cause = cause.map(str::to_owned);
    status
}

#[test]
fn the_index_lists_what_has_become_of_every_model() {
    let model = |name: &str, versions| Arc::new(ModelStatus { name: name.to_owned(), versions, ..ModelStatus::default() });
    let status = Status {
        models: vec![
            model("broken", vec![version(1, "failed", "UNAVAILABLE", Some("model.onnx: not a model"))]),
            model("fresh", Vec::new()),
            model("multi", vec![version(1, "ready", "READY", None), version(3, "warming", "LOADING", None)]),
            model("off", vec![version(5, "unloaded", "UNAVAILABLE", None)]),
            // While its content changes, a version is there twice.
            model("twice", vec![version(1, "ready", "READY", None), version(1, "loading", "LOADING", None)]),
            model("twice_gone", vec![version(1, "draining", "UNLOADING", None), version(1, "ready", "READY", None)]),
        ],
        ..Status::default()
    };
    assert_eq!(
        serde_json::to_value(index(&status, false)).unwrap(),
        json!([
            { "name": "broken", "version": "1", "state": "UNAVAILABLE", "reason": "model.onnx: not a model" },
            { "name": "fresh" },
            { "name": "multi", "version": "1", "state": "READY" },
            { "name": "multi", "version": "3", "state": "LOADING" },
            { "name": "off", "version": "5", "state": "UNAVAILABLE", "reason": "unloaded" },
            { "name": "twice", "version": "1", "state": "READY" },
            { "name": "twice_gone", "version": "1", "state": "READY" },
        ])
    );
    let ready: Vec<String> = index(&status, true).into_iter().map(|entry| entry.name).collect();
    assert_eq!(ready, ["multi", "twice", "twice_gone"]);
}

#[test]
fn load_parameters_that_bring_content_are_refused() {
    assert_eq!(check_load_parameters([]), Ok(()));
    let check = |name: &str| check_load_parameters([name]).unwrap_err();
    assert_eq!(check("config").code(), ErrorCode::Unsupported);
    assert_eq!(check("file:1/model.onnx").code(), ErrorCode::Unsupported);
    assert_eq!(check("foo"), InferError::invalid("load parameter 'foo' is not known"));
}

#[test]
fn refused_commands_have_the_code_that_clients_act_on() {
    let model = || "m".to_owned();
    let cases = [
        (CommandError::UnknownModel { model: model() }, ErrorCode::NotFound),
        (
            CommandError::LoadFailed { model: model(), version: 1, stage: "loading".into(), cause: "no model".into() },
            ErrorCode::InvalidArgument,
        ),
        (CommandError::NothingToLoad { model: model(), reason: "none".into() }, ErrorCode::InvalidArgument),
        (CommandError::Source { message: "no route to host".into() }, ErrorCode::NotReady),
        (CommandError::State { message: "disk full".into() }, ErrorCode::Internal),
        (CommandError::Busy, ErrorCode::Overloaded),
        (CommandError::Stopping, ErrorCode::NotReady),
    ];
    for (error, code) in cases {
        let refused = refusal("m", error);
        assert_eq!(refused.code(), code, "{refused}");
        assert!(!refused.to_string().contains("disk full") && !refused.to_string().contains("no route"), "{refused}");
    }
}
