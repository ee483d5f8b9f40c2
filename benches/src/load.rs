//! Closed-loop clients: each connection sends its next request when the answer to the last one is there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bascule_proto::inference::ModelInferRequest;
use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// One request, to be sent again and again.
#[derive(Clone)]
pub(crate) struct HttpCall {
    /// Path of the request.
    pub(crate) path: String,
    /// Its body.
    pub(crate) body: Bytes,
    /// Length of the JSON part, where binary tensors follow it.
    pub(crate) json_bytes: Option<usize>,
}

/// One answered request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// When the answer was there, from the start of the load.
    pub(crate) at: Duration,
    /// From sending to the whole answer.
    pub(crate) took: Duration,
}

/// What a load saw.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Every answered request.
    pub(crate) samples: Vec<Sample>,
    /// Requests that were not answered with success.
    pub(crate) failed: u64,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
}

impl Outcome {
    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.samples.len() as f64 / self.took.as_secs_f64()
    }

    /// A quantile (0 to 1) of the times in `from..to` since the start.
    pub(crate) fn quantile(&self, quantile: f64, from: Duration, to: Duration) -> Duration {
        let Ok(mut histogram) = Histogram::<u64>::new(3) else { return Duration::ZERO };
        for sample in self.samples.iter().filter(|sample| sample.at >= from && sample.at < to) {
            // It grows as it must; a time beyond all that it can hold, some centuries, is left out.
            histogram.record(u64::try_from(sample.took.as_nanos()).unwrap_or(u64::MAX)).unwrap_or_default();
        }
        Duration::from_nanos(histogram.value_at_quantile(quantile))
    }

    fn merge(&mut self, other: Outcome) {
        self.samples.extend(other.samples);
        self.failed += other.failed;
        self.took = self.took.max(other.took);
    }
}

/// Stops clients early.
pub(crate) type Stop = Arc<AtomicBool>;

/// Sends `call` over `connections` keep-alive connections for `length`.
pub(crate) async fn http(
    address: SocketAddr,
    call: &HttpCall,
    connections: usize,
    length: Duration,
    stop: &Stop,
) -> Result<Outcome> {
    let started = Instant::now();
    let clients: Vec<_> =
        (0..connections).map(|_| tokio::spawn(http_client(address, call.clone(), started, length, Arc::clone(stop)))).collect();
    gather(clients, started).await
}

async fn gather(clients: Vec<tokio::task::JoinHandle<Result<Outcome>>>, started: Instant) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for client in clients {
        outcome.merge(client.await??);
    }
    outcome.took = started.elapsed();
    Ok(outcome)
}

fn goes_on(started: Instant, length: Duration, stop: &Stop) -> bool {
    started.elapsed() < length && !stop.load(Ordering::Relaxed)
}

async fn http_client(address: SocketAddr, call: HttpCall, started: Instant, length: Duration, stop: Stop) -> Result<Outcome> {
    let stream = TcpStream::connect(address).await.context("can't connect")?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut outcome = Outcome::default();
    while goes_on(started, length, &stop) {
        let mut request = Request::post(&call.path).header(http::header::HOST, "localhost");
        if let Some(json_bytes) = call.json_bytes {
            request = request
                .header("inference-header-content-length", json_bytes)
                .header(http::header::CONTENT_TYPE, "application/octet-stream");
        }
        let request = request.body(Full::new(call.body.clone()))?;
        let sent = Instant::now();
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let success = response.status().is_success();
        response.into_body().collect().await?;
        if success {
            outcome.samples.push(Sample { at: started.elapsed(), took: sent.elapsed() });
        } else {
            outcome.failed += 1;
        }
    }
    Ok(outcome)
}

/// Sends `message` over `connections` connections with one stream each for `length`.
pub(crate) async fn grpc(
    address: SocketAddr,
    message: &ModelInferRequest,
    connections: usize,
    length: Duration,
    stop: &Stop,
) -> Result<Outcome> {
    let started = Instant::now();
    let clients: Vec<_> =
        (0..connections).map(|_| tokio::spawn(grpc_client(address, message.clone(), started, length, Arc::clone(stop)))).collect();
    gather(clients, started).await
}

async fn grpc_client(
    address: SocketAddr,
    message: ModelInferRequest,
    started: Instant,
    length: Duration,
    stop: Stop,
) -> Result<Outcome> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .connect()
        .await?;
    let mut client = GrpcInferenceServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let mut outcome = Outcome::default();
    while goes_on(started, length, &stop) {
        let sent = Instant::now();
        match client.model_infer(message.clone()).await {
            Ok(_) => outcome.samples.push(Sample { at: started.elapsed(), took: sent.elapsed() }),
            Err(_) => outcome.failed += 1,
        }
    }
    ensure!(!outcome.samples.is_empty() || outcome.failed > 0, "a client sent nothing");
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_times_within_the_window() {
        let sample = |at, took| Sample { at: Duration::from_secs(at), took: Duration::from_millis(took) };
        let outcome = Outcome { samples: (1..=100).map(|n| sample(n / 51, n)).collect(), ..Outcome::default() };
        let millis =
            |quantile, from, to| outcome.quantile(quantile, Duration::from_secs(from), Duration::from_secs(to)).as_millis();
        assert_eq!((millis(0.5, 0, 9), millis(0.99, 0, 9), millis(1.0, 0, 9)), (50, 99, 100));
        assert_eq!((millis(0.5, 0, 1), millis(1.0, 1, 2)), (25, 100));
    }
}
