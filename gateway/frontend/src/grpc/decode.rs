//! `ModelInferRequest` into a request of the engine. Raw contents stay in the buffer that received them.
//!
//! Invariant: each fault names the input, output or parameter and says what was expected; nothing is allocated for what a shape merely
//! claims. Deliberately absent: a comparison with the model's signature, which the engine makes, and shared memory.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bascule_proto::inference::infer_parameter::ParameterChoice;
use bascule_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use bascule_proto::inference::{InferParameter, InferTensorContents};
use bascule_runtime_api::{DataType, Element, Tensor, element_count};
use bascule_serving::{InferError, NamedTensor, VersionChoice};
use bytes::Bytes;
use smallvec::SmallVec;

use crate::codec::{MAX_RANK, MAX_TENSORS, shown, version_choice};

/// Parameters that a request, its inputs and its outputs may have together.
pub(crate) const MAX_PARAMETERS: usize = 1024;

/// What a request says beside its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RequestParameters {
    /// How long the caller waits; absent where 0.
    pub(crate) timeout: Option<Duration>,
    /// 1 is the highest, 0 the model's default.
    pub(crate) priority: u64,
    /// Ties requests together; absent where 0 or empty.
    pub(crate) sequence_id: Option<Arc<[u8]>>,
    /// Which version, by number or alias.
    pub(crate) version: Option<VersionChoice>,
}

/// A requested output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutputChoice {
    /// As in the request.
    pub(crate) name: String,
    /// The best so many classes instead of the values; 0 for the values.
    pub(crate) classes: usize,
}

/// Reads the parameters of a request. Those without a meaning are ignored, as long as they have a value.
pub(crate) fn request_parameters(parameters: HashMap<String, InferParameter>) -> Result<RequestParameters, InferError> {
    let mut read = RequestParameters::default();
    for (name, parameter) in parameters {
        let value = value("request", &name, parameter)?;
        match name.as_str() {
            "timeout" => {
                read.timeout = Some(unsigned("request", &name, &value)?).filter(|micros| *micros > 0).map(Duration::from_micros)
            }
            "priority" => read.priority = unsigned("request", &name, &value)?,
            "sequence_id" => read.sequence_id = sequence_id(&name, value)?,
            "version" => read.version = Some(version(&name, value)?),
            "sequence_start" | "sequence_end" if !matches!(value, ParameterChoice::BoolParam(_)) => {
                return Err(wrong_kind("request", &name, "bool_param", &value));
            }
            _ => {}
        }
    }
    Ok(read)
}

fn value(label: impl Display, name: &str, parameter: InferParameter) -> Result<ParameterChoice, InferError> {
    parameter.parameter_choice.ok_or_else(|| {
        let expected = "bool_param, int64_param, uint64_param, string_param or double_param";
        InferError::invalid(format!("{label}: parameter '{}': expected a value in {expected}, got none", shown(name)))
    })
}

fn kind(value: &ParameterChoice) -> &'static str {
    match value {
        ParameterChoice::BoolParam(_) => "bool_param",
        ParameterChoice::Int64Param(_) => "int64_param",
        ParameterChoice::StringParam(_) => "string_param",
        ParameterChoice::DoubleParam(_) => "double_param",
        ParameterChoice::Uint64Param(_) => "uint64_param",
    }
}

fn wrong_kind(label: impl Display, name: &str, expected: &str, value: &ParameterChoice) -> InferError {
    InferError::invalid(format!("{label}: parameter '{name}': expected {expected}, got {}", kind(value)))
}

fn unsigned(label: impl Display, name: &str, value: &ParameterChoice) -> Result<u64, InferError> {
    match value {
        ParameterChoice::Uint64Param(number) => Ok(*number),
        ParameterChoice::Int64Param(number) => u64::try_from(*number)
            .map_err(|_| InferError::invalid(format!("{label}: parameter '{name}': expected 0 or more, got {number}"))),
        other => Err(wrong_kind(label, name, "int64_param or uint64_param", other)),
    }
}

fn sequence_id(name: &str, value: ParameterChoice) -> Result<Option<Arc<[u8]>>, InferError> {
    let id = match value {
        ParameterChoice::StringParam(id) => id,
        other => match unsigned("request", name, &other) {
            Ok(0) => String::new(),
            Ok(id) => id.to_string(),
            Err(_) if kind(&other) != "int64_param" => {
                return Err(wrong_kind("request", name, "int64_param, uint64_param or string_param", &other));
            }
            Err(error) => return Err(error),
        },
    };
    Ok(Some(id).filter(|id| !id.is_empty()).map(|id| id.into_bytes().into()))
}

