//! The methods of `GRPCInferenceService`.

use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;

use bascule_proto::inference::grpc_inference_service_server::GrpcInferenceService;
use bascule_proto::inference::*;
use bascule_serving::{ErrorCode, InferError, Serving};
use futures::stream;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::budget::Budget;
use super::call::Call;
use super::infer::{self, Answer, Form};
use super::meters::Meters;
use super::receive::{Limits, Messages};
use super::status::{logged, status};
use super::workers::Workers;
use super::{GrpcSettings, messages, packing, reply};
use crate::answered_by::tell_version;
use crate::describe;

/// Everything that calls of one port share. Clones are cheap.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) serving: Serving,
    pub(crate) settings: Arc<GrpcSettings>,
    /// Cancelled when the port stops to take calls.
    pub(crate) stopping: CancellationToken,
    pub(crate) budget: Arc<Budget>,
    pub(crate) workers: Workers,
    pub(crate) meters: Arc<Meters>,
}

/// Where a call comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

impl Service {
    /// Answers a single request.
    pub(crate) async fn infer(&self, request: http::Request<Incoming>, call: &Call) -> Result<http::Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let packed = packing::of_request(&head.headers)?;
        let form = Form { is_streamed: false, coding: packing::of_answer(&head.headers) };
        let refuse = |error: InferError| status(&error, call);
        let received = Messages::new(body, packed, self.limits()).only(self.budget.share()).await?.map_err(refuse)?;
        let request = infer::read(self, received).await.map_err(refuse)?;
        let Answer { encoded, servable } = infer::infer(self, call, request, form, call.arrived()).await.map_err(refuse)?;
        let mut response = reply::response(stream::once(ready(Ok(encoded))), form.coding);
        tell_version(response.headers_mut(), &servable);
        Ok(response)
    }

    /// What one message may take.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_message_bytes: self.settings.max_request_bytes,
            stall_timeout: self.settings.body_stall_timeout,
            total_timeout: self.settings.body_timeout,
        }
    }

    /// Load and unload are obeyed from this machine only, until callers can be told apart.
    fn check_command<T>(&self, request: &Request<T>, repository: &str) -> Result<(), Status> {
        let local = request.extensions().get::<Peer>().is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
        if !local && !self.settings.remote_repository_commands {
            return Err(Status::permission_denied("load and unload are obeyed from a loopback address only"));
        }
        check_repository(repository).map_err(|error| refuse(&call_of(request), &error))
    }
}

fn check_repository(name: &str) -> Result<(), InferError> {
    if name.is_empty() { Ok(()) } else { Err(InferError::Unsupported { what: "naming a repository".to_owned() }) }
}

fn call_of<T>(request: &Request<T>) -> Call {
    // The intake puts it there; without an intake a call has no terms.
    request.extensions().get::<Call>().cloned().unwrap_or_else(|| Call::unread(&http::HeaderMap::new(), std::time::Instant::now()))
}

fn refuse(call: &Call, error: &InferError) -> Status {
    logged(error, call)
}

fn unsupported<T, R>(request: &Request<T>, what: &str) -> Result<Response<R>, Status> {
    Err(refuse(&call_of(request), &InferError::Unsupported { what: what.to_owned() }))
}

const SHARED_MEMORY: &str = "shared memory";

