//! Joining what a state directory has of several registries: each was served alone before, and now all are.
//!
//! A part has one entry a model in each of its folders: a record in `operator/` and `served/`, a folder in `journal/`. A model that one
//! part knows is left as it is there, whatever others have of it: half of each would be what nobody decided.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Names the registries whose parts were copied to this one: what is decided afterwards must not be undone by another copy.
const JOINED: &str = "joined.txt";

/// Copies what these parts have to the part of `identity`, but for those that were copied before.
pub(super) fn join<'a>(dir: &Path, identity: &str, others: impl Iterator<Item = (&'a str, PathBuf)>) -> io::Result<()> {
    let list = dir.join(JOINED);
    let mut joined: BTreeSet<String> = match std::fs::read_to_string(&list) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        Err(error) => return Err(error),
    };
    for (other, part) in others {
        if joined.contains(other) {
            continue;
        }
        let models = copy_missing(&part, dir)?;
        tracing::info!(from = other, to = identity, models, "what was kept of a registry that was served alone is taken over");
        joined.insert(other.to_owned());
        // Only now: what broke off goes on with the models that are still missing.
        std::fs::write(&list, joined.iter().map(|identity| format!("{identity}\n")).collect::<String>())?;
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
        std::fs::create_dir_all(folder)?;
        // A name with a dot is nobody's: what breaks off here is not taken for what it was to become.
        let mut hidden = OsString::from(".");
        hidden.push(target.file_name().unwrap_or_default());
        let hidden = folder.join(hidden);
        copy(&from.join(&place), &hidden)?;
        std::fs::rename(&hidden, &target)?;
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

/// Copies a file, or a folder with all that lies in it.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if std::fs::metadata(from)?.is_dir() {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    std::fs::copy(from, to).map(drop)
}