fn version(name: &str, value: ParameterChoice) -> Result<VersionChoice, InferError> {
    match value {
        ParameterChoice::StringParam(text) => version_choice(&text),
        other => match unsigned("request", name, &other) {
            Ok(number) => version_choice(&number.to_string()),
            Err(_) => Err(InferError::invalid(format!("request: parameter '{name}': expected a version number or an alias"))),
        },
    }
}

/// Reads what a request asks of its outputs.
pub(crate) fn outputs(outputs: Vec<InferRequestedOutputTensor>) -> Result<SmallVec<[OutputChoice; 1]>, InferError> {
    at_most("outputs", outputs.len(), MAX_TENSORS)?;
    outputs.into_iter().map(output).collect()
}

fn output(output: InferRequestedOutputTensor) -> Result<OutputChoice, InferError> {
    let mut classes = 0;
    let label = Label("output", &output.name);
    for (name, parameter) in output.parameters {
        let value = value(label, &name, parameter)?;
        if name == "classification" {
            classes = usize::try_from(unsigned(label, &name, &value)?).unwrap_or(usize::MAX);
        } else if name.starts_with("shared_memory_") {
            return Err(shared_memory(label, &name));
        }
    }
    Ok(OutputChoice { name: output.name, classes })
}

/// Reads the inputs. With `raw`, the n-th entry belongs to the n-th input and no input has contents of its own.
pub(crate) fn inputs(inputs: Vec<InferInputTensor>, raw: Vec<Bytes>) -> Result<SmallVec<[NamedTensor; 1]>, InferError> {
    at_most("inputs", inputs.len(), MAX_TENSORS)?;
    if !raw.is_empty() && raw.len() != inputs.len() {
        let message =
            format!("request: expected one entry in raw_input_contents for each of {} inputs, got {}", inputs.len(), raw.len());
        return Err(InferError::invalid(message));
    }
    let mut raw = raw.into_iter();
    inputs.into_iter().map(|input| self::input(input, raw.next())).collect()
}

fn at_most(what: impl Display, actual: usize, limit: usize) -> Result<(), InferError> {
    if actual <= limit {
        return Ok(());
    }
    Err(InferError::invalid(format!("request: expected at most {limit} {what}, got {actual}")))
}

fn input(input: InferInputTensor, raw: Option<Bytes>) -> Result<NamedTensor, InferError> {
    let InferInputTensor { name, datatype, shape, parameters, contents } = input;
    let label = Label("input", &name);
    for (name, parameter) in parameters {
        if name.starts_with("shared_memory_") {
            return Err(shared_memory(label, &name));
        }
        value(label, &name, parameter)?;
    }
    at_most(format_args!("dimensions of {label}"), shape.len(), MAX_RANK)?;
    let datatype: DataType = datatype.parse().map_err(|error| InferError::invalid(format!("{label}: {error}")))?;
    let tensor = match (raw, contents) {
        (Some(_), Some(_)) => {
            return Err(InferError::invalid(format!("{label}: expected no contents beside raw_input_contents")));
        }
        (Some(raw), None) => {
            Tensor::new(datatype, &shape, raw).map_err(|error| InferError::invalid(format!("{label}: {error}")))?
        }
        (None, contents) => typed(label, datatype, &shape, contents.unwrap_or_default())?,
    };
    Ok(NamedTensor { name, tensor })
}

