//! Names as they come from users, manifests and directories: checked once, trusted afterwards.
//!
//! A [`ModelName`] and a path that [`check_file_path`] accepts can be joined to a registry's root without leaving it.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest model name, in bytes.
const MAX_MODEL_NAME_BYTES: usize = 128;
/// The highest version, 2⁶³−1: what a signed 64-bit integer holds, as clients of the protocol use.
pub const MAX_VERSION: VersionNumber = i64::MAX as u64;
/// The longest path of a file inside a version, in bytes.
const MAX_FILE_PATH_BYTES: usize = 1024;

/// Why a name, version or path is refused. What was given is shown shortened and escaped: it may be hostile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a model name.
    #[error("model name {given} {rule}")]
    Model {
        /// What was given, quoted.
        given: String,
        /// The rule that it breaks, as the end of a sentence.
        rule: &'static str,
    },
    /// Not a version number.
    #[error("version {given} is not a whole number from 1 to {MAX_VERSION}")]
    Version {
        /// What was given, quoted.
        given: String,
    },
    /// Not the path of a file inside a version.
    #[error("file path {given} {rule}")]
    Path {
        /// What was given, quoted.
        given: String,
        /// The rule that it breaks, as the end of a sentence.
        rule: &'static str,
    },
}

/// Quotes, escapes and shortens text from outside, so that it can stand in an error or a log line.
pub(crate) fn quoted(given: &str) -> String {
    const SHOWN: usize = 80;
    match given.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &given[..end]),
        None => format!("{given:?}"),
    }
}

/// The name of a model: 1 to 128 ASCII letters, digits, `.`, `_` and `-`, not starting with `.` or `_`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName(Arc<str>);

