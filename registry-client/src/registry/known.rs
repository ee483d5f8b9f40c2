//! What has been read of one model, and reading what is new of it.
//!
//! Manifests, tombstones and entries of journals never change: they are read once, as long as the listing shows the same stamps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use uuid::Uuid;

use super::tree::{MANIFEST, ModelTree, Stamp, Stamps, TOMBSTONE, object_below};
use super::versions::{
    Committed, MAX_SETTINGS_BYTES, SETTINGS_FILES, WARMUP_FOLDER, listed, named_in, settings_problem, shadowed, with_causes,
};
use super::{Registry, RegistryError};
use crate::digest::{Digest, DigestBuilder};
use crate::journal::{Folded, Rollout};
use crate::listing::{Generation, ListedModel};
use crate::log::{Read, read_small};
use crate::name::{ModelName, VersionKey, VersionNumber};
use crate::plain::Settings;
use crate::signing::MAX_SIGNATURES;

/// How many objects of one model are read at a time.
const READS: usize = 16;
/// After so many versions of one model that could not be read, the others wait for the next try: each may take as long.
const MAX_UNREAD: usize = 8;
/// Until a model that could not be read is tried again, at first and at the most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// A model as far as it has been read.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// What the listing showed when all of it was read.
    pub(super) tree: ModelTree,
    versions: BTreeMap<VersionNumber, ReadVersion>,
    /// Versions that could not be read, as they are now.
    unread: BTreeSet<VersionNumber>,
    /// The fold of its journal.
    rollout: Rollout,
    /// The id of the last entry that is folded in.
    last_id: Option<Uuid>,
    /// What is told of a journal that was begun anew, until the next repair.
    restored: Option<String>,
    settings: BTreeMap<String, (Stamp, Arc<[u8]>)>,
    settings_problems: Vec<String>,
    /// Its journal and its settings have been read, once at the least: before that an empty one says nothing.
    decided: bool,
    /// Something that the listing showed was not there when it was to be read.
    partial: bool,
    pub(super) failure: Option<Failure>,
    /// As it was last listed.
    pub(super) listed: Option<Arc<ListedModel>>,
}

#[derive(Debug, Clone)]
struct ReadVersion {
    /// Of all that lies in its folder, but for the tombstone.
    stamps: Stamps,
    /// Those of the signatures that were listed then.
    signed: Option<Stamps>,
    /// By which keys signatures were chosen, where there were too many.
    edition: u64,
    /// What it is, or what is wrong with it.
    outcome: Result<Arc<Generation>, String>,
}

/// Why a model could not be read, and when it is worth another try.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    times: u32,
    pub(super) retry_at: Duration,
    pub(super) why: String,
}

impl Known {
    /// Whether the model is to be read now that the listing shows this.
    pub(super) fn is_stale(&self, tree: &ModelTree, now: Duration, repairs: bool, edition: u64) -> bool {
        match &self.failure {
            Some(failure) => repairs || failure.retry_at <= now,
            None => {
                let asks_again = repairs && (self.restored.is_some() || self.may_be_another(tree));
                self.partial || self.tree != *tree || asks_again || self.has_unread(edition)
            }
        }
    }

    /// Whether signatures of a version were left out that count by the keys of now.
    fn has_unread(&self, edition: u64) -> bool {
        self.versions.values().any(|read| read.edition != edition && has_many(read.signed.as_ref()))
    }

    /// Whether its journal has to be read to know whether it is the one that was: no listing shows when its last entry was written.
    fn may_be_another(&self, tree: &ModelTree) -> bool {
        self.last_id.is_some() && tree.last_written.is_none()
    }

    /// What was last seen of an object in the folder of a version.
    pub(super) fn shows(&self, number: VersionNumber, file: &str) -> Option<&Stamp> {
        self.tree.versions.get(&number)?.get(file)
    }

