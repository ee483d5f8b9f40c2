//! Models whose source holds no journal: what was decided comes from the one beside it, and where the source has names of its own for
//! stable and candidate, the journal follows them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bascule_registry::{JournalError, ListedModel, Listing, ModelName, Proposal, Rollout, Steering};
use futures::StreamExt as _;

use super::Seer;
use crate::error::with_causes;
use crate::journal::JournalStore;
use crate::steering::{Course, Step, follow, id_after, leaves_stable_open, owed, usable};

/// Journals that are read at a time.
const READS: usize = 16;
/// After so many that could not be read, the others wait for the next look: each may take as long.
const MAX_FAILURES: usize = 8;

impl Seer {
    /// Models whose journal others have written since it was read. While it is away nothing new counts, and what was decided stays.
    pub(super) async fn note_grown_journals(&mut self) {
        let was_away = self.journal_away;
        match self.journal.grown(&self.rollouts).await {
            Ok(mut grown) => {
                self.stale.append(&mut grown);
                if std::mem::take(&mut self.journal_away) {
                    tracing::info!("the rollout journal can be read again");
                }
            }
            Err(error) => {
                if !was_away {
                    let error = with_causes(&error);
                    tracing::warn!(error, "the rollout journal can't be read; what was decided stays");
                }
                self.journal_away = true;
            }
        }
        self.unreported |= was_away != self.journal_away && self.listing.is_some();
    }

    /// Whether there is anything to tell of models whose listing has not changed.
    pub(super) fn has_news(&self) -> bool {
        self.unreported || (!self.journal_away && !self.stale.is_empty())
    }

    /// The listing, with the journals of models whose source holds none.
    pub(super) async fn with_journals(&mut self) -> Option<Listing> {
        let mut listing = self.listing.clone()?;
        let is_there = |name: &ModelName| listing.models.contains_key(name);
        self.rollouts.retain(|name, _| is_there(name));
        self.told.retain(|name, _| is_there(name));
        self.failed_in.retain(|name, _| is_there(name));
        if let Some(teller) = &self.teller {
            teller.retain(is_there);
        }
        if self.journal_away {
            return Some(self.without_journals(listing));
        }
        let beside = listing.models.values().filter(|model| !model.layout.holds_journal()).map(|model| model.name.clone());
        let (fresh, failed) = self.read_journals(beside.collect()).await;
        let mut unread = BTreeSet::new();
        let mut nothing_known = Vec::new();
        let mut order: Vec<_> = listing.models.keys().cloned().collect();
        // Those that could not be written come last, the longest ago first, so that they don't keep the others from it.
        order.sort_by_key(|name| self.failed_in.get(name).copied());
        (self.round, self.refused) = (self.round + 1, 0);
        for name in order {
            let Some(model) = listing.models.get_mut(&name).filter(|model| !model.layout.holds_journal()) else { continue };
            let decided = match failed.get(&model.name) {
                Some(error) => Err(error.clone()),
                None => self.decided(model, fresh.contains(&model.name)).await,
            };
            match decided {
                Ok(decided) => *model = decided,
                Err(error) => {
                    let error = with_causes(&error);
                    if !self.unread.contains(&model.name) {
                        tracing::warn!(model = %model.name, error, "a rollout journal can't be read; its model stays as it is");
                    }
                    unread.insert(model.name.clone());
                    *model = Arc::new(undecided(model, vec![error.clone()]));
                    if model.unsettled.is_empty() {
                        nothing_known.push(name);
                    }
                    if !listing.problems.contains(&error) {
                        listing.problems.push(error);
                    }
                }
            }
        }
        leave_out(&mut listing, &nothing_known);
        self.stale.clone_from(&unread);
        self.stale.append(&mut self.unwritten);
        self.unread = unread;
        Some(listing)
    }

    /// A listing while the place of the journals is away; that this is so is in [`JournalStore::health`].
    fn without_journals(&self, mut listing: Listing) -> Listing {
        let beside = || listing.models.values().filter(|model| !model.layout.holds_journal());
        let never_read = self.rollouts.is_empty() && beside().next().is_some();
        // What a gateway that serves nothing yet should load is not known. One that served before it was started is ready without models
        // that it has never served.
        listing.unread |= never_read && self.restored.models.is_empty();
        let unseen = never_read && !listing.unread;
        let mut left_out = Vec::new();
        for model in listing.models.values_mut().filter(|model| !model.layout.holds_journal()) {
            let waits = "it stays as it is until its rollout journal can be read".to_owned();
            *model = Arc::new(undecided(model, vec![waits]));
            if unseen || model.unsettled.is_empty() {
                left_out.push(model.name.clone());
            }
        }
        leave_out(&mut listing, &left_out);
        listing
    }

