//! The gateway's face to its callers: HTTP, gRPC, the admin API, and the codecs behind them.
//!
//! Everything here turns bytes into requests of the serving engine and answers back into bytes; what comes from the network is checked
//! and never panics. Deliberately absent: models, versions and their lives, which are the engine's.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

pub mod admin;
mod answered_by;
mod aside;
pub mod codec;
pub mod describe;
pub mod errors;
pub mod grpc;
pub mod http;
pub mod metrics;
mod patience;
mod port;
mod request_id;
mod trust;

#[cfg(test)]
mod sandbox;
