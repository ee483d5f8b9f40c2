//! The registry as a [`VersionSource`].
//!
//! A poll is one GET of the next number in the change log. What that names is listed, model by model, and read as far as it is new. All
//! of it is listed once in a repair interval, and at every poll where something is in the plain layout or there is no change log.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as FsPath;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::Error as StoreError;
use object_store::path::Path;

use super::access::access_error;
use super::changes::Changes;
use super::known::Known;
use super::location::Listing as Lists;
use super::logged::Logged;
use super::plain::versions_of;
use super::tree::{ModelTree, Tree};
use super::versions::with_causes;
use super::{Registry, RegistryError};
use crate::listing::{Cursor, Generation, Layout, ListedModel, Listing};
use crate::name::{ModelName, VersionKey};
use crate::plain::{Recheck, Settings};
use crate::settle::{LookTime, Settler};
use crate::source::{FetchError, Fetched, Progress, SourceError, VersionSource};

/// How many models are read at a time.
const READS: usize = 4;
/// After so many models that could not be read, the others wait for the next look: the store is the trouble, and each would take as
/// long.
pub(super) const MAX_FAILURES: usize = 8;
/// A registry that has more objects is not one.
const MAX_OBJECTS: u64 = 20_000_000;
/// Folders of a store that lists one level at a time.
const MAX_DEPTH: usize = 16;

/// What the looks have seen.
pub(super) struct Seen {
    changes: u64,
    /// When all of it is to be listed again; `None` before the first time.
    due: Option<Duration>,
    models: BTreeMap<ModelName, Known>,
    /// Models that changed and have not been listed since.
    stale: BTreeSet<ModelName>,
    /// What is wrong outside of any model.
    problems: Vec<String>,
    /// For a store that can't list.
    logged: Option<Logged>,
    pub(super) versions: Settler<VersionKey, Generation>,
    pub(super) settings: Settler<ModelName, Settings>,
    listing: Option<Listing>,
    /// By which keys signatures were read.
    edition: u64,
    /// What is told of a change log that ends before where it was read to, until the next repair.
    restored: Option<String>,
}

impl Seen {
    fn new(settle_interval: Duration) -> Self {
        Self {
            changes: 0,
            due: None,
            models: BTreeMap::new(),
            stale: BTreeSet::new(),
            problems: Vec::new(),
            logged: None,
            versions: Settler::new(settle_interval),
            settings: Settler::new(settle_interval),
            listing: None,
            edition: 0,
            restored: None,
        }
    }

    /// Whether only a listing shows what changes.
    fn needs_listing(&self) -> bool {
        self.changes == 0 || self.models.values().any(|known| known.tree.is_plain())
    }

    /// Models that could not be read and are worth another try.
    fn retries(&self, now: Duration) -> impl Iterator<Item = &ModelName> {
        let due = move |known: &Known| known.failure.as_ref().is_some_and(|failure| failure.retry_at <= now);
        self.models.iter().filter(move |(_, known)| due(known)).map(|(name, _)| name)
    }
}

#[async_trait]
impl VersionSource for Registry {
    fn describe(&self) -> String {
        self.description.clone()
    }

    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        let mut guard = self.seen.lock().await;
        let seen = guard.get_or_insert_with(|| Seen::new(self.settle_interval));
        let looked = self.look(seen).await;
        looked.map_err(|error| SourceError::unavailable(self.description.clone(), error))?;
        let listing = seen.listing.as_ref();
        Ok(listing.filter(|listing| since.is_none_or(|since| since.state != listing.cursor.state)).cloned())
    }

    async fn fetch(&self, generation: &Generation, dest: &FsPath, progress: &dyn Progress) -> Result<Fetched, FetchError> {
        if generation.layout == Layout::Plain {
            return self.fetch_plain(generation, dest, progress).await;
        }
        self.fetch_files(generation, dest, progress).await
    }
}

impl Registry {
    /// Looks at what has changed, and lists anew where something has. Whoever is cancelled here has lost nothing.
    async fn look(&self, seen: &mut Seen) -> Result<(), StoreError> {
        let (began, edition) = (self.clock.elapsed(), self.edition());
        // By other keys, other signatures count.
        let is_due = seen.due.is_none_or(|due| due <= began) || seen.edition != edition;
        // The log comes first: what is committed during the look is then seen again, never missed. Its end is looked for from time to time,
        // wherever it was before: a registry may be restored from a backup.
        let changes = match is_due {
            false => self.changes_after(seen.changes).await?,
            true => Changes { last: self.last_change().await?, models: None },
        };
        let trees = match changes.models {
            Some(changed) if !is_due && !seen.needs_listing() => {
                seen.stale.extend(changed);
                seen.changes = changes.last;
                if seen.stale.is_empty() && seen.retries(began).next().is_none() {
                    return Ok(());
                }
                self.list_models(seen, began).await?
            }
            _ => {
                let tree = self.list_all(seen, changes.last).await?;
                if is_due {
                    seen.due = Some(began + self.repair_interval.mul_f64(1.0 - self.spread() / 10.0));
                    seen.restored = self.restored(seen.changes, changes.last);
                    seen.edition = edition;
                }
                seen.changes = changes.last;
                seen.problems = tree.problems;
                seen.models.retain(|name, _| tree.models.contains_key(name));
                seen.stale.clear();
                let mut models = tree.models;
                for (name, why) in tree.unread {
                    models.remove(&name);
                    self.note_failure(seen, &name, why, began);
                }
                models.into_iter().collect()
            }
        };
        let time = LookTime { began, ended: self.clock.elapsed() };
        self.refresh_models(seen, trees, began, is_due).await;
        self.sum_up(seen, &time);
        Ok(())
    }

