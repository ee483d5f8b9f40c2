//! One look at a directory: names, sizes, times and settings. All of it blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::plain::{self, PlainFiles, ScanError, Stamp};
use crate::digest::{Digest, DigestBuilder};
use crate::name::{ModelName, VersionKey, VersionNumber, parse_version, quoted};
use crate::registry::versions::settings_problem;

const LEADS_OUT: &str = "a symbolic link that leads nowhere or out of the repository";

/// What a look has found.
pub(super) struct Look {
    /// The directory without symbolic links.
    pub(super) root: PathBuf,
    pub(super) models: Vec<ModelLook>,
    pub(super) problems: Vec<String>,
}

/// A model's directory.
pub(super) struct ModelLook {
    pub(super) name: ModelName,
    /// It can't be read now.
    pub(super) failed: Option<String>,
    /// For our layout: changes whenever a manifest, a tombstone or the journal may have changed.
    pub(super) ours: Option<Digest>,
    pub(super) numeric: BTreeSet<VersionNumber>,
    pub(super) plain: BTreeMap<VersionNumber, Result<PlainFiles, ScanError>>,
    pub(super) settings: BTreeMap<String, Arc<[u8]>>,
    pub(super) problems: Vec<String>,
}

impl ModelLook {
    fn new(name: ModelName) -> Self {
        Self {
            name,
            failed: None,
            ours: None,
            numeric: BTreeSet::new(),
            plain: BTreeMap::new(),
            settings: BTreeMap::new(),
            problems: Vec::new(),
        }
    }
}

/// Looks at every model below the directory.
pub(super) fn look(root: &Path) -> io::Result<Look> {
    let root = root.canonicalize()?;
    let mut look = Look { models: Vec::new(), problems: Vec::new(), root };
    for entry in look.root.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(['.', '_']) {
            continue;
        }
        let model = match ModelName::new(&name) {
            Ok(model) => model,
            Err(error) if entry.path().is_dir() => {
                look.problems.push(format!("a directory is ignored: {error}"));
                continue;
            }
            Err(_) => continue,
        };
        match plain::resolve(&look.root, &entry) {
            Ok(Some(dir)) if dir.is_dir() => {
                look.models.extend(look_at_model(&look.root, &dir, model, &mut look.problems));
            }
            Ok(Some(_)) => {}
            Ok(None) => look.problems.push(format!("`{model}` is ignored: it is {LEADS_OUT}")),
            Err(error) => look.models.push(ModelLook { failed: Some(error.to_string()), ..ModelLook::new(model) }),
        }
    }
    look.models.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    look.problems.sort_unstable();
    Ok(look)
}

/// `None` for a directory that is no model.
fn look_at_model(root: &Path, dir: &Path, name: ModelName, problems: &mut Vec<String>) -> Option<ModelLook> {
    let mut model = ModelLook::new(name);
    match fill(root, dir, &mut model) {
        Ok(()) => {}
        // It went while it was looked at.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => model.failed = Some(error.to_string()),
    }
    if model.failed.is_some() || model.ours.is_some() || !model.plain.is_empty() {
        return Some(model);
    }
    let looks_like_one = |file: &String| matches!(file.as_str(), "model.toml" | "config.pbtxt") || file.ends_with(".onnx");
    if model.settings.keys().any(looks_like_one) || !model.problems.is_empty() {
        let name = &model.name;
        problems.push(format!("{name} is no model: it has neither `versions/` nor a numbered directory with files"));
    }
    None
}

fn fill(root: &Path, dir: &Path, model: &mut ModelLook) -> io::Result<()> {
    let mut numbered = Vec::new();
    for entry in dir.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        let Some(place) = plain::resolve(root, &entry)? else {
            model.problems.push(format!("{} is ignored: it is {LEADS_OUT}", quoted(name)));
            continue;
        };
        let Some(meta) = absent_is_none(std::fs::metadata(&place))? else { continue };
        if meta.is_file() {
            read_settings(name, &place, &meta, model)?;
        } else if meta.is_dir() {
            match parse_version(name) {
                Ok(version) => numbered.push((version, place)),
                Err(_) if name == "versions" => model.ours = Some(fingerprint(dir)?),
                Err(error) if name.bytes().all(|byte| byte.is_ascii_digit()) => model.problems.push(error.to_string()),
                Err(_) => {}
            }
        }
    }
    model.numeric = numbered.iter().map(|(version, _)| *version).collect();
    if model.ours.is_none() {
        for (version, place) in numbered {
            let key = VersionKey::new(model.name.clone(), version);
            match plain::scan(root, &place, &key) {
                Ok(None) => {}
                Err(ScanError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(Some(files)) => drop(model.plain.insert(version, Ok(files))),
                Err(error) => drop(model.plain.insert(version, Err(error))),
            }
        }
    }
    model.problems.sort_unstable();
    Ok(())
}

fn read_settings(name: &str, place: &Path, meta: &std::fs::Metadata, model: &mut ModelLook) -> io::Result<()> {
    if let Some(problem) = settings_problem(name, meta.len(), model.settings.len()) {
        model.problems.push(problem);
        return Ok(());
    }
    if let Some(content) = absent_is_none(std::fs::read(place))? {
        model.settings.insert(name.to_owned(), content.into());
    }
    Ok(())
}

/// Sizes and times of what can change in our layout. Journal entries never change, so their directory's time is enough.
fn fingerprint(dir: &Path) -> io::Result<Digest> {
    let mut numbers = Vec::new();
    for entry in dir.join("versions").read_dir()? {
        numbers.push(entry?.file_name());
    }
    numbers.sort_unstable();
    let mut digest = DigestBuilder::default();
    for number in numbers {
        digest.field(number.as_encoded_bytes());
        for file in ["manifest.json", "tombstone.json"] {
            stamp_to(&mut digest, &dir.join("versions").join(&number).join(file))?;
        }
    }
    stamp_to(&mut digest, &dir.join("rollout"))?;
    Ok(digest.finish())
}

fn stamp_to(digest: &mut DigestBuilder, path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(meta) => Stamp::of(&meta).describe_to(digest.number(1)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => drop(digest.number(0)),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn absent_is_none<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
