//! A setting that is a secret: the configuration says where it lies, never holds it, and nothing ever shows it.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bascule_registry::Secret;
use serde_json::{Value as Json, json};

use super::env::Environment;
use super::key::{AnyKey as _, Key};
use super::layers::Layers;
use super::raw::Raw;
use super::value::{Value, text};

/// The largest file that is read for a secret.
const MAX_BYTES: u64 = 64 << 10;

/// A secret that was read.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// The secret itself, for whoever needs it and shows it to nobody.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }
}

/// Where a secret lies, written `env:NAME` or `file:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretPlace {
    /// A variable of the environment.
    Variable(String),
    /// A file that holds nothing else.
    File(PathBuf),
}

impl SecretPlace {
    /// The secret of a variable, which has to be set; that of a file is read each time it is needed.
    pub(super) fn open(&self, environment: &Environment) -> Result<Secret, String> {
        match self {
            Self::Variable(_) => self.fetch(environment).map(Secret::Value),
            Self::File(path) => Ok(Secret::File(path.clone())),
        }
    }

    /// The secret as it is now. White space at the end of a file is none of it.
    fn fetch(&self, environment: &Environment) -> Result<String, String> {
        let secret = match self {
            Self::Variable(name) => environment.secret(name).ok_or_else(|| format!("the variable {name} is not set"))?.to_owned(),
            Self::File(path) => read_file(path).map_err(|error| format!("{} can't be read: {error}", path.display()))?,
        };
        if secret.is_empty() { Err(format!("{} is empty", self.show())) } else { Ok(secret) }
    }
}

fn read_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text.trim_end().to_owned())
}

/// Takes a setting and reads what it points at. Where the default points, nothing need be there.
pub(super) fn take(layers: &mut Layers, key: &Key<Option<SecretPlace>>, environment: &Environment) -> Option<SecretText> {
    let place = layers.take(key)?;
    match place.fetch(environment) {
        Ok(secret) => Some(SecretText(secret)),
        Err(_) if key.default().as_ref() == Some(&place) => None,
        Err(problem) => {
            layers.refuse(layers.origin_of(key), format!("`{}`: {problem}", key.name()));
            None
        }
    }
}

impl Value for SecretPlace {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^(env|file):.+", "description": "where it lies: \"env:NAME\" or \"file:PATH\"" })
    }

    fn show(&self) -> String {
        match self {
            Self::Variable(name) => format!("env:{name}"),
            Self::File(path) => format!("file:{}", path.display()),
        }
    }

    fn relative_to(self, dir: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(dir.join(path)),
            variable @ Self::Variable(_) => variable,
        }
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let place = text(raw).and_then(|text| match text.split_once(':')? {
            ("env", name) if is_variable(name) => Some(Self::Variable(name.to_owned())),
            ("file", path) if !path.is_empty() => Some(Self::File(PathBuf::from(path))),
            _ => None,
        });
        // What is written instead may be the secret itself: it is not repeated.
        place.ok_or_else(|| "expected where the secret lies, \"env:NAME\" or \"file:PATH\", and not the secret itself".to_owned())
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let refused = SecretPlace::read(&Raw::Word("hunter2".into())).unwrap_err();
        assert!(!refused.contains("hunter2"), "{refused}");
        assert_eq!(format!("{:?}", SecretText("hunter2".into())), "a secret");
    }

    #[test]
    fn where_a_secret_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "hunter2\n").unwrap();
        let environment = Environment::of(&[("TOKEN", "hunter3"), ("EMPTY", "")]);
        let check = |place: &str| {
            let place = SecretPlace::read(&Raw::Word(place.into())).unwrap();
            assert_eq!(SecretPlace::read(&Raw::Word(place.show())), Ok(place.clone()));
            place.fetch(&environment)
        };
        assert_eq!(check("env:TOKEN"), Ok("hunter3".to_owned()));
        assert_eq!(check(&format!("file:{}", file.display())), Ok("hunter2".to_owned()));
        assert!(check("env:EMPTY").unwrap_err().contains("EMPTY is not set"));
        assert!(check("file:/no/such/file").unwrap_err().contains("can't be read"));
        for wrong in ["", "env:", "env:a b", "file:", "TOKEN", "vault:x"] {
            assert!(SecretPlace::read(&Raw::Word(wrong.into())).is_err(), "{wrong}");
        }
        let relative = SecretPlace::File("token".into()).relative_to(folder.path());
        assert_eq!(relative, SecretPlace::File(file));
    }
}
