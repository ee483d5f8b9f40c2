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
use crate::log::{Read, read_small};
use crate::name::{ModelName, VersionKey, VersionNumber, check_file_path};
use crate::signing::Trust;

/// How many models are asked for at a time, and objects of one.
const MODELS: usize = 4;
const READS: usize = 16;

/// What the change log has named so far.
#[derive(Debug, Default)]
pub(super) struct Logged {
    models: BTreeMap<ModelName, BTreeSet<VersionNumber>>,
    read_to: u64,
    /// Entries that can't be read: what they name can't be found.
    unreadable: BTreeSet<u64>,
}

impl Logged {
    /// The versions of a model that it names.
    pub(super) fn versions(&self, model: &ModelName) -> impl Iterator<Item = VersionNumber> {
        self.models.get(model).into_iter().flatten().copied()
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
                logged.read_to = seq;
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
        let probes = futures::stream::iter(numbers).map(async |number| {
            let gone = known.is_some_and(|known| known.is_tombstoned(number));
            let tombstoned = if gone { Ok(true) } else { self.is_tombstoned(&VersionKey::new(name.clone(), number)).await };
            (number, tombstoned)
        });
        let mut probes = probes.buffer_unordered(READS);
        while let Some((number, tombstoned)) = probes.next().await {
            let files = tree.versions.entry(number).or_default();
            files.insert(MANIFEST.to_owned(), Stamp::default());
            if tombstoned? {
                files.insert(TOMBSTONE.to_owned(), Stamp::default());
            }
        }
        let tail = self.entries(name).tail(known.map_or(0, Known::last_entry)).await;
        let tail = tail.map_err(|error| RegistryError::unavailable(format!("journal of {name}"), error))?;
        (tree.last_entry, tree.entries) = (tail, tail);
        self.probe_settings(name, &mut tree).await?;
        if let (Some(keys), Some(known)) = (&self.signatures_of, known) {
            self.probe_signatures(name, keys, known, &mut tree).await?;
        }
        Ok(tree)
    }

    /// Asks for the signatures of these keys on the manifests that are known: more may have been added.
    async fn probe_signatures(
        &self,
        name: &ModelName,
        keys: &Trust,
        known: &Known,
        tree: &mut ModelTree,
    ) -> Result<(), RegistryError> {
        let wanted: Vec<_> =
            known.manifests().flat_map(|manifest| keys.ids().map(move |id| (manifest, format!("{id}.json")))).collect();
        let probes = futures::stream::iter(wanted).map(async |(manifest, file)| {
            let place = self.signatures_path(name, &manifest).join(file.as_str());
            let found = self.store.head(&place).await;
            (manifest, file, found.map_err(|error| (place, error)))
        });
        let mut probes = probes.buffer_unordered(READS);
        while let Some((manifest, file, found)) = probes.next().await {
            match found {
                Ok(object) => {
                    let files = tree.signatures.entry(manifest.to_string()).or_default();
                    files.insert(file, Stamp::of(&object));
                }
                Err((_, StoreError::NotFound { .. })) => {}
                Err((place, error)) => return Err(RegistryError::unavailable(place.to_string(), error)),
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
