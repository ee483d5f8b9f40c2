//! Reading one model of a registry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;

use super::location::Listing as Lists;
use super::tree::{ModelTree, Stamps};
use super::{Registry, RegistryError};
use crate::journal::Rollout;
use crate::listing::{Generation, Layout, ListedModel};
use crate::log::{Read, exists, read_small};
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest, ManifestError};
use crate::name::{ModelName, VersionKey, VersionNumber, parse_version, quoted};

/// How many objects are read at a time.
const READS: usize = 16;
/// The largest settings file.
pub(crate) const MAX_SETTINGS_BYTES: u64 = 1 << 20;
/// The most settings files of one model.
pub(crate) const MAX_SETTINGS_FILES: usize = 64;

/// The files that hold settings.
pub(crate) const SETTINGS_FILES: [&str; 2] = ["config.pbtxt", "model.toml"];
/// The folder whose files `config.pbtxt` names without it: Triton's place for warm-up data.
pub(crate) const WARMUP_FOLDER: &str = "warmup";

/// How a model's directory looks from outside.
pub(crate) struct Shape {
    /// It has `versions/`.
    pub(crate) ours: bool,
    /// Its numbered directories, which count only where it is not ours.
    pub(crate) numeric: BTreeSet<VersionNumber>,
}

/// Committed versions, and what is wrong with others.
#[derive(Debug, Clone, Default)]
pub(crate) struct Committed {
    pub(crate) versions: BTreeMap<VersionNumber, Arc<Generation>>,
    pub(crate) rollout: Rollout,
    pub(crate) problems: Vec<String>,
}

impl Committed {
    /// Says where the journal is frozen.
    pub(super) fn note_frozen(&mut self) {
        self.problems.extend(self.rollout.frozen.as_ref().map(|entry| {
            format!("the journal is frozen at an entry that this build does not know ({entry}): upgrade this program")
        }));
    }
}

impl Registry {
    /// The versions of a model, tombstoned ones among them.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`]. A version whose manifest breaks a rule is left out.
    pub async fn versions(&self, model: &ModelName) -> Result<BTreeMap<VersionNumber, Arc<Generation>>, RegistryError> {
        Ok(self.committed(model).await?.versions)
    }

    /// How a model looks to whoever is about to write.
    pub(crate) async fn shape(&self, model: &ModelName) -> Result<Shape, RegistryError> {
        if self.may_list == Lists::Unknown {
            return Err(RegistryError::NoPutIfAbsent { store: self.description.clone() });
        }
        let path = self.model_path(model);
        let level = self.store.list_with_delimiter(Some(&path)).await;
        let level = level.map_err(|error| RegistryError::unavailable(path.to_string(), error))?;
        let mut shape = Shape { ours: false, numeric: BTreeSet::new() };
        for dir in level.common_prefixes.iter().filter_map(|dir| dir.filename()) {
            shape.ours |= dir == "versions";
            shape.numeric.extend(parse_version(dir));
        }
        Ok(shape)
    }

    /// The committed versions and the rollout of a model.
    pub(crate) async fn committed(&self, model: &ModelName) -> Result<Committed, RegistryError> {
        let path = self.model_path(model).join("versions");
        let level = self.store.list_with_delimiter(Some(&path)).await;
        let level = level.map_err(|error| RegistryError::unavailable(path.to_string(), error))?;
        let mut committed = Committed::default();
        let mut numbers = Vec::new();
        for name in level.common_prefixes.iter().filter_map(|dir| dir.filename()) {
            match parse_version(name) {
                Ok(number) => numbers.push(number),
                Err(error) => committed.problems.push(format!("in versions/: {error}")),
            }
        }
        let reads = futures::stream::iter(numbers).map(|number| self.read_version_of(model, number));
        let mut reads = reads.buffered(READS);
        while let Some((number, generation)) = reads.next().await {
            match generation {
                Ok(generation) => drop(committed.versions.insert(number, Arc::new(generation))),
                Err(RegistryError::NotFound { .. }) => {}
                Err(RegistryError::Manifest { source, .. }) => {
                    committed.problems.push(format!("version {number}: {}", with_causes(&source)));
                }
                Err(error) => return Err(error),
            }
        }
        let rollout =
            self.rollout(model).await.map_err(|error| RegistryError::unavailable(format!("journal of {model}"), error))?;
        committed.rollout = rollout;
        committed.note_frozen();
        Ok(committed)
    }

