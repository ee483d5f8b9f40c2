//! Bodies and heads that are too large, callers that are too slow.

use std::io::Write as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const INFER: &str = "/v2/models/m/infer";
const SOON: Duration = Duration::from_millis(50);

fn echo() -> Vec<Stocked> {
    vec![model("m", 1, identity(DataType::Uint8, &[-1]))]
}

/// What a server sends until it closes the connection, however it does so.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    let reading = async {
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            received.extend_from_slice(&chunk[..count]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the server closes the connection");
    received
}

#[tokio::test]
async fn bodies_are_capped_as_said_and_as_sent() {
    let settings = HttpSettings { max_body_bytes: 1000, ..HttpSettings::default() };
    let port = Port::start(settings, echo()).await;
    let expected = (413, "the body is larger than the limit of 1000 bytes".to_owned());
    assert_eq!(port.post(INFER, &[], vec![b' '; 1001]).await.error(), expected);
    assert_eq!(port.post(INFER, &[], vec![b' '; 1000]).await.status, StatusCode::BAD_REQUEST);

    // Nothing is read of a body that says it is too large.
    let mut stream = port.connect().await;
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", u64::MAX / 2);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");

    let mut stream = port.connect().await;
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..11 {
        stream.write_all(format!("64\r\n{}\r\n", " ".repeat(100)).as_bytes()).await.unwrap();
    }
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");
    drop(stream);
    port.stop().await;
}

#[tokio::test]
async fn bombs_are_capped_as_unpacked() {
    let settings = HttpSettings { max_body_bytes: 100_000, ..HttpSettings::default() };
    let port = Port::start(settings, echo()).await;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![b' '; 10 << 20]).unwrap();
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 100_000);
    assert_eq!(port.post(INFER, &[("content-encoding", "gzip")], bomb).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    port.stop().await;
}

#[tokio::test]
async fn tensors_in_json_are_capped_too() {
    let settings = HttpSettings { max_body_bytes: 4096, ..HttpSettings::default() };
    let port = Port::start(settings, vec![model("m", 1, identity(DataType::Fp64, &[-1]))]).await;
    let body = format!(r#"{{"inputs":[{{"name":"x","shape":[1000],"datatype":"FP64","data":[{}]}}]}}"#, vec!["0"; 1000].join(","));
    assert!(body.len() < 4096);
    assert_eq!(port.post(INFER, &[], body).await.error(), (413, "input 'x' is larger than the limit of 4096 bytes".to_owned()));
    port.stop().await;
}

#[tokio::test]
async fn bodies_share_one_budget() {
    let settings = HttpSettings { max_buffered_bytes: 100, ..HttpSettings::default() };
    let port = Port::start(settings, echo()).await;
    let body = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"UINT8","data":[5]}]}"#;
    for _ in 0..3 {
        assert_eq!(port.post(INFER, &[], body).await.status, StatusCode::OK);
    }
    let reply = port.post(INFER, &[], format!("{body}{}", " ".repeat(100))).await;
    assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, Some("1")));
    assert_eq!(port.post(INFER, &[], body).await.status, StatusCode::OK);
    port.stop().await;
}

#[tokio::test]
async fn a_refusal_arrives_although_the_body_was_not_wanted() {
    let port = Port::start(HttpSettings::default(), echo()).await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(port.connect().await)).await.unwrap();
    tokio::spawn(connection);
    // Several on one connection: it is read to the end of each body, and goes on.
    for _ in 0..3 {
        let refused = request(Method::POST, "/nowhere", &[], vec![b' '; 3 << 20]);
        let reply = Reply::read(sender.send_request(refused).await.unwrap()).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND);
        sender.ready().await.unwrap();
    }
    drop(sender);
    port.stop().await;
}

#[tokio::test]
async fn a_caller_that_waits_to_be_asked_is_refused_first() {
    let port = Port::start(HttpSettings::default(), echo()).await;
    let mut stream = port.connect().await;
    stream.write_all(b"POST /nowhere HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 100\r\n\r\n").await.unwrap();
    let received = String::from_utf8(rest(&mut stream).await).unwrap();
    assert!(received.starts_with("HTTP/1.1 404"), "{received}");
    let mut stream = port.connect().await;
    let body = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"UINT8","data":[5]}]}"#;
    let head = format!(
        "POST {INFER} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.starts_with(b"HTTP/1.1 200"));
    port.stop().await;
}

#[tokio::test]
async fn heads_are_capped() {
    let settings = HttpSettings { max_header_bytes: 8 << 10, ..HttpSettings::default() };
    let port = Port::start(settings, echo()).await;
    let mut stream = port.connect().await;
    let head = format!("GET /v2 HTTP/1.1\r\nhost: x\r\nx-a: {}\r\n\r\n", "a".repeat(20 << 10));
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 431");
    drop(stream);
    port.stop().await;
}

