//! Requests that are too large, too slow or no requests at all, sent without a gRPC client where none would.

use bascule_proto::inference::InferTensorContents;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;

use super::*;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// Sends bytes as they are.
async fn send<B>(bench: &Bench, headers: &[(&str, &str)], body: B) -> Response<Incoming>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let client = HyperClient::builder(TokioExecutor::new()).http2_only(true).build_http();
    let mut request = Request::post(format!("http://{}{INFER}", bench.address));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.request(request.body(body).unwrap()).await.unwrap()
}

const GRPC: [(&str, &str); 1] = [("content-type", "application/grpc")];

fn framed(flag: u8, message: &[u8]) -> Full<Bytes> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    Full::new([&[flag][..], &length, message].concat().into())
}

/// Code and message of an answer that is headers only.
fn told(response: &Response<Incoming>) -> (i32, String) {
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    (header("grpc-status").parse().unwrap(), header("grpc-message").replace("%20", " "))
}

#[tokio::test]
async fn what_is_no_request_is_the_callers_fault() {
    let bench = Bench::new([mlp()]).await;
    let invalid = i32::from(Code::InvalidArgument);
    let hidden = [&b"\xa3\x06\xa4\x06"[..], &b"\x2a\x00".repeat(2000)].concat();
    for (what, body) in [
        ("inputs behind a group", framed(0, &hidden)),
        ("not protobuf", framed(0, b"\xff\xff\xff")),
        ("truncated message", framed(0, b"\x2a\x05")),
        ("nothing", Full::new(Bytes::new())),
        ("half a frame", Full::new(Bytes::from_static(b"\0\0\0\0\x09abc"))),
        ("compressed with nothing", framed(1, b"abc")),
        ("an unknown flag", framed(7, b"abc")),
    ] {
        let response = send(&bench, &GRPC, body).await;
        assert_eq!(told(&response).0, invalid, "{what}: {:?}", told(&response));
        assert!(response.headers().contains_key("x-request-id"), "{what}");
    }
    let garbage = [("content-type", "application/grpc"), ("grpc-encoding", "gzip")];
    assert_eq!(told(&send(&bench, &garbage, framed(1, b"not gzip")).await).0, invalid);
    let unknown = [("content-type", "application/grpc"), ("grpc-encoding", "br")];
    assert_eq!(told(&send(&bench, &unknown, framed(1, b"x")).await).0, i32::from(Code::Unimplemented));
    let json = [("content-type", "application/json")];
    assert_eq!(send(&bench, &json, framed(0, b"{}")).await.status(), 415);
    bench.client().await.model_infer(row("mlp")).await.unwrap();
    bench.stopped().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_read() {
    let settings = GrpcSettings { max_request_bytes: 100_000, ..GrpcSettings::default() };
    let bench = Bench::with([mlp()], settings).await;
    let mut client = bench.client().await;
    let large = |bytes| ModelInferRequest { raw_input_contents: vec![Bytes::from(vec![0; bytes])], ..row("mlp") };
    assert_eq!(refused(client.model_infer(large(100_001)).await).0, Code::ResourceExhausted);
    // It fits, and is then found wrong.
    assert_eq!(refused(client.model_infer(large(90_000)).await).0, Code::InvalidArgument);
    let mut bomb = client.clone().send_compressed(CompressionEncoding::Gzip);
    assert_eq!(refused(bomb.model_infer(large(10_000_000)).await).0, Code::ResourceExhausted);
    // Small on the wire, eight times as large in memory.
    let contents = InferTensorContents { int64_contents: vec![1; 20_000], ..InferTensorContents::default() };
    let numbers = InferInputTensor { contents: Some(contents), ..input("INT64", &[20_000]) };
    let swelling = ModelInferRequest { inputs: vec![numbers], raw_input_contents: Vec::new(), ..row("mlp") };
    assert_eq!(
        refused(client.model_infer(swelling).await),
        (Code::ResourceExhausted, "the contents of all inputs is larger than the limit of 100000 bytes".to_owned())
    );
    let many = ModelInferRequest { inputs: vec![input("FP32", &[0]); 2000], raw_input_contents: Vec::new(), ..row("mlp") };
    assert_eq!(
        refused(client.model_infer(many).await),
        (Code::InvalidArgument, "request: expected at most 1024 inputs, got more".to_owned())
    );
    client.model_infer(row("mlp")).await.unwrap();
    bench.stopped().await;
}

#[tokio::test]
async fn requests_together_have_a_limit_too() {
    let settings = GrpcSettings { max_buffered_bytes: 1000, ..GrpcSettings::default() };
    let bench = Bench::with([mlp()], settings).await;
    let mut client = bench.client().await;
    let large = ModelInferRequest { raw_input_contents: vec![Bytes::from(vec![0; 2000])], ..row("mlp") };
    let full = (Code::ResourceExhausted, "the memory for requests under way (1000 bytes) is full".to_owned());
    assert_eq!(refused(client.model_infer(large.clone()).await), full);
    let mut compressing = client.clone().send_compressed(CompressionEncoding::Gzip);
    assert_eq!(refused(compressing.model_infer(large.clone()).await), full);
    let mut answers = client.model_stream_infer(tokio_stream::iter([large, row("mlp")])).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().error_message, full.1);
    assert_eq!(answers.message().await.unwrap().unwrap().error_message, "");
    client.model_infer(row("mlp")).await.unwrap();
    bench.stopped().await;
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up() {
    let settings = GrpcSettings { body_stall_timeout: Duration::from_millis(50), ..GrpcSettings::default() };
    let bench = Bench::with([mlp()], settings).await;
    let (frames, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
    frames.send(Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\x09abc")))).await.unwrap();
    let response = send(&bench, &GRPC, StreamBody::new(ReceiverStream::new(receiver))).await;
    assert_eq!(told(&response), (i32::from(Code::DeadlineExceeded), "no byte of the request came for 50ms".to_owned()));
    drop(frames);
    drop(response.into_body().collect().await);
    bench.stopped().await;
}

#[tokio::test]
async fn answers_are_compressed_as_requests_are() {
    let bench = Bench::new([mlp()]).await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
        // Accepting alone changes nothing: clients accept by default.
        let mut accepts = bench.client().await.accept_compressed(encoding);
        let plain = accepts.model_infer(row("mlp")).await.unwrap();
        assert_eq!(plain.metadata().get("grpc-encoding"), None);
        let compressed = accepts.send_compressed(encoding).model_infer(row("mlp")).await.unwrap();
        assert_eq!(compressed.metadata().get("grpc-encoding").unwrap().to_str().unwrap(), encoding.to_string());
        assert_eq!(numbers(&compressed.into_inner()), [7.0; 3]);
        // Who compresses and accepts nothing is answered plainly.
        let one_way = bench.client().await.send_compressed(encoding).model_infer(row("mlp")).await.unwrap();
        assert_eq!(one_way.metadata().get("grpc-encoding"), None);
    }
    bench.stopped().await;
}

#[tokio::test]
async fn the_deadline_of_the_headers_ends_a_request() {
    let bench = Bench::new([slow()]).await;
    let message = vector("slow").encode_to_vec();
    // A gRPC client would watch the time itself and give up first.
    let sent = async |timeout: &str| {
        let headers = [("content-type", "application/grpc"), ("grpc-timeout", timeout)];
        told(&send(&bench, &headers, framed(0, &message)).await)
    };
    assert_eq!(sent("20m").await, (i32::from(Code::DeadlineExceeded), "the deadline of the request has passed".to_owned()));
    assert_eq!(sent("0n").await.0, i32::from(Code::DeadlineExceeded));
    let expected = "header 'grpc-timeout': expected at most eight digits and one of H, M, S, m, u, n";
    assert_eq!(sent("20 minutes").await, (i32::from(Code::InvalidArgument), expected.to_owned()));
    bench.stopped().await;
}

#[tokio::test]
async fn large_requests_are_answered_like_small_ones() {
    let settings = ModelSettings::default();
    let echo = Stocked("echo", 1, identity(DataType::Int64, &[-1]), settings.clone());
    let words = Stocked("words", 1, identity(DataType::Bytes, &[-1]), settings);
    let bench = Bench::new([echo, words]).await;
    let numbers: Vec<i64> = (0..100_000).collect();
    let raw: Bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>().into();
    let spoken = Bytes::from(b"\x03\0\0\0abc".repeat(50_000));
    let request = |model: &str, input: InferInputTensor, raw: Option<&Bytes>| ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![input],
        raw_input_contents: raw.into_iter().cloned().collect(),
        ..ModelInferRequest::default()
    };
    let contents = Some(InferTensorContents { int64_contents: numbers, ..InferTensorContents::default() });
    let requests = [
        (request("echo", input("INT64", &[100_000]), Some(&raw)), &raw),
        (request("echo", InferInputTensor { contents, ..input("INT64", &[100_000]) }, None), &raw),
        (request("words", input("BYTES", &[50_000]), Some(&spoken)), &spoken),
    ];
    let large = bench.client().await.max_decoding_message_size(1 << 30);
    for coding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Deflate)] {
        let packing = coding.map(|coding| large.clone().send_compressed(coding).accept_compressed(coding));
        let mut client = packing.unwrap_or_else(|| large.clone());
        for (request, expected) in &requests {
            let answer = client.model_infer(request.clone()).await.unwrap().into_inner();
            assert_eq!(answer.raw_output_contents, [Bytes::clone(expected)]);
            let mut answers = client.model_stream_infer(tokio_stream::once(request.clone())).await.unwrap().into_inner();
            let answer = answers.message().await.unwrap().unwrap().infer_response.unwrap();
            assert_eq!(answer.raw_output_contents, [Bytes::clone(expected)]);
        }
    }
    bench.stopped().await;
}

