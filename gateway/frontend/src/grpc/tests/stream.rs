use bascule_proto::inference::ModelStreamInferResponse;
use bascule_proto::inference::infer_parameter::ParameterChoice;
use futures::stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::*;

fn with_id(id: &str, request: ModelInferRequest) -> ModelInferRequest {
    ModelInferRequest { id: id.to_owned(), ..request }
}

async fn collect(mut answers: Streaming<ModelStreamInferResponse>) -> Result<Vec<ModelStreamInferResponse>, tonic::Status> {
    let mut collected = Vec::new();
    while let Some(answer) = answers.message().await? {
        collected.push(answer);
    }
    Ok(collected)
}

fn id(answer: &ModelStreamInferResponse) -> &str {
    &answer.infer_response.as_ref().unwrap().id
}

#[tokio::test]
async fn answers_come_in_order_and_an_error_is_one_of_them() {
    let bench = Bench::new([mlp(), Stocked("multi", 3, constant(3.0), ModelSettings::default())]).await;
    let requests = [with_id("1", row("mlp")), with_id("2", row("nope")), with_id("3", row("multi")), with_id("4", row("mlp"))];
    let answers = bench.client().await.model_stream_infer(stream::iter(requests)).await.unwrap();
    let answers = collect(answers.into_inner()).await.unwrap();
    assert_eq!(answers.iter().map(id).collect::<Vec<_>>(), ["1", "2", "3", "4"]);
    let errors: Vec<&str> = answers.iter().map(|answer| answer.error_message.as_str()).collect();
    assert_eq!(errors, ["", "model 'nope' is not known", "", ""]);
    let first = answers[0].infer_response.as_ref().unwrap();
    assert_eq!((first.model_version.as_str(), numbers(first)), ("1", vec![7.0; 3]));
    assert_eq!(first.parameters["triton_final_response"].parameter_choice, Some(ParameterChoice::BoolParam(true)));
    let table = bench.sandbox.serving.router().table();
    let digest = table.route("mlp").unwrap().stable.as_ref().unwrap().digest().to_string();
    assert_eq!(first.parameters["x-bascule-model-digest"].parameter_choice, Some(ParameterChoice::StringParam(digest)));
    assert_eq!(numbers(answers[2].infer_response.as_ref().unwrap()), [3.0; 3]);
    bench.stopped().await;
}

#[tokio::test]
async fn strict_streams_end_with_the_first_failure() {
    let fails = FakeModel { fail_run_every: Some(1), ..identity(DataType::Fp32, &[4]) };
    let bench = Bench::new([mlp(), Stocked("fails", 1, fails, ModelSettings::default())]).await;
    let mut client = bench.client().await;
    let mut send = async |strict: bool, models: [ModelInferRequest; 3]| {
        let mut request = Request::new(stream::iter(models));
        if strict {
            request.metadata_mut().insert("triton_grpc_error", "true".parse().unwrap());
        }
        let mut answers = client.model_stream_infer(request).await.unwrap().into_inner();
        let mut told = Vec::new();
        loop {
            match answers.message().await {
                Ok(Some(answer)) => told.push(answer.error_message.is_empty().to_string()),
                Ok(None) => return told,
                Err(status) => {
                    told.push(status.code().to_string());
                    return told;
                }
            }
        }
    };
    let failing = || [row("mlp"), vector("fails"), row("mlp")];
    assert_eq!(send(false, failing()).await, ["true", "false", "true"]);
    assert_eq!(send(true, failing()).await, ["true".to_owned(), Code::Internal.to_string()]);
    // A request that was never fit to run is answered within the stream either way.
    assert_eq!(send(true, [row("mlp"), row("nope"), row("mlp")]).await, ["true", "false", "true"]);
    bench.stopped().await;
}

#[tokio::test]
async fn requests_of_a_stream_run_side_by_side_up_to_the_limit() {
    let settings = GrpcSettings { max_stream_requests: 2, ..GrpcSettings::default() };
    let bench = Bench::with([slow()], settings).await;
    let log = bench.sandbox.runtime.log();
    let mut client = bench.client().await;
    let requests = stream::iter((0..5).map(|index| with_id(&index.to_string(), vector("slow"))));
    let answers = tokio::spawn(async move { collect(client.model_stream_infer(requests).await.unwrap().into_inner()).await });
    reached(&log, |counts| counts.blocked == 2).await;
    let queued = bench.sandbox.serving.router().table().route("slow").unwrap().stable.as_ref().unwrap().queued();
    assert_eq!(queued, 0, "the third waits in the stream");
    log.release();
    let answers = answers.await.unwrap().unwrap();
    assert_eq!(answers.iter().map(id).collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
    bench.stopped().await;
}

#[tokio::test]
async fn a_stream_that_is_dropped_takes_its_runs_along() {
    let bench = Bench::new([slow()]).await;
    let log = bench.sandbox.runtime.log();
    let mut client = bench.client().await;
    let (requests, receiver) = mpsc::channel(4);
    let answers = client.model_stream_infer(ReceiverStream::new(receiver)).await.unwrap();
    requests.send(vector("slow")).await.unwrap();
    reached(&log, |counts| counts.blocked == 1).await;
    // The client resets a stream once both of its directions are dropped.
    drop((answers, requests));
    reached(&log, |counts| counts.interrupted == 1).await;
    bench.stopped().await;
}

#[tokio::test]
async fn the_deadline_of_a_stream_ends_it() {
    let bench = Bench::new([mlp()]).await;
    let (requests, receiver) = mpsc::channel::<ModelInferRequest>(4);
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("grpc-timeout", "20m".parse().unwrap());
    let answers = bench.client().await.model_stream_infer(request).await.unwrap().into_inner();
    assert_eq!(collect(answers).await.unwrap_err().code(), Code::DeadlineExceeded);
    drop(requests);
    bench.stopped().await;
}

#[tokio::test]
async fn a_resting_stream_does_not_hold_the_shutdown() {
    let bench = Bench::new([mlp()]).await;
    let (requests, receiver) = mpsc::channel(4);
    let mut answers = bench.client().await.model_stream_infer(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    requests.send(row("mlp")).await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    bench.stop.cancel();
    assert_eq!(refused(answers.message().await), (Code::Unavailable, "the gateway is stopping".to_owned()));
    drop(requests);
    bench.stopped().await;
}