    /// What there is to tell of a change log that ends earlier than it did.
    pub(crate) fn restored(&self, before: u64, last: u64) -> Option<String> {
        (last < before).then(|| {
            let text = format!(
                "its change log ends at entry {last}, and had {before}: it was restored from an older backup, as it seems, and is followed \
                 from there"
            );
            tracing::warn!(registry = self.description, "{text}");
            text
        })
    }

    /// All that the store holds of this registry.
    async fn list_all(&self, seen: &mut Seen, last: u64) -> Result<Tree, StoreError> {
        if self.may_list == Lists::Recursive {
            return self.list_below(&self.prefix).await;
        }
        let listed = match self.list_below(&self.prefix).await {
            // Some servers refuse to list more than one level.
            Err(error) if is_lacking(&error) => self.list_by_level(&self.prefix).await,
            other => other,
        };
        match listed {
            // An empty answer about a registry that has a change log is none.
            Ok(tree) if last == 0 || !tree.models.is_empty() => {
                seen.logged = None;
                Ok(tree)
            }
            Err(error) if !is_lacking(&error) => Err(error),
            _ if last == 0 => {
                let lacking = format!(
                    "{} has neither WebDAV nor a change log ({}): there is no way to list it",
                    self.description,
                    self.changes.path(1)
                );
                Err(StoreError::Generic { store: "http", source: lacking.into() })
            }
            _ => {
                let logged = seen.logged.get_or_insert_default();
                self.begin_restored_log(logged, last).await?;
                self.follow_log(logged, last).await?;
                Ok(self.logged_tree(logged, &seen.models).await)
            }
        }
    }

    async fn list_below(&self, path: &Path) -> Result<Tree, StoreError> {
        let mut objects = self.store.list(Some(path).filter(|path| !path.as_ref().is_empty()));
        let (mut tree, mut count) = (Tree::default(), 0);
        while let Some(object) = objects.try_next().await? {
            tree.add(&self.prefix, &object);
            count += 1;
            if count > MAX_OBJECTS {
                let why = format!("it has more than {MAX_OBJECTS} objects");
                return Err(StoreError::Generic { store: "registry", source: why.into() });
            }
        }
        tree.models.values_mut().for_each(ModelTree::tidy);
        Ok(tree)
    }

