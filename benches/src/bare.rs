//! Bare servers that read what the gateway reads and answer the bytes that it answers, and do nothing else: the floor that the
//! gateway's own cost is measured against. The same runtime layout as the gateway's.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Result;
use bascule_proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use bascule_proto::inference::{ModelInferRequest, ModelInferResponse};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

/// Serves `answer` to every request over HTTP/1.1 and HTTP/2, after reading the request's body whole.
pub(crate) async fn http(answer: Bytes, content_type: String) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    greet(&listener)?;
    let answer = Arc::new((answer, content_type));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = Arc::clone(&answer);
                async move {
                    drop(request.into_body().collect().await);
                    let mut response = Response::new(Full::new(answer.0.clone()));
                    if let Ok(value) = answer.1.parse() {
                        response.headers_mut().insert(http::header::CONTENT_TYPE, value);
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            // A client that goes away is the end of its connection and nothing else.
            drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

#[expect(clippy::print_stdout, reason = "the parent reads the address from standard output")]
fn greet(listener: &TcpListener) -> Result<()> {
    println!("listening {}", listener.local_addr()?);
    Ok(())
}

/// Answers every ModelInfer with the same message.
pub(crate) async fn grpc(answer: ModelInferResponse) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    greet(&listener)?;
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = GrpcInferenceServiceServer::new(Fixed(answer)).max_decoding_message_size(64 << 20);
    tonic::transport::Server::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .add_service(service)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

struct Fixed(ModelInferResponse);

// The form that `async_trait` gives a method: it does not look into macros.
macro_rules! unimplemented_calls {
    ($($name:ident: $request:ident => $response:ident),+ $(,)?) => {
        $(fn $name<'a, 'b>(&'a self, _: tonic::Request<bascule_proto::inference::$request>)
            -> Pin<Box<dyn Future<Output = Result<tonic::Response<bascule_proto::inference::$response>, tonic::Status>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(std::future::ready(Err(tonic::Status::unimplemented("a bare server"))))
        })+
    };
}

#[tonic::async_trait]
impl GrpcInferenceService for Fixed {
    type ModelStreamInferStream = Pin<
        Box<
            dyn tonic::codegen::tokio_stream::Stream<
                    Item = Result<bascule_proto::inference::ModelStreamInferResponse, tonic::Status>,
                > + Send,
        >,
    >;

    async fn model_infer(
        &self,
        _: tonic::Request<ModelInferRequest>,
    ) -> Result<tonic::Response<ModelInferResponse>, tonic::Status> {
        Ok(tonic::Response::new(self.0.clone()))
    }

    async fn model_stream_infer(
        &self,
        _: tonic::Request<tonic::Streaming<ModelInferRequest>>,
    ) -> Result<tonic::Response<Self::ModelStreamInferStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("a bare server"))
    }

    unimplemented_calls! {
        server_live: ServerLiveRequest => ServerLiveResponse,
        server_ready: ServerReadyRequest => ServerReadyResponse,
        model_ready: ModelReadyRequest => ModelReadyResponse,
        server_metadata: ServerMetadataRequest => ServerMetadataResponse,
        model_metadata: ModelMetadataRequest => ModelMetadataResponse,
        model_config: ModelConfigRequest => ModelConfigResponse,
        model_statistics: ModelStatisticsRequest => ModelStatisticsResponse,
        repository_index: RepositoryIndexRequest => RepositoryIndexResponse,
        repository_model_load: RepositoryModelLoadRequest => RepositoryModelLoadResponse,
        repository_model_unload: RepositoryModelUnloadRequest => RepositoryModelUnloadResponse,
        system_shared_memory_status: SystemSharedMemoryStatusRequest => SystemSharedMemoryStatusResponse,
        system_shared_memory_register: SystemSharedMemoryRegisterRequest => SystemSharedMemoryRegisterResponse,
        system_shared_memory_unregister: SystemSharedMemoryUnregisterRequest => SystemSharedMemoryUnregisterResponse,
        cuda_shared_memory_status: CudaSharedMemoryStatusRequest => CudaSharedMemoryStatusResponse,
        cuda_shared_memory_register: CudaSharedMemoryRegisterRequest => CudaSharedMemoryRegisterResponse,
        cuda_shared_memory_unregister: CudaSharedMemoryUnregisterRequest => CudaSharedMemoryUnregisterResponse,
        trace_setting: TraceSettingRequest => TraceSettingResponse,
        log_settings: LogSettingsRequest => LogSettingsResponse,
    }
}
