//! Secrets: settings say where one is, and nothing ever shows it.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

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
pub struct Secret(String);

impl Secret {
    /// The secret itself, for whoever needs it and shows it to nobody.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecretRef {
    /// In an environment variable.
    Variable(String),
    /// In a file, but for white space at its end.
    File(PathBuf),
}

impl Value for SecretRef {
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^(env|file):.+", "description": "where the secret is: \"env:NAME\" or \"file:PATH\"" })
    }

    fn show(&self) -> String {
        match self {
            SecretRef::Variable(name) => format!("env:{name}"),
            SecretRef::File(path) => format!("file:{}", path.display()),
        }
    }

    fn relative_to(self, dir: &Path) -> Self {
        match self {
            SecretRef::File(path) => SecretRef::File(dir.join(path)),
            variable => variable,
        }
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match text(raw).and_then(|text| text.split_once(':')) {
            Some(("env", name)) if !name.is_empty() => Ok(SecretRef::Variable(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(SecretRef::File(PathBuf::from(path))),
            // What was given may be the secret itself.
            _ => Err("expected where the secret is, \"env:NAME\" or \"file:PATH\", not the secret".to_owned()),
        }
    }
}

impl SecretRef {
    fn fetch(&self, environment: &Environment) -> Result<String, String> {
        let secret = match self {
            SecretRef::Variable(name) => {
                environment.secret(name).ok_or_else(|| format!("the variable {name} is not set"))?.to_owned()
            }
            SecretRef::File(path) => read_file(path).map_err(|error| format!("{} can't be read: {error}", path.display()))?,
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
pub(crate) fn take(layers: &mut Layers, key: &Key<Option<SecretRef>>, environment: &Environment) -> Option<Secret> {
    let place = layers.take(key)?;
    match place.fetch(environment) {
        Ok(secret) => Some(Secret(secret)),
        Err(_) if key.default().as_ref() == Some(&place) => None,
        Err(problem) => {
            layers.refuse(layers.origin_of(key), format!("`{}`: {problem}", key.name()));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let refused = SecretRef::read(&Raw::Word("hunter2".into())).unwrap_err();
        assert!(!refused.contains("hunter2"), "{refused}");
        assert_eq!(format!("{:?}", Secret("hunter2".into())), "a secret");
    }

    #[test]
    fn where_a_secret_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "hunter2\n").unwrap();
        let environment = Environment::of(&[("TOKEN", "hunter3"), ("EMPTY", "")]);
        let check = |place: &str| {
            let place = SecretRef::read(&Raw::Word(place.into())).unwrap();
            assert_eq!(SecretRef::read(&Raw::Word(place.show())), Ok(place.clone()));
            place.fetch(&environment)
        };
        assert_eq!(check("env:TOKEN"), Ok("hunter3".to_owned()));
        assert_eq!(check(&format!("file:{}", file.display())), Ok("hunter2".to_owned()));
        assert!(check("env:EMPTY").unwrap_err().contains("EMPTY is not set"));
        assert!(check("file:/no/such/file").unwrap_err().contains("can't be read"));
        for wrong in ["", "env:", "file:", "TOKEN", "vault:x"] {
            assert!(SecretRef::read(&Raw::Word(wrong.into())).is_err(), "{wrong}");
        }
        let relative = SecretRef::File("token".into()).relative_to(folder.path());
        assert_eq!(relative, SecretRef::File(file));
    }
}