    /// Models that are known, with what was decided on them since, while the source can't be read: decisions do not wait for it. Names of
    /// the source's own are not followed meanwhile: they may be older than the journal.
    pub(super) async fn decided_meanwhile(&mut self) -> Option<Listing> {
        self.note_grown_journals().await;
        if self.journal_away {
            return None;
        }
        let mut listing = self.listing.as_ref().unwrap_or(&self.restored).clone();
        let beside = listing.models.values().filter(|model| !model.layout.holds_journal()).map(|model| model.name.clone());
        let (fresh, failed) = self.read_journals(beside.collect()).await;
        self.stale.retain(|name| failed.contains_key(name));
        listing.models.retain(|name, model| {
            let Some(rollout) = self.rollouts.get(name).filter(|_| fresh.contains(name) && !failed.contains_key(name)) else {
                return false;
            };
            if model.rollout == *rollout || leaves_stable_open(model, rollout) {
                return false;
            }
            let mut decided = ListedModel::clone(model);
            if model.layout.brings_journal() {
                if !rollout.is_decided_here() {
                    return false;
                }
                continue_with(&mut decided, rollout.clone());
            } else {
                decided.aliases.extend(rollout.aliases.clone());
                decided.rollout = rollout.clone();
            }
            *model = Arc::new(decided);
            true
        });
        listing.complete = false;
        (!listing.models.is_empty()).then_some(listing)
    }

    /// Reads the journals that are not known as they are now; returns which those are, and which of them could not be read.
    async fn read_journals(&mut self, mut names: BTreeSet<ModelName>) -> (BTreeSet<ModelName>, BTreeMap<ModelName, JournalError>) {
        names.retain(|name| self.stale.contains(name) || !self.rollouts.contains_key(name));
        let failures = Arc::new(AtomicUsize::new(0));
        let reads = names.iter().map(|name| read(Arc::clone(&self.journal), name.clone(), Arc::clone(&failures)));
        let reads: Vec<_> = reads.collect();
        let read: Vec<_> = futures::stream::iter(reads).buffer_unordered(READS).collect().await;
        let mut failed = BTreeMap::new();
        for (name, outcome) in read {
            match outcome {
                Ok(rollout) => drop(self.rollouts.insert(name, rollout)),
                Err(error) => drop(failed.insert(name, error)),
            }
        }
        (names, failed)
    }

    /// A model whose source brings a journal that is only read: that counts until something is decided here. From then on the one here does,
    /// into which goes what is new there.
    async fn continued(&mut self, model: &Arc<ListedModel>) -> Arc<ListedModel> {
        let known = |seer: &Seer| seer.rollouts.get(&model.name).filter(|rollout| rollout.is_decided_here()).cloned();
        let Some(before) = known(self) else { return Arc::clone(model) };
        let mut decided = ListedModel::clone(model);
        if let Err(error) = self.go_on(model, &before).await {
            decided.problems.push(format!("what its registry decides can't be followed: {}", with_causes(&error)));
            self.note_refused(&model.name, &error);
            // What this build does not know it will not know at the next look either, and what was replaced has to be listed anew.
            if !matches!(error, JournalError::Frozen(_) | JournalError::Replaced { .. }) {
                self.unwritten.insert(model.name.clone());
            }
        }
        continue_with(&mut decided, known(self).unwrap_or(before));
        Arc::new(decided)
    }

    /// Adds what is new in the journal that its source brings to the one here, where it still is the one that this goes on from.
    async fn go_on(&mut self, model: &ListedModel, before: &Rollout) -> Result<(), JournalError> {
        if model.rollout.seq <= before.followed && before.agree_with(&model.rollout).is_ok() {
            self.failed_in.remove(&model.name);
            return Ok(());
        }
        // The listing may be older than what was taken over, or lack what could not be read: the journal itself says whether it is another.
        self.check_patience(&model.name)?;
        let rollout = self.journal.take_over(&model.name).await?;
        self.failed_in.remove(&model.name);
        self.rollouts.insert(model.name.clone(), rollout);
        Ok(())
    }

    /// A model with what its journal says; `is_new` where that was read after the listing.
    async fn decided(&mut self, model: &Arc<ListedModel>, is_new: bool) -> Result<Arc<ListedModel>, JournalError> {
        if model.layout.brings_journal() {
            return Ok(self.continued(model).await);
        }
        let mut problems = Vec::new();
        if let Some(steering) = &model.steering {
            let followed = self.follow_names(model, steering, is_new).await?;
            problems = followed.problems;
            problems.extend(self.tell_back(model, steering, followed.is_settled, is_new).await);
        }
        let Some(rollout) = self.rollouts.get(&model.name) else { return Ok(Arc::clone(model)) };
        if model.rollout == *rollout && problems.is_empty() && model.steering.is_none() {
            return Ok(Arc::clone(model));
        }
        let mut decided = ListedModel::clone(model);
        decided.aliases.extend(rollout.aliases.clone());
        decided.rollout = rollout.clone();
        // Nobody guesses which version should be stable.
        if leaves_stable_open(model, rollout) {
            return Ok(Arc::new(undecided(&decided, problems)));
        }
        decided.problems.extend(problems);
        Ok(Arc::new(decided))
    }

