//! Callers that go away take their queued work along.

use tokio::io::AsyncWriteExt as _;

use super::*;

const BODY: &str = r#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT32","data":[5]}]}"#;

/// A port whose one instance is held by a run, with that run's connection.
async fn held() -> (Port, TcpStream) {
    let alone = ModelSettings { dynamic_batching: false, ..settings() };
    let port = Port::start(HttpSettings::default(), vec![Stocked("m", 1, blocking(), alone)]).await;
    let running = post_by_hand(&port).await;
    let log = Arc::clone(&port.log);
    eventually("one runs", || log.counts().blocked == 1).await;
    (port, running)
}

async fn post_by_hand(port: &Port) -> TcpStream {
    let mut stream = port.connect().await;
    let head = format!("POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Opens the gate and checks that nothing ran but what already did, what held the instance, and a last request.
async fn check_runs(port: Port) {
    let servable = port.servable("m");
    let before = port.log.counts().succeeded;
    port.log.release();
    // A request that comes last runs last: whatever was queued before it has been decided on.
    assert_eq!(port.post("/v2/models/m/infer", &[], BODY).await.status, StatusCode::OK);
    let counts = port.log.counts();
    assert_eq!((counts.succeeded, counts.failed, servable.queued()), (before + 2, 0, 0));
    port.stop().await;
}

#[tokio::test]
async fn over_http1_a_closed_connection_cancels_its_queued_request() {
    let (port, running) = held().await;
    let servable = port.servable("m");
    let leaving = post_by_hand(&port).await;
    eventually("one waits", || servable.queued() == 1).await;
    drop(leaving);
    eventually("the handler is dropped", || servable.stats().snapshot().in_flight == 1).await;
    check_runs(port).await;
    drop(running);
}

#[tokio::test]
async fn over_http2_a_reset_stream_cancels_its_queued_request() {
    let (port, running) = held().await;
    let servable = port.servable("m");
    let mut sender = port.http2().await;
    let leaving = tokio::spawn(sender.send_request(request(Method::POST, "http://localhost/v2/models/m/infer", &[], BODY)));
    eventually("one waits", || servable.queued() == 1).await;
    leaving.abort();
    eventually("the handler is dropped", || servable.stats().snapshot().in_flight == 1).await;
    // The connection itself goes on.
    let live = sender.send_request(request(Method::GET, "http://localhost/v2/health/live", &[], "")).await.unwrap();
    assert_eq!(live.status(), StatusCode::OK);
    drop(sender);
    check_runs(port).await;
    drop(running);
}

#[tokio::test]
async fn over_http2_a_closed_connection_cancels_its_queued_requests() {
    let (port, running) = held().await;
    let servable = port.servable("m");
    let stream = port.connect().await.into_std().unwrap();
    let cable = stream.try_clone().unwrap();
    let stream = TcpStream::from_std(stream).unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        tokio::spawn(sender.send_request(request(Method::POST, "http://localhost/v2/models/m/infer", &[], BODY)));
    }
    eventually("three wait", || servable.queued() == 3).await;
    cable.shutdown(std::net::Shutdown::Both).unwrap();
    eventually("the handlers are dropped", || servable.stats().snapshot().in_flight == 1).await;
    check_runs(port).await;
    drop(running);
}
