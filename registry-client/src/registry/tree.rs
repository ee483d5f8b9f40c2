//! What a listing of a store shows of a registry: which objects there are, and when each was last written.
//!
//! Nothing is read here. Manifests, tombstones and entries of journals never change, so their stamps say what has to be read.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use object_store::ObjectMeta;
use object_store::path::Path;

use crate::digest::DigestBuilder;
use crate::manifest::MAX_FILES;
use crate::name::{ModelName, VersionNumber, check_file_path, parse_version, quoted};

/// The most files beside a manifest, and at the root of a model, that are looked at.
const MAX_BESIDE: usize = 4_096;
/// The most problems that are told of one model, and of what is outside of any.
const MAX_PROBLEMS: usize = 64;

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const TOMBSTONE: &str = "tombstone.json";

/// What tells that an object has been written to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    pub(super) bytes: u64,
    pub(super) e_tag: Option<String>,
    pub(super) modified: DateTime<Utc>,
}

impl Stamp {
    pub(super) fn of(object: &ObjectMeta) -> Self {
        Self { bytes: object.size, e_tag: object.e_tag.clone(), modified: object.last_modified }
    }

    pub(super) fn describe_to(&self, digest: &mut DigestBuilder) {
        digest.number(self.bytes).field(self.e_tag.as_deref().unwrap_or_default().as_bytes());
        digest.number(self.modified.timestamp().cast_unsigned()).number(u64::from(self.modified.timestamp_subsec_nanos()));
    }
}

/// Objects below some place, by their paths from there.
pub(super) type Stamps = BTreeMap<String, Stamp>;

/// A registry's models.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) models: BTreeMap<ModelName, ModelTree>,
    /// Models of which it is not known what there is, and why: they are in `models` as they were, where they were.
    pub(super) unread: Vec<(ModelName, String)>,
    /// What is wrong outside of any model.
    pub(super) problems: Vec<String>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ModelTree {
    /// It has `versions/`.
    pub(super) ours: bool,
    /// What lies in the folder of each version there.
    pub(super) versions: BTreeMap<VersionNumber, Stamps>,
    /// The highest number in its journal, and how many entries that has: as many, where nobody meddled with it.
    pub(super) last_entry: u64,
    pub(super) entries: u64,
    /// When that entry was written, where a listing shows it.
    pub(super) last_written: Option<Stamp>,
    /// The signatures on each manifest, by the manifest's digest as their folder has it.
    pub(super) signatures: BTreeMap<String, Stamps>,
    /// What lies at its root, and in the folders there that are none of ours and no versions.
    pub(super) beside: Stamps,
    /// What lies in numbered folders at its root, or what is wrong with one of these.
    pub(super) numbered: BTreeMap<VersionNumber, Result<Stamps, String>>,
    pub(super) problems: Vec<String>,
}

impl Tree {
    /// Adds an object that a listing of `prefix` shows.
    pub(super) fn add(&mut self, prefix: &Path, object: &ObjectMeta) {
        let Some(parts) = object.location.prefix_match(prefix) else { return };
        let parts: Vec<_> = parts.map(|part| part.as_ref().to_owned()).collect();
        // What lies at the root belongs to nobody.
        let [name, rest @ ..] = parts.as_slice() else { return };
        if rest.is_empty() || name.starts_with(['.', '_']) {
            return;
        }
        match ModelName::new(name) {
            Ok(name) => {
                let rest: Vec<_> = rest.iter().map(String::as_str).collect();
                self.models.entry(name).or_default().add(&rest, Stamp::of(object));
            }
            Err(error) => note(&mut self.problems, format!("a folder is ignored: {error}")),
        }
    }
}

impl ModelTree {
    fn add(&mut self, parts: &[&str], stamp: Stamp) {
        match parts {
            // What starts with a dot is nobody's.
            parts if parts.iter().any(|part| part.starts_with('.')) => {}
            ["versions", number, file] => {
                self.ours = true;
                match parse_version(number) {
                    Ok(number) => insert(self.versions.entry(number).or_default(), (*file).to_owned(), stamp),
                    Err(error) => note(&mut self.problems, format!("in versions/: {error}")),
                }
            }
            ["versions", ..] => self.ours = true,
            ["rollout", entry] => {
                if let Some(number) = entry_number(entry) {
                    if number >= self.last_entry {
                        (self.last_entry, self.last_written) = (number, Some(stamp));
                    }
                    self.entries += 1;
                }
            }
            ["signatures", manifest, file] if manifest.len() == 64 => {
                insert(self.signatures.entry((*manifest).to_owned()).or_default(), (*file).to_owned(), stamp);
            }
            ["blobs" | "rollout" | "signatures", _, ..] => {}
            [name] => insert(&mut self.beside, (*name).to_owned(), stamp),
            [folder, rest @ ..] => match (parse_version(folder), rest) {
                (Ok(number), _) => self.add_numbered(number, &rest.join("/"), stamp),
                (Err(_), [name]) => insert(&mut self.beside, format!("{folder}/{name}"), stamp),
                (Err(_), _) => {}
            },
            [] => {}
        }
    }