#[async_trait]
impl GrpcInferenceService for Service {
    type ModelStreamInferStream = stream::Empty<Result<ModelStreamInferResponse, Status>>;

    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.serving.readiness().is_ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let call = call_of(&request);
        let request = request.into_inner();
        let version = describe::parse_version(&request.version).map_err(|error| refuse(&call, &error))?;
        match describe::ready(&self.serving, &request.name, version) {
            Ok(()) => Ok(Response::new(ModelReadyResponse { ready: true })),
            Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::NotReady) => {
                Ok(Response::new(ModelReadyResponse { ready: false }))
            }
            Err(error) => Err(refuse(&call, &error)),
        }
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(messages::server_metadata(&describe::server_metadata())))
    }

    async fn model_metadata(&self, request: Request<ModelMetadataRequest>) -> Result<Response<ModelMetadataResponse>, Status> {
        let call = call_of(&request);
        let request = request.into_inner();
        let described = async {
            let version = describe::parse_version(&request.version)?;
            describe::metadata(&self.serving, &request.name, version, call.deadline()).await
        };
        let model = described.await.map_err(|error| refuse(&call, &error))?;
        Ok(Response::new(messages::model_metadata(model)))
    }

    async fn model_config(&self, request: Request<ModelConfigRequest>) -> Result<Response<ModelConfigResponse>, Status> {
        let call = call_of(&request);
        let request = request.into_inner();
        let described = async {
            let version = describe::parse_version(&request.version)?;
            let route = describe::described(&self.serving, &request.name, call.deadline()).await?;
            describe::chosen(&route, version).map(|servable| describe::model_config(servable))
        };
        let config = described.await.map_err(|error| refuse(&call, &error))?;
        Ok(Response::new(ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let call = call_of(&request);
        let request = request.into_inner();
        let described = describe::parse_version(&request.version).and_then(|version| {
            let model = Some(request.name.as_str()).filter(|name| !name.is_empty());
            describe::statistics(&self.serving.router().table(), model, version)
        });
        let report = described.map_err(|error| refuse(&call, &error))?;
        Ok(Response::new(messages::statistics(report)))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        // Inference does not come here: the dispatcher reads its messages itself.
        unsupported(&request, "inference through the library's router")
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        unsupported(&request, "inference through the library's router")
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        check_repository(&request.get_ref().repository_name).map_err(|error| refuse(&call_of(&request), &error))?;
        let entries = describe::index(&self.serving.status(), request.get_ref().ready);
        Ok(Response::new(messages::index(entries)))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        self.check_command(&request, &request.get_ref().repository_name)?;
        let call = call_of(&request);
        let request = request.into_inner();
        let names = request.parameters.keys().map(String::as_str);
        describe::check_load_parameters(names).map_err(|error| refuse(&call, &error))?;
        let loaded = self.serving.load(&request.model_name).await;
        loaded.map_err(|error| refuse(&call, &describe::refusal(&request.model_name, error)))?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        self.check_command(&request, &request.get_ref().repository_name)?;
        let call = call_of(&request);
        let RepositoryModelUnloadRequest { model_name: model, parameters, .. } = request.into_inner();
        let dependents = parameters.get(describe::UNLOAD_DEPENDENTS).and_then(|parameter| parameter.parameter_choice.as_ref());
        if dependents.is_some_and(|choice| !matches!(choice, model_repository_parameter::ParameterChoice::BoolParam(_))) {
            let message = format!("parameter '{}': expected true or false", describe::UNLOAD_DEPENDENTS);
            return Err(refuse(&call, &InferError::invalid(message)));
        }
        let unloaded = self.serving.unload(&model, false).await;
        unloaded.map_err(|error| refuse(&call, &describe::refusal(&model, error)))?;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        request: Request<SystemSharedMemoryStatusRequest>,
    ) -> Result<Response<SystemSharedMemoryStatusResponse>, Status> {
        unsupported(&request, SHARED_MEMORY)
    }

    async fn system_shared_memory_register(
        &self,
        request: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Result<Response<SystemSharedMemoryRegisterResponse>, Status> {
        unsupported(&request, SHARED_MEMORY)
    }

    async fn system_shared_memory_unregister(
        &self,
        request: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Result<Response<SystemSharedMemoryUnregisterResponse>, Status> {
        unsupported(&request, SHARED_MEMORY)
    }

    async fn cuda_shared_memory_status(
        &self,
        request: Request<CudaSharedMemoryStatusRequest>,
    ) -> Result<Response<CudaSharedMemoryStatusResponse>, Status> {
        unsupported(&request, SHARED_MEMORY)
    }

    async fn cuda_shared_memory_register(
        &self,
        request: Request<CudaSharedMemoryRegisterRequest>,
    ) -> Result<Response<CudaSharedMemoryRegisterResponse>, Status> {
        unsupported(&request, SHARED_MEMORY)
    }

    async fn cuda_shared_memory_unregister(
        &self,
        request: Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Result<Response<CudaSharedMemoryUnregisterResponse>, Status> {
        unsupported(&request, SHARED_MEMORY)
    }

    async fn trace_setting(&self, request: Request<TraceSettingRequest>) -> Result<Response<TraceSettingResponse>, Status> {
        unsupported(&request, "trace settings")
    }

    async fn log_settings(&self, request: Request<LogSettingsRequest>) -> Result<Response<LogSettingsResponse>, Status> {
        unsupported(&request, "log settings")
    }
}