    /// Writes what follows from the source's own names, and returns what can't be followed yet.
    ///
    /// The journal has to be older than the listing: from one that has grown since, another replica's newer look may speak. Where it is
    /// not, one more look is taken at once.
    async fn follow_names(&mut self, model: &ListedModel, steering: &Steering, is_new: bool) -> Result<Followed, JournalError> {
        let Some(rollout) = self.rollouts.get(&model.name) else { return Ok(Followed::default()) };
        let Course { ops, waiting: mut problems } = follow(steering, &usable(model), rollout);
        if ops.is_empty() || is_new {
            if ops.is_empty() {
                self.failed_in.remove(&model.name);
            }
            self.again |= !ops.is_empty();
            return Ok(Followed { problems, is_settled: !is_new });
        }
        let mut is_settled = true;
        let highest = model.versions.keys().chain(&model.unsettled).max().copied();
        for (seq, Step { op, reason }) in (rollout.seq..).zip(ops) {
            let id = id_after(seq, &model.name, &op);
            tracing::info!(model = %model.name, op = op.name(), version = op.version(), reason, "the registry decides");
            let proposal = Proposal { id, highest, ..Proposal::new(op, steering.by.clone(), reason) };
            let written = match self.check_patience(&model.name) {
                Ok(()) => self.journal.append(&model.name, model.layout, &proposal).await,
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                self.note_refused(&model.name, &error);
                problems.push(format!("what the registry decides can't be followed: {}", with_causes(&error)));
                self.unwritten.insert(model.name.clone());
                is_settled = false;
                break;
            }
        }
        if is_settled {
            self.failed_in.remove(&model.name);
        }
        let rollout = self.journal.rollout(&model.name).await?;
        self.rollouts.insert(model.name.clone(), rollout);
        Ok(Followed { problems, is_settled })
    }

    /// Refuses to write where that has failed too often in this look: each try may take long, and the looks of all models wait for it.
    fn check_patience(&self, model: &ModelName) -> Result<(), JournalError> {
        if self.refused >= MAX_FAILURES { Err(not_asked(model)) } else { Ok(()) }
    }

    /// What the entry itself is refused for says nothing of the place; nor does a write that was not tried.
    fn note_refused(&mut self, model: &ModelName, error: &JournalError) {
        if self.refused < MAX_FAILURES && matches!(error, JournalError::Unavailable { .. } | JournalError::Contended(_)) {
            self.refused += 1;
            self.failed_in.insert(model.clone(), self.round);
        }
    }

    /// Has the source told what was decided here, where that is wanted; returns why it could not be.
    ///
    /// Not before the source's own names are followed: what was decided before they moved is not for them. Where only the journal is too
    /// new for that, one more look is taken at once.
    async fn tell_back(&mut self, model: &ListedModel, steering: &Steering, is_settled: bool, is_new: bool) -> Option<String> {
        let teller = self.teller.as_ref()?;
        let seq = self.rollouts.get(&model.name)?.seq;
        if self.told.get(&model.name) != Some(&seq) {
            match self.journal.entries(&model.name).await.map(|entries| owed(steering, &entries)) {
                Ok(owed) if is_settled || owed.is_empty() => {
                    teller.set(&model.name, owed);
                    self.told.insert(model.name.clone(), seq);
                }
                Ok(_) => self.again |= is_new,
                Err(error) => return Some(with_causes(&error)),
            }
        }
        teller.failure(&model.name)
    }
}

/// How following a source's names went.
#[derive(Default)]
struct Followed {
    /// What can't be followed yet.
    problems: Vec<String>,
    /// The journal says what the names do, as far as they can be followed, and is older than what was seen of them.
    is_settled: bool,
}

fn not_asked(model: &ModelName) -> JournalError {
    let why = Arc::new(std::io::Error::other("it was not asked for: the place fails too often"));
    JournalError::Unavailable { place: format!("the rollout journal of {model}"), source: why }
}

type ReadJournal = (ModelName, Result<Rollout, JournalError>);

async fn read(journal: Arc<dyn JournalStore>, name: ModelName, failures: Arc<AtomicUsize>) -> ReadJournal {
    if failures.load(Ordering::Relaxed) >= MAX_FAILURES {
        let error = not_asked(&name);
        return (name, Err(error));
    }
    let rollout = journal.rollout(&name).await;
    if rollout.is_err() {
        failures.fetch_add(1, Ordering::Relaxed);
    }
    (name, rollout)
}

/// Has decisions that go on from those of its source count for a model.
fn continue_with(model: &mut ListedModel, mut rollout: Rollout) {
    model.aliases.clone_from(&rollout.aliases);
    let held = |(version, generation): (&u64, &Arc<bascule_registry::Generation>)| {
        rollout.holds(*version, generation.manifest.hold).then_some(*version)
    };
    let held: Vec<_> = model.versions.iter().filter_map(held).collect();
    rollout.held.extend(held);
    model.rollout = rollout;
}

/// Takes out models that have no version and no decisions that anybody knows of: what was before stays, its decisions too.
fn leave_out(listing: &mut Listing, models: &[ModelName]) {
    listing.complete &= models.is_empty();
    listing.models.retain(|name, _| !models.contains(name));
}

/// A model of which nobody knows what was decided: what exists of it does not count yet, so it is what it was before.
fn undecided(model: &ListedModel, problems: Vec<String>) -> ListedModel {
    let mut model = model.clone();
    model.unsettle();
    model.problems.extend(problems);
    model
}
