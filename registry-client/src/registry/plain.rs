//! Models in the plain layout on an object store: `<model>/<n>/model.onnx`, as Triton and TF Serving read them.
//!
//! A version counts once two looks, a settle interval apart, have seen the same objects; so do settings. The objects have no digests
//! to check against: they are the listed ones where each is read under the condition that its tag is the listed one, and where they
//! are listed with the same stamps once they have been read.

use std::ops::Range;
use std::path::Path as FsPath;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error as StoreError, GetOptions, GetRange, ObjectStore};

use super::Registry;
use super::known::Known;
use super::location::Listing as Lists;
use super::reading::Seen;
use super::tree::{ModelTree, Stamp, Stamps, Tree, object_below};
use crate::digest::{Digest, DigestBuilder};
use crate::listing::{Generation, ListedModel};
use crate::manifest::ManifestFile;
use crate::name::{ModelName, VersionKey, VersionNumber};
use crate::plain::{self, QUIET, Recheck, add_version, with_settings};
use crate::settle::LookTime;
use crate::source::{FetchError, Fetched, Progress};
use crate::transfer::{Content, OpenFile, Pieces, Ranges, bring_all};

impl Registry {
    /// A plain model as it counts now.
    pub(super) fn plain_model(
        &self,
        name: &ModelName,
        known: &Known,
        seen: &mut Seen,
        time: &LookTime,
        recheck: &mut Recheck,
    ) -> ListedModel {
        let mut model = plain::model(name, known.problems());
        for (version, files) in &known.tree.numbered {
            let key = VersionKey::new(name.clone(), *version);
            match files {
                Ok(files) => {
                    let digest = digest_of(&key, files);
                    let settled = seen.versions.observe(&key, digest, time, || generation(&key, digest, files));
                    add_version(&mut model, *version, settled, recheck);
                }
                Err(why) => model.problems.push(format!("version {version} is ignored: {why}")),
            }
        }
        let digest = known.settings_digest();
        let quiet = chrono::Duration::from_std(QUIET).unwrap_or(chrono::Duration::MAX);
        if known.settings_written().is_none_or(|written| self.clock.now().signed_duration_since(written) > quiet) {
            seen.settings.trust(name, digest, time, || known.settings());
        }
        let settings = seen.settings.observe(name, digest, time, || known.settings());
        with_settings(model, settings, known.listed.as_deref(), recheck)
    }

    /// Brings the files of a plain version.
    pub(super) async fn fetch_plain(
        &self,
        generation: &Generation,
        dest: &FsPath,
        progress: &dyn Progress,
    ) -> Result<Fetched, FetchError> {
        let listed = self.relist(generation).await?;
        let objects = PlainObjects { registry: self, generation, listed };
        let files = match bring_all(&self.transfers, &objects, &generation.manifest.files, dest, progress).await {
            // Without a digest of its own a file can only have grown or shrunk.
            Err(FetchError::Size { .. }) => return Err(changed(generation)),
            brought => brought?,
        };
        self.relist(generation).await?;
        Ok(Fetched { files })
    }

    /// The objects of a version, where they are those of the generation.
    async fn relist(&self, generation: &Generation) -> Result<Stamps, FetchError> {
        let VersionKey { model, version } = &generation.key;
        let below = self.model_path(model).join(version.to_string());
        let mut tree = Tree::default();
        let mut objects = self.store.list(Some(&below));
        while let Some(object) = objects.try_next().await.map_err(|error| unavailable(generation, error))? {
            tree.add(&self.prefix, &object);
        }
        let mut found = tree.models.remove(model).unwrap_or_else(ModelTree::default);
        found.tidy();
        match found.numbered.remove(version) {
            Some(Ok(files)) if digest_of(&generation.key, &files) == generation.digest => Ok(files),
            Some(_) => Err(changed(generation)),
            None => Err(FetchError::NotFound { what: generation.key.to_string() }),
        }
    }
}

/// Names the content of a version: paths, sizes, tags and times.
fn digest_of(key: &VersionKey, files: &Stamps) -> Digest {
    let mut digest = DigestBuilder::default();
    digest.field(b"plain objects").field(key.model.as_str().as_bytes()).number(key.version);
    for (path, stamp) in files {
        digest.field(path.as_bytes());
        stamp.describe_to(&mut digest);
    }
    digest.finish()
}

