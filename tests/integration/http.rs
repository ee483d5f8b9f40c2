//! A small HTTP/1.1 client over a plain socket, so that a test can send what no well-behaved client would.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::sandbox::PATIENCE;

/// A whole answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// 0 where the connection was closed without one.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// After chunking, before decompression.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("expected JSON, got {self:?}: {error}"))
    }

    /// The body as JSON, or null where it is none.
    pub fn json_or_null(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The text of an error answer.
    pub fn error(&self) -> String {
        self.json_or_null()["error"].as_str().unwrap_or_default().to_owned()
    }
}

/// A connection that is kept.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> std::io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads one answer; status 0 where the other side closed or reset the connection first. Fails the test where it does neither.
    pub fn receive(&mut self) -> Answer {
        self.try_receive().unwrap_or_default()
    }

    fn try_receive(&mut self) -> Option<Answer> {
        let mut answer = Answer { status: self.line()?.split(' ').nth(1)?.parse().ok()?, ..Answer::default() };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            answer.headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
        if answer.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            while let Some(length) = usize::from_str_radix(self.line()?.trim(), 16).ok().filter(|length| *length > 0) {
                answer.body.extend(self.exactly(length)?);
                self.line()?;
            }
            self.line()?;
        } else if let Some(length) = answer.header("content-length").and_then(|value| value.parse().ok()) {
            answer.body = self.exactly(length)?;
        }
        Some(answer)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(1..) => Some(line.trim_end().to_owned()),
            Ok(0) => None,
            Err(error) => {
                expect_an_end(&error);
                None
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut body = vec![0; length];
        match self.stream.read_exact(&mut body) {
            Ok(()) => Some(body),
            Err(error) => {
                expect_an_end(&error);
                None
            }
        }
    }

    /// Sends one request and reads its answer.
    pub fn call(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) && (method == "POST" || !body.is_empty()) {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        // The other side may answer and close before it has read everything: the answer counts.
        drop(self.send(&[head.as_bytes(), body].concat()));
        self.receive()
    }
}

/// One request on a connection of its own; status 0 where there is no answer.
pub fn call(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    match Connection::open(address) {
        Ok(mut connection) => connection.call(method, path, headers, body),
        Err(error) => {
            expect_an_end(&error);
            Answer::default()
        }
    }
}

/// Fails the test where a connection did not end but hangs.
pub fn expect_an_end(error: &Error) {
    let hangs = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    assert!(!hangs, "the other side neither answers nor ends the connection within {PATIENCE:?}: {error}");
}

/// A GET.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    call(address, "GET", path, &[], &[])
}

/// A POST of JSON.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    call(address, "POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
}
