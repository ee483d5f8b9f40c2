//! An OCI registry as a [`VersionSource`].
//!
//! A look that finds nothing new takes one request for the list of repositories, one per repository for its tags, and one per
//! alias. Which manifest a numbered tag has is looked at once, and again at the repair interval.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;

use super::OciRegistry;
use super::blobs::Blob;
use super::error::OciError;
use super::place::model_of;
use super::repository::Tags;
use crate::listing::{Cursor, Generation, ListedModel, Listing};
use crate::manifest::ManifestFile;
use crate::name::{ModelName, VersionKey};
use crate::registry::versions::with_causes;
use crate::source::{FetchError, Fetched, Progress, SourceError, VersionSource};
use crate::transfer::{Content, OpenFile, Transfers, bring_all};

/// How many repositories are read at a time.
const READS: usize = 4;
/// After so many that got no answer, one after the other, the rest are not asked in this look.
const MAX_FAILURES: u32 = 8;

/// The last look.
#[derive(Clone, Default)]
pub(super) struct Seen {
    /// When everything was looked at.
    full_at: Duration,
    /// What lies below the place, as far as the registry lists repositories.
    below: Below,
    repositories: BTreeMap<String, Repository>,
    complete: bool,
    problems: Vec<String>,
}

#[derive(Clone)]
struct Repository {
    name: ModelName,
    tags: Tags,
    model: Option<Arc<ListedModel>>,
    /// All of its tags were to be looked at, and could not be.
    due: bool,
}

#[derive(Clone, Default)]
struct Below {
    repositories: BTreeSet<String>,
    /// Requests that the list took.
    pages: usize,
    /// Why there is no list; it is asked for again at the repair interval.
    not_offered: Option<String>,
    /// Why the list that there is could not be read: what was known stays.
    failed: Option<String>,
    /// It is longer than it is read, or slower: to find that out takes long, so that it is asked for again at the repair interval.
    too_long: bool,
}

impl Below {
    /// Whether it is not asked for in a look that does not look at everything. A list of one page is asked for each time.
    fn waits(&self) -> bool {
        self.too_long || (self.failed.is_none() && (self.not_offered.is_some() || self.pages > 1))
    }

    /// The registry failed as it may fail with everything else.
    fn got_no_answer(&self) -> bool {
        self.failed.is_some() && !self.too_long
    }
}

/// The registry asked to be left alone, and was.
#[derive(Debug, thiserror::Error)]
#[error("it asked to wait for {} s more", .0.as_secs().max(1))]
struct Waiting(Duration);

#[async_trait]
impl VersionSource for OciRegistry {
    fn describe(&self) -> String {
        self.place.to_string()
    }

    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        let mut seen = self.seen.lock().await;
        if let Some(wait) = self.client.hold() {
            return Err(SourceError::unavailable(self.place.to_string(), Waiting(wait)));
        }
        let next = self.look(seen.as_ref()).await;
        let next = next.map_err(|error| SourceError::unavailable(self.place.to_string(), error))?;
        let (models, places) = models(&next);
        *self.repositories.lock().unwrap_or_else(PoisonError::into_inner) = places;
        let listing = Listing::new(next.complete, models, self.clock.now(), next.problems.clone());
        *seen = Some(next);
        Ok(Some(listing).filter(|listing| since.is_none_or(|since| since.state != listing.cursor.state)))
    }

    async fn fetch(&self, generation: &Generation, dest: &Path, progress: &dyn Progress) -> Result<Fetched, FetchError> {
        let repository = self.repository_of(&generation.key.model);
        let layers = Layers { registry: self, repository, key: &generation.key };
        let files = bring_all(Transfers::of_process(), &layers, &generation.manifest.files, dest, progress).await?;
        Ok(Fetched { files })
    }
}

/// The files of a version: layers of its manifest.
struct Layers<'a> {
    registry: &'a OciRegistry,
    repository: String,
    key: &'a VersionKey,
}

#[async_trait]
impl OpenFile for Layers<'_> {
    async fn open(&self, file: &ManifestFile) -> Result<Content, FetchError> {
        let what = format!("file `{}` of {}", file.path, self.key);
        let digest = file.sha256.ok_or_else(|| FetchError::NotFound { what: format!("the digest of {what}") })?;
        let blob = Blob { client: Arc::clone(&self.registry.client), repository: self.repository.clone(), digest, what };
        Ok(Content::Ranged(Arc::new(blob)))
    }
}

/// The models of a look, and the repository of each.
fn models(seen: &Seen) -> (BTreeMap<ModelName, Arc<ListedModel>>, BTreeMap<ModelName, String>) {
    let (mut models, mut places) = (BTreeMap::new(), BTreeMap::new());
    for (place, repository) in &seen.repositories {
        if let Some(model) = &repository.model {
            models.insert(repository.name.clone(), Arc::clone(model));
            places.insert(repository.name.clone(), place.clone());
        }
    }
    (models, places)
}

