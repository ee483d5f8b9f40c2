//! The parameters of a request, of an input and of an output.
//!
//! What has a meaning is read strictly; what has none is counted and left aside, as long as it is a string, a number or a truth value.
//! Where a name comes twice the first one counts. Deliberately absent: shared memory.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::{VersionNumber, check_version, parse_version};
use bascule_serving::{InferError, VersionChoice};

use super::cursor::{Cursor, Unexpected};

const UNSIGNED: &str = "an integer of 0 or more";
const BOOLEAN: &str = "true or false";
const STRING: &str = "a string";
const SIMPLE: &str = "a string, a number, true or false";

/// What a request says beside its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RequestParameters {
    /// How long the caller waits; absent where 0.
    pub(crate) timeout: Option<Duration>,
    /// 1 is the highest, 0 the model's default.
    pub(crate) priority: u64,
    /// Ties requests together; absent where 0 or empty.
    pub(crate) sequence_id: Option<Arc<[u8]>>,
    /// Which version.
    pub(crate) version: Option<VersionChoice>,
    /// Whether outputs that say nothing of their own are sent as bytes.
    pub(crate) binary_data_output: bool,
}

/// What an input says beside its tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct InputParameters {
    /// Bytes of the binary section that belong to it.
    pub(crate) binary_data_size: Option<usize>,
}

/// What a requested output says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct OutputParameters {
    /// Whether it is sent as bytes; absent for the request's default.
    pub(crate) binary_data: Option<bool>,
    /// The best so many classes instead of the values; 0 for the values.
    pub(crate) classification: usize,
}

/// A version as a header or parameter writes it: a number or an alias.
///
/// # Errors
/// Where it is neither.
pub fn version_choice(text: &str) -> Result<VersionChoice, InferError> {
    const MAX_ALIAS_BYTES: usize = 256;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(VersionChoice::Number(parse_version(text).map_err(|error| InferError::invalid(error.to_string()))?));
    }
    if text.len() > MAX_ALIAS_BYTES {
        return Err(InferError::invalid(format!("version: expected a number or an alias of at most {MAX_ALIAS_BYTES} bytes")));
    }
    Ok(VersionChoice::Alias(text.to_owned()))
}

/// Reads the object `parameters` of a request.
pub(crate) fn request_parameters(cursor: &mut Cursor<'_>, ignored: &mut u32) -> Result<RequestParameters, InferError> {
    let mut timeout: Option<u64> = None;
    let mut priority: Option<u64> = None;
    let mut sequence: Option<Vec<u8>> = None;
    let mut version: Option<VersionChoice> = None;
    let mut binary: Option<bool> = None;
    each(cursor, &"request", |cursor, name| {
        match name {
            "timeout" => keep(&mut timeout, cursor.unsigned(UNSIGNED)?),
            "priority" => keep(&mut priority, cursor.unsigned(UNSIGNED)?),
            "sequence_id" => keep(&mut sequence, sequence_id(cursor)?),
            "sequence_start" | "sequence_end" => drop(cursor.boolean(BOOLEAN)?),
            "version" => keep(&mut version, version_parameter(cursor)?),
            "binary_data_output" => keep(&mut binary, cursor.boolean(BOOLEAN)?),
            name if name.starts_with("triton_") => {
                let message = format!("request: parameter '{}': names that begin with 'triton_' are reserved", shown(name));
                return Err(InferError::invalid(message).into());
            }
            _ => ignore(cursor, ignored)?,
        }
        Ok(())
    })?;
    Ok(RequestParameters {
        timeout: timeout.filter(|micros| *micros > 0).map(Duration::from_micros),
        priority: priority.unwrap_or_default(),
        sequence_id: sequence.filter(|id| !id.is_empty() && id != b"0").map(Arc::from),
        version,
        binary_data_output: binary.unwrap_or_default(),
    })
}

/// Reads the object `parameters` of an input.
pub(crate) fn input_parameters(
    cursor: &mut Cursor<'_>,
    label: &dyn Display,
    ignored: &mut u32,
) -> Result<InputParameters, InferError> {
    let mut size: Option<usize> = None;
    each(cursor, label, |cursor, name| {
        match name {
            "binary_data_size" => keep(&mut size, count(cursor)?),
            name if name.starts_with("shared_memory_") => return Err(shared_memory(label, name).into()),
            _ => ignore(cursor, ignored)?,
        }
        Ok(())
    })?;
    Ok(InputParameters { binary_data_size: size })
}

