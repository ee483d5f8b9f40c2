//! Inference in all its forms.

use std::io::Read as _;

use serde_json::json;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const INFER: &str = "/v2/models/m/infer";
const PAIR: &str = r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"INT32","data":[5,6]}]}"#;

async fn ints() -> Port {
    Port::start(HttpSettings::default(), vec![model("m", 1, identity(DataType::Int32, &[-1, 2]))]).await
}

#[tokio::test]
async fn json_goes_in_and_comes_out() {
    let port = ints().await;
    let reply = port.post(INFER, &[], PAIR).await;
    assert_eq!(
        (reply.status.as_u16(), reply.text()),
        (200, r#"{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"INT32","shape":[1,2],"data":[5,6]}]}"#)
    );
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("x-bascule-model-version"), Some("1"));
    let digest = port.servable("m").digest().to_string();
    assert_eq!(reply.header("x-bascule-model-digest"), Some(digest.as_str()));

    let with_id = PAIR.replacen('{', r#"{"id":"a\"b","outputs":[{"name":"y"},{"name":"y"}],"#, 1);
    let reply = port.post(INFER, &[("content-type", "text/plain")], with_id).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["id"]), (200, &json!("a\"b")));
    assert_eq!(reply.json()["outputs"].as_array().unwrap().len(), 1);
    port.stop().await;
}

#[tokio::test]
async fn the_binary_extension_works_both_ways() {
    let port = ints().await;
    let json = r#"{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[1,2],"datatype":"INT32","parameters":{"binary_data_size":8}}]}"#;
    let tensor = [7, 0, 0, 0, 255, 255, 255, 255];
    let body = [json.as_bytes(), &tensor].concat();
    let length = json.len().to_string();
    let reply = port.post(INFER, &[("inference-header-content-length", &length)], body).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
    let json_bytes: usize = reply.header("inference-header-content-length").unwrap().parse().unwrap();
    let head: serde_json::Value = serde_json::from_slice(&reply.body[..json_bytes]).unwrap();
    assert_eq!(head["outputs"][0]["parameters"], json!({ "binary_data_size": 8 }));
    assert_eq!(reply.body[json_bytes..], tensor);

    let (status, error) = port.post(INFER, &[("inference-header-content-length", "9999")], PAIR).await.error();
    let bytes = PAIR.len();
    assert_eq!(
        (status, error),
        (400, format!("header 'Inference-Header-Content-Length': expected at most the {bytes} bytes of the body, got 9999"))
    );
    port.stop().await;
}

