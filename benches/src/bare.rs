//! Bare servers that read what the gateway reads and answer the bytes that it answers, and do nothing else: the floor that the
//! gateway's own cost is measured against. The same runtime layout as the gateway's.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bascule_proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use bascule_proto::inference::{ModelInferRequest, ModelInferResponse};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message as _;
use tokio::net::TcpListener;
use tonic::metadata::MetadataMap;

/// Where a bare server's answer lies: the body in one file, and the headers that go with it, one a line, in another.
#[derive(Debug, Clone, clap::Args, PartialEq, Eq)]
pub(crate) struct Recorded {
    body: PathBuf,
    headers: PathBuf,
}

impl Recorded {
    /// Keeps an answer in a folder. What every server says for itself is left out.
    pub(crate) fn write(folder: &Path, name: &str, headers: &HeaderMap, body: &[u8]) -> Result<Recorded> {
        let recorded = Recorded { body: folder.join(name), headers: folder.join(format!("{name}.headers")) };
        let own = [http::header::DATE, http::header::CONTENT_LENGTH];
        let lines = headers.iter().filter(|(name, _)| !own.contains(name));
        let lines = lines.map(|(name, value)| Ok(format!("{name}: {}\n", value.to_str()?)));
        std::fs::write(&recorded.headers, lines.collect::<Result<String>>()?)?;
        std::fs::write(&recorded.body, body)?;
        Ok(recorded)
    }

    /// The files, as arguments of a bare server.
    pub(crate) fn arguments(&self) -> [&Path; 2] {
        [&self.body, &self.headers]
    }

    fn read(&self) -> Result<(Bytes, HeaderMap)> {
        let text = std::fs::read_to_string(&self.headers)?;
        let mut headers = HeaderMap::new();
        for line in text.lines() {
            let (name, value) = line.split_once(": ").context("expected a colon in a header")?;
            headers.append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
        }
        Ok((std::fs::read(&self.body)?.into(), headers))
    }
}

/// Serves `answer` to every request over HTTP/1.1 and HTTP/2, after reading the request's body whole.
pub(crate) async fn http(answer: &Recorded) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    greet(&listener)?;
    let answer = Arc::new(answer.read()?);
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
                    *response.headers_mut() = answer.1.clone();
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
pub(crate) async fn grpc(answer: &Recorded) -> Result<()> {
    let (body, mut headers) = answer.read()?;
    // The library writes it itself.
    headers.remove(http::header::CONTENT_TYPE);
    let answer = Fixed { message: ModelInferResponse::decode(body)?, headers };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    greet(&listener)?;
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = GrpcInferenceServiceServer::new(answer).max_decoding_message_size(64 << 20);
    tonic::transport::Server::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .add_service(service)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

struct Fixed {
    message: ModelInferResponse,
    headers: HeaderMap,
}

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
        let metadata = MetadataMap::from_headers(self.headers.clone());
        Ok(tonic::Response::from_parts(metadata, self.message.clone(), tonic::Extensions::default()))
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
