//! ONNX models, executed by ONNX Runtime.
//!
//! The library is opened at run time, once per process, and only after a look at its version: a missing, old or damaged one is a
//! [`LoadError::Unavailable`](bascule_runtime_api::LoadError) that names every file looked for. Each load makes a session of its own,
//! by default with one thread and no pool. Inputs are lent to the library where they are aligned; outputs are copied into buffers of
//! ours, so that nothing of a session lives on after a run.
//!
//! What was asked for is what runs: a provider that is not there, or a node that would run elsewhere, fails the load.
//!
//! Libraries with custom operators are opened where they are named; their code runs in this process.
//!
//! Deliberately absent: models in memory.

#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod files;
mod library;
mod message;
mod providers;
mod runtime;
mod session;
mod settings;
mod signature;
mod value;

pub use runtime::{OnnxConfig, OnnxRuntime};
