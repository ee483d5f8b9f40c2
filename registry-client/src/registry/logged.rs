//! Reading a registry from a store that can't list, such as a web server that only hands out files: by its change log alone, which
//! names every model and version.
//!
//! What an append that was lost should have named is found as far as it can be asked for: tombstones and entries of journals of models
//! that are named elsewhere. A version that no entry names can't be found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt as _;
use object_store::{Error as StoreError, ObjectStoreExt as _};

use super::changes::read_change;
use super::known::Known;
use super::reading::MAX_FAILURES;
use super::tree::{MANIFEST, ModelTree, Stamp, TOMBSTONE, Tree, object_below};
use super::versions::{MAX_SETTINGS_BYTES, MAX_SETTINGS_FILES, SETTINGS_FILES, WARMUP_FOLDER, named_in, with_causes};
use super::{Registry, RegistryError};
use crate::digest::Digest;
use crate::log::{Read, read_small};
use crate::name::{ModelName, VersionKey, VersionNumber, check_file_path};

/// How many models are asked for at a time, and objects of one.
const MODELS: usize = 4;
const READS: usize = 16;
/// Versions whose signatures are asked for at a time, those of several keys each.
const VERSIONS: usize = 4;

/// What the change log has named so far.
#[derive(Debug, Default)]
pub(super) struct Logged {
    models: BTreeMap<ModelName, BTreeSet<VersionNumber>>,
    read_to: u64,
    /// What the entry at `read_to` says: with another one there it is another log.
    last: Option<Digest>,
    /// How often it was begun anew. What was read by an earlier one may lie there with another content.
    begun: u64,
    /// Entries that can't be read: what they name can't be found.
    unreadable: BTreeSet<u64>,
}

impl Logged {
    /// The versions of a model that it names.
    pub(super) fn versions(&self, model: &ModelName) -> impl Iterator<Item = VersionNumber> {
        self.models.get(model).into_iter().flatten().copied()
    }

    /// What tells that a manifest has to be read again: nothing but that the log was begun anew.
    fn stamp(&self) -> Stamp {
        Stamp { bytes: self.begun, ..Stamp::default() }
    }

    /// What is missing, if anything is.
    pub(super) fn problem(&self) -> Option<String> {
        let first = self.unreadable.first()?;
        Some(format!(
            "{} entries of the change log can't be read, the first is {first}: what they name is not seen",
            self.unreadable.len()
        ))
    }
}

impl Registry {
    /// Begins anew where this is not the log that was read: it ends earlier, or has another entry where that ended, as after a registry
    /// was restored from a backup.
    pub(super) async fn begin_restored_log(&self, logged: &mut Logged, last: u64) -> Result<(), StoreError> {
        let read_to = logged.read_to;
        if read_to == 0 || (last >= read_to && digest_of(self.changes.get(read_to).await?.as_ref()) == logged.last) {
            return Ok(());
        }
        tracing::warn!(registry = self.description, "its change log is another one than was read, and is read from its beginning");
        *logged = Logged { begun: logged.begun + 1, ..Logged::default() };
        Ok(())
    }

    /// Reads the log up to this number.
    pub(super) async fn follow_log(&self, logged: &mut Logged, last: u64) -> Result<(), StoreError> {
        const BATCH: u64 = 256;
        while logged.read_to < last {
            let (first, end) = (logged.read_to + 1, last.min(logged.read_to + BATCH));
            for (seq, content) in self.changes.range(first, end).await? {
                let change = content.as_ref().map(read_change);
                match change {
                    Some(Ok(change)) => logged.models.entry(change.model).or_default().extend(change.version),
                    Some(Err(_)) | None => drop(logged.unreadable.insert(seq)),
                }
                (logged.read_to, logged.last) = (seq, digest_of(content.as_ref()));
            }
        }
        Ok(())
    }

    /// All models that the log names, as a listing would show them.
    pub(super) async fn logged_tree(&self, logged: &Logged, known: &BTreeMap<ModelName, Known>) -> Tree {
        let failures = AtomicUsize::new(0);
        let names: Vec<_> = logged.models.keys().cloned().collect();
        let probes = futures::stream::iter(names).map(async |name| {
            if failures.load(Ordering::Relaxed) >= MAX_FAILURES {
                return (name, Err("it was not looked at: the store fails too often".to_owned()));
            }
            let tree = self.logged_model(logged, &name, known.get(&name)).await;
            if tree.is_err() {
                failures.fetch_add(1, Ordering::Relaxed);
            }
            (name, tree.map_err(|error| with_causes(&error)))
        });
        let mut probes = probes.buffer_unordered(MODELS);
        let mut tree = Tree { problems: logged.problem().into_iter().collect(), ..Tree::default() };
        while let Some((name, model)) = probes.next().await {
            match model {
                Ok(model) if model.ours => drop(tree.models.insert(name, model)),
                Ok(_) => {}
                Err(why) => {
                    tree.models.extend(known.get(&name).map(|known| (name.clone(), known.tree.clone())));
                    tree.unread.push((name, why));
                }
            }
        }
        tree
    }

