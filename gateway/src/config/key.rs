//! One setting: its name, type, default and meaning.

use serde_json::{Value as Json, json};

use super::value::Value;

/// A setting of type `T`, under its dotted name.
pub(crate) struct Key<T> {
    name: &'static str,
    help: &'static str,
    default: fn() -> T,
    check: fn(&T) -> Result<(), &'static str>,
    live: bool,
}

impl<T: Value> Key<T> {
    /// A setting that takes effect at the start of the program.
    pub(crate) const fn new(name: &'static str, default: fn() -> T, help: &'static str) -> Key<T> {
        Key { name, help, default, check: |_| Ok(()), live: false }
    }

    /// A change of it applies to a running gateway.
    pub(crate) const fn live(self) -> Key<T> {
        Key { live: true, ..self }
    }

    /// A rule beyond the type; the text is the end of a sentence that starts with the name.
    pub(crate) const fn checked(self, check: fn(&T) -> Result<(), &'static str>) -> Key<T> {
        Key { check, ..self }
    }

    /// Where nobody says anything.
    pub(crate) fn default(&self) -> T {
        (self.default)()
    }

    /// Whether a value keeps the setting's own rule.
    pub(crate) fn check(&self, value: &T) -> Result<(), &'static str> {
        (self.check)(value)
    }
}

/// What all settings have in common.
pub(crate) trait AnyKey: Sync {
    /// The dotted name, for example `registry.poll_interval`.
    fn name(&self) -> &'static str;

    /// What it means, in one line.
    fn help(&self) -> &'static str;

    /// Whether a change of it applies to a running gateway.
    fn is_live(&self) -> bool;

    /// The default as text; empty for unset.
    fn default_text(&self) -> String;

    /// The JSON schema of its value in a file.
    fn schema(&self) -> Json;
}

impl<T: Value> AnyKey for Key<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn help(&self) -> &'static str {
        self.help
    }

    fn is_live(&self) -> bool {
        self.live
    }

    fn default_text(&self) -> String {
        self.default().show()
    }

    fn schema(&self) -> Json {
        let mut schema = T::schema();
        let form = schema.get("description").and_then(Json::as_str).map(|form| format!(" ({form})")).unwrap_or_default();
        schema["description"] = json!(format!("{}{form}", self.help));
        schema
    }
}
