//! A setting that is a secret: the configuration says where it lies and never holds it.

use std::path::{Path, PathBuf};

use bascule_registry::Secret;
use serde_json::{Value as Json, json};

use super::env::Environment;
use super::raw::Raw;
use super::value::{Value, text};

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
            Self::Variable(name) => {
                let value = environment.get(name).map(|value| Secret::Value(value.to_owned()));
                value.ok_or_else(|| format!("the variable {name} is not set"))
            }
            Self::File(path) => Ok(Secret::File(path.clone())),
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
    fn a_secret_is_a_place_and_is_not_repeated() {
        let read = |word: &str| SecretPlace::read(&Raw::Word(word.into()));
        assert_eq!(read("env:REGISTRY_PASSWORD").unwrap().show(), "env:REGISTRY_PASSWORD");
        assert_eq!(read("file:/run/secrets/p").unwrap().show(), "file:/run/secrets/p");
        let moved = read("file:secrets/p").unwrap().relative_to(Path::new("/etc/bascule"));
        assert_eq!(moved, SecretPlace::File("/etc/bascule/secrets/p".into()));
        for wrong in ["hunter2", "env:", "env:hunter2 x", "file:", "pass:hunter2"] {
            let problem = read(wrong).unwrap_err();
            assert!(problem.contains("env:NAME") && !problem.contains("hunter2"), "{problem}");
        }
        let environment = Environment::of(&[("SET", "hunter2")]);
        assert_eq!(read("env:SET").unwrap().open(&environment), Ok(Secret::Value("hunter2".into())));
        assert!(read("env:UNSET").unwrap().open(&environment).unwrap_err().contains("UNSET is not set"));
    }
}
