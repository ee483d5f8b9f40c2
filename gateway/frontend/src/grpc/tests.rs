//! A real client over a real socket, against an engine of fake models.

mod calls;
mod infer;
mod limits;
mod port;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bascule_proto::inference::model_infer_request::InferInputTensor;
use bascule_proto::inference::{ModelInferRequest, ModelInferResponse};
use bascule_runtime_api::DataType;
use bascule_runtime_fake::{FakeCounts, FakeLog, FakeModel};
use bascule_serving::{Inline, ModelSettings, Serving, Status};
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::{GrpcSettings, serve};
use crate::sandbox::{Sandbox, Stocked, constant, identity};

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(60);

type Client = GrpcInferenceServiceClient<Channel>;

/// A served port.
struct Bench {
    sandbox: Sandbox,
    address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Bench {
    async fn new(stock: impl IntoIterator<Item = Stocked>) -> Bench {
        Bench::with(stock, GrpcSettings::default()).await
    }

    async fn with(stock: impl IntoIterator<Item = Stocked>, settings: GrpcSettings) -> Bench {
        Bench::over(Sandbox::start(stock).await, settings).await
    }

    async fn over(sandbox: Sandbox, settings: GrpcSettings) -> Bench {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, sandbox.serving.clone(), settings, stop.clone()));
        Bench { sandbox, address, stop, served }
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> Client {
        Client::new(self.channel().await)
    }

    /// Asks the port to stop and waits until it has.
    async fn stopped(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.served).await.expect("the port ends").unwrap();
    }
}

/// `mlp` version 1: four numbers a row in, three times 7 out, at most 8 rows.
fn mlp() -> Stocked {
    let settings = ModelSettings { max_batch_size: Some(8), ..ModelSettings::default() };
    Stocked("mlp", 1, constant(7.0), settings)
}

/// `slow` version 1: waits at the gate of the log, on two instances.
fn slow() -> Stocked {
    let fake = FakeModel { block: true, ..identity(DataType::Fp32, &[4]) };
    let settings = ModelSettings { instances: 2, inline: Inline::Never, ..ModelSettings::default() };
    Stocked("slow", 1, fake, settings)
}

fn input(datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor { name: "x".to_owned(), datatype: datatype.to_owned(), shape: shape.to_vec(), ..InferInputTensor::default() }
}

fn floats(count: usize) -> Bytes {
    Bytes::from(1f32.to_le_bytes().repeat(count))
}

/// One row for `mlp`.
fn row(model: &str) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![input("FP32", &[1, 4])],
        raw_input_contents: vec![floats(4)],
        ..ModelInferRequest::default()
    }
}

/// What `slow` takes.
fn vector(model: &str) -> ModelInferRequest {
    ModelInferRequest { inputs: vec![input("FP32", &[4])], ..row(model) }
}

fn numbers(response: &ModelInferResponse) -> Vec<f32> {
    response.raw_output_contents[0].chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn refused<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> (Code, String) {
    let status = result.unwrap_err();
    (status.code(), status.message().to_owned())
}

/// Waits until the counters of the fake runtime meet a condition.
async fn reached(log: &Arc<FakeLog>, condition: impl Fn(&FakeCounts) -> bool + Send + 'static) {
    let log = Arc::clone(log);
    assert!(
        tokio::task::spawn_blocking(move || log.wait_until(PATIENCE, condition)).await.unwrap(),
        "the runtime never came to this"
    );
}

/// Waits until the engine's status meets a condition.
async fn until(serving: &Serving, condition: impl Fn(&Status) -> bool) {
    let met = async {
        let mut changes = serving.changes();
        while !condition(&serving.status()) {
            assert!(changes.next().await, "the engine has ended");
        }
    };
    tokio::time::timeout(PATIENCE, met).await.expect("the status comes to this");
}
