//! Requests that no well-behaved client sends: each gets a 4xx that names what is wrong, and the gateway serves on.

use std::io::Write;
use std::net::TcpStream;

use bascule_onnx_writer::models::{constant, identity};
use bascule_runtime_api::DataType;
use serde_json::json;

use crate::http::{Connection, call, get};
use crate::lifecycle::ask;
use crate::sandbox::{Gateway, Sandbox};

fn sandbox() -> Option<(Sandbox, Gateway)> {
    let sandbox =
        Sandbox::new()?.set("server.max_body_bytes=1MiB").set("server.header_timeout=500ms").set("server.body_timeout=500ms");
    sandbox.plain("m", 1, &constant(1.0, 2));
    sandbox.plain("text", 1, &identity(DataType::Bytes, &[-1]));
    sandbox.plain("int8", 1, &identity(DataType::Int8, &[-1]));
    let gateway = sandbox.serve().ready();
    Some((sandbox, gateway))
}

#[test]
fn bodies_that_are_wrong_get_a_4xx_that_names_the_field() {
    let Some((_sandbox, gateway)) = sandbox() else { return };
    let deep = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":{}1{}}}]}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let input = |fields: &str| format!("{{\"inputs\":[{{{fields}}}]}}");
    let x = |rest: &str| input(&format!("\"name\":\"x\",{rest}"));
    let cases: Vec<(&str, String, u16, &str)> = vec![
        ("m", "{\"inputs\":[".into(), 400, ""),
        ("m", "\u{0}".into(), 400, ""),
        ("m", String::new(), 400, ""),
        ("m", x("\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1]"), 400, "x"),
        ("m", x("\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[1,2,3]"), 400, "x"),
        ("m", x("\"shape\":[-1,2],\"datatype\":\"FP32\",\"data\":[1,2]"), 400, "x"),
        ("m", x("\"shape\":[9223372036854775807],\"datatype\":\"FP32\",\"data\":[1]"), 400, "x"),
        ("m", x("\"shape\":[9223372036854775807,9223372036854775807],\"datatype\":\"FP32\",\"data\":[]"), 400, "x"),
        ("m", x("\"shape\":[99999999999999999999],\"datatype\":\"FP32\",\"data\":[1]"), 400, "shape"),
        ("m", x("\"shape\":[1.5,2],\"datatype\":\"FP32\",\"data\":[1,2]"), 400, "shape"),
        ("m", x("\"shape\":[1,2],\"datatype\":\"FP31\",\"data\":[1,2]"), 400, "datatype"),
        ("m", x("\"shape\":[1,2],\"datatype\":\"FP32\",\"data\":[\"a\",2]"), 400, "x"),
        ("m", deep, 400, ""),
        ("int8", input("\"name\":\"x\",\"shape\":[1],\"datatype\":\"INT8\",\"data\":[128]"), 400, "x"),
        ("int8", input("\"name\":\"x\",\"shape\":[1],\"datatype\":\"INT8\",\"data\":[NaN]"), 400, "x"),
        ("int8", input("\"name\":\"x\",\"shape\":[1],\"datatype\":\"INT8\",\"data\":[1e400]"), 400, "x"),
        ("m", x("\"shape\":[1,2],\"datatype\":\"FP32\",\"parameters\":{\"binary_data_size\":99999999}"), 400, "x"),
        ("m", x("\"shape\":[1,2],\"datatype\":\"FP32\",\"parameters\":{\"binary_data_size\":-8}"), 400, "binary_data_size"),
        ("nope", "{".into(), 404, "nope"),
        ("..%2f..%2fetc", "{}".into(), 404, ""),
        ("%00", "{}".into(), 404, ""),
    ];
    for (model, body, status, named) in cases {
        let shown: String = body.chars().take(120).collect();
        let answer = call(gateway.http, "POST", &format!("/v2/models/{model}/infer"), &[], body.as_bytes());
        assert_eq!(answer.status, status, "{shown}: {}", answer.text());
        assert!(answer.error().contains(named) && !answer.error().is_empty(), "{shown}: expected '{named}' in {}", answer.text());
    }
    let invalid_utf8 = [b"{\"inputs\":[{\"name\":\"".as_slice(), &[0xff, 0xfe], b"\"}]}"].concat();
    assert_eq!(call(gateway.http, "POST", "/v2/models/m/infer", &[], &invalid_utf8).status, 400);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
}

#[test]
fn header_lengths_that_lie_are_refused() {
    let Some((_sandbox, gateway)) = sandbox() else { return };
    let head = json!({ "inputs": [{ "name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": { "binary_data_size": 8 } }] })
        .to_string();
    let body = [head.as_bytes(), &[0; 8]].concat();
    let length = head.len();
    for wrong in [
        (length + 1).to_string(),
        (length - 1).to_string(),
        "99999999999999999999".into(),
        "-1".into(),
        "1.5".into(),
        (length + 9).to_string(),
        String::new(),
    ] {
        let answer = call(gateway.http, "POST", "/v2/models/m/infer", &[("Inference-Header-Content-Length", &wrong)], &body);
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.text());
    }
    let right = length.to_string();
    let headers = [("Inference-Header-Content-Length", right.as_str())];
    assert_eq!(call(gateway.http, "POST", "/v2/models/m/infer", &headers, &body).status, 200);
    assert_eq!(
        call(gateway.http, "POST", "/v2/models/m/infer", &headers, &[&body[..], &[0]].concat()).status,
        400,
        "trailing bytes"
    );
    assert_eq!(call(gateway.http, "POST", "/v2/models/m/infer", &headers, &body[..length + 7]).status, 400, "truncated bytes");
}

