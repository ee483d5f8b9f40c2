//! Removing what no version needs: blobs and signatures that no manifest names.
//!
//! A publish that was killed, or lost its number, leaves such things. One that is under way does too, until it commits, and it may
//! re-use a blob that lies there already. So that nothing of a version is ever lost:
//!
//! - Only what is older than a grace time counts, by the store's own times. A publisher uploads again what is older than half of
//!   [`GC_GRACE`], which makes it young: see [`Registry::is_ageing`].
//! - Manifests are read after the objects were listed: what a version names that was committed before then is kept.
//! - Each object is looked at once more right before it goes. What was written meanwhile stays.
//! - A publisher looks for its blobs once more after its commit, and uploads again what is gone. To lose one all the same, a single
//!   delete request would have to be on its way from before the publisher's upload until after that look.
//! - While a manifest of a model can't be read, or something lies between its versions that is none, nothing of that model goes: it
//!   may name anything. The same holds for a model in the plain layout.
//! - A listing that is short would make what a version needs look like garbage. So nothing of a model goes where its journal or the
//!   change log names a version that is not listed, or where a second listing shows others.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectMeta, ObjectStoreExt as _};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::logged::Logged;
use super::versions::with_causes;
use super::{Registry, RegistryError};
use crate::digest::Digest;
use crate::log::Read;
use crate::manifest::Manifest;
use crate::name::{ModelName, VersionKey, VersionNumber, parse_version, quoted};

/// How old something has to be that nobody names before it is removed. A shorter time is safe only while nobody publishes.
pub const GC_GRACE: Duration = Duration::from_secs(24 * 3_600);

/// How many models are looked at a time, and objects of one.
const MODELS: usize = 4;
const READS: usize = 16;

/// A listing and a look at one object may tell its time with other precision.
const SAME_TIME: Duration = Duration::from_secs(2);

/// What a collection of garbage found in one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// The model.
    pub model: ModelName,
    /// What nobody needs and is old enough; removed, where that was asked for.
    pub old: Vec<Leftover>,
    /// What nobody needs yet, but may belong to a publish that is under way.
    pub young: Vec<Leftover>,
    /// Why nothing of this model may go, where that is so.
    pub left_alone: Option<String>,
}

/// An object that no manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Where it lies, below the store's root.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written.
    pub written: DateTime<Utc>,
}

/// What the manifests of a model name.
#[derive(Default)]
struct Needed {
    /// The names of the folders of its versions, and which of these have a manifest.
    folders: BTreeSet<String>,
    versions: BTreeSet<VersionNumber>,
    blobs: BTreeSet<Digest>,
    manifests: BTreeSet<Digest>,
}

impl Registry {
    /// Finds what no manifest names; removes what of that is older than `grace` where `remove` says so.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`]. Some may be removed by then; another time goes on.
    pub async fn collect_garbage(&self, grace: Duration, remove: bool) -> Result<Vec<Garbage>, RegistryError> {
        let now = if remove { self.store_time().await? } else { self.clock.now() };
        let (mut found, log) = (Vec::new(), OnceCell::new());
        let models = futures::stream::iter(self.models().await?).map(async |model| {
            let garbage = self.garbage_of(&model, now, grace, &log).await?;
            match remove {
                true => self.remove(garbage).await,
                false => Ok(garbage),
            }
        });
        let mut models = models.buffered(MODELS);
        while let Some(garbage) = models.next().await {
            let garbage = garbage?;
            if !garbage.old.is_empty() || !garbage.young.is_empty() || garbage.left_alone.is_some() {
                found.push(garbage);
            }
        }
        Ok(found)
    }

    /// Whether a blob that lies there is too old to be re-used as it is.
    pub(super) fn is_ageing(&self, blob: &ObjectMeta) -> bool {
        age(blob.last_modified, self.clock.now()) > GC_GRACE / 2
    }

