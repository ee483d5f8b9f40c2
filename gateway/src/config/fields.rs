//! Takes the members of one table, and says what is wrong with each and what is left over.

use std::collections::BTreeMap;

use super::raw::{Located, Raw, Table};
use super::suggest::did_you_mean;
use super::value::Value;

/// A table whose members are taken one by one.
pub(crate) struct Fields<'a> {
    file: &'static str,
    /// Of the names in problems: empty, or ends with a point.
    prefix: String,
    table: Table,
    /// What was asked for, to suggest.
    known: Vec<String>,
    problems: &'a mut Vec<String>,
}

impl<'a> Fields<'a> {
    /// The members of `table`.
    pub(crate) fn new(file: &'static str, prefix: &str, table: Table, problems: &'a mut Vec<String>) -> Fields<'a> {
        Fields { file, prefix: prefix.to_owned(), table, known: Vec::new(), problems }
    }

    /// The members of a table inside this one.
    pub(crate) fn inner(&mut self, name: &str, table: Table) -> Fields<'_> {
        Fields::new(self.file, &format!("{}{name}.", self.prefix), table, self.problems)
    }

    fn remove(&mut self, name: &str) -> Option<Located> {
        self.known.push(name.to_owned());
        self.table.remove(name)
    }

    /// Notes a problem with a member.
    pub(crate) fn refuse(&mut self, name: &str, line: usize, problem: impl std::fmt::Display) {
        self.problems.push(format!("{}:{line}: `{}{name}`: {problem}", self.file, self.prefix));
    }

    /// A member that is read by `read`.
    pub(crate) fn take_with<T>(&mut self, name: &str, read: impl FnOnce(&Raw) -> Result<T, String>) -> Option<T> {
        let Located { raw, line } = self.remove(name)?;
        match read(&raw) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.refuse(name, line, problem);
                None
            }
        }
    }

    /// A member, where it is there and right.
    pub(crate) fn take<T: Value>(&mut self, name: &str) -> Option<T> {
        self.take_with(name, T::read)
    }

    /// A member that must be there; `line` is that of its table.
    pub(crate) fn need<T: Value>(&mut self, name: &str, line: usize) -> Option<T> {
        if !self.table.contains_key(name) {
            self.refuse(name, line, "is missing");
            self.known.push(name.to_owned());
            return None;
        }
        self.take(name)
    }

    /// A section.
    pub(crate) fn table(&mut self, name: &str) -> Option<Table> {
        self.take_with(name, |raw| match raw {
            Raw::Table(table) => Ok(table.clone()),
            other => Err(format!("expected a section, got {other}")),
        })
    }

    /// A list of sections.
    pub(crate) fn list_of_tables(&mut self, name: &str) -> Option<Vec<Table>> {
        self.take_with(name, |raw| {
            let Raw::List(items) = raw else { return Err(format!("expected a list of tables, got {raw}")) };
            let table = |item: &Located| match &item.raw {
                Raw::Table(table) => Ok(table.clone()),
                other => Err(format!("expected a list of tables, got {other} in it")),
            };
            items.iter().map(table).collect()
        })
    }

    /// A section of sections: name, line, members.
    pub(crate) fn tables(&mut self, name: &str) -> Vec<(String, usize, Table)> {
        let mut found = Vec::new();
        for (inner, Located { raw, line }) in self.table(name).unwrap_or_default() {
            match raw {
                Raw::Table(table) => found.push((inner, line, table)),
                other => self.refuse(&format!("{name}.{inner}"), line, format!("expected a section, got {other}")),
            }
        }
        found
    }

    /// A section of texts; numbers and switches count as their text.
    pub(crate) fn texts(&mut self, name: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for (inner, Located { raw, line }) in self.table(name).unwrap_or_default() {
            match raw {
                Raw::Text(text) => drop(found.insert(inner, text)),
                Raw::Integer(_) | Raw::Float(_) | Raw::Boolean(_) => drop(found.insert(inner, raw.to_string())),
                other => self.refuse(&format!("{name}.{inner}"), line, format!("expected text, a number or a switch, got {other}")),
            }
        }
        found
    }

    /// Refuses every member that nobody has asked for.
    pub(crate) fn refuse_rest(&mut self) {
        for (name, Located { line, .. }) in std::mem::take(&mut self.table) {
            let hint = did_you_mean(&name, self.known.iter().map(String::as_str));
            self.problems.push(format!("{}:{line}: `{}{name}` is not a setting{hint}", self.file, self.prefix));
        }
    }
}
