//! Joining what a state directory has of several registries: each was served alone before, and now all are.
//!
//! A part has one entry a model in each of its folders: a record in `operator/` and `served/`, a folder in `journal/`. A model that one
//! part knows is left as it is there, whatever others have of it: half of each would be what nobody decided.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bascule_registry::durable;

use super::NOTE;

/// What the folders of parts are called, before a digest.
pub(super) const PREFIX: &str = "registry-";

/// Names the registries whose parts were copied to this one: what is decided afterwards must not be undone by another copy, and is found
/// here where one of them is served without the others.
const JOINED: &str = "joined.txt";

/// What is kept of a registry, or of several that were served together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) dir: PathBuf,
    /// The registry that it is named after.
    pub(super) identity: String,
    /// When it was last opened: its note is written each time.
    pub(super) used: SystemTime,
    /// The registries whose parts it took over.
    pub(super) joined: BTreeSet<String>,
}

/// All parts of a state directory. One without a note was never opened.
pub(super) fn all(state: &Path) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(state)? {
        let entry = entry?;
        let dir = entry.path();
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let Some(note) = text(&dir.join(NOTE))? else { continue };
        let used = std::fs::metadata(dir.join(NOTE))?.modified()?;
        let joined = text(&dir.join(JOINED))?.unwrap_or_default().lines().map(str::to_owned).collect();
        parts.push(Part { identity: note.trim_end_matches('\n').to_owned(), used, joined, dir });
    }
    parts.sort_by(|one, other| one.dir.cmp(&other.dir));
    Ok(parts)
}

fn text(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Copies what others have, each for the sake of a registry, to this part.
pub(super) fn join<'a>(part: &Part, others: impl Iterator<Item = (&'a String, &'a Part)>) -> io::Result<()> {
    let mut joined = part.joined.clone();
    for (identity, other) in others {
        if joined.contains(identity) {
            continue;
        }
        let models = copy_missing(&other.dir, &part.dir)?;
        tracing::info!(
            from = other.identity,
            to = part.identity,
            models,
            "what was kept of registries that were served alone is taken over"
        );
        // All that lies there came along.
        joined.extend(other.joined.iter().chain([identity, &other.identity]).cloned());
        joined.remove(&part.identity);
        // Only now: what broke off goes on with the models that are still missing.
        let list: String = joined.iter().map(|identity| format!("{identity}\n")).collect();
        durable::write_file(&part.dir.join(JOINED), list.as_bytes())?;
    }
    Ok(())
}

/// Copies the models that `to` does not know; how many there were.
fn copy_missing(from: &Path, to: &Path) -> io::Result<usize> {
    let known: BTreeSet<_> = models(to)?.into_iter().map(|(model, _)| model).collect();
    let mut copied = BTreeSet::new();
    for (model, place) in models(from)?.into_iter().filter(|(model, _)| !known.contains(model)) {
        let target = to.join(&place);
        let Some(folder) = target.parent() else { continue };
        durable::create_dir(folder)?;
        // A name with a dot is nobody's: what breaks off here is not taken for what it was to become.
        let mut hidden = OsString::from(".");
        hidden.push(target.file_name().unwrap_or_default());
        let hidden = folder.join(hidden);
        copy(&from.join(&place), &hidden)?;
        std::fs::rename(&hidden, &target)?;
        durable::sync_dir(folder)?;
        copied.insert(model);
    }
    Ok(copied.len())
}

/// What a part has of each model, by the path from the part.
fn models(part: &Path) -> io::Result<Vec<(OsString, PathBuf)>> {
    let mut found = Vec::new();
    for folder in folders(part)? {
        for entry in std::fs::read_dir(part.join(&folder))? {
            let entry = entry?;
            let (name, is_dir) = (entry.file_name(), entry.file_type()?.is_dir());
            // What starts with a dot was being written when its writer ended.
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let model = if is_dir { name.clone() } else { Path::new(&name).file_stem().unwrap_or(&name).to_owned() };
            found.push((model, Path::new(&folder).join(name)));
        }
    }
    Ok(found)
}

fn folders(part: &Path) -> io::Result<Vec<OsString>> {
    let mut folders = Vec::new();
    match std::fs::read_dir(part) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.file_name());
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    folders.sort_unstable();
    Ok(folders)
}

/// Copies a file, or a folder with all that lies in it, and syncs what it has made, but for its name.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if std::fs::metadata(from)?.is_dir() {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return durable::sync_dir(to);
    }
    std::fs::copy(from, to)?;
    std::fs::File::open(to)?.sync_all()
}