    /// The highest number that has a manifest, readable or not.
    pub(super) async fn highest(&self, model: &ModelName) -> Result<Option<VersionNumber>, RegistryError> {
        let path = self.model_path(model).join("versions");
        let level = self.store.list_with_delimiter(Some(&path)).await;
        let level = level.map_err(|error| RegistryError::unavailable(path.to_string(), error))?;
        let names = level.common_prefixes.iter().filter_map(|dir| dir.filename());
        let mut numbers: Vec<_> = names.filter_map(|name| parse_version(name).ok()).collect();
        numbers.sort_unstable();
        while let Some(number) = numbers.pop() {
            if self.manifest_bytes(&VersionKey::new(model.clone(), number)).await?.is_some() {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    async fn read_version_of(
        &self,
        model: &ModelName,
        number: VersionNumber,
    ) -> (VersionNumber, Result<Generation, RegistryError>) {
        (number, self.read_version(&VersionKey::new(model.clone(), number)).await)
    }

    pub(crate) async fn read_version(&self, key: &VersionKey) -> Result<Generation, RegistryError> {
        let generation = self.read_manifest(key).await?;
        Ok(Generation { tombstoned: self.is_tombstoned(key).await?, ..generation })
    }

    pub(super) async fn is_tombstoned(&self, key: &VersionKey) -> Result<bool, RegistryError> {
        let path = self.tombstone_path(key);
        let tombstoned = exists(self.store.as_ref(), &path).await;
        tombstoned.map_err(|error| RegistryError::unavailable(path.to_string(), error))
    }

    /// A version by its manifest alone, which never changes. Whether it is tombstoned is not looked at.
    pub(super) async fn read_manifest(&self, key: &VersionKey) -> Result<Generation, RegistryError> {
        Ok(self.read_listed(key, &ModelTree::default()).await?.0)
    }

    /// The same; signatures that were listed are not listed again. Those that had to be asked for one by one come with what a listing
    /// would have shown of them.
    pub(super) async fn read_listed(
        &self,
        key: &VersionKey,
        tree: &ModelTree,
    ) -> Result<(Generation, Option<Stamps>), RegistryError> {
        let stored = self.manifest_bytes(key).await?.ok_or_else(|| RegistryError::NotFound { key: key.clone() })?;
        let wrong = |source| RegistryError::Manifest { key: key.clone(), source };
        let bytes = match stored {
            Read::Whole(bytes) => bytes,
            Read::TooLarge(bytes) => return Err(wrong(ManifestError::TooLarge(bytes))),
        };
        let (manifest, digest) = Manifest::parse(&bytes).map_err(wrong)?;
        if manifest.key() != *key {
            let problem = format!("name {}, but it lies under {key}", manifest.key());
            return Err(wrong(ManifestError::Field { field: "model and version", problem }));
        }
        let (signatures, stored, probed) = match &self.signatures_of {
            Some(first) => {
                let listed = tree.signatures.get(&digest.to_string());
                let found = self.signatures(&key.model, &digest, first, listed).await?;
                (found.signatures, Some(as_text(&bytes)), found.probed)
            }
            None => (Vec::new(), None, None),
        };
        let bytes = manifest.bytes();
        let generation = Generation {
            key: key.clone(),
            digest,
            bytes,
            layout: Layout::Registry,
            manifest: Arc::new(manifest),
            tombstoned: false,
            signatures,
            stored,
        };
        Ok((generation, probed))
    }

    pub(super) async fn manifest_bytes(&self, key: &VersionKey) -> Result<Option<Read>, RegistryError> {
        let path = self.manifest_path(key);
        read_small(self.store.as_ref(), &path, MAX_MANIFEST_BYTES)
            .await
            .map_err(|error| RegistryError::unavailable(path.to_string(), error))
    }
}

/// A manifest that was parsed, and is text therefore.
fn as_text(manifest: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(manifest).into()
}

/// A model in our layout; nothing where it has neither a version nor a problem.
pub(crate) fn listed(
    name: &ModelName,
    committed: Committed,
    settings: BTreeMap<String, Arc<[u8]>>,
    mut problems: Vec<String>,
) -> Option<ListedModel> {
    let Committed { versions, mut rollout, problems: more } = committed;
    problems.extend(more);
    if versions.is_empty() && problems.is_empty() {
        return None;
    }
    let held: Vec<_> = versions.iter().filter(|(number, generation)| rollout.holds(**number, generation.manifest.hold)).collect();
    let held: Vec<_> = held.into_iter().map(|(number, _)| *number).collect();
    rollout.held.extend(held);
    let aliases = rollout.aliases.clone();
    Some(ListedModel {
        name: name.clone(),
        layout: Layout::Registry,
        registry: None,
        versions,
        unsettled: BTreeSet::new(),
        settings,
        rollout,
        aliases,
        problems,
        steering: None,
    })
}

/// A warning where numbered directories lie beside `versions/`.
pub(crate) fn shadowed(numeric: &BTreeSet<VersionNumber>) -> Vec<String> {
    let Some(first) = numeric.first() else { return Vec::new() };
    let rest = match numeric.len() {
        1 => String::new(),
        more => format!(" and {} more", more - 1),
    };
    vec![format!("directory `{first}`{rest} is ignored: a model with `versions/` has its versions there")]
}

/// What stands in quotes in these texts, of either kind. Whether a quote opens or closes does not matter: what is quoted lies between
/// two of them in any case.
pub(crate) fn named_in<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> BTreeSet<String> {
    let pieces = texts.into_iter().flat_map(|text| text.split(|byte| matches!(byte, b'"' | b'\'')));
    pieces.filter_map(|piece| std::str::from_utf8(piece).ok().map(str::to_owned)).collect()
}

/// Why a settings file is left out, if it is.
pub(crate) fn settings_problem(name: &str, bytes: u64, taken: usize) -> Option<String> {
    if bytes > MAX_SETTINGS_BYTES {
        return Some(format!("file {} is ignored: it has {bytes} bytes, the limit is {MAX_SETTINGS_BYTES}", quoted(name)));
    }
    (taken >= MAX_SETTINGS_FILES).then(|| format!("file {} is ignored: there are more than {MAX_SETTINGS_FILES}", quoted(name)))
}

/// An error with what caused it, in one line for people.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
