use bascule_proto::inference::*;
use bascule_runtime_api::DataType;
use bascule_serving::LoadMode;
use tokio_stream::StreamExt as _;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::*;

async fn two() -> Bench {
    Bench::new([mlp(), Stocked("echo", 5, identity(DataType::Bytes, &[-1, 2]), ModelSettings::default())]).await
}

#[tokio::test]
async fn the_server_says_who_and_how_it_is() {
    let bench = two().await;
    let mut client = bench.client().await;
    assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let server = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!((server.name.as_str(), server.version.as_str()), ("bascule", env!("CARGO_PKG_VERSION")));
    assert!(server.extensions.contains(&"classification".to_owned()));
    bench.stopped().await;
}

#[tokio::test]
async fn a_model_is_described() {
    let bench = two().await;
    let mut client = bench.client().await;
    let ask = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    for ((name, version), ready) in [
        (ask("mlp", ""), true),
        (ask("mlp", "1"), true),
        (ask("mlp", "2"), false),
        (ask("mlp", "0"), false),
        (ask("nope", ""), false),
    ] {
        assert_eq!(client.model_ready(ModelReadyRequest { name, version }).await.unwrap().into_inner().ready, ready);
    }
    let metadata =
        client.model_metadata(ModelMetadataRequest { name: "echo".into(), version: String::new() }).await.unwrap().into_inner();
    assert_eq!(metadata.versions, ["5"]);
    let tensor =
        |name: &str| model_metadata_response::TensorMetadata { name: name.into(), datatype: "BYTES".into(), shape: vec![-1, 2] };
    assert_eq!((metadata.inputs, metadata.outputs), (vec![tensor("x")], vec![tensor("y")]));
    let config =
        client.model_config(ModelConfigRequest { name: "mlp".into(), version: "1".into() }).await.unwrap().into_inner().config;
    let config = config.unwrap();
    assert_eq!((config.name.as_str(), config.max_batch_size, config.input[0].dims.as_slice()), ("mlp", 8, [4].as_slice()));

    client.model_infer(row("mlp")).await.unwrap();
    let all = client.model_statistics(ModelStatisticsRequest::default()).await.unwrap().into_inner().model_stats;
    let counts: Vec<(&str, u64)> = all.iter().map(|stats| (stats.name.as_str(), stats.inference_count)).collect();
    assert_eq!(counts, [("echo", 0), ("mlp", 1)]);
    assert_eq!(all[1].inference_stats.unwrap().success.unwrap().count, 1);

    for version in ["abc", "1abc"] {
        let (name, version) = ask("mlp", version);
        let invalid = (Code::InvalidArgument, format!("version '{version}' is not a whole number above 0"));
        assert_eq!(refused(client.model_ready(ModelReadyRequest { name: name.clone(), version: version.clone() }).await), invalid);
        assert_eq!(
            refused(client.model_metadata(ModelMetadataRequest { name: name.clone(), version: version.clone() }).await),
            invalid
        );
        assert_eq!(
            refused(client.model_config(ModelConfigRequest { name: name.clone(), version: version.clone() }).await),
            invalid
        );
        assert_eq!(refused(client.model_statistics(ModelStatisticsRequest { name, version }).await), invalid);
    }
    for (name, version) in [ask("nope", ""), ask("mlp", "99"), ask("", "")] {
        let found = client.model_metadata(ModelMetadataRequest { name: name.clone(), version: version.clone() }).await;
        assert_eq!(refused(found).0, Code::NotFound);
        assert_eq!(
            refused(client.model_config(ModelConfigRequest { name: name.clone(), version: version.clone() }).await).0,
            Code::NotFound
        );
        if !name.is_empty() {
            assert_eq!(refused(client.model_statistics(ModelStatisticsRequest { name, version }).await).0, Code::NotFound);
        }
    }
    bench.stopped().await;
}

fn load(model: &str) -> RepositoryModelLoadRequest {
    RepositoryModelLoadRequest { model_name: model.to_owned(), ..RepositoryModelLoadRequest::default() }
}

fn unload(model: &str) -> RepositoryModelUnloadRequest {
    RepositoryModelUnloadRequest { model_name: model.to_owned(), ..RepositoryModelUnloadRequest::default() }
}

#[tokio::test]
async fn models_are_loaded_and_unloaded() {
    let broken = FakeModel { fail_load: Some("out of luck".to_owned()), ..identity(DataType::Fp32, &[4]) };
    let stock = [mlp(), Stocked("broken", 1, broken, ModelSettings::default())];
    let bench = Bench::over(Sandbox::with_mode(stock, LoadMode::Explicit).await, GrpcSettings::default()).await;
    let mut client = bench.client().await;
    let index = async |client: &mut Client| {
        let index = client.repository_index(RepositoryIndexRequest::default()).await.unwrap().into_inner().models;
        index.into_iter().map(|entry| (entry.name, entry.version, entry.state)).collect::<Vec<_>>()
    };
    let entry = |name: &str, version: &str, state: &str| (name.to_owned(), version.to_owned(), state.to_owned());
    assert_eq!(index(&mut client).await, [entry("broken", "", ""), entry("mlp", "", "")]);
    assert_eq!(refused(client.model_infer(row("mlp")).await).0, Code::NotFound);
    client.repository_model_load(load("mlp")).await.unwrap();
    client.model_infer(row("mlp")).await.unwrap();
    let (code, message) = refused(client.repository_model_load(load("broken")).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("version 1 of model 'broken' failed at loading") && message.contains("out of luck"), "{message}");
    assert_eq!(index(&mut client).await, [entry("broken", "1", "UNAVAILABLE"), entry("mlp", "1", "READY")]);
    client.repository_model_unload(unload("mlp")).await.unwrap();
    assert_eq!(refused(client.model_infer(row("mlp")).await).0, Code::NotFound);
    assert_eq!(refused(client.repository_model_load(load("nope")).await).0, Code::NotFound);
    client.repository_model_unload(unload("nope")).await.unwrap();
    bench.stopped().await;
}

