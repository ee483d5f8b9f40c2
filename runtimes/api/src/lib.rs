//! The seam between the serving engine and whatever executes a model.
//!
//! A [`Runtime`] turns files on disk into a [`Session`]; a session turns input [`Tensor`]s into output tensors. Neither knows
//! the name of its model, its version, or the protocol that carried a request. Everything here blocks: the engine decides on
//! which thread a call runs.
//!
//! Deliberately absent: queues, batching, versions, names, async.

#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

pub mod conformance;
mod datatype;
pub mod plugin;
mod runtime;
mod signature;
mod tensor;

pub use datatype::{DataType, UnknownDataType};
pub use runtime::{
    Device, Footprint, Interrupt, LoadError, LoadOptions, RunContext, RunError, Runtime, Session, UnknownDevice, switch,
};
pub use signature::{Side, Signature, SignatureError, TensorSpec};
pub use tensor::{AlignedBuffer, BytesElements, Element, Shape, Tensor, TensorError, element_count};
