//! One look: the search for models, and what is new of each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;

use super::error::MlflowError;
use super::version::Reading;
use super::{MlflowSource, wire};
use crate::journal::Rollout;
use crate::listing::{Generation, Layout, ListedModel, Listing};
use crate::name::{ModelName, VersionKey, VersionNumber, parse_version, quoted};
use crate::steering::{Steering, SteeringAlias};

/// Models, or versions of one, that are read at a time. The client has a limit of its own.
const READS: usize = 8;
/// The highest versions of a model that are read, beside those that an alias points at and those that are known.
const MAX_VERSIONS: usize = 100;

/// The last look.
#[derive(Default)]
pub(super) struct Seen {
    models: BTreeMap<ModelName, Kept>,
    /// When every model was read.
    full_at: Option<Duration>,
}

impl Seen {
    /// What was read of these versions no longer counts. They stay listed until they are read anew.
    fn doubt(&mut self, versions: BTreeSet<VersionKey>) {
        for key in versions {
            let Some(kept) = self.models.get_mut(&key.model) else { continue };
            if let Some((_, reading)) = kept.versions.get_mut(&key.version) {
                *reading = Reading::Unread("has changed since it was read".into());
                kept.whole = false;
            }
        }
    }
}

/// A model as it was read.
#[derive(Clone)]
struct Kept {
    /// What the search for models said then.
    said: wire::RegisteredModel,
    listed: Arc<ListedModel>,
    versions: BTreeMap<VersionNumber, (wire::ModelVersion, Reading)>,
    /// Nothing of it has to be looked for before the search says something else.
    whole: bool,
}

impl MlflowSource {
    pub(super) async fn look(&self) -> Result<Listing, MlflowError> {
        let mut seen = self.seen.lock().await;
        let found: Vec<wire::RegisteredModel> = self
            .client
            .pages::<wire::Models>("the search for models", "registered-models/search", &[("max_results", "200")])
            .await?;
        let now = self.options.clock.elapsed();
        let is_recent = seen.full_at.is_some_and(|full_at| now.saturating_sub(full_at) < self.options.repair_interval);
        if !is_recent {
            seen.full_at = Some(now);
        }
        seen.doubt(std::mem::take(&mut *self.doubted()));
        let (mut models, mut problems, mut complete) = (BTreeMap::new(), Vec::new(), true);
        let mut changed = Vec::new();
        for said in found.into_iter().filter(|said| !said.is_prompt()) {
            let name = match ModelName::new(&said.name) {
                Ok(name) => name,
                Err(error) => {
                    problems.push(format!("a registered model is ignored: {error}"));
                    continue;
                }
            };
            let kept = seen.models.remove(&name);
            match kept {
                Some(kept) if is_recent && kept.whole && kept.said == said => drop(models.insert(name, kept)),
                kept => changed.push((name, said, kept)),
            }
        }
        let reads = futures::stream::iter(changed).map(|(name, said, kept)| self.read_model_or_keep(name, said, kept, !is_recent));
        let mut reads = reads.buffer_unordered(READS);
        while let Some((name, kept, error)) = reads.next().await {
            if let Some(error) = error {
                complete = false;
                problems.push(format!("model {name}: {}", error.told()));
            }
            complete &= kept.as_ref().is_none_or(|kept| kept.listed.unsettled.is_empty());
            models.extend(kept.map(|kept| (name, kept)));
        }
        drop(reads);
        problems.sort_unstable();
        self.stamps().retain(|key, _| models.get(&key.model).is_some_and(|kept| kept.versions.contains_key(&key.version)));
        seen.models = models;
        let models = seen.models.iter().map(|(name, kept)| (name.clone(), Arc::clone(&kept.listed))).collect();
        Ok(Listing::new(complete, models, self.options.clock.now(), problems))
    }

    /// A model that can't be read stays as it was.
    async fn read_model_or_keep(
        &self,
        name: ModelName,
        said: wire::RegisteredModel,
        kept: Option<Kept>,
        afresh: bool,
    ) -> (ModelName, Option<Kept>, Option<MlflowError>) {
        match self.read_model(&name, said, kept.as_ref(), afresh).await {
            Ok(model) => (name, Some(model), None),
            Err(error) => (name, kept.map(|kept| Kept { whole: false, ..kept }), Some(error)),
        }
    }