    /// Takes note that it can't be read. `spread` is from 0 to 1.
    pub(super) fn fail(&mut self, why: String, now: Duration, spread: f64) {
        let times = self.failure.as_ref().map_or(1, |failure| failure.times.saturating_add(1));
        let pause = FIRST_RETRY.saturating_mul(1 << (times - 1).min(16)).min(LAST_RETRY).mul_f64(0.75 + spread / 4.0);
        self.failure = Some(Failure { times, retry_at: now + pause, why });
    }

    /// The digests of the manifests that were read, but for those of versions that nobody uses any more.
    pub(super) fn manifests(&self) -> impl Iterator<Item = Digest> {
        let used = self.versions.iter().filter(|(number, _)| !self.is_tombstoned(**number));
        used.filter_map(|(_, version)| version.outcome.as_ref().ok().map(|generation| generation.digest))
    }

    pub(super) fn is_tombstoned(&self, number: VersionNumber) -> bool {
        self.shows(number, TOMBSTONE).is_some()
    }

    /// The last entry of its journal that has been read.
    pub(super) fn last_entry(&self) -> u64 {
        self.rollout.seq
    }

    /// The model in our layout.
    pub(super) fn ours(&self, name: &ModelName) -> Option<ListedModel> {
        let mut committed = Committed { rollout: self.rollout.clone(), ..Committed::default() };
        for (number, version) in &self.versions {
            let tombstoned = self.is_tombstoned(*number);
            match &version.outcome {
                Ok(generation) if tombstoned => {
                    let generation = Generation { tombstoned, ..Generation::clone(generation) };
                    drop(committed.versions.insert(*number, Arc::new(generation)));
                }
                Ok(generation) => drop(committed.versions.insert(*number, Arc::clone(generation))),
                Err(why) => committed.problems.push(format!("version {number}: {why}")),
            }
        }
        committed.note_frozen();
        let mut problems = shadowed(&self.tree.numbered.keys().copied().collect());
        problems.extend(self.problems());
        let mut model = listed(name, committed, self.settings(), problems)?;
        // They are there, whatever they are.
        model.unsettled.extend(&self.unread);
        if !self.decided {
            // By no decisions and the default settings the wrong version would be loaded, in the wrong way.
            model.unsettle();
            model.problems.push("its versions wait until its journal and its settings can be read".to_owned());
        }
        Some(model)
    }

    /// A model in the plain layout for those who ask for manifests and journals: it has neither.
    pub(super) fn plain_shown(name: &ModelName) -> ListedModel {
        crate::plain::model(name, vec!["it is in the plain layout, whose versions have no manifests".to_owned()])
    }

    /// What is wrong with it beside its versions.
    pub(super) fn problems(&self) -> Vec<String> {
        self.tree.problems.iter().chain(&self.settings_problems).chain(&self.restored).cloned().collect()
    }

    pub(super) fn settings(&self) -> Settings {
        self.settings.iter().map(|(name, (_, content))| (name.clone(), Arc::clone(content))).collect()
    }

    /// Changes whenever a settings file is written to, comes or goes.
    pub(super) fn settings_digest(&self) -> Digest {
        let mut digest = DigestBuilder::default();
        for (name, (stamp, content)) in &self.settings {
            digest.field(name.as_bytes()).field(content);
            stamp.describe_to(&mut digest);
        }
        digest.finish()
    }

    /// When a settings file was last written to; `None` where there is none.
    pub(super) fn settings_written(&self) -> Option<chrono::DateTime<chrono::Utc>> {
        self.settings.values().map(|(stamp, _)| stamp.modified).max()
    }
}

impl Registry {
    /// Reads what is new of a model. What can't be read stays as it was, and hinders nothing else: an error is the first of those that
    /// there were. What could be read is not read again. With `repairs`, a journal that is another one than was read is begun anew.
    pub(super) async fn refresh(
        &self,
        name: &ModelName,
        tree: ModelTree,
        known: &mut Known,
        repairs: bool,
    ) -> Result<(), RegistryError> {
        known.partial = false;
        let (mut versions, mut rollout) = (Ok(()), Ok(()));
        if tree.ours {
            versions = self.refresh_versions(name, &tree, known).await;
            rollout = self.refresh_rollout(name, &tree, known, repairs).await;
        }
        let settings = self.refresh_settings(name, &tree, known).await;
        if !tree.ours {
            // A plain model is as it was until all of it can be read.
            settings.clone()?;
        }
        known.versions.retain(|number, _| tree.versions.contains_key(number));
        known.decided |= rollout.is_ok() && settings.is_ok();
        // Its tombstones count, whatever else could not be read.
        known.tree = tree;
        versions.and(rollout).and(settings)?;
        known.failure = None;
        Ok(())
    }

