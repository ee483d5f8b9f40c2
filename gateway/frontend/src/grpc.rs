//! The protocol over gRPC, with health and reflection beside it.
//!
//! [`serve`] owns the port: it accepts connections, hands their calls through one intake (request id, deadline, panic guard) to the
//! services, and on shutdown tells every client to go elsewhere, finishes what is in flight and ends, however idle
//! connections are. Invariant: what comes from the network is refused by name and never panics. Deliberately absent: shared memory,
//! tracing and log settings, which answer `UNIMPLEMENTED`.

mod budget;
mod call;
mod codec;
mod connection;
mod decode;
mod dispatch;
mod encode;
mod guard;
mod health;
mod infer;
mod intake;
mod listener;
mod messages;
pub mod meters;
mod packing;
mod receive;
mod reply;
mod service;
mod status;
mod stream;
mod watch;
mod wire;
mod workers;

use std::time::Duration;

pub use self::infer::read_request;
pub use self::listener::serve;

/// How the port behaves. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcSettings {
    /// One request, as it comes and decompressed.
    pub max_request_bytes: usize,
    /// All requests under way and answers that are not read yet together; a request beyond it is refused.
    pub max_buffered_bytes: usize,
    /// Header fields of one request together.
    pub max_header_bytes: u32,
    /// Connections at one time; more wait to be accepted.
    pub max_connections: usize,
    /// Calls at one time on one connection.
    pub max_calls: u32,
    /// Requests of one stream that are answered side by side.
    pub max_stream_requests: usize,
    /// Unread bytes of one call. Large windows and frames make large tensors three times as fast.
    pub stream_window_bytes: u32,
    /// Unread bytes of one connection.
    pub connection_window_bytes: u32,
    /// One frame.
    pub max_frame_bytes: u32,
    /// How long a client may take to say that it speaks HTTP/2.
    pub handshake_timeout: Duration,
    /// How long a message may stand still.
    pub body_stall_timeout: Duration,
    /// How long a whole message may take.
    pub body_timeout: Duration,
    /// How long a client may read nothing of an answer.
    pub write_timeout: Duration,
    /// How often a connection is asked whether it is alive.
    pub keepalive_interval: Duration,
    /// How long it may take to answer.
    pub keepalive_timeout: Duration,
    /// How long calls may go on after the shutdown has begun.
    pub drain_timeout: Duration,
    /// Whether load and unload are obeyed from addresses other than loopback: there is no authentication.
    pub remote_repository_commands: bool,
}

impl Default for GrpcSettings {
    fn default() -> Self {
        GrpcSettings {
            max_request_bytes: 64 << 20,
            max_buffered_bytes: 1 << 30,
            max_header_bytes: 16 << 10,
            max_connections: 4096,
            max_calls: 256,
            max_stream_requests: 16,
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 16 << 20,
            max_frame_bytes: 1 << 20,
            handshake_timeout: Duration::from_secs(10),
            body_stall_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_mins(2),
            write_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            drain_timeout: Duration::from_secs(30),
            remote_repository_commands: false,
        }
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
