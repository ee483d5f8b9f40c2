//! The Open Inference Protocol as Rust types, and Triton's `config.pbtxt`.
//!
//! [`inference`] is generated from `protos/`, whose names and numbers are the contract of existing
//! clients. [`model_config`] reads and renders a model's configuration over the same descriptors, so
//! a field that is added to the schema is parsed, listed and rendered without a line of code here.
//!
//! Absent on purpose: what a configuration means, and any conversion to tensors. Both belong to the
//! crates that serve.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod datatype;
pub mod model_config;
pub mod pbtxt;

/// Messages, server trait and client of package `inference`. Every `bytes` field is a
/// [`prost::bytes::Bytes`].
#[allow(clippy::all, clippy::allow_attributes_without_reason, missing_docs, unused_qualifications, reason = "generated code")]
pub mod inference {
    tonic::include_proto!("inference");
}

/// The encoded `FileDescriptorSet` of package `inference`, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod wire_tests;