impl ModelName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError::Model`] names the rule that the text breaks.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let refuse = |rule| Err(NameError::Model { given: quoted(name), rule });
        if name.is_empty() {
            return refuse("is empty");
        }
        if name.len() > MAX_MODEL_NAME_BYTES {
            return refuse("is longer than 128 characters");
        }
        if name.starts_with(['.', '_']) {
            return refuse("starts with `.` or `_`");
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
            return refuse("has a character that is not a letter, digit, `.`, `_` or `-`");
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl AsRef<str> for ModelName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for ModelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ModelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::new(&name).map_err(serde::de::Error::custom)
    }
}

/// A version of a model, 1 to [`MAX_VERSION`].
pub type VersionNumber = u64;

/// Reads a version from text: decimal digits without sign, spaces or leading zeros.
///
/// # Errors
/// [`NameError::Version`] for anything else, 0 and numbers above [`MAX_VERSION`].
pub fn parse_version(text: &str) -> Result<VersionNumber, NameError> {
    let refuse = || NameError::Version { given: quoted(text) };
    if text.is_empty() || text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse());
    }
    text.parse().ok().filter(|version| *version <= MAX_VERSION).ok_or_else(refuse)
}

/// Checks a version that came as a number.
///
/// # Errors
/// [`NameError::Version`] for 0 and numbers above [`MAX_VERSION`].
pub fn check_version(version: VersionNumber) -> Result<(), NameError> {
    if (1..=MAX_VERSION).contains(&version) { Ok(()) } else { Err(NameError::Version { given: version.to_string() }) }
}

/// Names one version of one model. Shown as `model@3`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionKey {
    /// The model.
    pub model: ModelName,
    /// Its version.
    pub version: VersionNumber,
}

impl VersionKey {
    /// Puts both together.
    pub fn new(model: ModelName, version: VersionNumber) -> Self {
        Self { model, version }
    }
}

impl fmt::Display for VersionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.model, self.version)
    }
}

/// Checks the path of a file inside a version: relative, normalised, `/` between its parts, without `..`, `.`, empty parts,
/// backslashes or control characters.
///
/// # Errors
/// [`NameError::Path`] names the rule that the path breaks.
pub fn check_file_path(path: &str) -> Result<(), NameError> {
    const MAX_PART_BYTES: usize = 255;
    let refuse = |rule| Err(NameError::Path { given: quoted(path), rule });
    if path.is_empty() {
        return refuse("is empty");
    }
    if path.len() > MAX_FILE_PATH_BYTES {
        return refuse("is longer than 1024 bytes");
    }
    if path.starts_with('/') {
        return refuse("is absolute");
    }
    if path.contains('\\') {
        return refuse("has a backslash");
    }
    if path.chars().any(char::is_control) {
        return refuse("has a control character");
    }
    for part in path.split('/') {
        match part {
            "" => return refuse("has an empty part"),
            "." | ".." => return refuse("has `.` or `..` as a part"),
            _ if part.len() > MAX_PART_BYTES => return refuse("has a part longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names() {
        let check = |name: &str, broken: Option<&str>| match (ModelName::new(name), broken) {
            (Ok(accepted), None) => assert_eq!(accepted.as_str(), name),
            (Err(error), Some(rule)) => assert!(error.to_string().contains(rule), "{error} should say {rule}"),
            (outcome, _) => panic!("{name:?}: {outcome:?}"),
        };
        check("digits", None);
        check("a", None);
        check("Resnet-50.v1_quantised", None);
        check(&"m".repeat(128), None);
        check("", Some("is empty"));
        check(&"m".repeat(129), Some("longer than 128"));
        check(".", Some("starts with"));
        check("..", Some("starts with"));
        check(".hidden", Some("starts with"));
        check("_changes", Some("starts with"));
        for hostile in ["a/b", "a\\b", "../a", "/a", "a b", "a\0", "a\n", "naïve", "a%2fb", "a:b", "a#1", "～"] {
            check(hostile, Some("starts with").filter(|_| hostile.starts_with('.')).or(Some("not a letter")));
        }
    }

    #[test]
    fn a_hostile_name_is_shown_escaped_and_short() {
        let text = ModelName::new(&"\u{1b}[31m\n".repeat(1_000)).unwrap_err().to_string();
        assert!(!text.contains('\u{1b}') && !text.contains('\n') && text.len() < 1_000, "{text}");
    }

    #[test]
    fn versions() {
        for (text, expected) in [("1", Some(1)), ("42", Some(42)), ("9223372036854775807", Some(MAX_VERSION))] {
            assert_eq!(parse_version(text).ok(), expected, "{text}");
        }
        for text in ["", "0", "-1", "+1", "01", "1.0", " 1", "1 ", "٣", "9223372036854775808", "99999999999999999999999", "one"] {
            assert!(parse_version(text).is_err(), "{text:?} should be refused");
        }
        assert!(check_version(0).is_err() && check_version(MAX_VERSION + 1).is_err());
        assert!(check_version(1).is_ok() && check_version(MAX_VERSION).is_ok());
    }

    #[test]
    fn file_paths() {
        for path in ["model.onnx", "variables/weights.bin", "a/b/c", "with space.txt", "..hidden", "a..b", "naïve.txt"] {
            assert_eq!(check_file_path(path), Ok(()), "{path:?}");
        }
        let long = format!("a/{}", "b".repeat(256));
        let deep = "a/".repeat(600) + "b";
        for path in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            ".",
            "./a",
            "a//b",
            "a/",
            "a\\b",
            "..\\x",
            "a\0b",
            "a\nb",
            &long,
            &deep,
        ] {
            assert!(check_file_path(path).is_err(), "{path:?} should be refused");
        }
    }

    #[test]
    fn names_travel_as_plain_strings() {
        let key = VersionKey::new(ModelName::new("digits").unwrap(), 3);
        assert_eq!(key.to_string(), "digits@3");
        assert_eq!(serde_json::to_string(&key).unwrap(), r#"{"model":"digits","version":3}"#);
        assert!(serde_json::from_str::<ModelName>(r#""../x""#).is_err());
    }
}
