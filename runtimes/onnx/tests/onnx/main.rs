//! The ONNX runtime against real models and a real library; where there is no library, each test says that it is skipped.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod conformance;
mod fixture;
mod library;
mod loading;
mod running;
