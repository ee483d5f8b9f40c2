//! Who says what: values from flags, variables and the file, one above the other, and every problem with them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::key::{AnyKey, Key};
use super::raw::{Located, Raw, Table, parse_toml};
use super::registries::{self, Written};
use super::suggest::did_you_mean;
use super::value::Value;

/// Where a value comes from, the strongest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A flag, by its name: `--http`, `--set`.
    Flag(String),
    /// An environment variable.
    Variable(String),
    /// A line of a file.
    File {
        /// The file.
        path: Arc<Path>,
        /// The line, from 1.
        line: usize,
    },
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) | Origin::Variable(name) => f.write_str(name),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// Something wrong with a configuration, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What, with the name of the setting.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => f.write_str(&self.message),
            origin => write!(f, "{origin}: {}", self.message),
        }
    }
}

/// One setting as it applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The dotted name.
    pub name: &'static str,
    /// The value as text; empty for unset.
    pub value: String,
    /// Where it comes from.
    #[serde(serialize_with = "as_text")]
    pub origin: Origin,
    /// Whether a change applies to a running gateway.
    pub live: bool,
}

fn as_text<S: serde::Serializer>(origin: &Origin, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(origin)
}

/// One value that somebody gave.
struct Given {
    raw: Raw,
    origin: Origin,
}

/// All values that were given, by setting, and what is wrong with them.
pub(crate) struct Layers {
    keys: &'static [&'static dyn AnyKey],
    given: BTreeMap<&'static str, Vec<Given>>,
    entries: Vec<Entry>,
    problems: Vec<Problem>,
    /// `[[registry]]`, and where it stands.
    registries: Option<(Vec<Written>, Origin)>,
}

