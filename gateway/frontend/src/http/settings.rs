//! What an operator may set, with defaults that hold for a server that anybody can reach.

use std::time::Duration;

use super::watch::Timeouts;
use crate::codec::NanStyle;

/// Limits and time-outs of the HTTP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// The largest body, both as sent and as decompressed; also the most that the tensors in one JSON may take. Default 64 MiB.
    pub max_body_bytes: usize,
    /// The most that all bodies under way may take together; beyond it requests are answered with 429. Default 1 GiB.
    pub max_buffered_bytes: usize,
    /// The largest head of a request. Default 64 KiB.
    pub max_header_bytes: usize,
    /// Connections at one time; more wait to be accepted. Default 4096.
    pub max_connections: usize,
    /// Requests at one time on one HTTP/2 connection. Default 128.
    pub max_streams: u32,
    /// How long the head of a request may take from its first byte on. Default 10 s.
    pub header_timeout: Duration,
    /// How long a body may pause. Default 10 s.
    pub body_stall_timeout: Duration,
    /// How long a whole body may take. Default 2 min.
    pub body_timeout: Duration,
    /// How long a caller may read nothing of an answer. Default 30 s.
    pub write_timeout: Duration,
    /// How long a connection without a request is kept. Default 75 s.
    pub idle_timeout: Duration,
    /// How long requests may go on after the shutdown was asked for. Default 30 s.
    pub drain_timeout: Duration,
    /// How JSON answers show what is no number. Default bare words, as Triton.
    pub nan: NanStyle,
    /// Whether load and unload are obeyed from addresses other than loopback. Default false: there is no authentication.
    pub remote_repository_commands: bool,
}

impl HttpSettings {
    /// What a connection's watch goes by.
    pub(crate) fn timeouts(&self) -> Timeouts {
        Timeouts { header: self.header_timeout, write: self.write_timeout, idle: self.idle_timeout, stall: self.body_stall_timeout }
    }
}

impl Default for HttpSettings {
    fn default() -> Self {
        HttpSettings {
            max_body_bytes: 64 << 20,
            max_buffered_bytes: 1 << 30,
            max_header_bytes: 64 << 10,
            max_connections: 4096,
            max_streams: 128,
            header_timeout: Duration::from_secs(10),
            body_stall_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_mins(2),
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            drain_timeout: Duration::from_secs(30),
            nan: NanStyle::Bare,
            remote_repository_commands: false,
        }
    }
}