    async fn garbage_of(
        &self,
        model: &ModelName,
        now: DateTime<Utc>,
        grace: Duration,
        log: &OnceCell<Logged>,
    ) -> Result<Garbage, RegistryError> {
        let mut garbage = Garbage { model: model.clone(), old: Vec::new(), young: Vec::new(), left_alone: None };
        let blobs = self.level(&self.model_path(model).join("blobs")).await?.objects;
        let signed = self.level(&self.model_path(model).join("signatures")).await?.common_prefixes;
        let signed: Vec<_> = signed.into_iter().filter_map(|dir| Some((digest_of(&dir)?, dir))).collect();
        let lists = futures::stream::iter(signed).map(async |(digest, dir)| (digest, self.level(&dir).await));
        let (mut lists, mut signatures) = (lists.buffered(READS), Vec::new());
        while let Some((digest, level)) = lists.next().await {
            signatures.extend(level?.objects.into_iter().map(|object| (digest, object)));
        }
        if blobs.is_empty() && signatures.is_empty() {
            return Ok(garbage);
        }
        // Only now, so that what was committed before the objects were listed is seen.
        let needed = match self.needed(model).await? {
            Ok(needed) => needed,
            Err(why) => return Ok(Garbage { left_alone: Some(why), ..garbage }),
        };
        let blobs = blobs.into_iter().filter_map(|object| Some((digest_of(&object.location)?, object)));
        let unused = blobs.filter(|(digest, _)| !needed.blobs.contains(digest));
        let unused = unused.chain(signatures.into_iter().filter(|(digest, _)| !needed.manifests.contains(digest)));
        for (_, object) in unused {
            let young = age(object.last_modified, now) <= grace;
            let leftover = Leftover { path: object.location.to_string(), bytes: object.size, written: object.last_modified };
            if young { garbage.young.push(leftover) } else { garbage.old.push(leftover) }
        }
        if garbage.old.is_empty() {
            return Ok(garbage);
        }
        let log = log.get_or_try_init(|| self.whole_log()).await?;
        match self.doubt(model, &needed, log).await? {
            Some(why) => Ok(Garbage { old: Vec::new(), young: Vec::new(), left_alone: Some(why), ..garbage }),
            None => Ok(garbage),
        }
    }

    async fn whole_log(&self) -> Result<Logged, RegistryError> {
        let mut logged = Logged::default();
        let read = async { self.follow_log(&mut logged, self.last_change().await?).await };
        read.await.map_err(|error| RegistryError::unavailable(format!("change log of {}", self.description), error))?;
        Ok(logged)
    }

    /// Why the versions of a model may be more than were listed, if that is so.
    async fn doubt(&self, model: &ModelName, needed: &Needed, log: &Logged) -> Result<Option<String>, RegistryError> {
        let versions = self.model_path(model).join("versions");
        let is_listed = |folder: &String| parse_version(folder).is_ok_and(|version| needed.versions.contains(&version));
        for folder in needed.folders.iter().filter(|folder| !is_listed(folder)) {
            if !self.level(&versions.clone().join(folder.as_str())).await?.objects.is_empty() {
                return Ok(Some(format!("version {folder} has files and no manifest that could be read")));
            }
        }
        let journal = self.journal(model).await;
        let journal = journal.map_err(|error| RegistryError::unavailable(format!("journal of {model}"), error))?;
        let named = journal
            .iter()
            .flat_map(|entry| entry.op.version().filter(|_| entry.op.needs_version()).into_iter().chain(entry.highest));
        let named: BTreeSet<_> = named.chain(log.versions(model)).filter(|version| !needed.versions.contains(version)).collect();
        for version in named {
            // One that an operator has deleted is gone; one that is there shows that the listing was short.
            if self.manifest_bytes(&VersionKey::new(model.clone(), version)).await?.is_some() {
                return Ok(Some(format!("version {version} is there and was not listed")));
            }
        }
        let again = folder_names(&self.level(&versions).await?);
        Ok((again != needed.folders).then(|| "a second listing of its versions shows others".to_owned()))
    }