    /// What was usable before is not read again; what was refused is where all is read `afresh`, since its files may have been mended.
    async fn read_model(
        &self,
        name: &ModelName,
        said: wire::RegisteredModel,
        kept: Option<&Kept>,
        afresh: bool,
    ) -> Result<Kept, MlflowError> {
        let filter = format!("name='{name}'");
        let query = [("filter", filter.as_str()), ("max_results", "1000"), ("order_by", "version_number DESC")];
        let what = format!("the versions of {name}");
        let found: Vec<wire::ModelVersion> = self.client.pages::<wire::Versions>(&what, "model-versions/search", &query).await?;
        let mut model = Findings::default();
        let mut wanted = Vec::new();
        for (at, version) in found.into_iter().enumerate() {
            let Some(number) = model.number(&version) else { continue };
            let known = kept.and_then(|kept| kept.versions.get(&number));
            let is_named = said.aliases.iter().any(|alias| alias.version == version.version);
            if at < MAX_VERSIONS || is_named || known.is_some() {
                let counts = |reading: &Reading| reading.is_usable() || (reading.is_final() && !afresh);
                let known = known.filter(|(before, reading)| is_same(before, &version) && counts(reading));
                wanted.push((number, version, known.map(|(_, reading)| reading.clone())));
            }
        }
        let reads = futures::stream::iter(wanted).map(|(number, version, known)| async move {
            let reading = match known {
                Some(reading) => Ok(reading),
                None => self.read_version(&VersionKey::new(name.clone(), number), &version).await,
            };
            (number, version, reading)
        });
        let mut reads = reads.buffer_unordered(READS);
        while let Some((number, version, reading)) = reads.next().await {
            model.take(number, version, reading);
        }
        drop(reads);
        let listed = Arc::new(self.listed(name, &said, &mut model));
        Ok(Kept { said, listed, versions: model.readings, whole: model.whole })
    }

    fn listed(&self, name: &ModelName, said: &wire::RegisteredModel, model: &mut Findings) -> ListedModel {
        let points_at = |alias: &str| {
            let found = said.aliases.iter().find(|one| one.alias == alias);
            found.and_then(|alias| parse_version(&alias.version).ok())
        };
        let steering = |alias: &str| SteeringAlias { name: alias.to_owned(), version: points_at(alias) };
        let options = &self.options;
        let (stable, candidate) = (steering(&options.stable_alias), steering(&options.candidate_alias));
        let mut aliases = BTreeMap::new();
        for alias in &said.aliases {
            match parse_version(&alias.version) {
                Ok(version) if model.versions.contains_key(&version) => drop(aliases.insert(alias.alias.clone(), version)),
                // What follows from these two is said where they are followed.
                _ if [&stable.name, &candidate.name].contains(&&alias.alias) => {}
                _ => {
                    let (alias, version) = (quoted(&alias.alias), quoted(&alias.version));
                    model.problems.insert(format!("alias {alias} points at version {version}, which can't be used"));
                }
            }
        }
        // Which version these two stand for is what the rollout says, once it follows them.
        aliases.retain(|alias, _| *alias != stable.name && *alias != candidate.name);
        let (by, candidate_weight_bp) = ("mlflow".to_owned(), options.candidate_weight.0);
        ListedModel {
            name: name.clone(),
            layout: Layout::Mlflow,
            registry: None,
            versions: std::mem::take(&mut model.versions),
            unsettled: std::mem::take(&mut model.unsettled),
            settings: BTreeMap::new(),
            rollout: Rollout::default(),
            aliases,
            problems: std::mem::take(&mut model.problems).into_iter().collect(),
            steering: Some(Steering { by, stable, candidate, candidate_weight_bp }),
        }
    }
}

/// Whether two answers are about the same content. Tags may change; they are read with the content.
fn is_same(a: &wire::ModelVersion, b: &wire::ModelVersion) -> bool {
    (a.creation_timestamp, &a.source, &a.run_id) == (b.creation_timestamp, &b.source, &b.run_id)
}

/// What the look at one model has found.
struct Findings {
    versions: BTreeMap<VersionNumber, Arc<Generation>>,
    unsettled: BTreeSet<VersionNumber>,
    readings: BTreeMap<VersionNumber, (wire::ModelVersion, Reading)>,
    problems: BTreeSet<String>,
    whole: bool,
}

impl Default for Findings {
    fn default() -> Self {
        let (versions, unsettled, readings, problems) = Default::default();
        Self { versions, unsettled, readings, problems, whole: true }
    }
}

impl Findings {
    /// The number of a version that is there; what is not yet there is looked for again.
    fn number(&mut self, version: &wire::ModelVersion) -> Option<VersionNumber> {
        let number = match parse_version(&version.version) {
            Ok(number) => number,
            Err(error) => {
                self.problems.insert(format!("a version is ignored: {error}"));
                return None;
            }
        };
        if version.status == wire::READY {
            return Some(number);
        }
        self.whole = false;
        if version.status != "PENDING_REGISTRATION" {
            let (status, said) = (quoted(&version.status), quoted(&version.status_message));
            self.problems.insert(format!("version {number} is ignored: its status is {status}, and the server says {said}"));
        }
        None
    }

    fn take(&mut self, number: VersionNumber, version: wire::ModelVersion, reading: Result<Reading, MlflowError>) {
        let reading = reading.unwrap_or_else(|error| {
            self.unsettled.insert(number);
            Reading::Unread(format!("can't be read: {}", error.told()))
        });
        match &reading {
            Reading::Usable(generation) => drop(self.versions.insert(number, Arc::clone(generation))),
            Reading::Refused(problem) | Reading::Unread(problem) => {
                self.problems.insert(format!("version {number} {problem}"));
            }
        }
        self.whole &= reading.is_final();
        self.readings.insert(number, (version, reading));
    }
}