#[tokio::test]
async fn broken_heads_are_refused() {
    let port = Port::start(HttpSettings::default(), echo()).await;
    for head in ["POST /v2 HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n", "hello\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let mut stream = port.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let received = rest(&mut stream).await;
        assert!(received.starts_with(b"HTTP/1.1 400"), "{head:?}: {}", String::from_utf8_lossy(&received));
    }
    port.stop().await;
}

#[tokio::test]
async fn a_caller_that_sends_nothing_is_cut_off() {
    let settings = HttpSettings { idle_timeout: SOON, header_timeout: PATIENCE, ..HttpSettings::default() };
    let port = Port::start(settings, echo()).await;
    let mut silent = port.connect().await;
    assert_eq!(rest(&mut silent).await, b"");
    let mut resting = port.connect().await;
    resting.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(rest(&mut resting).await.ends_with(b"{\"live\":true}"));
    let mut sender = port.http2().await;
    drop(sender.send_request(request(Method::GET, "http://localhost/v2", &[], "")).await.unwrap());
    eventually("the connection ends", || sender.is_closed()).await;
    port.stop().await;
}

#[tokio::test]
async fn a_caller_that_sends_half_a_head_is_cut_off() {
    let long = Duration::from_hours(1);
    let settings = HttpSettings { idle_timeout: long, write_timeout: long, header_timeout: SOON, ..HttpSettings::default() };
    let port = Port::start(settings, echo()).await;
    for half in ["G", "PRI", "GET /v2/health/live HTTP/1.1\r\nhost: x\r\n"] {
        let mut slow = port.connect().await;
        slow.write_all(half.as_bytes()).await.unwrap();
        assert_eq!(rest(&mut slow).await, b"", "{half:?}");
        // The same after a request, when the connection's task has long looked away.
        let mut slow = port.connect().await;
        slow.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut status = [0; 12];
        slow.read_exact(&mut status).await.unwrap();
        slow.write_all(half.as_bytes()).await.unwrap();
        assert!(rest(&mut slow).await.ends_with(b"{\"live\":true}"), "{half:?}");
    }
    port.stop().await;
}

#[tokio::test]
async fn a_body_that_pauses_is_refused() {
    let settings = HttpSettings { body_stall_timeout: SOON, body_timeout: PATIENCE, ..HttpSettings::default() };
    slow_body(settings, "the next part of the body took too long").await;
}

#[tokio::test]
async fn a_body_that_takes_too_long_is_refused() {
    let settings = HttpSettings { body_stall_timeout: PATIENCE, body_timeout: SOON, ..HttpSettings::default() };
    slow_body(settings, "the body took too long").await;
}