#[tokio::test]
async fn a_raw_body_is_the_one_input() {
    let port = ints().await;
    let raw = [("inference-header-content-length", "0")];
    let reply = port.post(INFER, &raw, vec![1, 0, 0, 0, 2, 0, 0, 0]).await;
    let json_bytes: usize = reply.header("inference-header-content-length").unwrap().parse().unwrap();
    assert_eq!(reply.body[json_bytes..], [1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(
        port.post(INFER, &raw, vec![0; 10]).await.error(),
        (400, "input 'x': expected 8 bytes for INT32 of shape [1, 2], got 10".to_owned())
    );
    port.stop().await;
}

#[tokio::test]
async fn classes_are_given_where_they_are_asked_for() {
    let mut labelled = settings();
    labelled.labels.insert("y".to_owned(), vec!["ant".to_owned(), "bee".to_owned()]);
    let labelled = Stocked("m", 1, identity(DataType::Fp32, &[-1, 3]), labelled);
    let port = Port::start(HttpSettings::default(), vec![labelled, model("b", 1, identity(DataType::Bool, &[-1]))]).await;
    let body = |classes: &str| {
        format!(
            r#"{{"inputs":[{{"name":"x","shape":[2,3],"datatype":"FP32","data":[1,3,2,6,5,4]}}],"outputs":[{{"name":"y","parameters":{{"classification":{classes}}}}}]}}"#
        )
    };
    let output = port.post(INFER, &[], body("2")).await.json()["outputs"][0].clone();
    assert_eq!(output["shape"], json!([2, 2]));
    assert_eq!(output["data"], json!(["3.000000:1:bee", "2.000000:2", "6.000000:0:ant", "5.000000:1:bee"]));
    assert_eq!(port.post(INFER, &[], body("0")).await.json()["outputs"][0]["datatype"], "FP32");
    let bools = r#"{"inputs":[{"name":"x","shape":[2],"datatype":"BOOL","data":[true,false]}],"outputs":[{"name":"y","parameters":{"classification":1}}]}"#;
    let (status, error) = port.post("/v2/models/b/infer", &[], bools).await.error();
    assert_eq!(
        (status, error.as_str()),
        (400, "output 'y': expected a datatype of numbers for the parameter 'classification', the output is BOOL")
    );
    port.stop().await;
}

#[tokio::test]
async fn the_version_is_chosen_by_path_then_header_then_parameter() {
    let models = vec![model("m", 1, identity(DataType::Int32, &[-1, 2])), model("m", 3, identity(DataType::Int32, &[-1, 2]))];
    let port = Port::start(HttpSettings::default(), models).await;
    port.alias("m", "first", 1).await;
    let with = |version: &str| PAIR.replacen('{', &format!(r#"{{"parameters":{{"version":{version}}},"#), 1);
    let one = "/v2/models/m/versions/1/infer";
    let first = ("x-bascule-version", "first");
    for (path, headers, body, expected) in [
        (INFER, &[][..], PAIR.to_owned(), "3"),
        (INFER, &[], with("1"), "1"),
        (INFER, &[], with("\"first\""), "1"),
        (INFER, &[first], PAIR.to_owned(), "1"),
        (INFER, &[("version", "first")], PAIR.to_owned(), "1"),
        (INFER, &[first], with("3"), "1"),
        (one, &[("x-bascule-version", "3")], PAIR.to_owned(), "1"),
    ] {
        let reply = port.post(path, headers, body.clone()).await;
        assert_eq!(reply.header("x-bascule-model-version"), Some(expected), "{path} {headers:?} {body}");
        assert_eq!(reply.json()["model_version"], expected);
    }
    for (headers, expected) in [
        (("x-bascule-version", "9"), (404, "model 'm' has no version 9 that is served; served: 1, 3")),
        (("x-bascule-version", "nope"), (404, "model 'm' has no alias 'nope'")),
        (
            ("x-bascule-version", "0"),
            (400, "header 'x-bascule-version': version \"0\" is not a whole number from 1 to 9223372036854775807"),
        ),
    ] {
        let (status, error) = port.post(INFER, &[headers], PAIR).await.error();
        assert_eq!((status, error.as_str()), expected);
    }
    port.stop().await;
}

#[tokio::test]
async fn a_key_stays_on_its_side_of_a_split() {
    let models = vec![model("m", 1, identity(DataType::Int32, &[-1, 2])), model("m", 2, identity(DataType::Int32, &[-1, 2]))];
    let port = Port::start(HttpSettings::default(), models).await;
    port.serving.apply("m", Op::Weight { version: 1, weight_bp: 5_000 }, "test", "test", None).await.unwrap();
    let split = || port.serving.router().table().route("m").is_some_and(|route| route.candidate.is_some());
    eventually("there is a candidate", split).await;
    let version = async |headers: &[(&str, &str)], body: String| {
        port.post(INFER, headers, body).await.header("x-bascule-model-version").unwrap().to_owned()
    };
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..64 {
        let key = number.to_string();
        let by_header = version(&[("x-bascule-key", &key)], PAIR.to_owned()).await;
        let sequence = PAIR.replacen('{', &format!(r#"{{"parameters":{{"sequence_id":{key}}},"#), 1);
        // 0 is no sequence.
        if number > 0 {
            assert_eq!(version(&[], sequence.clone()).await, by_header, "{key}");
        }
        assert_eq!(version(&[("x-bascule-key", "a")], sequence).await, version(&[("x-bascule-key", "a")], PAIR.to_owned()).await);
        seen.insert(by_header);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["1", "2"]);
    port.stop().await;
}

#[tokio::test]
async fn the_first_error_is_the_one_that_helps() {
    let port = ints().await;
    for (path, body, expected) in [
        ("/v2/models/nope/infer", "{\"inputs\":", (404, "model 'nope' is not known")),
        ("/v2/models/m/versions/9/infer", PAIR, (404, "model 'm' has no version 9 that is served; served: 1")),
        (INFER, "", (400, "request: expected an object, found the end at byte 0")),
        (INFER, "{\"inputs\":[],}", (400, "request: expected a member name in double quotes, found '}' at byte 13")),
        (INFER, "{\"inputs\":[]}", (400, "input 'x' of model 'm' is missing; expected 'x'")),
    ] {
        let (status, error) = port.post(path, &[], body).await.error();
        assert_eq!((status, error.as_str()), expected, "{body}");
    }
    port.stop().await;
}

#[tokio::test]
async fn bodies_are_compressed_both_ways() {
    let port = Port::start(HttpSettings::default(), vec![model("m", 1, identity(DataType::Int32, &[-1]))]).await;
    let numbers = vec!["7"; 500].join(",");
    let body = format!(r#"{{"inputs":[{{"name":"x","shape":[500],"datatype":"INT32","data":[{numbers}]}}]}}"#);
    let plain = port.post(INFER, &[], body.clone()).await;
    for name in ["gzip", "deflate"] {
        let mut packed = Vec::new();
        match name {
            "gzip" => flate2::read::GzEncoder::new(body.as_bytes(), flate2::Compression::fast()).read_to_end(&mut packed).unwrap(),
            _ => flate2::read::ZlibEncoder::new(body.as_bytes(), flate2::Compression::fast()).read_to_end(&mut packed).unwrap(),
        };
        let reply = port.post(INFER, &[("content-encoding", name), ("accept-encoding", name)], packed).await;
        assert_eq!((reply.status.as_u16(), reply.header("content-encoding")), (200, Some(name)), "{reply:?}");
        let mut unpacked = String::new();
        match name {
            "gzip" => flate2::read::GzDecoder::new(&reply.body[..]).read_to_string(&mut unpacked).unwrap(),
            _ => flate2::read::ZlibDecoder::new(&reply.body[..]).read_to_string(&mut unpacked).unwrap(),
        };
        assert_eq!(unpacked, plain.text(), "{name}");
    }
    for accept in ["br", "*", "identity", "gzip;q=0"] {
        let reply = port.post(INFER, &[("accept-encoding", accept)], body.clone()).await;
        assert_eq!((reply.header("content-encoding"), reply.text()), (None, plain.text()), "{accept}");
    }
    let errors = port.post("/v2/models/nope/infer", &[("accept-encoding", "gzip")], body.clone()).await;
    assert_eq!((errors.status.as_u16(), errors.header("content-encoding")), (404, None));
    let unknown = port.post(INFER, &[("content-encoding", "br")], body.clone()).await;
    assert_eq!((unknown.status.as_u16(), unknown.header("accept-encoding")), (501, Some("gzip, deflate")));
    let broken = port.post(INFER, &[("content-encoding", "gzip")], body).await;
    assert_eq!(broken.error(), (400, "header 'Content-Encoding': expected a body that unpacks as it says".to_owned()));
    port.stop().await;
}

#[tokio::test]
async fn large_json_is_read_and_written_beside_the_io_threads() {
    let port = Port::start(HttpSettings::default(), vec![model("m", 1, identity(DataType::Fp32, &[-1]))]).await;
    let elements: Vec<f32> = (0..40_000u16).map(|number| f32::from(number) / 3.0).collect();
    let numbers: Vec<String> = elements.iter().map(f32::to_string).collect();
    let body = format!(r#"{{"inputs":[{{"name":"x","shape":[40000],"datatype":"FP32","data":[{}]}}]}}"#, numbers.join(","));
    assert!(body.len() > 4 * (64 << 10));
    let reply = port.post(INFER, &[("accept-encoding", "gzip")], body).await;
    let mut text = String::new();
    flate2::read::GzDecoder::new(&reply.body[..]).read_to_string(&mut text).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let back: Vec<f32> =
        answer["outputs"][0]["data"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect();
    assert_eq!(back, elements);
    port.stop().await;
}

#[tokio::test]
async fn what_is_no_number_is_written_as_set() {
    let nan = r#"{"inputs":[{"name":"x","shape":[3],"datatype":"FP32","data":[NaN,1e39,-Infinity]}]}"#;
    for (style, expected) in
        [(crate::codec::NanStyle::Bare, "[NaN,Infinity,-Infinity]"), (crate::codec::NanStyle::Null, "[null,null,null]")]
    {
        let settings = HttpSettings { nan: style, ..HttpSettings::default() };
        let port = Port::start(settings, vec![model("m", 1, identity(DataType::Fp32, &[-1]))]).await;
        let reply = port.post(INFER, &[], nan).await;
        assert!(reply.text().ends_with(&format!("\"data\":{expected}}}]}}")), "{}", reply.text());
        port.stop().await;
    }
}

#[tokio::test]
async fn a_failing_model_shows_nothing_but_the_request() {
    let failing = FakeModel { fail_run_every: Some(1), ..identity(DataType::Int32, &[-1, 2]) };
    let port = Port::start(HttpSettings::default(), vec![model("m", 1, failing)]).await;
    let reply = port.post(INFER, &[("x-request-id", "r-7")], PAIR).await;
    assert_eq!(reply.error(), (500, "internal error; request id r-7".to_owned()));
    port.stop().await;
}

#[tokio::test]
async fn deadlines_end_a_wait() {
    let port = Port::start(HttpSettings::default(), vec![model("m", 1, blocking())]).await;
    let body = r#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT32","data":[5]}]}"#;
    let by_parameter = body.replacen('{', r#"{"parameters":{"timeout":1000},"#, 1);
    for (headers, body) in [
        (&[("x-bascule-timeout-ms", "1")][..], body.to_owned()),
        (&[], by_parameter.clone()),
        (&[("x-bascule-timeout-ms", "3600000")], by_parameter),
        (&[("x-bascule-timeout-ms", "0")], body.to_owned()),
    ] {
        let reply = port.post(INFER, headers, body).await;
        assert_eq!(reply.error(), (504, "the deadline of the request has passed".to_owned()), "{headers:?}");
    }
    port.log.release();
    port.stop().await;
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let small = ModelSettings { queue_capacity: 1, ..settings() };
    let port = Port::start(HttpSettings::default(), vec![Stocked("m", 1, blocking(), small)]).await;
    let body = r#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT32","data":[5]}]}"#;
    let servable = port.servable("m");
    let running = tokio::spawn(http1_request(port.addr, body));
    let log = Arc::clone(&port.log);
    eventually("one runs", || log.counts().blocked == 1).await;
    let queued = tokio::spawn(http1_request(port.addr, body));
    eventually("one waits", || servable.queued() == 1).await;
    let reply = port.post(INFER, &[], body).await;
    assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, Some("1")));
    // Also who has sent no more than a head.
    let mut unsent = port.connect().await;
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    unsent.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    unsent.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 429");
    drop(unsent);
    port.log.release();
    for waiting in [running, queued] {
        assert_eq!(waiting.await.unwrap(), StatusCode::OK);
    }
    port.stop().await;
}

async fn http1_request(addr: SocketAddr, body: &'static str) -> StatusCode {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(request(Method::POST, INFER, &[], body)).await.unwrap();
    response.status()
}