fn generation(key: &VersionKey, digest: Digest, files: &Stamps) -> Generation {
    let created = files.values().map(|stamp| stamp.modified).max().unwrap_or(DateTime::<Utc>::UNIX_EPOCH);
    let files = files.iter().map(|(path, stamp)| ManifestFile { path: path.clone(), sha256: None, bytes: stamp.bytes });
    plain::generation(key, digest, files.collect(), created)
}

/// The numbered folders of a plain model, for whoever forgets others.
pub(super) fn versions_of<'a>(name: &'a ModelName, tree: &'a ModelTree) -> impl Iterator<Item = VersionKey> + 'a {
    let plain = Some(tree).filter(|tree| tree.is_plain());
    let numbers = plain.into_iter().flat_map(|tree| tree.numbered.keys());
    numbers.map(|version: &VersionNumber| VersionKey::new(name.clone(), *version))
}

fn changed(generation: &Generation) -> FetchError {
    FetchError::Changed { what: generation.key.to_string() }
}

fn unavailable(generation: &Generation, error: StoreError) -> FetchError {
    FetchError::unavailable(format!("the files of {}", generation.key), error)
}

/// The objects of a plain version, as they were listed.
struct PlainObjects<'a> {
    registry: &'a Registry,
    generation: &'a Generation,
    listed: Stamps,
}

#[async_trait]
impl OpenFile for PlainObjects<'_> {
    async fn open(&self, file: &ManifestFile) -> Result<Content, FetchError> {
        let stamp = self.listed.get(&file.path).ok_or_else(|| changed(self.generation))?;
        Ok(Content::Ranged(Arc::new(PlainObject::new(self.registry, self.generation, &file.path, stamp))))
    }
}

/// An object of a plain version, read only as long as it is the listed one.
struct PlainObject {
    store: Arc<dyn ObjectStore>,
    place: Path,
    bytes: u64,
    /// What its tag has to be.
    condition: Option<String>,
    /// For people: the file, and the version.
    file: String,
    version: String,
}

impl PlainObject {
    fn new(registry: &Registry, generation: &Generation, path: &str, stamp: &Stamp) -> Self {
        let VersionKey { model, version } = &generation.key;
        let folder = registry.model_path(model).join(version.to_string());
        Self {
            store: Arc::clone(&registry.store),
            place: object_below(&folder, path),
            bytes: stamp.bytes,
            condition: stamp.e_tag.as_deref().and_then(|e_tag| condition(e_tag, registry.may_list)),
            file: path.to_owned(),
            version: generation.key.to_string(),
        }
    }

    fn error(&self, error: StoreError) -> FetchError {
        match error {
            StoreError::Precondition { .. } | StoreError::NotFound { .. } => FetchError::Changed { what: self.version.clone() },
            error => FetchError::unavailable(format!("file `{}` of {}", self.file, self.version), error),
        }
    }
}

/// A listed tag as requests name it, where the server can be expected to know it again.
fn condition(e_tag: &str, lists: Lists) -> Option<String> {
    match lists {
        // Azure lists tags without the quotes that belong to them.
        Lists::Recursive if e_tag.starts_with("0x") => Some(format!("\"{e_tag}\"")),
        Lists::Recursive => Some(e_tag.to_owned()),
        // Of web servers, some give out tags without quotes and then refuse their own; and a weak one never matches.
        Lists::Unknown => Some(e_tag.to_owned()).filter(|e_tag| e_tag.starts_with('"')),
    }
}

#[async_trait]
impl Ranges for PlainObject {
    async fn read(&self, range: Range<u64>) -> Result<Pieces, FetchError> {
        let range = range.start..range.end.min(self.bytes);
        if range.is_empty() {
            return Ok(futures::stream::empty().boxed());
        }
        // A server that knows no ranges can still send the whole.
        let part = (range != (0..self.bytes)).then_some(GetRange::Bounded(range));
        let options = GetOptions { if_match: self.condition.clone(), range: part, ..GetOptions::default() };
        let result = self.store.get_opts(&self.place, options).await.map_err(|error| self.error(error))?;
        let (file, version) = (self.file.clone(), self.version.clone());
        let failed = move |error| match error {
            StoreError::Precondition { .. } => FetchError::Changed { what: version.clone() },
            error => FetchError::unavailable(format!("file `{file}` of {version}"), error),
        };
        Ok(result.into_stream().map_err(failed).boxed())
    }
}