impl Layers {
    /// Nothing given yet.
    pub(crate) fn new(keys: &'static [&'static dyn AnyKey]) -> Layers {
        Layers { keys, given: BTreeMap::new(), entries: Vec::new(), problems: Vec::new(), registries: None }
    }

    /// Notes a problem.
    pub(crate) fn refuse(&mut self, origin: Origin, message: impl Into<String>) {
        self.problems.push(Problem { origin, message: message.into() });
    }

    /// A value from a flag or variable; an unknown name is a problem.
    pub(crate) fn give_word(&mut self, name: &str, word: &str, origin: Origin) {
        self.give(name, Raw::Word(word.to_owned()), origin);
    }

    /// A value of a file, under the whole name of its setting.
    pub(crate) fn give_raw(&mut self, name: &str, raw: Raw, origin: Origin) {
        self.give(name, raw, origin);
    }

    /// The registries of the file, where it has a list of them.
    pub(crate) fn take_registries(&mut self) -> Option<(Vec<Written>, Origin)> {
        self.registries.take()
    }

    /// Says how a setting that was taken is shown, and where it comes from.
    pub(crate) fn show_as<T: Value>(&mut self, key: &Key<T>, value: String, origin: Origin) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == key.name()) {
            (entry.value, entry.origin) = (value, origin);
        }
    }

    fn give(&mut self, name: &str, raw: Raw, origin: Origin) {
        match self.keys.iter().find(|key| key.name() == name) {
            Some(key) => self.given.entry(key.name()).or_default().push(Given { raw, origin }),
            None => {
                let hint = did_you_mean(name, self.keys.iter().map(|key| key.name()));
                self.refuse(origin, format!("`{name}` is not a setting{hint}"));
            }
        }
    }

    /// All values of a file.
    pub(crate) fn give_file(&mut self, path: &Path, text: &str) {
        let path: Arc<Path> = path.into();
        let (table, errors) = parse_toml(text);
        let broken: Vec<usize> = errors.iter().map(|error| error.line).collect();
        for error in errors {
            self.refuse(Origin::File { path: Arc::clone(&path), line: error.line }, error.message);
        }
        self.give_table("", table, &path, &broken);
    }

    fn give_table(&mut self, prefix: &str, table: Table, path: &Arc<Path>, broken: &[usize]) {
        // What was read of a broken line is a guess.
        for (name, Located { raw, line }) in table.into_iter().filter(|(_, value)| !broken.contains(&value.line)) {
            let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            let origin = Origin::File { path: Arc::clone(path), line };
            let is_section =
                self.keys.iter().any(|key| key.name().strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.')));
            match raw {
                Raw::Table(inner) if is_section => self.give_table(&name, inner, path, broken),
                Raw::List(items) if name == "registry" => {
                    let written = registries::read(items, path, self);
                    self.registries = Some((written, origin));
                }
                other if is_section => self.refuse(origin, format!("`{name}`: expected a section, got {other}")),
                Raw::Table(_) if !self.keys.iter().any(|key| key.name() == name) => {
                    let mut sections: Vec<&str> = self.keys.iter().filter_map(|key| Some(key.name().split_once('.')?.0)).collect();
                    sections.dedup();
                    let hint = did_you_mean(&name, sections);
                    self.refuse(origin, format!("`{name}` is not a section{hint}"));
                }
                raw => self.give(&name, raw, origin),
            }
        }
    }

    /// The value that applies. Whatever is given is checked, even where something stronger hides it; what is wrong becomes a
    /// problem, and the next weaker value applies, so that everything can be checked at once.
    pub(crate) fn take<T: Value>(&mut self, key: &Key<T>) -> T {
        self.take_or(key, (key.default(), Origin::Default))
    }

    /// The same for a setting whose default is the value of another one, where that is set.
    pub(crate) fn take_following<T: Value>(&mut self, key: &Key<T>, leader: &Key<Option<T>>, value: Option<T>) -> T {
        let origin = self.origin_of(leader);
        self.take_or(key, value.map_or_else(|| (key.default(), Origin::Default), |value| (value, origin)))
    }

    fn take_or<T: Value>(&mut self, key: &Key<T>, fallback: (T, Origin)) -> T {
        let mut given = self.given.remove(key.name()).unwrap_or_default();
        // Of two that are equally strong, which only `--set` can be, the last one counts.
        given.reverse();
        given.sort_by_key(|given| given.origin.rank());
        let mut found: Option<(T, Origin)> = None;
        for Given { raw, origin } in given {
            let read = T::read(&raw).and_then(|value| match key.check(&value) {
                Ok(()) => Ok(value),
                Err(rule) => Err(format!("{rule}, got {raw}")),
            });
            match read {
                Ok(value) if found.is_none() => found = Some((origin.locate(value), origin)),
                Ok(_) => {}
                Err(problem) => self.refuse(origin, format!("`{}`: {problem}", key.name())),
            }
        }
        let (value, origin) = found.unwrap_or(fallback);
        self.entries.push(Entry { name: key.name(), value: value.show(), origin, live: key.is_live() });
        value
    }

    /// Where the value of a setting that was taken came from.
    pub(crate) fn origin_of<T: Value>(&self, key: &Key<T>) -> Origin {
        let entry = self.entries.iter().find(|entry| entry.name == key.name());
        entry.map_or(Origin::Default, |entry| entry.origin.clone())
    }

    /// What was taken, or all that is wrong.
    pub(crate) fn finish(mut self) -> Result<Vec<Entry>, ConfigError> {
        self.entries.sort_by_key(|entry| entry.name);
        if self.problems.is_empty() {
            return Ok(self.entries);
        }
        self.problems.sort_by(|a, b| a.origin.cmp(&b.origin));
        Err(ConfigError { problems: self.problems, entries: self.entries })
    }
}

impl Origin {
    fn rank(&self) -> u8 {
        match self {
            // A flag of its own is more exact than `--set`, which may come from a script.
            Origin::Flag(name) => u8::from(name == "--set"),
            Origin::Variable(_) => 2,
            Origin::File { .. } => 3,
            Origin::Default => 4,
        }
    }

    fn locate<T: Value>(&self, value: T) -> T {
        match self {
            Origin::File { path, .. } => match path.parent().filter(|dir| *dir != Path::new("")) {
                Some(dir) => value.relative_to(dir),
                None => value,
            },
            _ => value,
        }
    }
}

/// A configuration that can't be used: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {} problem{}", problems.len(), if problems.len() == 1 { "" } else { "s" })]
pub struct ConfigError {
    /// All problems, by place.
    pub problems: Vec<Problem>,
    /// What would apply without what is wrong, by name.
    pub entries: Vec<Entry>,
}

/// Reads a file that must be there.
pub(crate) fn read_file(path: &PathBuf) -> Result<String, Problem> {
    std::fs::read_to_string(path)
        .map_err(|error| Problem { origin: Origin::Default, message: format!("{} can't be read: {error}", path.display()) })
}
