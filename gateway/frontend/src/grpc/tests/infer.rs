use std::collections::{BTreeSet, HashMap};

use bascule_proto::inference::infer_parameter::ParameterChoice;
use bascule_proto::inference::model_infer_request::InferRequestedOutputTensor;
use bascule_proto::inference::{InferParameter, InferTensorContents};
use bascule_registry::Op;
use bascule_serving::{LoadMode, RolloutStrategy, VersionPolicy};
use tonic::Request;

use super::*;

fn parameters(name: &str, choice: ParameterChoice) -> HashMap<String, InferParameter> {
    [(name.to_owned(), InferParameter { parameter_choice: Some(choice) })].into()
}

#[tokio::test]
async fn an_answer_says_what_computed_it() {
    let bench = Bench::new([mlp()]).await;
    let mut request = Request::new(ModelInferRequest { id: "42".to_owned(), ..row("mlp") });
    request.metadata_mut().insert("x-request-id", "abc".parse().unwrap());
    let response = bench.client().await.model_infer(request).await.unwrap();
    let header = |name: &str| response.metadata().get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!(header("x-request-id"), "abc");
    assert_eq!(header("x-bascule-model-version"), "1");
    let table = bench.sandbox.serving.router().table();
    assert_eq!(header("x-bascule-model-digest"), table.route("mlp").unwrap().stable.as_ref().unwrap().digest().to_string());
    assert_eq!(response.metadata().get("grpc-encoding"), None);
    let answer = response.into_inner();
    assert_eq!((answer.model_name.as_str(), answer.model_version.as_str(), answer.id.as_str()), ("mlp", "1", "42"));
    let output = &answer.outputs[0];
    assert_eq!((output.name.as_str(), output.datatype.as_str(), output.shape.as_slice()), ("y", "FP32", [1, 3].as_slice()));
    assert_eq!(output.contents, None);
    assert_eq!(numbers(&answer), [7.0; 3]);
    assert!(answer.parameters.is_empty());
    bench.stopped().await;
}

#[tokio::test]
async fn raw_and_typed_contents_are_one() {
    let bench = Bench::new([Stocked("echo", 1, identity(DataType::Int16, &[-1]), ModelSettings::default())]).await;
    let mut client = bench.client().await;
    let typed = InferInputTensor {
        contents: Some(InferTensorContents { int_contents: vec![-5, 5], ..InferTensorContents::default() }),
        ..input("INT16", &[2])
    };
    let typed = ModelInferRequest { model_name: "echo".to_owned(), inputs: vec![typed], ..ModelInferRequest::default() };
    let raw = ModelInferRequest {
        model_name: "echo".to_owned(),
        inputs: vec![input("INT16", &[2])],
        raw_input_contents: vec![Bytes::from_static(b"\xfb\xff\x05\0")],
        ..ModelInferRequest::default()
    };
    for request in [typed, raw] {
        let answer = client.model_infer(request).await.unwrap().into_inner();
        assert_eq!(answer.raw_output_contents, [Bytes::from_static(b"\xfb\xff\x05\0")]);
    }
    bench.stopped().await;
}

#[tokio::test]
async fn refusals_have_their_code_and_name_the_fault() {
    let bench = Bench::new([mlp()]).await;
    let mut client = bench.client().await;
    let version = |version: &str| ModelInferRequest { model_version: version.to_owned(), ..row("mlp") };
    let cases = [
        (row("nope"), Code::NotFound, "model 'nope' is not known"),
        (row(""), Code::NotFound, "model '' is not known"),
        (version("99"), Code::NotFound, "model 'mlp' has no version 99 that is served; served: 1"),
        (version("0"), Code::NotFound, "model 'mlp' has no version 0 that is served; served: 1"),
        (version("abc"), Code::InvalidArgument, "version 'abc' is not a whole number above 0"),
        (version("1abc"), Code::InvalidArgument, "version '1abc' is not a whole number above 0"),
        (
            ModelInferRequest { inputs: vec![input("FP32", &[2, 4])], ..row("mlp") },
            Code::InvalidArgument,
            "input 'x': expected 32 bytes for FP32 of shape [2, 4], got 16",
        ),
        (
            ModelInferRequest { inputs: Vec::new(), raw_input_contents: Vec::new(), ..row("mlp") },
            Code::InvalidArgument,
            "input 'x' of model 'mlp' is missing; expected 'x'",
        ),
        (
            ModelInferRequest { inputs: vec![input("FP32", &[-1, 4])], ..row("mlp") },
            Code::InvalidArgument,
            "input 'x': shape [-1, 4] has a negative dimension, expected every dimension to be 0 or more",
        ),
        (
            ModelInferRequest { inputs: vec![input("FP32", &[9, 4])], raw_input_contents: vec![floats(36)], ..row("mlp") },
            Code::InvalidArgument,
            "expected a batch of at most 8 for model 'mlp', got 9",
        ),
        (
            ModelInferRequest {
                outputs: vec![InferRequestedOutputTensor { name: "z".to_owned(), ..Default::default() }],
                ..row("mlp")
            },
            Code::InvalidArgument,
            "unexpected output 'z' for model 'mlp'; expected 'y'",
        ),
        (
            ModelInferRequest { parameters: [("k".to_owned(), InferParameter::default())].into(), ..row("mlp") },
            Code::InvalidArgument,
            "request: parameter 'k': expected a value in bool_param, int64_param, uint64_param, string_param or double_param, got none",
        ),
    ];
    for (request, code, message) in cases {
        assert_eq!(refused(client.model_infer(request).await), (code, message.to_owned()));
    }
    let status = client.model_infer(row("nope")).await.unwrap_err();
    assert_eq!(status.metadata().get("x-bascule-cause").unwrap(), "not_found");
    assert!(status.metadata().get("x-request-id").is_some());
    let long = client.model_infer(row(&"m".repeat(1 << 20))).await.unwrap_err();
    assert_eq!(long.code(), Code::NotFound);
    assert!(long.message().len() < 2000);
    bench.stopped().await;
}

