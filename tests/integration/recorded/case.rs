//! The recorded cases as they lie in their folder: one request and the answer that a real Triton gave.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tonic::codec::CompressionEncoding;

/// One request and its recorded answer.
pub struct Case {
    pub id: String,
    pub ignored: Ignored,
    pub call: Call,
    pub answer: Answer,
}

/// What of an answer says nothing about the server.
pub struct Ignored {
    /// Places that differ from run to run.
    pub volatile: Vec<String>,
    /// The models that are here. The recorded server had more, of other backends, and lists name them.
    pub models: Rc<BTreeSet<String>>,
}

/// What is sent.
pub enum Call {
    Http {
        method: String,
        path: String,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// Bytes for a plain socket.
    Wire(Vec<u8>),
    Grpc {
        method: String,
        metadata: Vec<(String, String)>,
        compression: Option<CompressionEncoding>,
        messages: Vec<Bytes>,
    },
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Http(HttpAnswer),
    /// The connection was closed or reset.
    Closed,
    /// What was sent is no answer of HTTP/1.
    Other(Vec<u8>),
    Grpc {
        code: i32,
        text: String,
        messages: Vec<Bytes>,
    },
}

impl Answer {
    /// Reads an answer out of the bytes of a connection that was read to its end.
    pub fn read(bytes: Vec<u8>) -> Answer {
        match HttpAnswer::parse(&bytes) {
            Some(answer) => Answer::Http(answer),
            None if bytes.is_empty() => Answer::Closed,
            None => Answer::Other(bytes),
        }
    }
}

/// An answer over HTTP/1.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpAnswer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpAnswer {
    fn parse(bytes: &[u8]) -> Option<HttpAnswer> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let mut lines = std::str::from_utf8(&bytes[..end]).ok()?.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        Some(HttpAnswer { status, headers, body: bytes[end + 4..].to_vec() })
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Deserialize)]
struct File {
    seq: u64,
    id: String,
    transport: String,
    volatile_response_fields: Vec<String>,
    request: Value,
    response: Value,
}

#[derive(Deserialize)]
struct Message {
    bytes_b64: String,
}

/// The cases of a folder in the order in which they were recorded: later ones see what earlier ones loaded and unloaded.
pub fn read_all(folder: &Path, models: BTreeSet<String>) -> Vec<Case> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        let text = std::fs::read(&path).unwrap();
        let file: File = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        files.push(file);
    }
    files.sort_by_key(|file| file.seq);
    let models = Rc::new(models);
    files.into_iter().map(|file| read(file, &models)).collect()
}

fn read(file: File, models: &Rc<BTreeSet<String>>) -> Case {
    let (request, response) = (&file.request, &file.response);
    let (call, answer) = match file.transport.as_str() {
        "http" if request["raw"] == true => {
            let closed = response["status_line"].as_str().is_some_and(|line| line.starts_with('<'));
            let answer = if closed { Answer::Closed } else { Answer::read(body(response)) };
            (Call::Wire(body(request)), answer)
        }
        "http" => (http_call(request), http_answer(response)),
        "grpc" => (grpc_call(request), grpc_answer(response)),
        other => panic!("{}: unknown transport '{other}'", file.id),
    };
    let ignored = Ignored { volatile: file.volatile_response_fields, models: Rc::clone(models) };
    Case { id: file.id, ignored, call, answer }
}

fn http_call(request: &Value) -> Call {
    let headers = request["headers"].as_object().unwrap().iter();
    let headers = headers.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    Call::Http { method: text(&request["method"]), path: text(&request["path"]), headers, body: body(request) }
}

fn http_answer(response: &Value) -> Answer {
    let status = response["status"].as_u64().unwrap().try_into().unwrap();
    let headers = pairs(&response["headers"]).into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    Answer::Http(HttpAnswer { status, headers, body: body(response) })
}

fn grpc_call(request: &Value) -> Call {
    // The numbers are those of gRPC's compression algorithms.
    let compression = request["compression"].as_str().map(|algorithm| match algorithm {
        "1" => CompressionEncoding::Deflate,
        "2" => CompressionEncoding::Gzip,
        other => panic!("unknown compression '{other}'"),
    });
    let metadata = pairs(&request["metadata"]);
    Call::Grpc { method: text(&request["rpc"]), metadata, compression, messages: messages(&request["messages"]) }
}

fn grpc_answer(response: &Value) -> Answer {
    let code = response["code_number"].as_i64().unwrap().try_into().unwrap();
    let text = response["details"].as_str().unwrap_or_default().to_owned();
    Answer::Grpc { code, text, messages: messages(&response["messages"]) }
}

fn messages(list: &Value) -> Vec<Bytes> {
    let list: Vec<Message> = serde_json::from_value(list.clone()).unwrap();
    list.into_iter().map(|message| STANDARD.decode(message.bytes_b64).unwrap().into()).collect()
}

fn pairs(list: &Value) -> Vec<(String, String)> {
    serde_json::from_value(list.clone()).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn body(side: &Value) -> Vec<u8> {
    match side["body_b64"].as_str() {
        Some(encoded) => STANDARD.decode(encoded).unwrap(),
        None => side["body"].as_str().unwrap_or_default().as_bytes().to_vec(),
    }
}
