//! The files of a version that lie about: which they are, which of them is the model, and of what format.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use bascule_registry::{collect_files, format_of};

use crate::cli::failure::Failure;

/// What was found at a path.
#[derive(Debug)]
pub(in crate::cli) struct Chosen {
    /// Each file by its name inside the version.
    pub(in crate::cli) files: Vec<(String, PathBuf)>,
    /// The file that the runtime opens.
    pub(in crate::cli) entrypoint: String,
    /// Its format.
    pub(in crate::cli) format: String,
    /// The file of golden samples, by its name inside the version.
    pub(in crate::cli) golden: Option<String>,
}

/// A folder that holds a version's files and nothing else.
pub(in crate::cli) struct Staged {
    dir: PathBuf,
    _alone: Option<tempfile::TempDir>,
}

impl Staged {
    pub(in crate::cli) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// What golden samples are called inside a version, where nothing else is said.
pub(in crate::cli) const GOLDEN: &str = "golden.json";

/// Finds the files of a version: a file, or all of a folder. `golden` is one of a folder's files; a single file gets it as a second one.
pub(in crate::cli) fn choose(
    path: &Path,
    named: Option<&str>,
    format: Option<&str>,
    golden: Option<&str>,
) -> Result<Chosen, Failure> {
    let mut files = collect_files(path).with_context(|| format!("can't read {}", path.display()))?;
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let entrypoint = entrypoint(&names, named)?;
    let format = match format {
        Some(format) => format.to_owned(),
        None => guessed_format(&entrypoint)?.to_owned(),
    };
    let golden = golden_among(path, &mut files, golden)?;
    Ok(Chosen { files, entrypoint, format, golden })
}

/// The name of the golden samples inside the version.
fn golden_among(path: &Path, files: &mut Vec<(String, PathBuf)>, named: Option<&str>) -> Result<Option<String>, Failure> {
    let is_there = |name: &str| files.iter().any(|(file, _)| file == name);
    match named {
        None => Ok(is_there(GOLDEN).then(|| GOLDEN.to_owned())),
        Some(named) if path.is_dir() => match is_there(named) {
            true => Ok(Some(named.to_owned())),
            false => Err(Failure::new(format!("--golden: there is no file {named:?} in {}", path.display()))
                .hint("the file has to be one of the folder's own, named as the folder names it")),
        },
        Some(_) if is_there(GOLDEN) => Err(Failure::new(format!("--golden: the model's own file is called {GOLDEN}"))),
        Some(named) => {
            let is_file = std::fs::metadata(named).with_context(|| format!("--golden: can't read {named}"))?.is_file();
            if !is_file {
                return Err(Failure::new(format!("--golden: {named} is not a file")));
            }
            files.push((GOLDEN.to_owned(), PathBuf::from(named)));
            Ok(Some(GOLDEN.to_owned()))
        }
    }
}

impl Chosen {
    /// The folder; a single file gets one of its own, for what lies beside it does not belong to it.
    pub(in crate::cli) fn staged(&self, path: &Path) -> io::Result<Staged> {
        if path.is_dir() {
            return Ok(Staged { dir: path.to_owned(), _alone: None });
        }
        let alone = alone(path, &self.files)?;
        Ok(Staged { dir: alone.path().to_owned(), _alone: Some(alone) })
    }
}

fn guessed_format(entrypoint: &str) -> Result<&'static str, Failure> {
    format_of(entrypoint).ok_or_else(|| {
        Failure::new(format!("the format of {entrypoint} can't be told from its name"))
            .hint("name it, for example with --format onnx")
    })
}

/// What the file that a runtime opens is mostly called.
const USUAL: [&str; 3] = ["model.onnx", "model.pt", "model.fake.json"];

/// The file that the runtime opens.
fn entrypoint(files: &[&str], named: Option<&str>) -> Result<String, Failure> {
    if let Some(named) = named {
        return match files.contains(&named) {
            true => Ok(named.to_owned()),
            false => Err(anyhow!("--entrypoint: there is no file {named:?} among {}", files.join(", ")).into()),
        };
    }
    let models: Vec<&&str> = files.iter().filter(|file| format_of(file).is_some()).collect();
    if let Some(usual) = models.iter().find(|file| USUAL.contains(**file)) {
        return Ok((**usual).to_string());
    }
    match (models.as_slice(), files) {
        ([only], _) => Ok((**only).to_owned()),
        // A single file of any name: --format says what it is.
        ([], [only]) => Ok((*only).to_owned()),
        ([], []) => Err(Failure::new("the folder holds no files")),
        _ => Err(Failure::new(format!("which of {} is the model?", files.join(", "))).hint("name it with --entrypoint")),
    }
}