    /// One model that the log names.
    pub(super) async fn logged_model(
        &self,
        logged: &Logged,
        name: &ModelName,
        known: Option<&Known>,
    ) -> Result<ModelTree, RegistryError> {
        let mut tree = ModelTree::default();
        let numbers = logged.models.get(name).cloned().unwrap_or_default();
        tree.ours = !numbers.is_empty();
        let stamp = logged.stamp();
        let probes = futures::stream::iter(numbers).map(async |number| {
            let gone = known.is_some_and(|known| known.is_tombstoned(number) && known.shows(number, MANIFEST) == Some(&stamp));
            let tombstoned = if gone { Ok(true) } else { self.is_tombstoned(&VersionKey::new(name.clone(), number)).await };
            (number, tombstoned)
        });
        let mut probes = probes.buffer_unordered(READS);
        while let Some((number, tombstoned)) = probes.next().await {
            let files = tree.versions.entry(number).or_default();
            files.insert(MANIFEST.to_owned(), stamp.clone());
            if tombstoned? {
                files.insert(TOMBSTONE.to_owned(), Stamp::default());
            }
        }
        let tail = self.entries(name).tail(known.map_or(0, Known::last_entry)).await;
        let tail = tail.map_err(|error| RegistryError::unavailable(format!("journal of {name}"), error))?;
        (tree.last_entry, tree.entries) = (tail, tail);
        self.probe_settings(name, &mut tree).await?;
        if let (Some(keys), Some(known)) = (&self.signatures_of, known) {
            self.probe_signed(name, &keys.ids(), known, &mut tree).await?;
        }
        Ok(tree)
    }

    /// Asks for the signatures of the keys with these ids on the manifests that are known: more may have been added.
    async fn probe_signed(
        &self,
        name: &ModelName,
        ids: &[String],
        known: &Known,
        tree: &mut ModelTree,
    ) -> Result<(), RegistryError> {
        let manifests: Vec<_> = known.manifests().collect();
        let probes = futures::stream::iter(manifests).map(async |manifest| {
            let dir = self.signatures_path(name, &manifest);
            (manifest, self.probe_signatures(&dir, ids).await)
        });
        let mut probes = probes.buffer_unordered(VERSIONS);
        while let Some((manifest, found)) = probes.next().await {
            let found = found?;
            if !found.is_empty() {
                tree.signatures.insert(manifest.to_string(), found);
            }
        }
        Ok(())
    }

    /// Asks for the settings, and for the files that they name.
    async fn probe_settings(&self, name: &ModelName, tree: &mut ModelTree) -> Result<(), RegistryError> {
        let mut contents = Vec::new();
        for file in SETTINGS_FILES {
            self.probe_beside(name, file, tree).await?;
            if tree.beside.contains_key(file) {
                let place = self.model_path(name).join(file);
                let content = read_small(self.store.as_ref(), &place, MAX_SETTINGS_BYTES).await;
                if let Some(Read::Whole(content)) = content.map_err(|error| RegistryError::unavailable(place.to_string(), error))? {
                    contents.push(content);
                }
            }
        }
        let named = named_in(contents.iter().map(|content| &content[..]));
        let files =
            named.iter().filter(|path| check_file_path(path).is_ok() && path.contains('.') && path.matches('/').count() < 2);
        for path in files.take(MAX_SETTINGS_FILES) {
            self.probe_beside(name, path, tree).await?;
            if !path.contains('/') && !tree.beside.contains_key(path) {
                self.probe_beside(name, &format!("{WARMUP_FOLDER}/{path}"), tree).await?;
            }
        }
        Ok(())
    }

    async fn probe_beside(&self, name: &ModelName, path: &str, tree: &mut ModelTree) -> Result<(), RegistryError> {
        let place = object_below(&self.model_path(name), path);
        match self.store.head(&place).await {
            Ok(object) => drop(tree.beside.insert(path.to_owned(), Stamp::of(&object))),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(RegistryError::unavailable(place.to_string(), error)),
        }
        Ok(())
    }
}

/// Names what an entry says.
fn digest_of(content: Option<&Read>) -> Option<Digest> {
    match content? {
        Read::Whole(content) => Some(Digest::of(content)),
        Read::TooLarge(_) => None,
    }
}
