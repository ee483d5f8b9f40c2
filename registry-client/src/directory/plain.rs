//! One version in the plain layout: its files, and the manifest made up from them. All of it blocks.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::digest::{Digest, DigestBuilder};
use crate::listing::{Generation, Layout};
use crate::manifest::{Lineage, MANIFEST_SCHEMA, MAX_FILES, Manifest, ManifestFile, guess_format};
use crate::name::{VersionKey, check_file_path, quoted};
use crate::registry::contained::{is_absent, leads_out};

/// Directories below a version's; more is most likely a loop of symbolic links.
const MAX_DEPTH: usize = 8;

/// The files of one version as they are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlainFiles {
    pub(super) files: Vec<PlainFile>,
    /// Names this content: paths, sizes and times.
    pub(super) digest: Digest,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlainFile {
    /// Path inside the version.
    pub(super) path: String,
    /// Where it is read.
    pub(super) place: PathBuf,
    pub(super) stamp: Stamp,
}

/// What tells that a file has been written to. The change time is part of it, since tools that copy and images that are
/// built reproducibly set the modification time to whatever they like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    pub(super) bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self { bytes: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()), changed: (meta.ctime(), meta.ctime_nsec()) }
    }

    /// When it was last written to or renamed, in seconds since the epoch. No tool can set it.
    pub(super) fn changed_second(&self) -> i64 {
        self.changed.0
    }

    pub(super) fn describe_to(&self, digest: &mut DigestBuilder) {
        digest.number(self.bytes);
        for part in [self.modified.0, self.modified.1, self.changed.0, self.changed.1] {
            digest.number(part.cast_unsigned());
        }
    }
}

/// Why a version's files can't be listed.
#[derive(Debug)]
pub(super) enum ScanError {
    /// It breaks a rule: it stays out until somebody mends it.
    Refused(String),
    /// It can't be read now.
    Io(io::Error),
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Lists the files of a version; `None` where it has none. Names that start with a dot are left out.
pub(super) fn scan(root: &Path, dir: &Path, key: &VersionKey) -> Result<Option<PlainFiles>, ScanError> {
    let mut files = Vec::new();
    scan_below(root, dir, "", 0, &mut files)?;
    if files.is_empty() {
        return Ok(None);
    }
    files.sort_unstable_by(|a: &PlainFile, b| a.path.cmp(&b.path));
    let mut digest = DigestBuilder::default();
    digest.field(b"plain").field(key.model.as_str().as_bytes()).number(key.version);
    for file in &files {
        digest.field(file.path.as_bytes());
        file.stamp.describe_to(&mut digest);
    }
    Ok(Some(PlainFiles { files, digest: digest.finish() }))
}

fn scan_below(root: &Path, dir: &Path, prefix: &str, depth: usize, files: &mut Vec<PlainFile>) -> Result<(), ScanError> {
    let refuse = |path: &str, why: &str| Err(ScanError::Refused(format!("{} {why}", quoted(path))));
    for entry in dir.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return refuse(&format!("{prefix}{}", name.to_string_lossy()), "has a name that is not UTF-8");
        };
        if name.starts_with('.') {
            continue;
        }
        let path = format!("{prefix}{name}");
        check_file_path(&path).map_err(|error| ScanError::Refused(error.to_string()))?;
        let Some(place) = resolve(root, &entry)? else {
            return refuse(&path, "is a symbolic link that leads nowhere or out of the repository");
        };
        let meta = match std::fs::metadata(&place) {
            Ok(meta) => meta,
            // It went between the two looks; the next scan differs.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        if meta.is_dir() {
            if depth == MAX_DEPTH {
                return refuse(&path, "is too deep");
            }
            scan_below(root, &place, &format!("{path}/"), depth + 1, files)?;
        } else if meta.is_file() {
            if files.len() == MAX_FILES {
                return refuse(&path, "is one file too many");
            }
            files.push(PlainFile { path, place, stamp: Stamp::of(&meta) });
        } else {
            return refuse(&path, "is neither a file nor a directory");
        }
    }
    Ok(())
}

/// Where an entry really lies; `None` for a link that leads nowhere or out.
pub(super) fn resolve(root: &Path, entry: &std::fs::DirEntry) -> io::Result<Option<PathBuf>> {
    let path = entry.path();
    if !entry.file_type()?.is_symlink() {
        return Ok(Some(path));
    }
    match path.canonicalize() {
        Ok(real) if !leads_out(root, &real).map_err(io::Error::other)? => Ok(Some(real)),
        Ok(_) => Ok(None),
        Err(error) if is_absent(&error) => Ok(None),
        // A disk or a server that fails says nothing about where a link leads.
        Err(error) => Err(error),
    }
}

/// The version that these files are.
pub(super) fn generation(key: &VersionKey, plain: &PlainFiles) -> Generation {
    let (format, entrypoint) = guess_format(plain.files.iter().map(|file| file.path.as_str()));
    let newest = plain.files.iter().map(|file| file.stamp.modified).max().unwrap_or_default();
    let created = u32::try_from(newest.1).ok().and_then(|nanos| DateTime::<Utc>::from_timestamp(newest.0, nanos));
    let files = plain.files.iter().map(|file| ManifestFile { path: file.path.clone(), sha256: None, bytes: file.stamp.bytes });
    let manifest = Manifest {
        schema: MANIFEST_SCHEMA,
        model: key.model.clone(),
        version: key.version,
        format: format.to_owned(),
        entrypoint: entrypoint.to_owned(),
        files: files.collect(),
        signature: None,
        golden: None,
        lineage: Lineage::default(),
        metrics: BTreeMap::new(),
        tags: BTreeMap::new(),
        created: created.unwrap_or(DateTime::UNIX_EPOCH),
        publisher: String::new(),
        hold: false,
        extra: BTreeMap::new(),
    };
    let bytes = manifest.bytes();
    let manifest = Arc::new(manifest);
    Generation {
        key: key.clone(),
        digest: plain.digest,
        bytes,
        layout: Layout::Plain,
        manifest,
        tombstoned: false,
        signatures: Vec::new(),
    }
}
