//! One look at a directory: names, sizes, times and settings. All of it blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::plain::{self, PlainFiles, ScanError, Stamp};
use super::settings::{Beside, SettingsLook};
use crate::digest::{Digest, DigestBuilder};
use crate::name::{ModelName, VersionKey, VersionNumber, parse_version, quoted};
use crate::registry::contained::is_absent;
use crate::registry::versions::SETTINGS_FILES;

const VERSIONS: &str = "versions";
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
    /// For our layout: changes whenever a manifest, a tombstone, the journal or signatures may have changed.
    pub(super) ours: Option<Digest>,
    /// For our layout: the change log names it. Set by whoever reads that.
    pub(super) anew: bool,
    pub(super) numeric: BTreeSet<VersionNumber>,
    pub(super) plain: BTreeMap<VersionNumber, Result<PlainFiles, ScanError>>,
    pub(super) settings: SettingsLook,
    pub(super) problems: Vec<String>,
}

impl ModelLook {
    fn new(name: ModelName) -> Self {
        Self {
            name,
            failed: None,
            ours: None,
            anew: false,
            numeric: BTreeSet::new(),
            plain: BTreeMap::new(),
            settings: SettingsLook::default(),
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
            Ok(Some(dir)) => match std::fs::metadata(&dir) {
                Ok(meta) if meta.is_dir() => {
                    look.models.extend(look_at_model(&look.root, &dir, model, &mut look.problems));
                }
                Ok(_) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => look.models.push(ModelLook { failed: Some(error.to_string()), ..ModelLook::new(model) }),
            },
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
    let mut looks_like_one = false;
    match fill(root, dir, &mut model) {
        Ok(beside) => {
            let of_a_model = |file: &String| SETTINGS_FILES.contains(&file.as_str()) || file.ends_with(".onnx");
            looks_like_one = beside.files.keys().any(of_a_model);
        }
        // It went while it was looked at.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => model.failed = Some(error.to_string()),
    }
    if model.failed.is_some() || model.ours.is_some() || !model.plain.is_empty() {
        return Some(model);
    }
    if looks_like_one || !model.problems.is_empty() {
        let name = &model.name;
        problems.push(format!("{name} is no model: it has neither `versions/` nor a numbered directory with files"));
    }
    None
}

fn fill(root: &Path, dir: &Path, model: &mut ModelLook) -> io::Result<Beside> {
    let mut numbered = Vec::new();
    let mut beside = Beside::default();
    for entry in dir.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        let (place, meta) = match place_of(root, &entry) {
            Ok(Some(found)) => found,
            Ok(None) => {
                model.problems.push(format!("{} is ignored: it is {LEADS_OUT}", quoted(name)));
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // What a model is made of has to be readable; nothing else can take it out.
            Err(error) if is_part(name) => return Err(error),
            Err(error) => {
                model.problems.push(format!("{} can't be read: {error}", quoted(name)));
                continue;
            }
        };
        if meta.is_file() {
            beside.files.insert(name.to_owned(), place);
        } else if meta.is_dir() {
            match parse_version(name) {
                Ok(version) => numbered.push((version, place)),
                Err(_) if name == VERSIONS => model.ours = Some(fingerprint(dir)?),
                Err(error) if name.bytes().all(|byte| byte.is_ascii_digit()) => model.problems.push(error.to_string()),
                Err(_) => drop(beside.folders.insert(name.to_owned(), place)),
            }
        }
    }
    model.settings = SettingsLook::read(root, &beside, &mut model.problems)?;
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
    Ok(beside)
}

/// Where an entry really lies and what it is; `None` for a link that leads nowhere or out.
fn place_of(root: &Path, entry: &std::fs::DirEntry) -> io::Result<Option<(PathBuf, std::fs::Metadata)>> {
    let Some(place) = plain::resolve(root, entry)? else { return Ok(None) };
    let meta = std::fs::metadata(&place)?;
    Ok(Some((place, meta)))
}

fn is_part(name: &str) -> bool {
    name == VERSIONS || SETTINGS_FILES.contains(&name) || parse_version(name).is_ok()
}

/// Sizes and times of what can change in our layout. Journal entries never change, so their directory's time is enough.
fn fingerprint(dir: &Path) -> io::Result<Digest> {
    let mut numbers = Vec::new();
    for entry in dir.join(VERSIONS).read_dir()? {
        numbers.push(entry?.file_name());
    }
    numbers.sort_unstable();
    let mut digest = DigestBuilder::default();
    for number in numbers {
        digest.field(number.as_encoded_bytes());
        for file in ["manifest.json", "tombstone.json"] {
            stamp_to(&mut digest, &dir.join(VERSIONS).join(&number).join(file))?;
        }
    }
    stamp_to(&mut digest, &dir.join("rollout"))?;
    stamp_to(&mut digest, &dir.join("signatures"))?;
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
