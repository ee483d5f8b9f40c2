//! Protobuf text format into a message, driven by its descriptor.
//!
//! Repositories write `input [ { name: "x" } ]`, a list without a colon, which the format allows and
//! `prost-reflect`'s own reader refuses; nor does that reader tell where it stopped. This one says
//! the line, the column and the path of the field.
//!
//! Values nest only as deep as the message types do, because an unknown field is refused before its
//! value is read: no input can exhaust the stack as long as no type contains itself.
//!
//! Absent on purpose: extensions and `Any`, which no configuration uses, and writing.

mod parse;
mod token;

use std::fmt;

use prost_reflect::{DynamicMessage, MessageDescriptor};

/// Reads `text` as a message of type `descriptor`.
///
/// # Errors
///
/// The first thing that does not fit, with its place.
pub fn parse(descriptor: &MessageDescriptor, text: &str) -> Result<DynamicMessage, PbtxtError> {
    parse::Parser::new(text).message(descriptor)
}

/// Why a text was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PbtxtError {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// The path of the field, such as `input[0].dims[1]`; empty outside of any field.
    pub field: String,
    pub problem: Problem,
}

impl fmt::Display for PbtxtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "field {}: ", self.field)?;
        }
        self.problem.fmt(f)
    }
}

/// What did not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A character that begins nothing, or a malformed literal.
    #[error("{0}")]
    Malformed(&'static str),
    #[error("expected {expected}, found {found}")]
    Unexpected { expected: String, found: String },
    #[error("unknown field {name} in {message}")]
    UnknownField { name: String, message: String },
    #[error("unknown value {value} for {enumeration}")]
    UnknownEnumValue { value: String, enumeration: String },
    #[error("{literal} is out of range for {kind}")]
    OutOfRange { literal: String, kind: &'static str },
    #[error("text is not valid UTF-8")]
    InvalidUtf8,
    #[error("set more than once")]
    SetTwice,
    #[error("cannot be set beside {other}")]
    Conflict { other: String },
}

#[cfg(test)]
mod tests;