    async fn refresh_versions(&self, name: &ModelName, tree: &ModelTree, known: &mut Known) -> Result<(), RegistryError> {
        let committed = tree.versions.iter().filter(|(_, files)| files.contains_key(MANIFEST));
        let committed = committed.map(|(number, files)| {
            let lasting = files.iter().filter(|(file, _)| *file != TOMBSTONE);
            (*number, lasting.map(|(file, stamp)| (file.clone(), stamp.clone())).collect::<Stamps>())
        });
        let is_new = |number: &VersionNumber, stamps: &Stamps| match known.versions.get(number) {
            Some(read) => read.stamps != *stamps || self.is_signed_anew(read, tree),
            None => true,
        };
        let mut new: Vec<_> = committed.filter(|(number, stamps)| is_new(number, stamps)).collect();
        // Those that failed the last time come last, so that they don't keep the others from being read.
        new.sort_by_key(|(number, _)| known.unread.contains(number));
        known.unread.clear();
        let (mut failure, failures) = (Ok(()), AtomicUsize::new(0));
        let edition = self.edition();
        let reads = futures::stream::iter(new).map(async |(number, stamps)| {
            if failures.load(Ordering::Relaxed) >= MAX_UNREAD {
                return (number, stamps, None);
            }
            let outcome = self.read_listed(&VersionKey::new(name.clone(), number), tree).await;
            (number, stamps, Some(outcome))
        });
        let mut reads = reads.buffer_unordered(READS);
        while let Some((number, stamps, outcome)) = reads.next().await {
            let mut probed = None;
            let outcome = match outcome {
                None => continue,
                Some(Ok((generation, found))) => {
                    probed = found;
                    Ok(Arc::new(generation))
                }
                Some(Err(RegistryError::Manifest { source, .. })) => Err(with_causes(&source)),
                Some(Err(RegistryError::NotFound { .. })) => {
                    known.partial = true;
                    continue;
                }
                Some(Err(error)) => {
                    failures.fetch_add(1, Ordering::Relaxed);
                    known.unread.insert(number);
                    failure = failure.and(Err(error));
                    continue;
                }
            };
            let listed = outcome.as_ref().ok().and_then(|generation| tree.signatures.get(&generation.digest.to_string()).cloned());
            // What the next look will show, where only whoever knows the manifest can ask for them.
            let signed = listed.or(probed.filter(|probed: &Stamps| !probed.is_empty()));
            known.versions.insert(number, ReadVersion { stamps, signed, edition, outcome });
        }
        failure
    }

    /// Whether somebody has signed a version since it was read, or may have under a key that did not count then.
    fn is_signed_anew(&self, read: &ReadVersion, now: &ModelTree) -> bool {
        let Ok(generation) = &read.outcome else { return false };
        let now = now.signatures.get(&generation.digest.to_string());
        self.signatures_of.is_some() && (read.signed.as_ref() != now || (read.edition != self.edition() && has_many(now)))
    }

    /// Which keys count, as far as signatures are read.
    pub(crate) fn edition(&self) -> u64 {
        self.signatures_of.as_ref().map_or(0, |keys| keys.edition())
    }

