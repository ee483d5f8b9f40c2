//! What is known on this machine of an upload that has not ended: a small file of lines, one for the upload and one for each part that
//! the store has taken.
//!
//! It is a hint: a part counts only where the local file still has the content that was uploaded, and an upload that the store has
//! forgotten is begun afresh. One process uses such a file at a time; another one uploads without it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use object_store::multipart::PartId;
use object_store::path::Path as StorePath;
use serde::{Deserialize, Serialize};

use super::files::Measured;
use crate::digest::{Digest, DigestBuilder};

const SCHEMA: u32 = 1;
/// Ten thousand parts take a fifth of this.
const MAX_BYTES: u64 = 16 << 20;

/// The file, if there is one; else everything here does nothing.
#[derive(Clone)]
pub(super) struct Resume(Option<Arc<Kept>>);

struct Kept {
    path: PathBuf,
    /// Locked as long as this process uses it.
    file: Mutex<File>,
    head: Head,
}

/// An upload that was begun, and the parts of it that are there.
pub(super) struct Earlier {
    pub(super) id: String,
    pub(super) parts: BTreeMap<usize, PartId>,
}

/// What is kept of an upload.
pub(super) struct Opened {
    pub(super) resume: Resume,
    pub(super) earlier: Option<Earlier>,
    /// One of this blob that can't be continued, and that nobody else will throw away.
    pub(super) abandoned: Option<String>,
}

impl Earlier {
    pub(super) fn new(id: String) -> Self {
        Self { id, parts: BTreeMap::new() }
    }
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    schema: u32,
    registry: String,
    blob: String,
    sha256: Digest,
    bytes: u64,
    part_bytes: u64,
    upload: String,
}

impl Head {
    fn new(registry: &str, blob: &StorePath, measured: &Measured) -> Self {
        Self {
            schema: SCHEMA,
            registry: registry.to_owned(),
            blob: blob.to_string(),
            sha256: measured.sha256,
            bytes: measured.bytes,
            part_bytes: measured.part_bytes,
            upload: String::new(),
        }
    }
}

/// Every other line.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    part: usize,
    sha256: Digest,
    id: String,
}

impl Resume {
    /// Opens what is kept of this upload. What can't be opened or read does not hinder it.
    pub(super) async fn open(dir: Option<&Path>, registry: &str, blob: &StorePath, measured: &Measured) -> Opened {
        let nothing = || Opened { resume: Self(None), earlier: None, abandoned: None };
        let Some(dir) = dir.map(Path::to_owned) else { return nothing() };
        let head = Head::new(registry, blob, measured);
        let measured = measured.clone();
        let opened = tokio::task::spawn_blocking(move || open(&dir, head, &measured));
        match opened.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok((kept, found)) => {
                let (earlier, abandoned) = match found {
                    Found::Continued(earlier) => (Some(earlier), None),
                    Found::Abandoned(id) => (None, Some(id)),
                    Found::Nothing => (None, None),
                };
                Opened { resume: Self(Some(Arc::new(kept))), earlier, abandoned }
            }
            Err(error) => {
                tracing::warn!(%blob, %error, "this upload can't be remembered: where it breaks off it begins anew");
                nothing()
            }
        }
    }

    /// Forgets what is kept of an upload that nobody needs any more, and returns its id: the store may have parts of it.
    pub(super) async fn take(dir: Option<&Path>, registry: &str, blob: &StorePath, measured: &Measured) -> Option<String> {
        let dir = dir?.to_owned();
        let head = Head::new(registry, blob, measured);
        let measured = measured.clone();
        let taken = tokio::task::spawn_blocking(move || {
            if !place(&dir, &head).exists() {
                return Ok(None);
            }
            let (kept, found) = open(&dir, head, &measured)?;
            std::fs::remove_file(&kept.path)?;
            Ok(match found {
                Found::Continued(earlier) => Some(earlier.id),
                Found::Abandoned(id) => Some(id),
                Found::Nothing => None,
            })
        });
        taken.await.unwrap_or_else(|error| Err(io::Error::other(error))).unwrap_or_else(|error| {
            tracing::debug!(%blob, %error, "what is known of an upload stays");
            None
        })
    }

    pub(super) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// An upload has begun; what was known of an earlier one is forgotten.
    pub(super) async fn begin(&self, id: &str) {
        let id = id.to_owned();
        self.write(move |kept, file| {
            file.set_len(0)?;
            file.rewind()?;
            write_line(file, &Head { upload: id, ..kept.head.clone() })
        })
        .await;
    }

    /// The store has taken a part.
    pub(super) async fn note(&self, nth: usize, sha256: Option<&Digest>, part: &PartId) {
        let Some(sha256) = sha256.copied() else { return };
        let part = Part { part: nth, sha256, id: part.content_id.clone() };
        self.write(move |_, file| write_line(file, &part)).await;
    }

    /// It has ended.
    pub(super) async fn forget(&self) {
        self.write(|kept, _| std::fs::remove_file(&kept.path)).await;
    }

    async fn write(&self, write: impl FnOnce(&Kept, &mut File) -> io::Result<()> + Send + 'static) {
        let Some(kept) = self.0.clone() else { return };
        let written = tokio::task::spawn_blocking(move || {
            let mut file = kept.file.lock().unwrap_or_else(PoisonError::into_inner);
            write(&kept, &mut file)
        });
        if let Err(error) = written.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::debug!(%error, "what is known of an upload can't be written");
        }
    }
}

