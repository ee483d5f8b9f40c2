//! The types that a setting can have: how each is read, shown, and described in the schema.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bascule_runtime_api::DataType;
use bytesize::ByteSize;
use serde_json::{Value as Json, json};

use super::raw::Raw;

/// A type that a setting can have.
pub(crate) trait Value: Sized {
    /// The schema of its form in a file.
    fn schema() -> Json;

    /// As `bascule check` prints it; what is printed can be written back.
    fn show(&self) -> String;

    /// A relative path in a file is relative to the file.
    #[must_use]
    fn relative_to(self, _dir: &Path) -> Self {
        self
    }

    /// Reads it, or says what was expected.
    fn read(raw: &Raw) -> Result<Self, String>;
}

pub(super) fn expected<T>(what: &str, raw: &Raw) -> Result<T, String> {
    Err(format!("expected {what}, got {raw}"))
}

pub(super) fn text(raw: &Raw) -> Option<&str> {
    match raw {
        Raw::Word(text) | Raw::Text(text) => Some(text.trim()),
        _ => None,
    }
}

impl Value for bool {
    fn schema() -> Json {
        json!({ "type": "boolean" })
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Boolean(value) => Ok(*value),
            Raw::Word(word) if word == "true" || word == "1" => Ok(true),
            Raw::Word(word) if word == "false" || word == "0" => Ok(false),
            _ => expected("true or false", raw),
        }
    }
}

impl Value for u32 {
    fn schema() -> Json {
        json!({ "type": "integer", "minimum": 0 })
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let number = match raw {
            Raw::Integer(number) => u32::try_from(*number).ok(),
            Raw::Word(word) => word.parse().ok(),
            _ => None,
        };
        number.map_or_else(|| expected("a whole number from 0 to 4294967295", raw), Ok)
    }
}

/// A size in bytes, written with a unit: `2GiB`, `64MB`, `512B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub u64);

impl Value for ByteCount {
    fn schema() -> Json {
        json!({ "type": ["string", "integer"], "description": "a size such as \"2GiB\", or a number of bytes" })
    }

    fn show(&self) -> String {
        // The largest unit that loses nothing, so that what is printed is exact.
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.into_iter().find(|(_, shift)| self.0 > 0 && self.0.is_multiple_of(1 << shift)) {
            Some((unit, shift)) => format!("{}{unit}", self.0 >> shift),
            None => format!("{}B", self.0),
        }
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let bytes = match raw {
            Raw::Integer(number) => u64::try_from(*number).ok(),
            _ => text(raw).and_then(|text| ByteSize::from_str(text).ok()).map(|size| size.as_u64()),
        };
        bytes.map_or_else(|| expected("a size such as \"2GiB\"", raw), |bytes| Ok(ByteCount(bytes)))
    }
}

impl Value for Duration {
    fn schema() -> Json {
        json!({ "type": "string", "description": "a duration such as \"250ms\" or \"1m 30s\"" })
    }

    fn show(&self) -> String {
        humantime::format_duration(*self).to_string()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match text(raw).and_then(|text| humantime::parse_duration(text).ok()) {
            Some(duration) => Ok(duration),
            None => expected("a duration such as \"250ms\"", raw),
        }
    }
}

impl Value for SocketAddr {
    fn schema() -> Json {
        json!({ "type": "string", "description": "an address and port such as \"127.0.0.1:8000\"; port 0 takes any free one" })
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match text(raw).and_then(|text| text.parse().ok()) {
            Some(address) => Ok(address),
            None => expected("an IP address and port such as \"127.0.0.1:8000\"", raw),
        }
    }
}

impl Value for String {
    fn schema() -> Json {
        json!({ "type": "string" })
    }

    fn show(&self) -> String {
        self.clone()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        text(raw).map_or_else(|| expected("text", raw), |text| Ok(text.to_owned()))
    }
}

impl Value for PathBuf {
    fn schema() -> Json {
        json!({ "type": "string", "description": "a path; a relative one in a file is relative to the file's folder" })
    }

    fn show(&self) -> String {
        self.display().to_string()
    }

    fn relative_to(self, dir: &Path) -> Self {
        dir.join(self)
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match text(raw).filter(|text| !text.is_empty()) {
            Some(text) => Ok(PathBuf::from(text)),
            None => expected("a path", raw),
        }
    }
}

/// Where a registry lies: a URL, or a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(pub String);

impl Place {
    /// The scheme of its URL in lower case; empty for a path.
    pub fn scheme(&self) -> String {
        self.0.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).unwrap_or_default()
    }

    /// As it may be shown: a password that somebody wrote into a URL is not.
    pub fn shown(&self) -> String {
        if self.is_url() { bascule_registry::without_secrets(&self.0) } else { self.0.clone() }
    }

    /// Whether it names a scheme, such as `file:` or `http:`.
    pub fn is_url(&self) -> bool {
        self.0.split_once("://").is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        })
    }
}

impl Value for Place {
    fn schema() -> Json {
        json!({ "type": "string", "description": "a URL or a path; a relative path in a file is relative to the file's folder" })
    }

    fn show(&self) -> String {
        self.shown()
    }

    fn relative_to(self, dir: &Path) -> Self {
        if self.is_url() { self } else { Place(dir.join(&self.0).display().to_string()) }
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match text(raw).filter(|text| !text.is_empty()) {
            Some(text) => Ok(Place(text.to_owned())),
            None => expected("a URL or a path", raw),
        }
    }
}

impl Value for Vec<u32> {
    fn schema() -> Json {
        json!({ "type": "array", "items": u32::schema() })
    }