#[tokio::test]
async fn half_a_message_of_a_stream_is_given_up_and_what_was_before_is_answered() {
    let settings = GrpcSettings { body_stall_timeout: Duration::from_millis(50), ..GrpcSettings::default() };
    let bench = Bench::with([mlp()], settings).await;
    let (frames, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
    let whole = framed(0, &row("mlp").encode_to_vec()).collect().await.unwrap().to_bytes();
    frames.send(Ok(Frame::data([&whole[..], &whole[..9]].concat().into()))).await.unwrap();
    let client = HyperClient::builder(TokioExecutor::new()).http2_only(true).build_http();
    let path = format!("http://{}/inference.GRPCInferenceService/ModelStreamInfer", bench.address);
    let request = Request::post(path).header("content-type", "application/grpc");
    let response = client.request(request.body(StreamBody::new(ReceiverStream::new(receiver))).unwrap()).await.unwrap();
    let answers = tokio::time::timeout(PATIENCE, response.into_body().collect()).await.expect("the stream ends").unwrap();
    let trailers = answers.trailers().unwrap();
    assert_eq!(trailers["grpc-status"], i32::from(Code::DeadlineExceeded).to_string());
    let answers = answers.to_bytes();
    let answer = bascule_proto::inference::ModelStreamInferResponse::decode(&answers[5..]).unwrap();
    assert_eq!(numbers(&answer.infer_response.unwrap()), [7.0; 3]);
    drop(frames);
    bench.stopped().await;
}

/// A client that is alive, answers every ping, and never makes room for more of the answer than its first window.
#[tokio::test]
async fn who_reads_nothing_is_cut_off_and_its_answer_counts_until_then() {
    let bytes = 1 << 20;
    let settings = GrpcSettings {
        write_timeout: Duration::from_millis(100),
        max_buffered_bytes: 5 * bytes,
        keepalive_interval: Duration::from_millis(10),
        ..GrpcSettings::default()
    };
    let bench = Bench::with([Stocked("echo", 1, identity(DataType::Uint8, &[-1]), ModelSettings::default())], settings).await;
    let message = ModelInferRequest {
        model_name: "echo".to_owned(),
        inputs: vec![input("UINT8", &[i64::from(bytes as u32)])],
        raw_input_contents: vec![vec![1; bytes].into()],
        ..ModelInferRequest::default()
    };
    let body = framed(0, &message.encode_to_vec());
    let socket = tokio::net::TcpStream::connect(bench.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(socket);
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = builder.initial_stream_window_size(1000).handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://{}{INFER}", bench.address)).header("content-type", "application/grpc");
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    // Whether the end is an error to the client makes no difference.
    drop(tokio::time::timeout(PATIENCE, connection).await.expect("the connection ends"));
    // All of the budget is there again, once the server has let go of its side.
    let mut client = bench.client().await.max_decoding_message_size(1 << 30);
    let whole = ModelInferRequest {
        inputs: vec![input("UINT8", &[2 * i64::from(bytes as u32)])],
        raw_input_contents: vec![vec![1; 2 * bytes].into()],
        ..message
    };
    let answered = async { while client.model_infer(whole.clone()).await.is_err() {} };
    tokio::time::timeout(PATIENCE, answered).await.expect("the memory is given back");
    drop(response);
    bench.stopped().await;
}