/// Where what is known of an upload is kept.
fn place(dir: &Path, head: &Head) -> PathBuf {
    let mut name = DigestBuilder::default();
    name.field(head.registry.as_bytes()).field(head.blob.as_bytes());
    dir.join(format!("{}.upload", name.finish()))
}

fn open(dir: &Path, head: Head, measured: &Measured) -> io::Result<(Kept, Found)> {
    crate::durable::create_dir(dir)?;
    let path = place(dir, &head);
    let mut file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(io::Error::other("another process uploads the same file")),
        Err(std::fs::TryLockError::Error(error)) => return Err(error),
    }
    let mut text = String::new();
    let read = (&mut file).take(MAX_BYTES).read_to_string(&mut text);
    // What is not text was not written here.
    let found = read.map_or(Found::Nothing, |_| parse(&text, &head, measured));
    if matches!(found, Found::Continued(_)) && !text.ends_with('\n') {
        // The last line was cut short: the next one begins on its own.
        file.write_all(b"\n")?;
    }
    Ok((Kept { path, file: Mutex::new(file), head }, found))
}

/// What the file tells of.
enum Found {
    Nothing,
    /// An upload of the same file in the same parts.
    Continued(Earlier),
    /// One of the same file that can't be continued: its parts are others.
    Abandoned(String),
}

/// All that is needed to throw an upload away, whatever wrote it.
#[derive(Deserialize)]
struct Begun {
    registry: String,
    blob: String,
    upload: String,
}

fn parse(text: &str, expected: &Head, measured: &Measured) -> Found {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let Ok(head) = serde_json::from_str::<Head>(first) else { return abandoned(first, expected) };
    if head.upload.is_empty() || (Head { upload: String::new(), ..head.clone() }) != *expected {
        return abandoned(first, expected);
    }
    let parts = lines.filter_map(|line| serde_json::from_str::<Part>(line).ok());
    // Re-read and hashed a moment ago: what differs is uploaded again.
    let parts = parts.filter(|part| measured.parts.get(part.part) == Some(&part.sha256));
    let parts = parts.map(|part| (part.part, PartId { content_id: part.id })).collect();
    Found::Continued(Earlier { id: head.upload, parts })
}

fn abandoned(first: &str, expected: &Head) -> Found {
    match serde_json::from_str::<Begun>(first) {
        Ok(begun) if begun.registry == expected.registry && begun.blob == expected.blob && !begun.upload.is_empty() => {
            Found::Abandoned(begun.upload)
        }
        _ => Found::Nothing,
    }
}

fn write_line(file: &mut File, line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}
