//! The bytes of the protocol over HTTP: JSON, the binary tensor extension, and classification, both ways.
//!
//! Invariant: whatever the bytes are, a codec returns a request or an error that names the field and what was expected; it never panics
//! and never allocates for what a number in the text claims. Deliberately absent: HTTP itself, and what a model expects, except where a
//! raw body is read by it.

mod binary;
mod classification;
mod cursor;
mod elements;
mod json_in;
mod json_out;
mod number;
mod parameters;

use std::time::Duration;

use bascule_serving::{InferError, InferRequest};
use bytes::Bytes;
use smallvec::SmallVec;

pub use binary::{Framing, decode_raw};
pub use classification::classify;
pub(crate) use json_in::{MAX_RANK, MAX_TENSORS};
pub use json_out::{Encoded, NanStyle, Rendered, encode, json_bytes, write_string};
pub(crate) use parameters::shown;
pub use parameters::version_choice;

/// A request as it came.
#[derive(Debug)]
pub struct DecodedRequest {
    /// The caller's own id, to be sent back.
    pub id: Option<String>,
    /// What the engine is asked. Version, key and priority are those of the body's parameters; the deadline is not set.
    pub infer: InferRequest,
    /// How long the caller waits, by the body's parameter.
    pub timeout: Option<Duration>,
    /// How outputs are sent.
    pub outputs: OutputChoices,
    /// Members and parameters that have no meaning here.
    pub ignored: u32,
    /// Tensors that were copied because they lay at an address that their type can't be read from.
    pub copied: u32,
}

/// How a request wants its outputs.
#[derive(Debug, Clone, Default)]
pub struct OutputChoices {
    listed: SmallVec<[json_in::DescribedOutput; 1]>,
    binary_by_default: bool,
}

/// How one output is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputChoice {
    /// In the binary section instead of the JSON.
    pub binary: bool,
    /// The best so many classes instead of the values; 0 for the values.
    pub classes: usize,
}

impl OutputChoices {
    /// How the output of this name is sent. Where it was listed twice the first one counts.
    pub fn of(&self, name: &str) -> OutputChoice {
        let listed = self.listed.iter().find(|output| output.name == name).map(|output| output.parameters);
        let parameters = listed.unwrap_or_default();
        OutputChoice { binary: parameters.binary_data.unwrap_or(self.binary_by_default), classes: parameters.classification }
    }
}

/// Reads a body that begins with JSON. Tensors within the JSON may take `max_tensor_bytes` together; those of the binary section share
/// the body's bytes.
///
/// # Errors
/// [`InferError::InvalidArgument`], [`InferError::TooLarge`] or [`InferError::Unsupported`], with the field and what was expected.
pub fn decode(body: &Bytes, framing: Framing, max_tensor_bytes: usize) -> Result<DecodedRequest, InferError> {
    outline(body, framing, max_tensor_bytes)?.fill()
}

/// A body whose JSON is read, and whose binary section is still to be divided.
#[derive(Debug)]
pub struct Outline {
    described: json_in::Described,
    section: Bytes,
}

/// Reads only the JSON of a body, as [`decode`] does.
///
/// # Errors
/// As those of [`decode`] that are about the JSON.
pub fn outline(body: &Bytes, framing: Framing, max_tensor_bytes: usize) -> Result<Outline, InferError> {
    let json_bytes = framing.json_bytes(body.len())?;
    let described = json_in::describe(&body[..json_bytes], max_tensor_bytes)?;
    Ok(Outline { described, section: body.slice(json_bytes..) })
}

impl Outline {
    /// How many bytes of the binary section [`Outline::fill`] has to look at or copy; the others are only pointed at.
    pub fn work_bytes(&self) -> usize {
        binary::work_bytes(&self.described, &self.section)
    }

    /// Gives each binary input its part of the section.
    ///
    /// # Errors
    /// As those of [`decode`] that are about the binary section.
    pub fn fill(self) -> Result<DecodedRequest, InferError> {
        binary::attach(self.described, self.section)
    }
}

#[cfg(test)]
mod properties;