/// Reads the object `parameters` of a requested output.
pub(crate) fn output_parameters(
    cursor: &mut Cursor<'_>,
    label: &dyn Display,
    ignored: &mut u32,
) -> Result<OutputParameters, InferError> {
    let mut binary_data: Option<bool> = None;
    let mut classes: Option<usize> = None;
    each(cursor, label, |cursor, name| {
        match name {
            "binary_data" => keep(&mut binary_data, cursor.boolean(BOOLEAN)?),
            "classification" => keep(&mut classes, count(cursor)?),
            name if name.starts_with("shared_memory_") => return Err(shared_memory(label, name).into()),
            _ => ignore(cursor, ignored)?,
        }
        Ok(())
    })?;
    Ok(OutputParameters { binary_data, classification: classes.unwrap_or_default() })
}

/// A name from the network, cut for an error.
pub(crate) fn shown(name: &str) -> String {
    const SHOWN: usize = 64;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

enum Refused {
    Unexpected(Unexpected),
    Error(InferError),
}

impl From<Unexpected> for Refused {
    fn from(unexpected: Unexpected) -> Refused {
        Refused::Unexpected(unexpected)
    }
}

impl From<InferError> for Refused {
    fn from(error: InferError) -> Refused {
        Refused::Error(error)
    }
}

fn each<'a>(
    cursor: &mut Cursor<'a>,
    label: &dyn Display,
    mut parameter: impl FnMut(&mut Cursor<'a>, &str) -> Result<(), Refused>,
) -> Result<(), InferError> {
    let text = cursor.text();
    let outside = |error: Unexpected| error.in_field(text, format_args!("{label}: 'parameters'"));
    cursor.expect(b'{', "an object").map_err(outside)?;
    let mut first = true;
    while let Some(name) = cursor.next_member(&mut first).map_err(outside)? {
        parameter(cursor, &name).map_err(|refused| match refused {
            Refused::Unexpected(error) => error.in_field(text, format_args!("{label}: parameter '{}'", shown(&name))),
            Refused::Error(error) => error,
        })?;
    }
    Ok(())
}

fn keep<T>(slot: &mut Option<T>, value: T) {
    slot.get_or_insert(value);
}

fn count(cursor: &mut Cursor<'_>) -> Result<usize, Unexpected> {
    let at = cursor.mark();
    usize::try_from(cursor.unsigned(UNSIGNED)?).map_err(|_| Unexpected { at, expected: UNSIGNED })
}

fn sequence_id(cursor: &mut Cursor<'_>) -> Result<Vec<u8>, Unexpected> {
    const EXPECTED: &str = "an integer of 0 or more, or a string";
    if cursor.peek() == Some(b'"') {
        return cursor.string(EXPECTED).map(|id| id.into_owned().into_bytes());
    }
    cursor.unsigned(EXPECTED).map(|id| id.to_string().into_bytes())
}

fn version_parameter(cursor: &mut Cursor<'_>) -> Result<VersionChoice, Refused> {
    const EXPECTED: &str = "a version number or an alias";
    if cursor.peek() == Some(b'"') {
        return Ok(version_choice(&cursor.string(STRING)?)?);
    }
    let at = cursor.mark();
    let number: VersionNumber = cursor.unsigned(EXPECTED)?;
    check_version(number).map_err(|_| Unexpected { at, expected: EXPECTED })?;
    Ok(VersionChoice::Number(number))
}

/// Skips a parameter that has no meaning here, where its kind is one that parameters may have.
fn ignore(cursor: &mut Cursor<'_>, ignored: &mut u32) -> Result<(), Unexpected> {
    match cursor.peek() {
        Some(b'{' | b'[' | b'n') | None => return Err(cursor.unexpected(SIMPLE)),
        Some(_) => cursor.skip_value()?,
    }
    *ignored = ignored.saturating_add(1);
    Ok(())
}

fn shared_memory(label: &dyn Display, name: &str) -> InferError {
    InferError::Unsupported { what: format!("shared memory (parameter '{}' of {label})", shown(name)) }
}