    fn show(&self) -> String {
        self.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::List(items) => items.iter().map(|item| u32::read(&item.raw)).collect(),
            _ => expected("a list of whole numbers", raw),
        }
    }
}

/// A shape: sizes, −1 for an open one.
impl Value for Vec<i64> {
    fn schema() -> Json {
        json!({ "type": "array", "items": { "type": "integer", "minimum": -1 } })
    }

    fn show(&self) -> String {
        self.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let size = |raw: &Raw| match raw {
            Raw::Integer(size) if *size >= -1 => Some(*size),
            _ => None,
        };
        match raw {
            Raw::List(items) => {
                let sizes: Option<Vec<i64>> = items.iter().map(|item| size(&item.raw)).collect();
                sizes.ok_or_else(|| "expected a list of sizes, with -1 for an open one".to_owned())
            }
            _ => expected("a list of sizes, with -1 for an open one", raw),
        }
    }
}

impl Value for DataType {
    fn schema() -> Json {
        json!({ "enum": DataType::ALL.map(DataType::name) })
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match text(raw) {
            Some(name) => name.parse().map_err(|error: bascule_runtime_api::UnknownDataType| error.to_string()),
            None => expected("a datatype such as \"FP32\"", raw),
        }
    }
}

/// Something that can be unset, written as the empty text.
impl<T: Value> Value for Option<T> {
    fn schema() -> Json {
        T::schema()
    }

    fn show(&self) -> String {
        self.as_ref().map(T::show).unwrap_or_default()
    }

    fn relative_to(self, dir: &Path) -> Self {
        self.map(|value| value.relative_to(dir))
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        if text(raw).is_some_and(str::is_empty) { Ok(None) } else { T::read(raw).map(Some) }
    }
}

/// A setting that is one of a few words.
macro_rules! words {
    ($type:ty, $($word:literal => $variant:path),+ $(,)?) => {
        impl $crate::config::value::Value for $type {
            fn schema() -> serde_json::Value {
                serde_json::json!({ "enum": [$($word),+] })
            }

            fn show(&self) -> String {
                match self { $($variant => $word.to_owned()),+ }
            }

            fn read(raw: &$crate::config::raw::Raw) -> Result<Self, String> {
                $crate::config::value::word(raw, &[$(($word, $variant)),+])
            }
        }
    };
}
pub(crate) use words;

/// Reads one of a few words.
pub(crate) fn word<T: Copy>(raw: &Raw, known: &[(&str, T)]) -> Result<T, String> {
    let names = || known.iter().map(|(name, _)| *name);
    let Some(written) = text(raw) else {
        return expected(&format!("one of {}", names().collect::<Vec<_>>().join(", ")), raw);
    };
    match known.iter().find(|(name, _)| *name == written) {
        Some((_, value)) => Ok(*value),
        None => {
            let hint = super::suggest::did_you_mean(written, names());
            expected(&format!("one of {}", names().collect::<Vec<_>>().join(", ")), raw).map_err(|problem: String| problem + &hint)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the text as a flag's value and shows what was read.
    fn check<T: Value>(word: &str) -> Result<String, String> {
        T::read(&Raw::Word(word.into())).map(|value| value.show())
    }

    #[test]
    fn a_password_in_a_place_is_not_shown_and_the_rest_is() {
        for place in ["s3://prod/team@eu", "file:///srv/models@2", "models@2#x"] {
            assert_eq!(check::<Place>(place).unwrap(), place, "a change of it is seen at a reload");
        }
        assert_eq!(check::<Place>("oci://me:hunter2@host/x").unwrap(), "oci://…@host/x");
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        fn round_trip<T: Value + PartialEq + std::fmt::Debug>(word: &str) {
            let value = T::read(&Raw::Word(word.into())).unwrap();
            assert_eq!(T::read(&Raw::Word(value.show())).unwrap(), value, "{word}");
        }
        for word in ["0", "1536", "1.5GiB", "2 GB", "7B"] {
            round_trip::<ByteCount>(word);
        }
        for word in ["0s", "250ms", "1m 30s", "1500ms"] {
            round_trip::<Duration>(word);
        }
        round_trip::<Option<ByteCount>>("");
        round_trip::<SocketAddr>("[::1]:0");
    }

    #[test]
    fn wrong_values_say_what_was_expected() {
        assert_eq!(check::<Duration>("5"), Err("expected a duration such as \"250ms\", got \"5\"".into()));
        assert_eq!(check::<ByteCount>("2 gigs"), Err("expected a size such as \"2GiB\", got \"2 gigs\"".into()));
        assert_eq!(check::<u32>("-1"), Err("expected a whole number from 0 to 4294967295, got \"-1\"".into()));
        assert_eq!(
            check::<SocketAddr>("localhost"),
            Err("expected an IP address and port such as \"127.0.0.1:8000\", got \"localhost\"".into())
        );
        assert_eq!(bool::read(&Raw::Text("true".into())), Err("expected true or false, got \"true\"".into()));
        assert_eq!(
            word(&Raw::Word("manuel".into()), &[("immediate", 1), ("manual", 2)]),
            Err("expected one of immediate, manual, got \"manuel\", did you mean `manual`?".into())
        );
    }

    #[test]
    fn only_paths_in_files_move() {
        let dir = Path::new("/etc/bascule");
        assert_eq!(Place("models".into()).relative_to(dir), Place("/etc/bascule/models".into()));
        assert_eq!(Place("/srv/models".into()).relative_to(dir), Place("/srv/models".into()));
        assert_eq!(Place("http://host/models".into()).relative_to(dir), Place("http://host/models".into()));
        assert_eq!(Some(PathBuf::from("lib")).relative_to(dir), Some(PathBuf::from("/etc/bascule/lib")));
    }
}
