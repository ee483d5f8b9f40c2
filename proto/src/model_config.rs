//! A model's configuration: out of `config.pbtxt` or JSON, into the JSON that clients read, and the
//! list of what it sets.
//!
//! Nothing is filled in or checked beyond the schema: [`parse_model_config`] returns what the text
//! says.

use std::fmt;
use std::sync::LazyLock;

use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MapKey, MessageDescriptor, ReflectMessage, SerializeOptions, Value,
};
use serde_path_to_error::Segment;

use crate::FILE_DESCRIPTOR_SET;
use crate::inference::ModelConfig;
use crate::pbtxt::{self, PbtxtError};

static MODEL_CONFIG: LazyLock<MessageDescriptor> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "both are fixed when this crate is built")]
    DescriptorPool::decode(FILE_DESCRIPTOR_SET)
        .expect("the built descriptor set is valid")
        .get_message_by_name("inference.ModelConfig")
        .expect("the built descriptor set has the message")
});

/// Reads the text of a `config.pbtxt`.
///
/// # Errors
///
/// The first thing that is not in the schema, with its line and field.
pub fn parse_model_config(text: &str) -> Result<ModelConfig, PbtxtError> {
    pbtxt::parse(&MODEL_CONFIG, text).map(|message| typed(&message))
}

/// Why a configuration in JSON was refused.
#[derive(Debug, thiserror::Error)]
#[error("model configuration is not valid JSON of its schema{}", in_field(field))]
pub struct ModelConfigJsonError {
    /// The path of the field, such as `input[0].dims[1]`; for an unknown field that of the message
    /// that lacks it; empty for the whole.
    pub field: String,
    pub source: serde_json::Error,
}

fn in_field(field: &str) -> String {
    match field {
        "" => String::new(),
        _ => format!(", in field {field}"),
    }
}

/// Reads a configuration in the protobuf JSON mapping: fields in either spelling, 64-bit integers as
/// numbers or text.
///
/// # Errors
///
/// What is malformed, not in the schema or of a wrong type, with its field.
pub fn from_json(text: &str) -> Result<ModelConfig, ModelConfigJsonError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let message = DynamicMessage::deserialize_with_options(
        MODEL_CONFIG.clone(),
        serde_path_to_error::Deserializer::new(&mut json, &mut track),
        &DeserializeOptions::new(),
    )
    .map_err(|source| ModelConfigJsonError { field: field_path(&track.path()), source })?;
    json.end().map_err(|source| ModelConfigJsonError { field: String::new(), source })?;
    Ok(typed(&message))
}

/// The path as far as it is known: text that breaks off leaves the last step open.
fn field_path(path: &serde_path_to_error::Path) -> String {
    let mut text = String::new();
    for segment in path {
        let joint = if text.is_empty() { "" } else { "." };
        text += &match segment {
            Segment::Seq { index } => format!("[{index}]"),
            Segment::Map { key } | Segment::Enum { variant: key } => format!("{joint}{key}"),
            Segment::Unknown => break,
        };
    }
    text
}

/// Renders a configuration as the HTTP endpoint `…/config` does: field names of the schema, defaults
/// written out, 64-bit integers as numbers, messages and choices left out where they are not set.
///
/// # Errors
///
/// None that is known of; those of the writer are passed on.
pub fn to_json(config: &ModelConfig) -> Result<serde_json::Value, serde_json::Error> {
    let options = SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true).skip_default_fields(false);
    // By way of text: as a value, a float of 32 bits would show the digits of its widening.
    let mut text = Vec::new();
    reflected(config).serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)?;
    serde_json::from_slice(&text)
}

/// A field that a configuration sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetField {
    /// Where it is: `instance_group[0].gpus`, `parameters["threads"].string_value`.
    pub path: String,
    /// Which field of the schema it is, without indices and keys: `instance_group.gpus`.
    pub field: String,
}

impl fmt::Display for SetField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// Lists the fields that hold something other than their default, by field number.
///
/// A list of scalars counts once. A message that is set and holds only defaults, like
/// `dynamic_batching {}`, counts itself, since its presence means something.
pub fn set_fields(config: &ModelConfig) -> Vec<SetField> {
    let mut found = Vec::new();
    let root = SetField { path: String::new(), field: String::new() };
    list_set(&reflected(config), &root, &mut found);
    found
}

fn list_set(message: &DynamicMessage, at: &SetField, found: &mut Vec<SetField>) {
    let before = found.len();
    for field in message.descriptor().fields() {
        if message.has_field(&field) {
            let here = at.member(field.name());
            list_value(&message.get_field(&field), &here, found);
        }
    }
    if found.len() == before && !at.path.is_empty() {
        found.push(at.clone());
    }
}

fn list_value(value: &Value, at: &SetField, found: &mut Vec<SetField>) {
    match value {
        Value::Message(message) => list_set(message, at, found),
        Value::List(items) if items.iter().any(|item| item.as_message().is_some()) => {
            for (index, item) in items.iter().enumerate() {
                list_value(item, &at.element(format_args!("{index}")), found);
            }
        }
        Value::Map(entries) => {
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            for (key, value) in entries {
                let here = match key {
                    MapKey::String(key) => at.element(format_args!("{key:?}")),
                    MapKey::Bool(key) => at.element(format_args!("{key}")),
                    MapKey::I32(key) => at.element(format_args!("{key}")),
                    MapKey::I64(key) => at.element(format_args!("{key}")),
                    MapKey::U32(key) => at.element(format_args!("{key}")),
                    MapKey::U64(key) => at.element(format_args!("{key}")),
                };
                list_value(value, &here, found);
            }
        }
        _ => found.push(at.clone()),
    }
}

impl SetField {
    fn member(&self, name: &str) -> Self {
        let join = |outer: &str| match outer {
            "" => name.to_owned(),
            _ => format!("{outer}.{name}"),
        };
        Self { path: join(&self.path), field: join(&self.field) }
    }

    fn element(&self, key: fmt::Arguments<'_>) -> Self {
        Self { path: format!("{}[{key}]", self.path), field: self.field.clone() }
    }
}

fn reflected(config: &ModelConfig) -> DynamicMessage {
    let mut message = DynamicMessage::new(MODEL_CONFIG.clone());
    #[expect(clippy::expect_used, reason = "both sides are built from one schema")]
    message.transcode_from(config).expect("a configuration is of its own schema");
    message
}

fn typed(message: &DynamicMessage) -> ModelConfig {
    #[expect(clippy::expect_used, reason = "both sides are built from one schema")]
    message.transcode_to().expect("a configuration is of its own schema")
}

#[cfg(test)]
mod tests;