impl OciRegistry {
    /// # Errors
    /// Nothing could be read.
    async fn look(&self, before: Option<&Seen>) -> Result<Seen, OciError> {
        let now = self.clock.elapsed();
        let all = before.is_none_or(|before| now.saturating_sub(before.full_at) >= self.repair_interval);
        let before = before.cloned().unwrap_or_default();
        let mut seen = Seen { complete: true, ..Seen::default() };
        seen.below = self.look_below(&before.below, all).await;
        // A list may take as long as the interval: that begins when it has ended.
        seen.full_at = if all { self.clock.elapsed() } else { before.full_at };
        let chosen = self.choose(&seen.below, &before, &mut seen.problems);
        let mut left: BTreeSet<String> = chosen.iter().map(|(place, _)| place.clone()).collect();
        let reads = futures::stream::iter(chosen).map(|(place, name)| {
            let known = before.repositories.get(&place);
            async move {
                let all = all || known.is_some_and(|known| known.due);
                let tags = Tags::look(&self.client, &place, &name, known.map(|known| &known.tags), all).await;
                (place, name, tags)
            }
        });
        let mut reads = reads.buffer_unordered(READS);
        let (mut read, mut in_a_row, mut first_error) = (0, 0, None);
        while let Some((place, name, tags)) = reads.next().await {
            match tags {
                Ok(tags) => {
                    (read, in_a_row) = (read + 1, 0);
                    left.remove(&place);
                    seen.take(place, name, tags);
                }
                Err(error) => {
                    in_a_row += u32::from(error.is_passing());
                    left.remove(&place);
                    seen.keep(place, &with_causes(&error), &before, all);
                    first_error.get_or_insert(error);
                }
            }
            // Each may take as long as a registry is waited for.
            if in_a_row == MAX_FAILURES || (in_a_row > 0 && read == 0 && seen.below.got_no_answer()) {
                break;
            }
        }
        drop(reads);
        if let Some(error) = first_error.filter(|_| read == 0) {
            return Err(error);
        }
        for place in left {
            seen.keep(place, "it was not asked, since the registry does not answer", &before, all);
        }
        seen.tell_of_below(&self.place.repository);
        Ok(seen)
    }

    /// Which repositories there are below the place.
    async fn look_below(&self, before: &Below, all: bool) -> Below {
        if !all && before.waits() {
            return before.clone();
        }
        match self.client.catalog().await {
            Ok(list) => Below {
                repositories: list.names.into_iter().filter(|name| self.place.holds(name)).collect(),
                pages: list.pages,
                ..Below::default()
            },
            // Many registries have no such list, or not for everybody. What was found once is not forgotten for that.
            Err(error) if error.is_not_offered() && before.repositories.is_empty() => {
                Below { not_offered: Some(with_causes(&error)), ..Below::default() }
            }
            Err(error) => {
                let (failed, too_long) = (Some(with_causes(&error)), error.is_out_of_bounds());
                Below { failed, too_long, not_offered: None, ..before.clone() }
            }
        }
    }

    /// The repositories that are models, by their last part. Of two with one name the one that a publish would write counts, else
    /// the first.
    fn choose(&self, below: &Below, before: &Seen, problems: &mut Vec<String>) -> Vec<(String, ModelName)> {
        let own = self.place.repository.clone();
        let known = before.repositories.keys().filter(|_| below.failed.is_some()).cloned();
        let mut places: BTreeSet<String> = below.repositories.iter().cloned().chain(known).collect();
        places.remove(&own);
        let depth = |place: &String| place.matches('/').count();
        let mut ordered: Vec<String> = places.into_iter().collect();
        ordered.sort_by_key(|place| (depth(place), place.clone()));
        let (mut chosen, mut taken) = (Vec::new(), BTreeMap::new());
        for place in std::iter::once(own).chain(ordered) {
            match model_of(&place) {
                Ok(name) => match taken.get(&name) {
                    Some(other) => problems.push(format!("repository {place} is ignored: {other} is model {name} already")),
                    None => {
                        taken.insert(name.clone(), place.clone());
                        chosen.push((place, name));
                    }
                },
                Err(error) => problems.push(format!("repository {place} is ignored: {error}")),
            }
        }
        chosen
    }
}

impl Seen {
    fn take(&mut self, place: String, name: ModelName, tags: Option<Tags>) {
        let Some(tags) = tags else { return };
        self.complete &= tags.stale.is_empty();
        let model = tags.model(&name).map(Arc::new);
        self.repositories.insert(place, Repository { name, tags, model, due: false });
    }

    /// A repository that can't be read stays as it was.
    fn keep(&mut self, place: String, problem: &str, before: &Seen, due: bool) {
        self.complete = false;
        self.problems.push(format!("repository {place}: {problem}"));
        self.problems.sort_unstable();
        if let Some(known) = before.repositories.get(&place) {
            let due = due || known.due;
            self.repositories.insert(place, Repository { due, ..known.clone() });
        }
    }

    /// Says what is not known of what lies below the place, where that matters.
    fn tell_of_below(&mut self, own: &str) {
        if let Some(failed) = &self.below.failed {
            self.complete = false;
            self.problems.push(format!("which repositories there are below {own} is not known: {failed}"));
        }
        if let Some(reason) = self.below.not_offered.as_ref().filter(|_| self.repositories.is_empty()) {
            self.problems.push(format!("{own} has no tags, and the registry does not list what lies below it: {reason}"));
        }
    }
}
