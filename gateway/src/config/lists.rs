//! Settings that are lists: in a file as one, in variables and flags as words with commas between.

use std::path::{Path, PathBuf};

use bascule_registry::ModelName;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::raw::Raw;
use super::value::{Value, expected, text, words};

/// A format of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelFormat {
    /// ONNX.
    Onnx,
    /// TorchScript.
    TorchScript,
}

words!(ModelFormat, "onnx" => ModelFormat::Onnx, "torchscript" => ModelFormat::TorchScript);

/// The words of a list.
pub(super) fn items<'a>(raw: &'a Raw, what: &str) -> Result<Vec<&'a str>, String> {
    match raw {
        Raw::Word(word) => Ok(word.split(',').map(str::trim).filter(|word| !word.is_empty()).collect()),
        Raw::List(items) => {
            let words: Option<Vec<&str>> = items.iter().map(|item| text(&item.raw)).collect();
            words.ok_or_else(|| format!("expected a list of {what}, got something else in it"))
        }
        _ => expected(&format!("a list of {what}"), raw),
    }
}

impl Value for Vec<ModelName> {
    fn schema() -> Json {
        json!({ "type": "array", "items": { "type": "string" }, "description": "model names" })
    }

    fn show(&self) -> String {
        self.iter().map(ModelName::as_str).collect::<Vec<_>>().join(",")
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let names = items(raw, "model names")?;
        names.into_iter().map(|name| ModelName::new(name).map_err(|error| error.to_string())).collect()
    }
}

impl Value for Vec<ModelFormat> {
    fn schema() -> Json {
        json!({ "type": "array", "items": ModelFormat::schema() })
    }

    fn show(&self) -> String {
        self.iter().map(Value::show).collect::<Vec<_>>().join(",")
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        items(raw, "formats")?.into_iter().map(|word| ModelFormat::read(&Raw::Word(word.to_owned()))).collect()
    }
}

impl Value for Vec<PathBuf> {
    fn schema() -> Json {
        json!({ "type": "array", "items": PathBuf::schema() })
    }

    fn show(&self) -> String {
        self.iter().map(Value::show).collect::<Vec<_>>().join(",")
    }

    fn relative_to(self, dir: &Path) -> Self {
        self.into_iter().map(|path| path.relative_to(dir)).collect()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        items(raw, "paths").map(|paths| paths.into_iter().map(PathBuf::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Value>(word: &str) -> Result<String, String> {
        T::read(&Raw::Word(word.to_owned())).map(|value| value.show())
    }

    #[test]
    fn lists_are_words_with_commas_between() {
        assert_eq!(check::<Vec<ModelName>>("a, b,c"), Ok("a,b,c".to_owned()));
        assert!(check::<Vec<ModelName>>("a,../b").unwrap_err().contains("../b"));
        assert_eq!(check::<Vec<ModelFormat>>("torchscript,onnx"), Ok("torchscript,onnx".to_owned()));
        assert_eq!(check::<Vec<ModelFormat>>(""), Ok(String::new()));
        let error = check::<Vec<ModelFormat>>("onnx,torchskript").unwrap_err();
        assert_eq!(error, "expected one of onnx, torchscript, got \"torchskript\", did you mean `torchscript`?");
        let paths = <Vec<PathBuf>>::read(&Raw::Word("a.so,/b.so".to_owned())).unwrap().relative_to(Path::new("/etc"));
        assert_eq!(paths, [PathBuf::from("/etc/a.so"), PathBuf::from("/b.so")]);
        assert_eq!(<Vec<PathBuf>>::read(&Raw::Integer(1)).unwrap_err(), "expected a list of paths, got 1");
    }
}
