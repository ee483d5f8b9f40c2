//! A value as somebody wrote it, with the line that it stands on, before anything is known of its meaning.

use std::collections::BTreeMap;
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value of a TOML file, a variable or a flag.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw {
    /// From a flag or a variable, where everything is text: it may stand for a number, a switch or a list.
    Word(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer that fits 64 bits.
    Integer(i64),
    /// A TOML float.
    Float(f64),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array.
    List(Vec<Located>),
    /// A TOML table.
    Table(Table),
    /// What no setting is: a date, or an integer that does not fit.
    Other(String),
}

/// Values by name.
pub(crate) type Table = BTreeMap<String, Located>;

/// A value and the line of its key, counted from 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Located {
    /// The value.
    pub(crate) raw: Raw,
    /// The line.
    pub(crate) line: usize,
}

/// A line that is not TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// Counted from 1.
    pub(crate) line: usize,
    /// What was expected.
    pub(crate) message: String,
}

/// Reads a TOML file as far as it can be read, and says what could not.
pub(crate) fn parse_toml(text: &str) -> (Table, Vec<SyntaxError>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::of(text);
    let errors = errors.iter().map(|error| SyntaxError {
        line: lines.at(error.span().map_or(0, |span| span.start)),
        message: error.message().replace('\n', ", "),
    });
    (lines.table(table.get_ref()), errors.collect())
}

/// Finds the line of a byte.
struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn of(text: &str) -> Lines {
        Lines { starts: std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect() }
    }

    fn at(&self, byte: usize) -> usize {
        self.starts.partition_point(|start| *start <= byte).max(1)
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let name: &std::borrow::Cow<'_, str> = key.get_ref();
            (name.to_string(), Located { raw: self.raw(value.get_ref()), line: self.at(key.span().start) })
        };
        table.iter().map(entry).collect()
    }

    fn raw(&self, value: &DeValue<'_>) -> Raw {
        match value {
            DeValue::String(text) => Raw::Text(text.to_string()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(integer) => Raw::Integer(integer),
                Err(_) => Raw::Other(number.to_string()),
            },
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(float) => Raw::Float(float),
                Err(_) => Raw::Other(number.to_string()),
            },
            DeValue::Boolean(value) => Raw::Boolean(*value),
            DeValue::Datetime(moment) => Raw::Other(moment.to_string()),
            DeValue::Array(items) => Raw::List(
                items.iter().map(|item| Located { raw: self.raw(item.get_ref()), line: self.at(item.span().start) }).collect(),
            ),
            DeValue::Table(table) => Raw::Table(self.table(table)),
        }
    }
}

impl fmt::Display for Raw {
    /// Shortened, for errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::Word(text) | Raw::Text(text) => {
                let shown: String = text.chars().take(60).collect();
                let more = if shown.len() < text.len() { "…" } else { "" };
                write!(f, "{shown:?}{more}")
            }
            Raw::Integer(number) => write!(f, "{number}"),
            Raw::Float(number) => write!(f, "{number}"),
            Raw::Boolean(value) => write!(f, "{value}"),
            Raw::List(items) => write!(f, "a list of {}", items.len()),
            Raw::Table(_) => f.write_str("a table"),
            Raw::Other(text) => write!(f, "{}", text.chars().take(60).collect::<String>()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_line() {
        let (table, errors) = parse_toml("a = 1\n\n[b]\nc = \"x\" # y\nd.e = [\n  true,\n  2.5,\n]\n");
        assert_eq!(errors, []);
        let Raw::Table(b) = &table["b"].raw else { panic!("{table:?}") };
        let Raw::Table(d) = &b["d"].raw else { panic!("{b:?}") };
        let Raw::List(items) = &d["e"].raw else { panic!("{d:?}") };
        assert_eq!(table["a"], Located { raw: Raw::Integer(1), line: 1 });
        assert_eq!(b["c"], Located { raw: Raw::Text("x".into()), line: 4 });
        assert_eq!((d["e"].line, items[0].line, items[1].line), (5, 6, 7));
        assert_eq!((&items[0].raw, &items[1].raw), (&Raw::Boolean(true), &Raw::Float(2.5)));
    }

    #[test]
    fn a_broken_line_is_named_and_the_rest_is_read() {
        let (table, errors) = parse_toml("a = \nb = 2\nb = 3\nc = 99999999999999999999\n");
        assert_eq!(errors.iter().map(|error| error.line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(table["b"].raw, Raw::Integer(2));
        assert_eq!(table["c"].raw, Raw::Other("99999999999999999999".into()));
    }
}
