//! Writes the small ONNX models that tests need, so that no test needs Python or a download.
//!
//! [`models`] has the models by name; [`Graph`] makes others. [`library`] says where tests find ONNX Runtime. The protobuf messages
//! are the part of `onnx.proto` that is written here, by its published field numbers; nothing is checked: a wrong graph is a way
//! to test what a runtime says to it.

#![warn(missing_docs)]

mod graph;
pub mod library;
pub mod models;
mod proto;

pub use graph::{Attribute, Graph, OnnxModel};
