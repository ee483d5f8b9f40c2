//! Tokens into a message. One token of look-ahead; the path of the field being read is kept for the
//! error that may come.

use std::fmt::Write as _;

use prost_reflect::prost::bytes::Bytes;
use prost_reflect::{DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value};

use super::token::{Token, Tokens};
use super::{PbtxtError, Problem};

/// The longest piece of the text that an error repeats, in characters.
const MAX_QUOTED: usize = 40;

pub(super) struct Parser<'a> {
    tokens: Tokens<'a>,
    current: Token<'a>,
    /// Where `current` starts.
    start: usize,
    path: String,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { tokens: Tokens::new(text), current: Token::End, start: 0, path: String::new() }
    }

    pub(super) fn message(mut self, descriptor: &MessageDescriptor) -> Result<DynamicMessage, PbtxtError> {
        self.advance()?;
        let mut message = DynamicMessage::new(descriptor.clone());
        self.fields(&mut message, None)?;
        Ok(message)
    }

    /// Reads fields up to the mark `close`, or up to the end where there is none.
    fn fields(&mut self, message: &mut DynamicMessage, close: Option<char>) -> Result<(), PbtxtError> {
        loop {
            match self.current {
                Token::Name(name) => self.field(message, name)?,
                Token::Mark(mark) if Some(mark) == close => return self.advance(),
                Token::End if close.is_none() => return Ok(()),
                _ => {
                    return Err(match close {
                        Some(close) => self.unexpected(format!("a field name or '{close}'")),
                        None => self.unexpected("a field name"),
                    });
                }
            }
        }
    }

    fn field(&mut self, message: &mut DynamicMessage, name: &str) -> Result<(), PbtxtError> {
        let descriptor = message.descriptor();
        let Some(field) = descriptor.get_field_by_name(name) else {
            return Err(self.fail(Problem::UnknownField { name: name.to_owned(), message: descriptor.full_name().to_owned() }));
        };
        let outer = self.path.len();
        self.path.push_str(if outer == 0 { "" } else { "." });
        self.path.push_str(name);

        self.refuse_overwrite(message, &field)?;
        self.advance()?;
        if !self.take(':')? && !matches!(field.kind(), Kind::Message(_)) {
            return Err(self.unexpected("':'"));
        }
        let values = self.values(message, &field)?;
        store(message, &field, values);
        if !self.take(',')? {
            self.take(';')?;
        }
        self.path.truncate(outer);
        Ok(())
    }

    /// A second value for a field that holds one would silently win, so it is an error.
    fn refuse_overwrite(&self, message: &DynamicMessage, field: &FieldDescriptor) -> Result<(), PbtxtError> {
        if field.is_list() || field.is_map() {
            return Ok(());
        }
        if message.has_field(field) {
            return Err(self.fail(Problem::SetTwice));
        }
        let Some(oneof) = field.containing_oneof() else {
            return Ok(());
        };
        match oneof.fields().find(|member| message.has_field(member)) {
            Some(other) => Err(self.fail(Problem::Conflict { other: other.name().to_owned() })),
            None => Ok(()),
        }
    }

    /// One value, or for a repeated field also several in brackets.
    fn values(&mut self, message: &DynamicMessage, field: &FieldDescriptor) -> Result<Vec<Value>, PbtxtError> {
        let kind = field.kind();
        let mut values = Vec::new();
        if !field.is_list() && !field.is_map() {
            values.push(self.value(&kind)?);
            return Ok(values);
        }
        let before = message.get_field(field).as_list().map(<[Value]>::len);
        let bracketed = self.take('[')?;
        if bracketed && self.take(']')? {
            return Ok(values);
        }
        loop {
            let outer = self.path.len();
            if let Some(before) = before {
                // Writing to a String can't fail.
                let _ = write!(self.path, "[{}]", before + values.len());
            }
            values.push(self.value(&kind)?);
            self.path.truncate(outer);
            if !bracketed || self.take(']')? {
                return Ok(values);
            }
            if !self.take(',')? {
                return Err(self.unexpected("',' or ']'"));
            }
        }
    }

    fn value(&mut self, kind: &Kind) -> Result<Value, PbtxtError> {
        Ok(match kind {
            Kind::Message(descriptor) => Value::Message(self.nested(descriptor)?),
            Kind::Enum(descriptor) => Value::EnumNumber(self.enumeration(descriptor)?),
            Kind::String => {
                let start = self.start;
                let bytes = self.text()?;
                let text = String::from_utf8(bytes);
                Value::String(text.map_err(|_| self.fail_at(Problem::InvalidUtf8, start))?)
            }
            Kind::Bytes => Value::Bytes(Bytes::from(self.text()?)),
            Kind::Bool => Value::Bool(self.boolean()?),
            Kind::Double => Value::F64(self.float()?),
            #[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest float")]
            Kind::Float => Value::F32(self.float()? as f32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.integer("a signed 32-bit integer")?),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.integer("a signed 64-bit integer")?),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.integer("an unsigned 32-bit integer")?),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.integer("an unsigned 64-bit integer")?),
        })
    }

    fn nested(&mut self, descriptor: &MessageDescriptor) -> Result<DynamicMessage, PbtxtError> {
        let close = match self.current {
            Token::Mark('{') => '}',
            Token::Mark('<') => '>',
            _ => return Err(self.unexpected("'{'")),
        };
        self.advance()?;
        let mut message = DynamicMessage::new(descriptor.clone());
        self.fields(&mut message, Some(close))?;
        Ok(message)
    }

    fn enumeration(&mut self, descriptor: &EnumDescriptor) -> Result<i32, PbtxtError> {
        let start = self.start;
        let (value, found) = match self.current {
            Token::Name(name) => {
                self.advance()?;
                (descriptor.get_value_by_name(name), name.to_owned())
            }
            Token::Integer { .. } | Token::Mark('-') => {
                let number = self.integer("an enum value")?;
                (descriptor.get_value(number), number.to_string())
            }
            _ => return Err(self.unexpected(format!("a value of {}", descriptor.full_name()))),
        };
        match value {
            Some(value) => Ok(value.number()),
            None => {
                Err(self.fail_at(Problem::UnknownEnumValue { value: found, enumeration: descriptor.full_name().to_owned() }, start))
            }
        }
    }

    /// Adjacent literals are one text.
    fn text(&mut self) -> Result<Vec<u8>, PbtxtError> {
        let mut bytes = match &mut self.current {
            Token::Text(bytes) => std::mem::take(bytes).into_owned(),
            _ => return Err(self.unexpected("a text in quotes")),
        };
        self.advance()?;
        while let Token::Text(more) = &self.current {
            bytes.extend_from_slice(more);
            self.advance()?;
        }
        Ok(bytes)
    }

    fn boolean(&mut self) -> Result<bool, PbtxtError> {
        let value = match self.current {
            Token::Name("true" | "True" | "t") | Token::Integer { digits: "1", .. } => true,
            Token::Name("false" | "False" | "f") | Token::Integer { digits: "0", .. } => false,
            _ => return Err(self.unexpected("true or false")),
        };
        self.advance()?;
        Ok(value)
    }

    fn integer<T: TryFrom<i128>>(&mut self, kind: &'static str) -> Result<T, PbtxtError> {
        let start = self.start;
        let negative = self.take('-')?;
        let Token::Integer { digits, radix } = self.current else {
            return Err(self.unexpected(kind));
        };
        let value = i128::from_str_radix(digits, radix)
            .ok()
            .map(|magnitude| if negative { -magnitude } else { magnitude })
            .and_then(|value| T::try_from(value).ok());
        let Some(value) = value else {
            let literal = shorten(self.tokens.source(start));
            return Err(self.fail_at(Problem::OutOfRange { literal, kind }, start));
        };
        self.advance()?;
        Ok(value)
    }

    fn float(&mut self) -> Result<f64, PbtxtError> {
        let negative = self.take('-')?;
        let magnitude = match self.current {
            Token::Float(value) => Some(value),
            Token::Integer { digits, radix: 10 } => digits.parse().ok(),
            Token::Name(name) => match name.to_ascii_lowercase().as_str() {
                "inf" | "infinity" => Some(f64::INFINITY),
                "nan" => Some(f64::NAN),
                _ => None,
            },
            _ => None,
        };
        let Some(magnitude) = magnitude else {
            return Err(self.unexpected("a number"));
        };
        self.advance()?;
        Ok(if negative { -magnitude } else { magnitude })
    }

    fn advance(&mut self) -> Result<(), PbtxtError> {
        match self.tokens.next() {
            Ok((token, start)) => {
                self.current = token;
                self.start = start;
                Ok(())
            }
            Err((problem, at)) => Err(self.fail_at(problem, at)),
        }
    }

    /// Passes over `mark` where it is the current token, and says whether it was.
    fn take(&mut self, mark: char) -> Result<bool, PbtxtError> {
        let here = self.current == Token::Mark(mark);
        if here {
            self.advance()?;
        }
        Ok(here)
    }

    fn unexpected(&self, expected: impl Into<String>) -> PbtxtError {
        let found = match self.current {
            Token::End => "the end of the text".to_owned(),
            _ => shorten(self.tokens.source(self.start)),
        };
        self.fail(Problem::Unexpected { expected: expected.into(), found })
    }

    fn fail(&self, problem: Problem) -> PbtxtError {
        self.fail_at(problem, self.start)
    }

    fn fail_at(&self, problem: Problem, offset: usize) -> PbtxtError {
        let (line, column) = self.tokens.place(offset);
        PbtxtError { line, column, field: self.path.clone(), problem }
    }
}

/// Adds what was read to the field: the values of a list or a map, or else the only one.
fn store(message: &mut DynamicMessage, field: &FieldDescriptor, mut values: Vec<Value>) {
    match message.get_field_mut(field) {
        Value::List(list) => list.extend(values),
        Value::Map(map) => map.extend(values.into_iter().filter_map(map_entry)),
        slot => {
            if let Some(value) = values.pop() {
                *slot = value;
            }
        }
    }
}

/// A map travels as messages of two fields; what an entry leaves out is the default of its type.
fn map_entry(entry: Value) -> Option<(MapKey, Value)> {
    let Value::Message(entry) = entry else {
        return None;
    };
    let descriptor = entry.descriptor();
    let key = entry.get_field(&descriptor.map_entry_key_field());
    let value = entry.get_field(&descriptor.map_entry_value_field());
    Some((key.into_owned().into_map_key()?, value.into_owned()))
}

/// Quotes a piece of the source in an error, cut where it is long.
fn shorten(source: &str) -> String {
    match source.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("'{}…'", &source[..end]),
        None => format!("'{source}'"),
    }
}