fn typed(label: Label<'_>, datatype: DataType, shape: &[i64], contents: InferTensorContents) -> Result<Tensor, InferError> {
    let Some(field) = Field::of(datatype) else {
        return Err(InferError::invalid(format!("{label}: {datatype} has no typed contents, expected raw_input_contents")));
    };
    if let Some(other) = Field::ALL.into_iter().find(|other| *other != field && other.len(&contents) > 0) {
        let (wanted, got) = (field.name(), other.name());
        return Err(InferError::invalid(format!("{label}: expected {wanted} for datatype {datatype}, got {got}")));
    }
    let actual = field.len(&contents);
    let Some(expected) = element_count(shape) else {
        let rule = "expected dimensions of 0 or more whose product can be addressed";
        return Err(InferError::invalid(format!("{label}: {rule}, got shape {shape:?}")));
    };
    if actual != expected {
        let field = field.name();
        return Err(InferError::invalid(format!(
            "{label}: expected {expected} elements in {field} for shape {shape:?}, got {actual}"
        )));
    }
    let tensor = match datatype {
        DataType::Bool => {
            let bytes: Vec<u8> = contents.bool_contents.into_iter().map(u8::from).collect();
            Tensor::new(datatype, shape, bytes.into())
        }
        DataType::Uint8 => Tensor::from_elements(shape, &narrowed::<u32, u8>(label, &contents.uint_contents)?),
        DataType::Uint16 => Tensor::from_elements(shape, &narrowed::<u32, u16>(label, &contents.uint_contents)?),
        DataType::Uint32 => Tensor::from_elements(shape, &contents.uint_contents),
        DataType::Uint64 => Tensor::from_elements(shape, &contents.uint64_contents),
        DataType::Int8 => Tensor::from_elements(shape, &narrowed::<i32, i8>(label, &contents.int_contents)?),
        DataType::Int16 => Tensor::from_elements(shape, &narrowed::<i32, i16>(label, &contents.int_contents)?),
        DataType::Int32 => Tensor::from_elements(shape, &contents.int_contents),
        DataType::Int64 => Tensor::from_elements(shape, &contents.int64_contents),
        DataType::Fp32 => Tensor::from_elements(shape, &contents.fp32_contents),
        DataType::Fp64 => Tensor::from_elements(shape, &contents.fp64_contents),
        DataType::Bytes | DataType::Fp16 | DataType::Bf16 => Tensor::from_byte_strings(shape, &contents.bytes_contents),
    };
    tensor.map_err(|error| InferError::invalid(format!("{label}: {error}")))
}

/// Elements of a type that is wider on the wire.
fn narrowed<W, N>(label: Label<'_>, elements: &[W]) -> Result<Vec<N>, InferError>
where
    W: Copy + Display,
    N: Element + TryFrom<W> + Bounded,
{
    let narrow = |(index, element): (usize, &W)| {
        N::try_from(*element).map_err(|_| {
            let (low, high) = (N::LOW, N::HIGH);
            InferError::invalid(format!(
                "{label}: element {index}: expected a value from {low} to {high} for {}, got {element}",
                N::DATATYPE
            ))
        })
    };
    elements.iter().enumerate().map(narrow).collect()
}

/// The ends of an integer type.
trait Bounded {
    const LOW: i64;
    const HIGH: i64;
}

macro_rules! bounded {
    ($($integer:ty),+) => {
        $(impl Bounded for $integer {
            const LOW: i64 = <$integer>::MIN as i64;
            const HIGH: i64 = <$integer>::MAX as i64;
        })+
    };
}

bounded!(u8, u16, i8, i16);

/// The fields of typed contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Bool,
    Int,
    Int64,
    Uint,
    Uint64,
    Fp32,
    Fp64,
    Bytes,
}

impl Field {
    const ALL: [Field; 8] =
        [Field::Bool, Field::Int, Field::Int64, Field::Uint, Field::Uint64, Field::Fp32, Field::Fp64, Field::Bytes];

    const fn of(datatype: DataType) -> Option<Field> {
        Some(match datatype {
            DataType::Bool => Field::Bool,
            DataType::Int8 | DataType::Int16 | DataType::Int32 => Field::Int,
            DataType::Int64 => Field::Int64,
            DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => Field::Uint,
            DataType::Uint64 => Field::Uint64,
            DataType::Fp32 => Field::Fp32,
            DataType::Fp64 => Field::Fp64,
            DataType::Bytes => Field::Bytes,
            DataType::Fp16 | DataType::Bf16 => return None,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Field::Bool => "bool_contents",
            Field::Int => "int_contents",
            Field::Int64 => "int64_contents",
            Field::Uint => "uint_contents",
            Field::Uint64 => "uint64_contents",
            Field::Fp32 => "fp32_contents",
            Field::Fp64 => "fp64_contents",
            Field::Bytes => "bytes_contents",
        }
    }

    fn len(self, contents: &InferTensorContents) -> usize {
        match self {
            Field::Bool => contents.bool_contents.len(),
            Field::Int => contents.int_contents.len(),
            Field::Int64 => contents.int64_contents.len(),
            Field::Uint => contents.uint_contents.len(),
            Field::Uint64 => contents.uint64_contents.len(),
            Field::Fp32 => contents.fp32_contents.len(),
            Field::Fp64 => contents.fp64_contents.len(),
            Field::Bytes => contents.bytes_contents.len(),
        }
    }
}

/// `input 'x'` in an error.
#[derive(Clone, Copy)]
struct Label<'a>(&'static str, &'a str);

impl Display for Label<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} '{}'", self.0, shown(self.1))
    }
}

fn shared_memory(label: Label<'_>, name: &str) -> InferError {
    InferError::Unsupported { what: format!("shared memory (parameter '{}' of {label})", shown(name)) }
}

#[cfg(test)]
mod tests;
