//! Open Inference Protocol over HTTP/1.1 and HTTP/2, on one port.
//!
//! A connection is watched from accept to close: whoever sends nothing, sends slowly or does not read is cut off, and a caller that goes
//! away takes its queued work along, because its handler is dropped with it. Between the socket and the engine lie: routing, the body
//! within its caps, the codec, and one table of statuses.
//!
//! Invariant: no request makes a connection task panic, and none holds more memory than its caps say. Deliberately absent: TLS,
//! authentication, and the parts of Triton that are answered with 501.

mod answer;
mod body;
mod compression;
mod connection;
mod dispatch;
mod failure;
mod headers;
mod infer;
mod listen;
pub mod meters;
mod model;
mod repository;
mod routes;
mod settings;
pub(crate) mod watch;

pub use listen::serve;
pub use settings::HttpSettings;

#[cfg(test)]
mod tests;
