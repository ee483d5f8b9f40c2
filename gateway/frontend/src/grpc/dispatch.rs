//! Which service a call goes to.
//!
//! Inference goes straight to its methods with a codec of its own, which bounds what a message may become in memory; everything else is
//! rare and goes through the library's router, whose messages may be small only.

use std::pin::Pin;

use bascule_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use bascule_proto::inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use futures::FutureExt as _;
use http::{Request, Response};
use tonic::body::Body;
use tonic::codec::{Codec, CompressionEncoding};
use tonic::server::{Grpc, NamedService as _, StreamingService, UnaryService};
use tonic::service::Routes;
use tonic::{Status, Streaming};
use tonic_health::pb::health_server::HealthServer;
use tower::ServiceExt as _;

use super::codec::InferCodec;
use super::health::Health;
use super::service::Service;
use super::stream::Answers;

pub(crate) const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
pub(crate) const STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
/// The name that health is asked by.
pub(crate) const SERVICE: &str = GrpcInferenceServiceServer::<Service>::NAME;

/// The largest message that is no inference request.
const MAX_COMMAND_BYTES: usize = 4 << 20;

/// The services of one port.
#[derive(Clone)]
pub(crate) struct Dispatch {
    service: Service,
    others: Routes,
}

impl Dispatch {
    #[expect(clippy::expect_used, reason = "the descriptors are fixed when this crate is built")]
    pub(crate) fn new(service: Service) -> Dispatch {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(bascule_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let (v1, v1alpha) = (reflection().build_v1(), reflection().build_v1alpha());
        let health = Health::new(service.serving.clone(), service.stopping.clone());
        let protocol = GrpcInferenceServiceServer::new(service.clone())
            .max_decoding_message_size(MAX_COMMAND_BYTES)
            .max_encoding_message_size(usize::MAX)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Deflate);
        let others = Routes::new(protocol)
            .add_service(HealthServer::new(health))
            .add_service(v1.expect("the built-in descriptors are valid"))
            .add_service(v1alpha.expect("the built-in descriptors are valid"))
            .prepare();
        Dispatch { service, others }
    }

    pub(crate) async fn call(&self, request: Request<Body>) -> Response<Body> {
        let limit_bytes = self.service.settings.max_request_bytes;
        match request.uri().path() {
            INFER => {
                let mut grpc = grpc(InferCodec::<ModelInferResponse>::new(limit_bytes), limit_bytes);
                grpc.unary(Infer(self.service.clone()), request).await
            }
            STREAM_INFER => {
                let mut grpc = grpc(InferCodec::<ModelStreamInferResponse>::new(limit_bytes), limit_bytes);
                grpc.streaming(StreamInfer(self.service.clone()), request).await
            }
            _ => match self.others.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
        }
    }
}

fn grpc<C: Codec>(codec: C, limit_bytes: usize) -> Grpc<C> {
    Grpc::new(codec)
        .max_decoding_message_size(limit_bytes)
        .max_encoding_message_size(usize::MAX)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Deflate)
        .send_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Deflate)
}

type Reply<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

struct Infer(Service);

impl UnaryService<ModelInferRequest> for Infer {
    type Response = ModelInferResponse;
    type Future = Reply<ModelInferResponse>;

    fn call(&mut self, request: tonic::Request<ModelInferRequest>) -> Self::Future {
        let service = self.0.clone();
        async move { service.infer(request).await }.boxed()
    }
}

struct StreamInfer(Service);

impl StreamingService<ModelInferRequest> for StreamInfer {
    type Response = ModelStreamInferResponse;
    type ResponseStream = Answers;
    type Future = Reply<Answers>;

    fn call(&mut self, request: tonic::Request<Streaming<ModelInferRequest>>) -> Self::Future {
        std::future::ready(Ok(self.0.stream(request))).boxed()
    }
}