    /// The blobs that versions of a model name; none where that can't be known.
    pub(super) async fn needed_blobs(&self, model: &ModelName) -> Result<BTreeSet<Digest>, RegistryError> {
        Ok(self.needed(model).await?.map(|needed| needed.blobs).unwrap_or_default())
    }

    /// What the manifests of a model name, or why that can't be known.
    async fn needed(&self, model: &ModelName) -> Result<Result<Needed, String>, RegistryError> {
        let shape = self.shape(model).await?;
        if !shape.ours && !shape.numeric.is_empty() {
            return Ok(Err("it is in the plain layout".into()));
        }
        let folders = folder_names(&self.level(&self.model_path(model).join("versions")).await?);
        let mut versions = Vec::with_capacity(folders.len());
        for name in &folders {
            let Ok(version) = parse_version(name) else {
                return Ok(Err(format!("{} lies between its versions and is none", quoted(name))));
            };
            versions.push(version);
        }
        let mut needed = Needed { folders, ..Needed::default() };
        let reads = futures::stream::iter(versions)
            .map(async |version| (version, self.manifest_bytes(&VersionKey::new(model.clone(), version)).await));
        let mut reads = reads.buffered(READS);
        while let Some((version, bytes)) = reads.next().await {
            let bytes = match bytes? {
                // A directory without a manifest is no version.
                None => continue,
                Some(Read::Whole(bytes)) => bytes,
                Some(Read::TooLarge(bytes)) => {
                    return Ok(Err(format!("the manifest of version {version} can't be read: it has {bytes} bytes")));
                }
            };
            match Manifest::parse(&bytes) {
                Ok((manifest, digest)) => {
                    needed.versions.insert(version);
                    needed.blobs.extend(manifest.files.iter().filter_map(|file| file.sha256));
                    needed.manifests.insert(digest);
                }
                Err(error) => {
                    return Ok(Err(format!("the manifest of version {version} can't be read: {}", with_causes(&error))));
                }
            }
        }
        Ok(Ok(needed))
    }

    /// Removes what is old. What was written again meanwhile is young.
    async fn remove(&self, mut garbage: Garbage) -> Result<Garbage, RegistryError> {
        for leftover in std::mem::take(&mut garbage.old) {
            let path = Path::from(leftover.path.as_str());
            let failed = |error| RegistryError::unavailable(leftover.path.clone(), error);
            match self.store.head(&path).await {
                Ok(now) if age(leftover.written, now.last_modified) > SAME_TIME => {
                    garbage.young.push(Leftover { bytes: now.size, written: now.last_modified, ..leftover });
                }
                Ok(_) => match self.store.delete(&path).await {
                    Ok(()) | Err(StoreError::NotFound { .. }) => garbage.old.push(leftover),
                    Err(error) => return Err(failed(error)),
                },
                // Somebody else has removed it.
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(garbage)
    }

    /// Now, by the store's clock or by ours, whichever is behind: by one that is ahead everything looks old.
    async fn store_time(&self) -> Result<DateTime<Utc>, RegistryError> {
        let path = self.prefix.clone().join("_gc").join(Uuid::new_v4().to_string());
        let failed = |error| RegistryError::writing(self.store.as_ref(), path.to_string(), error);
        self.store.put(&path, "now".into()).await.map_err(failed)?;
        let written = self.store.head(&path).await.map_err(failed)?.last_modified;
        self.store.delete(&path).await.map_err(failed)?;
        Ok(written.min(self.clock.now()))
    }

    async fn level(&self, dir: &Path) -> Result<object_store::ListResult, RegistryError> {
        let level = self.store.list_with_delimiter(Some(dir)).await;
        level.map_err(|error| RegistryError::unavailable(dir.to_string(), error))
    }
}

fn folder_names(level: &object_store::ListResult) -> BTreeSet<String> {
    level.common_prefixes.iter().filter_map(|dir| dir.filename().map(str::to_owned)).collect()
}

fn digest_of(path: &Path) -> Option<Digest> {
    path.filename()?.parse().ok()
}

/// What is written in the future has no age.
fn age(written: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - written).to_std().unwrap_or_default()
}