/// A folder with these files and nothing else.
fn alone(path: &Path, files: &[(String, PathBuf)]) -> io::Result<tempfile::TempDir> {
    // Beside the model, where that can be: there a link costs nothing, and a model may be larger than what is free for temporary files.
    let model = path.canonicalize()?;
    let beside = model.parent().map(|parent| tempfile::Builder::new().prefix(".bascule-").tempdir_in(parent));
    let folder = beside.and_then(Result::ok).map_or_else(tempfile::tempdir, Ok)?;
    for (name, file) in files {
        // Links of links would lead to what lies beside the file.
        let (file, place) = (file.canonicalize()?, folder.path().join(name));
        if std::fs::hard_link(&file, &place).is_err() {
            std::fs::copy(&file, &place)?;
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_file_is_found_or_asked_for() {
        let check = |files: &[&str], named| entrypoint(files, named).map_err(|failure| failure.text());
        assert_eq!(check(&["net.onnx"], None), Ok("net.onnx".into()));
        assert_eq!(check(&["golden.json", "model.onnx", "other.onnx"], None), Ok("model.onnx".into()));
        assert_eq!(check(&["golden.json", "net.onnx", "weights.bin"], None), Ok("net.onnx".into()));
        assert_eq!(check(&["anything"], None), Ok("anything".into()));
        assert_eq!(check(&["a.onnx", "b.onnx"], Some("b.onnx")), Ok("b.onnx".into()));
        assert!(check(&["a.onnx", "b.onnx"], None).unwrap_err().contains("--entrypoint"));
        assert!(check(&["a.onnx"], Some("c.onnx")).unwrap_err().contains("\"c.onnx\""));
        assert!(check(&["a.txt", "b.txt"], None).is_err());
        assert!(check(&[], None).is_err());
    }

    #[test]
    fn golden_samples_are_one_of_a_folders_files_or_join_a_single_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["model.onnx", "beside.json"] {
            std::fs::write(at(name), name).unwrap();
        }
        let outside = at("beside.json").display().to_string();
        let check = |path: &Path, golden: Option<&str>| -> Result<(Option<String>, String), String> {
            let chosen = choose(path, None, None, golden).map_err(|failure| failure.text())?;
            Ok((chosen.golden, chosen.files.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(" ")))
        };
        let (file, folder) = (at("model.onnx"), folder.path());
        assert_eq!(check(&file, None), Ok((None, "model.onnx".into())));
        assert_eq!(check(&file, Some(&outside)), Ok((Some(GOLDEN.into()), "model.onnx golden.json".into())));
        assert_eq!(check(folder, None), Ok((None, "beside.json model.onnx".into())));
        assert_eq!(check(folder, Some("beside.json")), Ok((Some("beside.json".into()), "beside.json model.onnx".into())));
        let refused = |path: &Path, golden: &str| check(path, Some(golden)).unwrap_err();
        assert!(refused(folder, "none.json").starts_with("error: --golden: there is no file \"none.json\" in "));
        assert!(refused(&file, "none.json").starts_with("error: --golden: can't read none.json\n"));
        assert!(refused(&file, &folder.display().to_string()).contains("is not a file"));
        let chosen = choose(&file, None, None, Some(&outside)).unwrap();
        let staged = chosen.staged(&file).unwrap();
        let read = |name: &str| std::fs::read_to_string(staged.dir().join(name)).unwrap();
        assert_eq!((read("model.onnx"), read(GOLDEN)), ("model.onnx".into(), "beside.json".into()));
        assert!(!staged.dir().join("beside.json").exists());
    }

    #[test]
    fn formats_are_told_by_their_endings() {
        assert_eq!(guessed_format("x/model.onnx").unwrap(), "onnx");
        assert_eq!(guessed_format("model.pt").unwrap(), "torchscript");
        assert!(guessed_format("model.bin").unwrap_err().text().contains("--format onnx"));
    }
}
