//! Which service a call goes to.
//!
//! Inference is read and written by our own framing, which bounds what a message takes before it is there, and keeps long work off the
//! threads that serve connections; everything else is rare and goes through the library's router, whose messages may be small only.

use bascule_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::server::NamedService as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tower::ServiceExt as _;

use super::call::Call;
use super::guard::GuardedBody;
use super::health::Health;
use super::packing::{self, ACCEPT_ENCODING};
use super::service::{Peer, Service};
use super::stream;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
/// The name that health is asked by.
pub(crate) const SERVICE: &str = GrpcInferenceServiceServer::<Service>::NAME;

/// What the paths of both versions of reflection begin with.
const REFLECTION: &str = "/grpc.reflection.";

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

    /// Answers a call that comes from `peer`.
    pub(crate) async fn call(&self, request: Request<Incoming>, call: &Call, peer: Peer) -> Response<Body> {
        let answered = match request.uri().path() {
            INFER => self.service.infer(request, call).await,
            STREAM_INFER => stream::answers(&self.service, call, request),
            path => {
                // Such a stream may be open for as long as its client likes, and nothing is lost with it.
                let ends = path.starts_with(REFLECTION).then(|| self.service.stopping.clone());
                let mut request = request.map(|body| Body::new(GuardedBody::new(body, &self.service, ends)));
                compress_as_asked(request.headers_mut());
                request.extensions_mut().insert(call.clone());
                request.extensions_mut().insert(peer);
                match self.others.clone().oneshot(request).await {
                    Ok(response) => Ok(response),
                    Err(never) => match never {},
                }
            }
        };
        answered.unwrap_or_else(Status::into_http)
    }
}

/// Has the library answer as the request is compressed, whatever else the client accepts.
fn compress_as_asked(headers: &mut HeaderMap) {
    match packing::of_answer(headers) {
        Some(coding) => headers.insert(ACCEPT_ENCODING, coding.name()),
        None => headers.remove(ACCEPT_ENCODING),
    };
}
