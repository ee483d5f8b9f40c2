//! The small files beside the versions of a model: its settings, and the files that these name. All of it blocks.
//!
//! Only `model.toml`, `config.pbtxt` and what they name are read: notes, archives and logs that lie there too are nobody's
//! business and can't take the model out. A file counts as named where its path stands in quotes in one of the two.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::plain::{self, Stamp};
use crate::digest::{Digest, DigestBuilder};
use crate::name::quoted;
use crate::plain::QUIET;
use crate::registry::contained::is_absent;
use crate::registry::versions::{SETTINGS_FILES, WARMUP_FOLDER, named_in, settings_problem};

/// The settings of a model as they lie there at one look.
#[derive(Debug, Default)]
pub(super) struct SettingsLook {
    files: BTreeMap<String, (Stamp, Arc<[u8]>)>,
}

/// What lies at the root of a model and may be read, by name.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub(super) files: BTreeMap<String, PathBuf>,
    pub(super) folders: BTreeMap<String, PathBuf>,
}

impl SettingsLook {
    /// Reads the settings, and then what they name. What is wrong with the latter is a problem and no error.
    ///
    /// # Errors
    /// The settings themselves can't be read.
    pub(super) fn read(root: &Path, beside: &Beside, problems: &mut Vec<String>) -> io::Result<Self> {
        let mut look = Self::default();
        for name in SETTINGS_FILES {
            if let Some(place) = beside.files.get(name) {
                look.take(name, place, problems)?;
            }
        }
        let named = named_in(look.files.values().map(|(_, content)| &content[..]));
        for (name, place) in beside.files.iter().filter(|(name, _)| named.contains(name.as_str())) {
            if !SETTINGS_FILES.contains(&name.as_str())
                && let Err(error) = look.take(name, place, problems)
            {
                problems.push(format!("file {} can't be read: {error}", quoted(name)));
            }
        }
        for (name, place) in &beside.folders {
            if let Err(error) = look.take_below(root, name, place, &named, problems) {
                problems.push(format!("folder {} can't be read: {error}", quoted(name)));
            }
        }
        Ok(look)
    }

    fn take(&mut self, name: &str, place: &Path, problems: &mut Vec<String>) -> io::Result<()> {
        let Some(meta) = absent_is_none(std::fs::metadata(place))? else { return Ok(()) };
        if let Some(problem) = settings_problem(name, meta.len(), self.files.len()) {
            problems.push(problem);
            return Ok(());
        }
        if let Some(content) = absent_is_none(std::fs::read(place))? {
            self.files.insert(name.to_owned(), (Stamp::of(&meta), content.into()));
        }
        Ok(())
    }

    /// The files of a folder whose paths are named. Warm-up data is named without its folder.
    fn take_below(
        &mut self,
        root: &Path,
        folder: &str,
        dir: &Path,
        named: &BTreeSet<String>,
        problems: &mut Vec<String>,
    ) -> io::Result<()> {
        let prefix = format!("{folder}/");
        let holds_data = folder == WARMUP_FOLDER && !self.files.is_empty();
        if !holds_data && !named.iter().any(|path| path.starts_with(&prefix)) {
            return Ok(());
        }
        for entry in dir.read_dir()? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{prefix}{name}");
            let wanted = named.contains(&path) || (holds_data && named.contains(&name));
            if !wanted {
                continue;
            }
            let Some(place) = plain::resolve(root, &entry)? else { continue };
            if std::fs::metadata(&place)?.is_file() {
                self.take(&path, &place, problems)?;
            }
        }
        Ok(())
    }

    /// Changes whenever a file is written to, comes or goes.
    pub(super) fn digest(&self) -> Digest {
        let mut digest = DigestBuilder::default();
        for (name, (stamp, content)) in &self.files {
            digest.field(name.as_bytes()).field(content);
            stamp.describe_to(&mut digest);
        }
        digest.finish()
    }

    /// Whether nobody is writing here, for sure: there is nothing, or it was written long ago.
    pub(super) fn is_quiet(&self, now: DateTime<Utc>) -> bool {
        let quiet = i64::try_from(QUIET.as_secs()).unwrap_or(i64::MAX);
        self.files.values().all(|(stamp, _)| now.timestamp().saturating_sub(stamp.changed_second()) > quiet)
    }

    /// The contents by name.
    pub(super) fn contents(&self) -> BTreeMap<String, Arc<[u8]>> {
        self.files.iter().map(|(name, (_, content))| (name.clone(), Arc::clone(content))).collect()
    }
}

fn absent_is_none<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
