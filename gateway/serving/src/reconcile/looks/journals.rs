//! Models whose source holds no journal: what was decided comes from the one beside it, and where the source has names of its own for
//! stable and candidate, the journal follows them.

use std::collections::BTreeSet;
use std::sync::Arc;

use bascule_registry::{JournalError, ListedModel, Listing, ModelName, Proposal, Steering};

use super::Seer;
use crate::error::with_causes;
use crate::steering::{Course, Step, follow, id_after, leaves_stable_open, owed, usable};

impl Seer {
    /// Models whose journal others have written since it was read.
    pub(super) async fn note_grown_journals(&mut self) {
        for (name, rollout) in &self.rollouts {
            // One that can't be read now keeps what it said; reading it again tells.
            if self.journal.has_grown(name, rollout.seq).await.unwrap_or(true) {
                self.stale.insert(name.clone());
            }
        }
    }

    /// The listing, with the journals of models whose source holds none.
    pub(super) async fn with_journals(&mut self) -> Option<Listing> {
        let mut listing = self.listing.clone()?;
        let is_there = |name: &ModelName| listing.models.contains_key(name);
        self.rollouts.retain(|name, _| is_there(name));
        self.told.retain(|name, _| is_there(name));
        if let Some(teller) = &self.teller {
            teller.retain(is_there);
        }
        let mut unread = BTreeSet::new();
        for model in listing.models.values_mut().filter(|model| !model.layout.holds_journal()) {
            match self.decided(model).await {
                Ok(decided) => *model = decided,
                Err(error) => {
                    let error = with_causes(&error);
                    if !self.unread.contains(&model.name) {
                        tracing::warn!(model = %model.name, error, "a rollout journal can't be read; its model stays as it is");
                    }
                    unread.insert(model.name.clone());
                    *model = Arc::new(undecided(model, vec![error.clone()]));
                    listing.problems.push(error);
                }
            }
        }
        self.stale.clone_from(&unread);
        self.stale.append(&mut self.unwritten);
        self.unread = unread;
        Some(listing)
    }

    /// A model with what its journal says.
    async fn decided(&mut self, model: &Arc<ListedModel>) -> Result<Arc<ListedModel>, JournalError> {
        let is_new = self.stale.contains(&model.name) || !self.rollouts.contains_key(&model.name);
        if is_new {
            let rollout = self.journal.rollout(&model.name).await?;
            self.rollouts.insert(model.name.clone(), rollout);
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
            self.again |= !ops.is_empty();
            return Ok(Followed { problems, is_settled: !is_new });
        }
        let mut is_settled = true;
        let highest = model.versions.keys().chain(&model.unsettled).max().copied();
        for (seq, Step { op, reason }) in (rollout.seq..).zip(ops) {
            let id = id_after(seq, &model.name, &op);
            tracing::info!(model = %model.name, op = op.name(), version = op.version(), reason, "the registry decides");
            let proposal = Proposal { id, highest, ..Proposal::new(op, steering.by.clone(), reason) };
            if let Err(error) = self.journal.append(&model.name, model.layout, &proposal).await {
                problems.push(format!("what the registry decides can't be followed: {}", with_causes(&error)));
                self.unwritten.insert(model.name.clone());
                is_settled = false;
                break;
            }
        }
        let rollout = self.journal.rollout(&model.name).await?;
        self.rollouts.insert(model.name.clone(), rollout);
        Ok(Followed { problems, is_settled })
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

/// A model of which nobody knows what was decided: what exists of it does not count yet, so it is what it was before.
fn undecided(model: &ListedModel, problems: Vec<String>) -> ListedModel {
    let mut model = model.clone();
    model.unsettled.extend(std::mem::take(&mut model.versions).into_keys());
    model.problems.extend(problems);
    model
}