async fn slow_body(settings: HttpSettings, expected: &str) {
    let port = Port::start(settings, echo()).await;
    let mut slow = port.connect().await;
    slow.write_all(format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{").as_bytes()).await.unwrap();
    let received = String::from_utf8(rest(&mut slow).await).unwrap();
    assert!(received.starts_with("HTTP/1.1 408"), "{received}");
    assert!(received.ends_with(&format!("{{\"error\":\"{expected}\"}}")), "{received}");
    port.stop().await;
}

#[tokio::test]
async fn over_http2_a_caller_that_reads_slowly_is_not_cut_off() {
    let (idle_timeout, write_timeout) = (Duration::from_secs(1), Duration::from_secs(2));
    let settings = HttpSettings { idle_timeout, write_timeout, ..HttpSettings::default() };
    let port = Port::start(settings, two_outputs()).await;
    slow_reader(port, false).await;
}

#[tokio::test]
async fn over_http2_a_caller_that_reads_nothing_is_cut_off() {
    let (write_timeout, drain_timeout) = (SOON * 10, Duration::from_hours(1));
    let settings = HttpSettings { write_timeout, drain_timeout, ..HttpSettings::default() };
    let port = Port::start(settings, two_outputs()).await;
    let mut sender = port.http2().await;
    let response = sender.send_request(two_inputs()).await.unwrap();
    // Only the cut lets the port end: the drain time-out is far away.
    port.stop().await;
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_cut_off_however_lively_its_connection_is() {
    let settings = HttpSettings { write_timeout: SOON, drain_timeout: Duration::from_hours(1), ..HttpSettings::default() };
    let port = Port::start(settings, two_outputs()).await;
    let mut sender = port.http2().await;
    let response = sender.send_request(two_inputs()).await.unwrap();
    let lively = async {
        loop {
            let live = Request::get("http://x/v2/health/live").body(Full::new(Bytes::new())).unwrap();
            let Ok(answered) = sender.send_request(live).await else { return };
            if answered.into_body().collect().await.is_err() {
                return;
            }
        }
    };
    assert!(tokio::time::timeout(PATIENCE, lively).await.is_ok(), "it is never cut off");
    assert!(response.into_body().collect().await.is_err());
    port.stop().await;
}

#[tokio::test]
async fn a_refusal_reaches_a_caller_that_reads_after_a_slow_upload() {
    let settings = HttpSettings { header_timeout: SOON, ..HttpSettings::default() };
    let port = Port::start(settings, echo()).await;
    let mut slow = port.connect().await;
    let (pieces, piece) = (10, [b' '; 100]);
    let head = format!("POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", pieces * piece.len());
    slow.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..pieces {
        tokio::time::sleep(SOON / 5).await;
        slow.write_all(&piece).await.unwrap();
    }
    // The connection rests for longer than a head may take, and serves on.
    tokio::time::sleep(SOON * 2).await;
    slow.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let received = String::from_utf8(rest(&mut slow).await).unwrap();
    assert!(received.starts_with("HTTP/1.1 404") && received.ends_with("{\"live\":true}"), "{received}");
    port.stop().await;
}

#[tokio::test]
async fn a_refusal_reaches_a_caller_that_sends_far_too_much() {
    let settings = HttpSettings { max_body_bytes: 1000, ..HttpSettings::default() };
    let port = Port::start(settings, echo()).await;
    let mut slow = port.connect().await;
    let (pieces, piece) = (20, [b' '; 1000]);
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", pieces * piece.len());
    slow.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..pieces {
        tokio::time::sleep(Duration::from_millis(2)).await;
        slow.write_all(&piece).await.expect("the socket takes what comes");
    }
    let received = rest(&mut slow).await;
    assert!(received.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&received));
    port.stop().await;
}

#[tokio::test]
async fn half_a_head_that_comes_while_a_handler_runs_is_timed_as_one() {
    let settings = HttpSettings { idle_timeout: Duration::from_hours(1), header_timeout: SOON, ..HttpSettings::default() };
    let blocking = blocking();
    let port = Port::start(settings, vec![model("m", 1, blocking)]).await;
    let mut slow = port.connect().await;
    let body = r#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT32","data":[5]}]}"#;
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    slow.write_all(head.as_bytes()).await.unwrap();
    let log = Arc::clone(&port.log);
    eventually("it runs", || log.counts().blocked == 1).await;
    slow.write_all(b"GET /v2").await.unwrap();
    port.log.release();
    let received = String::from_utf8(rest(&mut slow).await).unwrap();
    assert!(received.starts_with("HTTP/1.1 200") && received.ends_with("]}"), "{received}");
    port.stop().await;
}

#[tokio::test]
async fn a_caller_that_reads_nothing_is_cut_off() {
    let settings = HttpSettings { write_timeout: SOON, drain_timeout: Duration::from_hours(1), ..HttpSettings::default() };
    let port = Port::start(settings, echo()).await;
    // An answer that no buffer of a socket takes whole.
    let bytes = 32 << 20;
    let json = format!(
        r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{{"name":"x","shape":[{bytes}],"datatype":"UINT8","parameters":{{"binary_data_size":{bytes}}}}}]}}"#
    );
    let mut unread = port.connect().await;
    let head = format!(
        "POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\ninference-header-content-length: {}\r\n\r\n{json}",
        json.len() + bytes,
        json.len()
    );
    unread.write_all(head.as_bytes()).await.unwrap();
    unread.write_all(&vec![7; bytes]).await.unwrap();
    let servable = port.servable("m");
    eventually("it is answered", || servable.stats().snapshot().success.count == 1).await;
    // Only the cut lets the port end: the drain time-out is far away.
    port.stop().await;
    assert!(rest(&mut unread).await.len() < bytes);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let settings = HttpSettings { max_connections: 1, ..HttpSettings::default() };
    let port = Port::start(settings, echo()).await;
    let (mut first, connection) = http1::handshake(TokioIo::new(port.connect().await)).await.unwrap();
    let connection = tokio::spawn(connection);
    let live = || request(Method::GET, "/v2/health/live", &[], "");
    drop(first.send_request(live()).await.unwrap());
    let mut second = port.connect().await;
    second.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    first.ready().await.unwrap();
    drop(first.send_request(live()).await.unwrap());
    drop(first);
    connection.await.unwrap().unwrap();
    assert!(rest(&mut second).await.starts_with(b"HTTP/1.1 200"));
    port.stop().await;
}