    async fn refresh_rollout(
        &self,
        name: &ModelName,
        tree: &ModelTree,
        known: &mut Known,
        repairs: bool,
    ) -> Result<(), RegistryError> {
        let unreadable = |error| RegistryError::unavailable(format!("journal of {name}"), error);
        let (journal, seq) = (self.entries(name), known.rollout.seq);
        // Names that nobody gave to entries must not make us read numbers that are not there.
        let mut tail = match tree.last_entry {
            last if last == tree.entries => last,
            _ => journal.tail(seq).await.map_err(unreadable)?,
        };
        if tail < seq && repairs {
            // A listing may be short. Where the entry itself is gone too, the registry is from before it.
            tail = journal.tail(seq).await.map_err(unreadable)?;
        }
        if tail < seq && (tail == 0 || !repairs) {
            // What was decided must not be taken back because a listing is short; nor because nothing is left: a restore may be half
            // done, and what removed the journal is no decision.
            let short = format!("it ends at entry {tail}, but entry {seq} was there");
            return Err(RegistryError::unavailable(format!("journal of {name}"), std::io::Error::other(short)));
        }
        let looks_another = tree.last_written != known.tree.last_written || (repairs && known.may_be_another(tree));
        let written_anew = tail == seq && looks_another;
        if tail != seq || known.rollout.frozen.is_some() || (written_anew && known.last_id.is_some()) {
            let before = Folded { rollout: known.rollout.clone(), last: known.last_id, is_another: false };
            let folded = journal.rollout_to(before, tail).await.map_err(unreadable)?;
            if repairs {
                known.restored = None;
            }
            if folded.is_another {
                let what = "its journal is not the one that was read";
                let text = format!("{what}, which had {seq} entries: it was read anew, up to entry {tail}");
                tracing::warn!(model = %name, registry = self.description, "{text}");
                known.restored = Some(text);
            }
            (known.rollout, known.last_id) = (folded.rollout, folded.last);
        } else if repairs {
            known.restored = None;
        }
        Ok(())
    }

    /// Reads the settings, and then what they name.
    async fn refresh_settings(&self, name: &ModelName, tree: &ModelTree, known: &mut Known) -> Result<(), RegistryError> {
        let (mut settings, mut problems) = (BTreeMap::new(), Vec::new());
        for file in SETTINGS_FILES {
            self.read_beside(name, file, tree, known, &mut settings, &mut problems).await?;
        }
        let named = named_in(settings.values().map(|(_, content): &(Stamp, Arc<[u8]>)| &content[..]));
        let in_warmup = |path: &str| path.strip_prefix(WARMUP_FOLDER).and_then(|rest| rest.strip_prefix('/')).map(str::to_owned);
        for path in tree.beside.keys().filter(|path| !SETTINGS_FILES.contains(&path.as_str())) {
            if named.contains(path) || in_warmup(path).is_some_and(|name| named.contains(&name)) {
                self.read_beside(name, path, tree, known, &mut settings, &mut problems).await?;
            }
        }
        (known.settings, known.settings_problems) = (settings, problems);
        Ok(())
    }

    async fn read_beside(
        &self,
        name: &ModelName,
        path: &str,
        tree: &ModelTree,
        known: &Known,
        settings: &mut BTreeMap<String, (Stamp, Arc<[u8]>)>,
        problems: &mut Vec<String>,
    ) -> Result<(), RegistryError> {
        let Some(stamp) = tree.beside.get(path) else { return Ok(()) };
        if let Some(read) = known.settings.get(path).filter(|(read, _)| read == stamp) {
            settings.insert(path.to_owned(), read.clone());
            return Ok(());
        }
        if let Some(problem) = settings_problem(path, stamp.bytes, settings.len()) {
            problems.push(problem);
            return Ok(());
        }
        let place = object_below(&self.model_path(name), path);
        let content = read_small(self.store.as_ref(), &place, MAX_SETTINGS_BYTES).await;
        match content.map_err(|error| RegistryError::unavailable(place.to_string(), error))? {
            Some(Read::Whole(content)) => drop(settings.insert(path.to_owned(), (stamp.clone(), Arc::from(&content[..])))),
            Some(Read::TooLarge(bytes)) => problems.extend(settings_problem(path, bytes, 0)),
            None => {}
        }
        Ok(())
    }
}

/// Whether these are more signatures than are read.
fn has_many(signatures: Option<&Stamps>) -> bool {
    signatures.is_some_and(|signatures| signatures.len() > MAX_SIGNATURES)
}