    fn add_numbered(&mut self, number: VersionNumber, path: &str, stamp: Stamp) {
        let version = self.numbered.entry(number).or_insert_with(|| Ok(Stamps::new()));
        let Ok(files) = version else { return };
        if let Err(error) = check_file_path(path) {
            *version = Err(error.to_string());
        } else if files.len() == MAX_FILES {
            *version = Err(format!("{} is one file too many", quoted(path)));
        } else {
            files.insert(path.to_owned(), stamp);
        }
    }

    /// Puts away empty objects that stand for folders, as some tools make them. To be called once all is there.
    pub(super) fn tidy(&mut self) {
        for files in self.numbered.values_mut().filter_map(|files| files.as_mut().ok()) {
            let is_folder = |path: &String, files: &Stamps| {
                let inside = format!("{path}/");
                files.range(inside.clone()..).next().is_some_and(|(next, _)| next.starts_with(&inside))
            };
            let markers = files.iter().filter(|(path, stamp)| stamp.bytes == 0 && is_folder(path, files));
            for marker in markers.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
                files.remove(&marker);
            }
        }
        self.numbered.retain(|_, files| files.as_ref().map_or(true, |files| !files.is_empty()));
        self.problems.sort_unstable();
        self.problems.dedup();
    }

    /// Whether it is in the plain layout.
    pub(super) fn is_plain(&self) -> bool {
        !self.ours && !self.numbered.is_empty()
    }

    /// Whether there is a manifest.
    pub(super) fn has_versions(&self) -> bool {
        self.versions.values().any(|files| files.contains_key(MANIFEST))
    }
}

fn insert(stamps: &mut Stamps, path: String, stamp: Stamp) {
    if stamps.len() < MAX_BESIDE {
        stamps.insert(path, stamp);
    }
}

fn note(problems: &mut Vec<String>, problem: String) {
    if problems.len() < MAX_PROBLEMS && !problems.contains(&problem) {
        problems.push(problem);
    }
}

/// An object by its path from a folder. What the path holds is part of the name as it stands: it is the store that has named it.
pub(super) fn object_below(folder: &Path, path: &str) -> Path {
    Path::parse(format!("{folder}/{path}")).unwrap_or_else(|_| folder.clone().join(path))
}

/// The number that an entry of a log has by its name.
fn entry_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json").filter(|digits| digits.len() == 20)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> Tree {
        let mut tree = Tree::default();
        for path in paths {
            let (path, size) = path.split_once('=').map_or((*path, 1), |(path, size)| (path, size.parse().unwrap()));
            let location = Path::parse(path).unwrap();
            tree.add(
                &Path::from("team"),
                &ObjectMeta { location, last_modified: DateTime::UNIX_EPOCH, size, e_tag: None, version: None },
            );
        }
        tree.models.values_mut().for_each(ModelTree::tidy);
        tree
    }

    #[test]
    fn each_object_has_its_place() {
        let tree = tree(&[
            "other/m/versions/1/manifest.json",
            "team/_changes/00000000000000000001.json",
            "team/notes.txt",
            "team/m/versions/1/manifest.json",
            "team/m/versions/1/tombstone.json",
            "team/m/versions/2/manifest.json",
            "team/m/versions/02/manifest.json",
            "team/m/versions/README",
            "team/m/blobs/abc",
            "team/m/rollout/00000000000000000003.json",
            "team/m/rollout/00000000000000000012.json",
            "team/m/rollout/checkpoint/100.json",
            "team/m/rollout/99999999999999999999999.json",
            "team/m/model.toml",
            "team/m/warmup/data",
            "team/m/a/b/c",
            "team/m/7/model.onnx",
            "team/bad name/1/model.onnx",
        ]);
        assert_eq!(tree.models.keys().map(ModelName::as_str).collect::<Vec<_>>(), ["m"]);
        let model = &tree.models["m"];
        assert!(model.ours && model.has_versions() && !model.is_plain());
        assert_eq!(model.versions.keys().collect::<Vec<_>>(), [&1, &2]);
        assert!(model.versions[&1].contains_key(TOMBSTONE) && !model.versions[&2].contains_key(TOMBSTONE));
        assert_eq!((model.last_entry, model.entries), (12, 2));
        assert_eq!(model.beside.keys().collect::<Vec<_>>(), ["model.toml", "warmup/data"]);
        assert_eq!(model.numbered.keys().collect::<Vec<_>>(), [&7]);
        assert!(model.problems[0].contains("02") && tree.problems[0].contains("bad name"), "{:?}", tree.problems);
    }

    #[test]
    fn plain_versions_are_files_and_not_markers_of_folders() {
        let tree = tree(&[
            "team/m/1=0",
            "team/m/1/model.onnx",
            "team/m/1/sub=0",
            "team/m/1/sub/weights",
            "team/m/1/empty=0",
            "team/m/1/.hidden",
            "team/m/2/.hidden",
            "team/m/3/a\\b",
        ]);
        let model = &tree.models["m"];
        assert!(model.is_plain());
        let files = model.numbered[&1].as_ref().unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["empty", "model.onnx", "sub/weights"]);
        assert!(!model.numbered.contains_key(&2));
        assert!(model.numbered[&3].as_ref().unwrap_err().contains("backslash"));
    }
}
