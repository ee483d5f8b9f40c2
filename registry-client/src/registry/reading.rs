//! The registry as a [`VersionSource`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use object_store::Error as StoreError;
use std::path::Path as FsPath;

use super::versions::with_causes;
use super::{Registry, RegistryError};
use crate::listing::{Cursor, Generation, ListedModel, Listing};
use crate::name::ModelName;
use crate::source::{FetchError, Fetched, Progress, SourceError, VersionSource};

/// How many models are read at a time.
const READS: usize = 4;

/// The last look.
#[derive(Clone)]
pub(super) struct Seen {
    changes: u64,
    /// When everything was read.
    full_at: Duration,
    complete: bool,
    models: BTreeMap<ModelName, Arc<ListedModel>>,
    problems: Vec<String>,
}

#[async_trait]
impl VersionSource for Registry {
    fn describe(&self) -> String {
        self.description.clone()
    }

    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        let mut seen = self.seen.lock().await;
        let now = self.clock.elapsed();
        let recent = seen.as_ref().filter(|seen| seen.complete && now.saturating_sub(seen.full_at) < self.repair_interval);
        let next = match recent {
            Some(recent) => self.look_at_changes(recent.clone()).await,
            None => self.look_at_all(seen.as_ref(), now).await,
        };
        let next = next.map_err(|error| SourceError::unavailable(self.description.clone(), error))?;
        *seen = Some(next.clone());
        drop(seen);
        let mut listing = Listing::new(next.complete, next.models, self.clock.now(), next.problems);
        listing.cursor.changes = next.changes;
        Ok(Some(listing).filter(|listing| since.is_none_or(|since| since.state != listing.cursor.state)))
    }

    async fn fetch(&self, generation: &Generation, dest: &FsPath, progress: &dyn Progress) -> Result<Fetched, FetchError> {
        self.fetch_files(generation, dest, progress).await
    }
}

impl Registry {
    async fn look_at_changes(&self, mut seen: Seen) -> Result<Seen, StoreError> {
        let changes = self.changes_after(seen.changes).await?;
        let Some(models) = changes.models else {
            return self.look_at_all(Some(&seen), self.clock.elapsed()).await;
        };
        seen.changes = changes.last;
        self.read_models(models.into_iter().collect(), &mut seen).await;
        Ok(seen)
    }

    async fn look_at_all(&self, before: Option<&Seen>, now: Duration) -> Result<Seen, StoreError> {
        // The log comes first: what is committed during the look is then seen again, never missed.
        let changes = self.last_change().await?;
        let prefix = Some(&self.prefix).filter(|prefix| !prefix.as_ref().is_empty());
        let level = self.store.list_with_delimiter(prefix).await?;
        let (mut names, mut problems) = (Vec::new(), Vec::new());
        for name in level.common_prefixes.iter().filter_map(|dir| dir.filename()) {
            match ModelName::new(name) {
                Ok(name) => names.push(name),
                Err(_) if name.starts_with(['.', '_']) => {}
                Err(error) => problems.push(format!("a directory is ignored: {error}")),
            }
        }
        let known = before.map(|before| &before.models);
        let models = names.iter().filter_map(|name| Some((name.clone(), Arc::clone(known?.get(name)?)))).collect();
        let mut seen = Seen { changes, full_at: now, complete: true, models, problems };
        self.read_models(names, &mut seen).await;
        Ok(seen)
    }

    /// Reads these models anew. One that can't be read stays as it was, and the look is incomplete.
    async fn read_models(&self, names: Vec<ModelName>, seen: &mut Seen) {
        let reads = futures::stream::iter(names).map(|name| self.read_named(name));
        let mut reads = reads.buffer_unordered(READS);
        while let Some((name, model)) = reads.next().await {
            match model {
                Ok(Some(model)) => drop(seen.models.insert(name, Arc::new(model))),
                Ok(None) => drop(seen.models.remove(&name)),
                Err(error) => {
                    seen.complete = false;
                    seen.problems.push(format!("model {name}: {}", with_causes(&error)));
                }
            }
        }
        seen.problems.sort_unstable();
    }

    async fn read_named(&self, name: ModelName) -> (ModelName, Result<Option<ListedModel>, RegistryError>) {
        let model = self.read_model(&name).await;
        (name, model)
    }
}
