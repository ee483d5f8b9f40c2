//! What a restart needs: the operator's state and what is served, one small JSON file a model, each written atomically.
//!
//! ```text
//! <state_dir>/operator/<model>.json    on or off
//! <state_dir>/served/<model>.json      versions, settings and rollout of what answers
//! ```
//!
//! A file that can't be read is a warning and counts as absent: nothing here stops a start. A write that fails is tried again, and
//! whoever waits for it is told.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bascule_registry::{Digest, Generation, Layout, ListedModel, ModelName, Rollout, Steering, Untrusted, VersionNumber, durable};
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

/// The schema that this build writes and reads.
const SCHEMA: u32 = 1;
const OPERATOR: &str = "operator";
const SERVED: &str = "served";
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(10);

/// What the operator wants of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operator {
    /// It was loaded by hand.
    On,
    /// It was unloaded by hand.
    Off {
        since: DateTime<Utc>,
        /// What existed then: anything else is new.
        known: BTreeMap<VersionNumber, Digest>,
    },
}

/// What is served of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) model: ModelName,
    pub(crate) layout: Layout,
    /// The place of its registry: what is served of one that is not configured any more ends with a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) registry: Option<Arc<str>>,
    pub(crate) stable: Option<VersionNumber>,
    pub(crate) versions: Vec<Arc<Generation>>,
    pub(crate) settings: BTreeMap<String, Content>,
    pub(crate) rollout: Rollout,
    pub(crate) aliases: BTreeMap<String, VersionNumber>,
    /// What of it may not be served again, and why.
    #[serde(skip)]
    pub(crate) refused: Vec<String>,
    /// Written by this release and later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) steering: Option<Steering>,
}

impl Served {
    /// What these versions look like in a listing.
    pub(crate) fn as_listed(&self) -> ListedModel {
        ListedModel {
            name: self.model.clone(),
            layout: self.layout,
            registry: self.registry.clone(),
            versions: self.versions.iter().map(|generation| (generation.key.version, Arc::clone(generation))).collect(),
            unsettled: std::collections::BTreeSet::new(),
            settings: self.settings.iter().map(|(name, content)| (name.clone(), content.bytes())).collect(),
            rollout: self.rollout.clone(),
            aliases: self.aliases.clone(),
            problems: self.refused.clone(),
            steering: self.steering.clone(),
        }
    }
}

/// A file's content: as text where it is text, so that people can read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Bytes(Vec<u8>),
}

impl Content {
    pub(crate) fn of(bytes: &[u8]) -> Content {
        std::str::from_utf8(bytes).map_or_else(|_| Content::Bytes(bytes.to_vec()), |text| Content::Text(text.to_owned()))
    }

    fn bytes(&self) -> Arc<[u8]> {
        match self {
            Content::Text(text) => text.as_bytes().into(),
            Content::Bytes(bytes) => bytes.as_slice().into(),
        }
    }
}

/// One change to what is kept; `None` forgets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Write {
    Operator(ModelName, Option<Operator>),
    Served(ModelName, Option<Arc<Served>>),
}

impl Write {
    fn place(&self) -> PathBuf {
        let (dir, model) = match self {
            Write::Operator(model, _) => (OPERATOR, model),
            Write::Served(model, _) => (SERVED, model),
        };
        Path::new(dir).join(format!("{model}.json"))
    }

    fn apply(&self, state_dir: &Path) -> io::Result<()> {
        let path = state_dir.join(self.place());
        let json = match self {
            Write::Operator(_, Some(operator)) => serde_json::to_vec_pretty(&Record { schema: SCHEMA, record: operator })?,
            Write::Served(_, Some(served)) => serde_json::to_vec_pretty(&Record { schema: SCHEMA, record: served.as_ref() })?,
            Write::Operator(_, None) | Write::Served(_, None) => return forget(&path),
        };
        durable::write_file(&path, &json)
    }
}

fn forget(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), durable::sync_dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[derive(Serialize, Deserialize)]
struct Record<T> {
    schema: u32,
    record: T,
}

/// What was kept before the restart.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Persisted {
    pub(crate) operator: BTreeMap<ModelName, Operator>,
    pub(crate) served: BTreeMap<ModelName, Served>,
}

