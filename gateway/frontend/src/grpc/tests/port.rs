use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

#[tokio::test]
async fn resting_connections_do_not_hold_the_shutdown() {
    let settings = GrpcSettings { drain_timeout: Duration::from_secs(86_400), ..GrpcSettings::default() };
    let bench = Bench::with([mlp()], settings).await;
    let mut client = bench.client().await;
    client.model_infer(row("mlp")).await.unwrap();
    let mut silent = TcpStream::connect(bench.address).await.unwrap();
    bench.stopped().await;
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(refused(client.model_infer(row("mlp")).await).0, Code::Unavailable);
}

#[tokio::test]
async fn what_is_in_flight_is_answered_before_the_end() {
    let bench = Bench::new([slow()]).await;
    let log = bench.sandbox.runtime.log();
    let mut client = bench.client().await;
    let call = tokio::spawn(async move { client.model_infer(vector("slow")).await });
    reached(&log, |counts| counts.blocked == 1).await;
    bench.stop.cancel();
    // The port is closed once nobody can connect.
    while TcpStream::connect(bench.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    log.release();
    assert_eq!(numbers(&call.await.unwrap().unwrap().into_inner()), [1.0; 4]);
    bench.stopped().await;
}

#[tokio::test]
async fn the_drain_timeout_ends_what_does_not_end() {
    let settings = GrpcSettings { drain_timeout: Duration::from_millis(20), ..GrpcSettings::default() };
    let bench = Bench::with([slow()], settings).await;
    let log = bench.sandbox.runtime.log();
    let mut client = bench.client().await;
    let call = tokio::spawn(async move { client.model_infer(vector("slow")).await });
    reached(&log, |counts| counts.blocked == 1).await;
    bench.stopped().await;
    assert!(call.await.unwrap().is_err());
    reached(&log, |counts| counts.interrupted == 1).await;
}

#[tokio::test]
async fn who_does_not_speak_http2_is_told_or_cut_off() {
    let settings = GrpcSettings { handshake_timeout: Duration::from_millis(50), ..GrpcSettings::default() };
    let bench = Bench::with([mlp()], settings).await;
    let mut old = TcpStream::connect(bench.address).await.unwrap();
    old.write_all(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut told = Vec::new();
    // A reset may follow the hint, since the request was not read to its end.
    drop(old.read_to_end(&mut told).await);
    let told = String::from_utf8(told).unwrap();
    assert!(
        told.starts_with("HTTP/1.1 400 ") && told.ends_with("\r\n\r\nthis port speaks gRPC, that is, HTTP/2 only.\n"),
        "{told}"
    );
    let (_, body) = told.split_once("\r\n\r\n").unwrap();
    assert!(told.contains(&format!("content-length: {}\r\n", body.len())));
    let mut silent = TcpStream::connect(bench.address).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
    bench.client().await.model_infer(row("mlp")).await.unwrap();
    bench.stopped().await;
}

#[tokio::test]
async fn connections_have_a_limit() {
    let settings = GrpcSettings { max_connections: 1, ..GrpcSettings::default() };
    let bench = Bench::with([mlp()], settings).await;
    let mut first = bench.client().await;
    first.model_infer(row("mlp")).await.unwrap();
    let mut second = bench.client().await;
    let waiting = tokio::spawn(async move { second.model_infer(row("mlp")).await });
    // The first goes on while the second waits for its place.
    first.model_infer(row("mlp")).await.unwrap();
    assert!(!waiting.is_finished());
    drop(first);
    waiting.await.unwrap().unwrap();
    bench.stopped().await;
}

#[tokio::test]
async fn a_peer_that_falls_silent_does_not_hold_the_shutdown() {
    let settings = GrpcSettings { drain_timeout: Duration::from_secs(86_400), ..GrpcSettings::default() };
    let bench = Bench::with([mlp()], settings).await;
    let mut silent = TcpStream::connect(bench.address).await.unwrap();
    // The preface and empty settings. The server's own settings, and its ping at the end, are never acknowledged.
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut header = [0; 9];
    silent.read_exact(&mut header).await.unwrap();
    assert_eq!(header[3], 4, "the server speaks HTTP/2, and begins with its settings");
    bench.stopped().await;
    drop(silent);
}

#[tokio::test]
async fn an_open_reflection_stream_does_not_hold_the_shutdown() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let day = Duration::from_secs(86_400);
    let settings = GrpcSettings { drain_timeout: day, body_stall_timeout: day, body_timeout: day, ..GrpcSettings::default() };
    let bench = Bench::with([mlp()], settings).await;
    let (requests, receiver) = tokio::sync::mpsc::channel::<ServerReflectionRequest>(1);
    let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client = ServerReflectionClient::new(bench.channel().await);
    let mut answers = client.server_reflection_info(receiver).await.unwrap().into_inner();
    bench.stop.cancel();
    let ended = tokio::time::timeout(PATIENCE, answers.message()).await.expect("the stream ends");
    assert!(ended.unwrap().is_none());
    bench.stopped().await;
    drop(requests);
}
