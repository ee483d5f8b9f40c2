//! `registry.trust`: public keys, written out or in files.

use std::path::{Path, PathBuf};

use bascule_registry::PublicKey;
use serde_json::{Value as Json, json};

use super::lists::items;
use super::raw::Raw;
use super::value::Value;

const FILE: &str = "file:";

/// Whose signature is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustedKey {
    /// This key's.
    Key(PublicKey),
    /// Those of the keys in this file, as `bascule keygen` writes it.
    File(PathBuf),
}

impl TrustedKey {
    fn read(word: &str) -> Result<TrustedKey, String> {
        match word.strip_prefix(FILE) {
            Some(path) if !path.is_empty() => Ok(TrustedKey::File(path.into())),
            Some(_) => Err("expected a path after `file:`".to_owned()),
            None => word.parse().map(TrustedKey::Key).map_err(|error: bascule_registry::KeyError| match error {
                // What looks like a private key is not repeated.
                bascule_registry::KeyError::IsSecret => error.to_string(),
                error => format!("{error}, or `file:` and the path of a file with some"),
            }),
        }
    }
}

impl Value for Vec<TrustedKey> {
    fn schema() -> Json {
        let what = "public keys such as \"ed25519:…\", or files with some such as \"file:keys.pub\"";
        json!({ "type": "array", "items": { "type": "string" }, "description": what })
    }

    fn show(&self) -> String {
        let show = |key: &TrustedKey| match key {
            TrustedKey::Key(key) => key.to_string(),
            TrustedKey::File(path) => format!("{FILE}{}", path.display()),
        };
        self.iter().map(show).collect::<Vec<_>>().join(",")
    }

    fn relative_to(self, dir: &Path) -> Self {
        let relative = |key| match key {
            TrustedKey::File(path) => TrustedKey::File(dir.join(path)),
            key => key,
        };
        self.into_iter().map(relative).collect()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        items(raw, "public keys")?.into_iter().map(TrustedKey::read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    #[test]
    fn keys_and_files_are_read_and_shown() {
        let read = |word: &str| Vec::<TrustedKey>::read(&Raw::Word(word.to_owned()));
        let both = read(&format!("{KEY}, file:keys.pub")).unwrap();
        assert_eq!(both.relative_to(Path::new("/etc")).show(), format!("{KEY},file:/etc/keys.pub"));
        assert_eq!(read(""), Ok(Vec::new()));
        assert!(read("file:").unwrap_err().contains("expected a path"));
        let error = read("ed25519:short").unwrap_err();
        assert!(error.contains("\"ed25519:short\" is not a public key") && error.contains("`file:`"), "{error}");
        let secret = "ed25519-secret:nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
        let error = read(secret).unwrap_err();
        assert!(error.contains("private key") && !error.contains("nWGxne"), "{error}");
    }
}
