//! The port's end.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const BODY: &str = r#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT32","data":[5]}]}"#;

fn patient() -> HttpSettings {
    HttpSettings { drain_timeout: Duration::from_hours(1), ..HttpSettings::default() }
}

#[tokio::test]
async fn idle_connections_hold_nothing_up() {
    let port = Port::start(patient(), vec![model("m", 1, blocking())]).await;
    let fresh = port.connect().await;
    let mut half = port.connect().await;
    half.write_all(b"GET /v2").await.unwrap();
    let mut resting = port.connect().await;
    resting.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut start = [0; 12];
    resting.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    let mut http2 = port.http2().await;
    drop(http2.send_request(request(Method::GET, "http://localhost/v2", &[], "")).await.unwrap());
    port.stop().await;
    drop((fresh, half, resting, http2));
}

#[tokio::test]
async fn what_is_in_flight_is_finished() {
    let port = Port::start(patient(), vec![model("m", 1, blocking())]).await;
    let mut one = port.connect().await;
    let head = format!("POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len());
    one.write_all(head.as_bytes()).await.unwrap();
    let mut two = port.http2().await;
    let over_http2 = tokio::spawn(two.send_request(request(Method::POST, "http://localhost/v2/models/m/infer", &[], BODY)));
    let servable = port.servable("m");
    eventually("both are in flight", || servable.stats().snapshot().in_flight == 2).await;
    port.shutdown.cancel();
    let addr = port.addr;
    let refused = async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("nothing is accepted any more");
    port.log.release();
    let mut received = String::new();
    one.read_to_string(&mut received).await.unwrap();
    assert!(received.starts_with("HTTP/1.1 200") && received.contains("connection: close"), "{received}");
    assert_eq!(over_http2.await.unwrap().unwrap().status(), StatusCode::OK);
    port.ended().await;
}

#[tokio::test]
async fn an_answer_is_sent_whole_to_a_slow_reader_over_http2() {
    let port = Port::start(patient(), two_outputs()).await;
    slow_reader(port, true).await;
}

#[tokio::test]
async fn what_takes_too_long_is_cut_off() {
    let settings = HttpSettings { drain_timeout: Duration::from_millis(50), ..HttpSettings::default() };
    let port = Port::start(settings, vec![model("m", 1, blocking())]).await;
    let mut stream = port.connect().await;
    let head = format!("POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    let log = Arc::clone(&port.log);
    eventually("it runs", || log.counts().blocked == 1).await;
    port.stop().await;
    let mut received = Vec::new();
    // An error is an end as well.
    drop(stream.read_to_end(&mut received).await);
    assert!(received.is_empty());
}