#[tokio::test]
async fn load_parameters_and_repository_names_are_refused() {
    let bench = two().await;
    let mut client = bench.client().await;
    let with = |name: &str| RepositoryModelLoadRequest {
        parameters: [(name.to_owned(), ModelRepositoryParameter::default())].into(),
        ..load("mlp")
    };
    assert_eq!(refused(client.repository_model_load(with("config")).await).0, Code::Unimplemented);
    assert_eq!(refused(client.repository_model_load(with("file:1/model.onnx")).await).0, Code::Unimplemented);
    assert_eq!(
        refused(client.repository_model_load(with("foo")).await),
        (Code::InvalidArgument, "load parameter 'foo' is not known".to_owned())
    );
    let named = || (Code::Unimplemented, "naming a repository is not supported".to_owned());
    let elsewhere = RepositoryModelLoadRequest { repository_name: "r".into(), ..load("mlp") };
    assert_eq!(refused(client.repository_model_load(elsewhere).await), named());
    let index = RepositoryIndexRequest { repository_name: "r".into(), ready: false };
    assert_eq!(refused(client.repository_index(index).await), named());
    bench.stopped().await;
}

#[tokio::test]
async fn what_is_not_served_says_so() {
    let bench = two().await;
    let mut client = bench.client().await;
    let memory = (Code::Unimplemented, "shared memory is not supported".to_owned());
    assert_eq!(refused(client.system_shared_memory_status(SystemSharedMemoryStatusRequest::default()).await), memory);
    assert_eq!(refused(client.system_shared_memory_register(SystemSharedMemoryRegisterRequest::default()).await), memory);
    assert_eq!(refused(client.system_shared_memory_unregister(SystemSharedMemoryUnregisterRequest::default()).await), memory);
    assert_eq!(refused(client.cuda_shared_memory_status(CudaSharedMemoryStatusRequest::default()).await), memory);
    assert_eq!(refused(client.cuda_shared_memory_register(CudaSharedMemoryRegisterRequest::default()).await), memory);
    assert_eq!(refused(client.cuda_shared_memory_unregister(CudaSharedMemoryUnregisterRequest::default()).await), memory);
    let trace = client.trace_setting(TraceSettingRequest::default()).await;
    assert_eq!(refused(trace), (Code::Unimplemented, "trace settings is not supported".to_owned()));
    assert_eq!(refused(client.log_settings(LogSettingsRequest::default()).await).0, Code::Unimplemented);
    bench.stopped().await;
}

fn named(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

fn told(answer: &HealthCheckResponse) -> ServingStatus {
    answer.status()
}

#[tokio::test]
async fn health_follows_readiness_and_ends_with_the_port() {
    let bench = two().await;
    let mut health = HealthClient::new(bench.channel().await);
    for service in ["", "inference.GRPCInferenceService", "liveness"] {
        assert_eq!(told(&health.check(named(service)).await.unwrap().into_inner()), ServingStatus::Serving);
    }
    let mut known = health.watch(named("")).await.unwrap().into_inner();
    let mut unknown = health.watch(named("foo.Bar")).await.unwrap().into_inner();
    assert_eq!(told(&known.message().await.unwrap().unwrap()), ServingStatus::Serving);
    assert_eq!(told(&unknown.message().await.unwrap().unwrap()), ServingStatus::ServiceUnknown);
    bench.stop.cancel();
    assert_eq!(told(&known.message().await.unwrap().unwrap()), ServingStatus::NotServing);
    assert!(known.message().await.unwrap().is_none());
    assert!(unknown.message().await.unwrap().is_none());
    bench.stopped().await;
}

#[tokio::test]
async fn health_follows_the_engine() {
    let bench = two().await;
    let mut health = HealthClient::new(bench.channel().await);
    let mut watched = health.watch(named("")).await.unwrap().into_inner();
    assert_eq!(told(&watched.message().await.unwrap().unwrap()), ServingStatus::Serving);
    bench.sandbox.serving.announce_stop();
    assert_eq!(told(&watched.message().await.unwrap().unwrap()), ServingStatus::NotServing);
    bench.client().await.model_infer(row("mlp")).await.unwrap();
    bench.sandbox.serving.shutdown(PATIENCE).await;
    assert_eq!(told(&health.check(named("")).await.unwrap().into_inner()), ServingStatus::NotServing);
    assert!(!bench.client().await.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    bench.stopped().await;
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let bench = two().await;
    let channel = bench.channel().await;
    let expected = ["grpc.health.v1.Health", "inference.GRPCInferenceService"];
    let v1 = {
        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
        let request = tonic_reflection::pb::v1::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answers =
            ServerReflectionClient::new(channel.clone()).server_reflection_info(tokio_stream::once(request)).await.unwrap();
        match answers.into_inner().next().await.unwrap().unwrap().message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    let v1alpha = {
        use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;
        let request = tonic_reflection::pb::v1alpha::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answers = ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::once(request)).await.unwrap();
        match answers.into_inner().next().await.unwrap().unwrap().message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    for mut services in [v1, v1alpha] {
        services.retain(|name| expected.contains(&name.as_str()));
        services.sort();
        assert_eq!(services, expected);
    }
    bench.stopped().await;
}