    async fn list_by_level(&self, path: &Path) -> Result<Tree, StoreError> {
        let mut tree = Tree::default();
        let mut folders = vec![(path.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let level = self.store.list_with_delimiter(Some(&folder).filter(|folder| !folder.as_ref().is_empty())).await?;
            level.objects.iter().for_each(|object| tree.add(&self.prefix, object));
            // Contents are not looked at, only the manifests that name them.
            let is_blobs = |folder: &Path| {
                folder.filename() == Some("blobs") && folder.prefix_match(&self.prefix).is_some_and(|parts| parts.count() == 2)
            };
            let wanted = |folder: &Path| depth < MAX_DEPTH && !is_blobs(folder);
            folders.extend(level.common_prefixes.into_iter().filter(wanted).map(|folder| (folder, depth + 1)));
        }
        tree.models.values_mut().for_each(ModelTree::tidy);
        Ok(tree)
    }

    /// The models that changed, and those that are worth another try. One that can't be listed stays as it was.
    async fn list_models(&self, seen: &mut Seen, now: Duration) -> Result<Vec<(ModelName, ModelTree)>, StoreError> {
        if let Some(logged) = &mut seen.logged {
            self.follow_log(logged, seen.changes).await?;
        }
        let names: BTreeSet<_> = seen.stale.iter().chain(seen.retries(now)).cloned().collect();
        let lists = futures::stream::iter(names).map(async |name| {
            let tree = match &seen.logged {
                Some(logged) => self.logged_model(logged, &name, seen.models.get(&name)).await,
                None => self.list_model(&name).await,
            };
            (name, tree)
        });
        let listed: Vec<_> = lists.buffer_unordered(READS).collect().await;
        let mut trees = Vec::with_capacity(listed.len());
        for (name, tree) in listed {
            seen.stale.remove(&name);
            let was_there = seen.models.get(&name).is_some_and(|known| known.tree.has_versions());
            match tree {
                // What was committed does not go, so that one listing without it is no proof.
                Ok(tree) if was_there && !tree.has_versions() => {
                    self.note_failure(seen, &name, "its versions are not listed any more".to_owned(), now);
                }
                Ok(tree) => trees.push((name, tree)),
                Err(error) => self.note_failure(seen, &name, with_causes(&error), now),
            }
        }
        Ok(trees)
    }

    /// One model, read afresh: for those who ask once.
    pub(super) async fn read_model(&self, name: &ModelName) -> Result<Option<ListedModel>, RegistryError> {
        let tree = self.list_model(name).await?;
        if tree.is_plain() {
            return Ok(Some(Known::plain_shown(name)));
        }
        let mut known = Known::default();
        self.refresh(name, tree, &mut known, false).await?;
        Ok(self.ours(known.ours(name)))
    }

    /// A model in our layout, as it can be used here.
    fn ours(&self, model: Option<ListedModel>) -> Option<ListedModel> {
        let layout = if self.may_list == Lists::Unknown { Layout::Web } else { Layout::Registry };
        model.map(|model| ListedModel { layout, ..model })
    }

    async fn list_model(&self, name: &ModelName) -> Result<ModelTree, RegistryError> {
        let path = self.model_path(name);
        let tree = match (self.may_list, self.list_below(&path).await) {
            (Lists::Unknown, Err(error)) if is_lacking(&error) => self.list_by_level(&path).await,
            (_, listed) => listed,
        };
        let mut tree = tree.map_err(|error| RegistryError::unavailable(path.to_string(), error))?;
        Ok(tree.models.remove(name).unwrap_or_default())
    }

    /// Reads what is new of these models. What can't be read stays as it was.
    async fn refresh_models(&self, seen: &mut Seen, trees: Vec<(ModelName, ModelTree)>, now: Duration, repairs: bool) {
        let edition = self.edition();
        let is_stale = |name: &ModelName, tree: &ModelTree| {
            seen.models.get(name).is_none_or(|known| known.is_stale(tree, now, repairs, edition))
        };
        let stale: Vec<_> = trees.into_iter().filter(|(name, tree)| is_stale(name, tree)).collect();
        // Until they have been read: whoever is cancelled meanwhile has them to read still.
        seen.stale.extend(stale.iter().map(|(name, _)| name.clone()));
        let failures = AtomicUsize::new(0);
        let reads = futures::stream::iter(stale).map(async |(name, tree)| {
            if failures.load(Ordering::Relaxed) >= MAX_FAILURES {
                return (name, None);
            }
            let mut known = seen.models.get(&name).cloned().unwrap_or_default();
            let outcome = self.refresh(&name, tree, &mut known, repairs).await;
            if outcome.is_err() {
                failures.fetch_add(1, Ordering::Relaxed);
            }
            (name, Some((known, outcome)))
        });
        let outcomes: Vec<_> = reads.buffer_unordered(READS).collect().await;
        for (name, outcome) in outcomes {
            let Some((known, outcome)) = outcome else { continue };
            seen.stale.remove(&name);
            seen.models.insert(name.clone(), known);
            if let Err(error) = outcome {
                self.note_failure(seen, &name, with_causes(&error), now);
            }
        }
    }

    fn note_failure(&self, seen: &mut Seen, name: &ModelName, why: String, now: Duration) {
        seen.models.entry(name.clone()).or_default().fail(why, now, self.spread());
    }

    /// Makes the listing of what is known.
    fn sum_up(&self, seen: &mut Seen, time: &LookTime) {
        let (mut models, mut problems, mut recheck) = (BTreeMap::new(), seen.problems.clone(), Recheck::default());
        problems.extend(seen.restored.clone());
        let mut known = std::mem::take(&mut seen.models);
        for (name, known) in &mut known {
            problems.extend(known.failure.as_ref().map(|failure| format!("model {name}: {}", failure.why)));
            match known.tree.is_plain() {
                // It is as it was.
                true if known.failure.is_some() => {}
                true => known.listed = Some(Arc::new(self.plain_model(name, known, seen, time, &mut recheck))),
                // All that could be read of it counts, tombstones before all.
                false => known.listed = self.ours(known.ours(name)).map(Arc::new),
            }
            models.extend(known.listed.clone().map(|model| (name.clone(), model)));
        }
        let complete = seen.stale.is_empty() && known.values().all(|known| known.failure.is_none());
        if !seen.stale.is_empty() {
            problems.push(format!("{} models more were not read: the store fails too often", seen.stale.len()));
        }
        if complete {
            seen.versions.keep_only(&known.iter().flat_map(|(name, known)| versions_of(name, &known.tree)).collect());
            seen.settings.keep_only(&known.keys().cloned().collect());
        }
        seen.models = known;
        problems.sort_unstable();
        let mut listing = Listing::new(complete, models, self.clock.now(), problems);
        listing.cursor.changes = seen.changes;
        listing.recheck_after = recheck.0;
        seen.listing = Some(listing);
    }
}

/// Whether the server is there and can't do what was asked.
pub(super) fn is_lacking(error: &StoreError) -> bool {
    access_error(error).is_some_and(super::access::AccessError::is_lacking)
}