#[tokio::test]
async fn what_failed_inside_stays_inside() {
    let fails = FakeModel { fail_run_every: Some(1), ..identity(DataType::Fp32, &[4]) };
    let bench = Bench::new([Stocked("fails", 1, fails, ModelSettings::default())]).await;
    let status = bench.client().await.model_infer(vector("fails")).await.unwrap_err();
    let id = status.metadata().get("x-request-id").unwrap().to_str().unwrap();
    assert_eq!((status.code(), status.message()), (Code::Internal, format!("internal error (request {id})").as_str()));
    bench.stopped().await;
}

#[tokio::test]
async fn outputs_can_be_classes() {
    let settings = ModelSettings {
        labels: [("y".to_owned(), ["a", "b", "c"].map(str::to_owned).to_vec())].into(),
        ..ModelSettings::default()
    };
    let bench = Bench::new([Stocked("mlp", 1, constant(0.5), settings)]).await;
    let output = InferRequestedOutputTensor {
        name: "y".to_owned(),
        parameters: parameters("classification", ParameterChoice::Int64Param(2)),
    };
    let answer =
        bench.client().await.model_infer(ModelInferRequest { outputs: vec![output], ..row("mlp") }).await.unwrap().into_inner();
    assert_eq!((answer.outputs[0].datatype.as_str(), answer.outputs[0].shape.as_slice()), ("BYTES", [1, 2].as_slice()));
    assert_eq!(answer.raw_output_contents[0], b"\x0c\0\0\x000.500000:0:a\x0c\0\0\x000.500000:1:b"[..]);
    bench.stopped().await;
}

#[tokio::test]
async fn a_timeout_parameter_ends_a_request() {
    let bench = Bench::new([slow()]).await;
    let mut client = bench.client().await;
    let by_parameter =
        ModelInferRequest { parameters: parameters("timeout", ParameterChoice::Int64Param(20_000)), ..vector("slow") };
    let status = client.model_infer(by_parameter).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "the deadline of the request has passed"));
    bench.stopped().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_run_along() {
    let bench = Bench::new([slow()]).await;
    let mut client = bench.client().await;
    let log = bench.sandbox.runtime.log();
    let call = tokio::spawn(async move { client.model_infer(vector("slow")).await });
    reached(&log, |counts| counts.blocked == 1).await;
    call.abort();
    reached(&log, |counts| counts.interrupted == 1).await;
    bench.stopped().await;
}

#[tokio::test]
async fn a_key_stays_on_its_side_of_a_split() {
    let settings =
        ModelSettings { rollout: RolloutStrategy::Manual, version_policy: VersionPolicy::All, ..ModelSettings::default() };
    let bench = Bench::new([Stocked("mlp", 1, constant(7.0), settings)]).await;
    let serving = bench.sandbox.serving.clone();
    bench.sandbox.shelf.put("mlp", 2, &constant(9.0));
    serving.kick();
    let is_ready =
        |status: &Status| status.model("mlp").and_then(|model| model.version(2)).is_some_and(|version| version.stage == "ready");
    until(&serving, is_ready).await;
    serving.apply("mlp", Op::Weight { version: 2, weight_bp: 5_000 }, "test", "", None).await.unwrap();
    until(&serving, |status| status.model("mlp").is_some_and(|model| model.candidate.is_some())).await;
    let mut client = bench.client().await;
    let mut answered = BTreeSet::new();
    for caller in 0..40 {
        let mut versions = BTreeSet::new();
        for _ in 0..3 {
            let mut request = Request::new(row("mlp"));
            request.metadata_mut().insert("x-bascule-key", format!("caller-{caller}").parse().unwrap());
            versions.insert(client.model_infer(request).await.unwrap().into_inner().model_version);
        }
        assert_eq!(versions.len(), 1, "caller {caller}");
        answered.extend(versions);
    }
    assert_eq!(answered.len(), 2, "40 callers are on both sides of an even split");
    bench.stopped().await;
}

#[tokio::test]
async fn the_first_request_loads_a_model_on_demand() {
    let sandbox = Sandbox::with_mode([mlp()], LoadMode::OnDemand).await;
    let bench = Bench::over(sandbox, GrpcSettings::default()).await;
    assert_eq!(bench.sandbox.runtime.log().counts().live, 0);
    let answer = bench.client().await.model_infer(row("mlp")).await.unwrap().into_inner();
    assert_eq!(numbers(&answer), [7.0; 3]);
    bench.stopped().await;
}