#[test]
fn too_much_is_refused_before_it_is_read() {
    let Some((_sandbox, gateway)) = sandbox() else { return };
    let before = gateway.rss();
    let answer = call(gateway.http, "POST", "/v2/models/m/infer", &[("Content-Length", "1099511627776")], b"{");
    assert_eq!(answer.status, 413, "{}", answer.text());
    // A bomb: a megabyte of zeros and more, in a few kilobytes.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![b' '; 64 << 20]).unwrap();
    let bomb = encoder.finish().unwrap();
    let answer = call(gateway.http, "POST", "/v2/models/m/infer", &[("Content-Encoding", "gzip")], &bomb);
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(gateway.rss() < before + (64 << 20), "memory grew from {before} to {}", gateway.rss());
}

#[test]
fn slow_clients_are_cut_off() {
    let Some((_sandbox, gateway)) = sandbox() else { return };
    let mut head = Connection::open(gateway.http).unwrap();
    head.send(b"POST /v2/models/m/infer HTT").unwrap();
    // Nothing was asked that could be answered.
    assert_eq!(head.receive().status, 0, "a stalled head");
    let mut body = Connection::open(gateway.http).unwrap();
    body.send(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").unwrap();
    assert_eq!(body.receive().status, 408, "a stalled body");
    // And both connections are gone.
    for mut connection in [head, body] {
        assert_eq!(connection.receive().status, 0);
    }
}

#[test]
fn what_is_not_http_does_no_harm() {
    let Some((_sandbox, gateway)) = sandbox() else { return };
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01".as_slice(),
        &[0; 512],
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        for address in [gateway.http, gateway.grpc, gateway.admin] {
            let mut stream = TcpStream::connect(address).unwrap();
            // The other side may close at the first byte.
            drop(stream.write_all(bytes));
            drop(stream.shutdown(std::net::Shutdown::Write));
        }
    }
    assert_eq!(get(gateway.http, "/v2/health/live").status, 200);
    assert_eq!(ask(&gateway, "/v2/models/m/infer"), (200, 1.0));
}

#[test]
fn classification_of_text_is_refused_and_unserved_parts_say_so() {
    let Some((_sandbox, gateway)) = sandbox() else { return };
    let body = json!({
        "inputs": [{ "name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"] }],
        "outputs": [{ "name": "y", "parameters": { "classification": 1 } }]
    });
    let answer = crate::http::post(gateway.http, "/v2/models/text/infer", &body);
    assert_eq!(answer.status, 400, "{}", answer.text());
    for path in ["/v2/models/m/generate", "/v2/systemsharedmemory/region/a/register", "/v2/models/m/trace/setting", "/v2/logging"] {
        let answer = call(gateway.http, "POST", path, &[], b"{}");
        assert_eq!(answer.status, 501, "{path}: {}", answer.text());
        assert!(!answer.error().is_empty());
    }
}