impl Persisted {
    /// Reads what is kept, and makes the directories. Blocks.
    ///
    /// # Errors
    /// Where the directories can't be made or listed.
    pub(crate) fn read(state_dir: &Path) -> io::Result<Persisted> {
        let mut persisted =
            Persisted { operator: read_dir(&state_dir.join(OPERATOR))?, served: read_dir(&state_dir.join(SERVED))? };
        persisted.served.retain(|name, served| {
            let fits = served.model == *name && served.versions.iter().all(|generation| generation.key.model == *name);
            if !fits {
                tracing::warn!(model = %name, "what is kept of a served model belongs to another model and is ignored");
            }
            fits
        });
        Ok(persisted)
    }

    /// Takes out the versions that may not be served again; their model names them.
    pub(crate) fn admit(&mut self, admit: &dyn Fn(&Generation) -> Result<(), String>) {
        for (model, served) in &mut self.served {
            let Served { versions, refused, stable, .. } = served;
            versions.retain(|generation| {
                let Err(why) = admit(generation) else { return true };
                let version = generation.key.version;
                tracing::warn!(%model, version, why, "a version that was served before is refused");
                refused.push(Untrusted::lead(version) + &why);
                false
            });
            *stable = stable.filter(|stable| versions.iter().any(|generation| generation.key.version == *stable));
        }
    }
}

fn read_dir<T: DeserializeOwned>(dir: &Path) -> io::Result<BTreeMap<ModelName, T>> {
    durable::create_dir(dir)?;
    let mut records = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        // A temporary file that a crash left begins with a dot, which no model's name does.
        let Some(name) = stem.and_then(|stem| ModelName::new(stem).ok()) else { continue };
        match read_record(&path) {
            Ok(record) => drop(records.insert(name, record)),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a file of the state directory can't be read and is ignored")
            }
        }
    }
    Ok(records)
}

fn read_record<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    let text = std::fs::read(path)?;
    // Read on its own first: another schema may differ in anything else.
    let Schema { schema } = serde_json::from_slice(&text)?;
    if schema != SCHEMA {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("schema {schema}, expected {SCHEMA}")));
    }
    Ok(serde_json::from_slice::<Record<T>>(&text)?.record)
}

/// How far writing has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Written {
    /// Every write up to this number is on disk, or failed.
    pub(crate) upto: u64,
    /// Why the last one failed, where it did.
    pub(crate) error: Option<String>,
}

/// What waits to be written: the last change of each file, so never more than there are files.
#[derive(Debug)]
pub(crate) struct Writer {
    state_dir: PathBuf,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    writes: BTreeMap<PathBuf, Write>,
    upto: u64,
}

impl Writer {
    pub(crate) fn new(state_dir: PathBuf) -> Arc<Writer> {
        Arc::new(Writer { state_dir, waiting: Mutex::default(), changed: Notify::new() })
    }

    /// Queues a change. Numbers ascend.
    pub(crate) fn write(&self, number: u64, write: Write) {
        let mut waiting = self.lock();
        waiting.writes.insert(write.place(), write);
        waiting.upto = number;
        drop(waiting);
        self.changed.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits. Blocks. What fails waits again, unless it was changed meanwhile.
    fn flush(&self) -> Written {
        let Waiting { writes, upto } = {
            let mut waiting = self.lock();
            Waiting { writes: std::mem::take(&mut waiting.writes), upto: waiting.upto }
        };
        let mut written = Written { upto, error: None };
        for (place, write) in writes {
            let Err(error) = write.apply(&self.state_dir) else { continue };
            tracing::error!(file = %self.state_dir.join(&place).display(), %error, "cannot keep the state on disk");
            written.error = Some(format!("{}: {error}", place.display()));
            self.lock().writes.entry(place).or_insert(write);
        }
        written
    }

    fn is_empty(&self) -> bool {
        self.lock().writes.is_empty()
    }
}

/// Writes what comes until nobody looks at the progress any more.
pub(crate) async fn keep(writer: Arc<Writer>, progress: watch::Sender<Written>) {
    loop {
        tokio::select! {
            () = writer.changed.notified() => {}
            () = progress.closed() => if writer.is_empty() { return },
            Ok(()) = retry(&writer) => {}
        }
        let flushing = Arc::clone(&writer);
        let Ok(written) = tokio::task::spawn_blocking(move || flushing.flush()).await else { return };
        let failed = written.error.is_some();
        progress.send_replace(written);
        if failed && progress.is_closed() {
            return;
        }
    }
}

/// Ends after a while where something waits that failed before, else never.
async fn retry(writer: &Writer) -> Result<(), std::convert::Infallible> {
    if writer.is_empty() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep_until(tokio::time::Instant::now() + RETRY).await;
    Ok(())
}

#[cfg(test)]
mod tests;
