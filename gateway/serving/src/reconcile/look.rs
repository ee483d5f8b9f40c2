//! What looks at the source bring: what exists is folded in, and models that follow it are marked for a new plan.

use std::collections::BTreeSet;
use std::sync::Arc;

use bascule_registry::{Listing, ModelName, SourceHealth};
use chrono::{DateTime, Utc};

use super::Reconciler;
use super::event::{Look, Now};
use super::model::ModelState;
use crate::LoadMode;
use crate::aspire::{Removal, adopt_decisions, fold};
use crate::engine::Absent;
use crate::persist::{Operator, Write};
use crate::status::{RegistryPart, RegistryStatus};

/// How looking at the source goes.
#[derive(Debug)]
pub(super) struct SourceView {
    describe: String,
    /// Something was served before the restart: the first look may fail.
    restored: bool,
    looked: u64,
    listed: bool,
    failed: bool,
    /// The last listing that could be believed named a model.
    nonempty: bool,
    last_good: Option<DateTime<Utc>>,
    last_error: Option<String>,
    problems: Vec<String>,
    /// The same of each registry, where there are several.
    registries: Vec<SourceHealth>,
    journal: Option<SourceHealth>,
    /// A part of it has neither been read yet nor failed.
    unread: bool,
}

impl SourceView {
    pub(super) fn new(describe: String, restored: bool) -> SourceView {
        SourceView {
            describe,
            restored,
            looked: 0,
            listed: false,
            failed: false,
            nonempty: restored,
            last_good: None,
            last_error: None,
            problems: Vec::new(),
            registries: Vec::new(),
            journal: None,
            unread: false,
        }
    }

    /// `missing` are models that should be there; before a look that is not known.
    pub(super) fn status<'a>(&self, missing: impl Iterator<Item = &'a ModelName>) -> RegistryStatus {
        let missing = missing.filter(|_| self.listed).map(|name| format!("model '{name}' is to be loaded and does not exist"));
        RegistryStatus {
            describe: self.describe.clone(),
            last_good_look: self.last_good,
            last_error: self.last_error.clone(),
            problems: self.problems.iter().cloned().chain(missing).collect(),
            registries: self.registries.iter().filter(|_| self.registries.len() > 1).map(RegistryPart::of).collect(),
            journal: self.journal.as_ref().map(RegistryPart::of),
        }
    }

    /// Whether it is known what should be loaded: from a look, or from before the restart where the look failed.
    pub(super) fn is_decided(&self) -> bool {
        self.listed || (self.failed && self.restored)
    }

    /// Whether a look has succeeded.
    pub(super) fn has_listed(&self) -> bool {
        self.listed
    }

    pub(super) fn waiting_for(&self) -> String {
        match &self.last_error {
            Some(error) => format!("{} can't be read: {error}", self.describe),
            None => format!("{} is being read", self.describe),
        }
    }

    pub(super) fn looked(&self) -> u64 {
        self.looked
    }

    pub(super) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

/// How it went at each registry, and at what holds the rollout journals.
pub(super) struct Healths {
    pub(super) registries: Vec<SourceHealth>,
    pub(super) journal: Option<SourceHealth>,
}

/// When a model becomes what its source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// As its mode has it, and the listing may take so much away.
    AsRuled(Removal),
    /// The operator said so.
    Now,
}

impl Reconciler {
    /// Takes in what a look brought.
    pub(super) fn looked(&mut self, ticket: u64, look: Look, healths: Healths, now: Now) {
        if matches!(look, Look::Slow) {
            self.source.failed = true;
            return;
        }
        self.source.looked = self.source.looked.max(ticket);
        (self.source.registries, self.source.journal) = (healths.registries, healths.journal);
        match look {
            Look::Listed(listing) => self.listed(&listing, now),
            Look::Unchanged => self.source.last_good = Some(now.utc),
            Look::Decided(listing) => return self.fold_in_all(&listing, Removal::Nothing, now),
            Look::Failed(error) => {
                if self.source.last_error.as_ref() != Some(&error) {
                    tracing::warn!(error, "the source can't be read; what serves is not touched");
                }
                self.source.failed = true;
                self.source.last_error = Some(error);
                return self.answer_loads();
            }
            Look::Slow => {}
        }
        self.source.listed |= !self.source.unread;
        self.source.last_error = None;
        self.answer_loads();
    }

    fn listed(&mut self, listing: &Listing, now: Now) {
        self.source.last_good = Some(now.utc);
        self.source.problems.clone_from(&listing.problems);
        self.source.unread = listing.unread;
        // What served before a restart does not wait for a registry that takes long.
        self.source.failed |= listing.unread;
        let empty = listing.models.is_empty();
        let removal = match self.rules.live.absent {
            // An empty answer after a full one is more likely a mistake than a wish.
            _ if !listing.complete || (empty && self.source.nonempty) => Removal::Nothing,
            Absent::Keep => Removal::NotResident,
            Absent::Unload => Removal::All,
        };
        self.source.nonempty |= !empty;
        self.fold_in_all(listing, removal, now);
    }

    fn fold_in_all(&mut self, listing: &Listing, removal: Removal, now: Now) {
        let names: BTreeSet<ModelName> = self.models.keys().chain(listing.models.keys()).cloned().collect();
        for name in names {
            let mut model = self.models.remove(&name).unwrap_or_else(|| ModelState::new(name.clone()));
            self.fold_in(&mut model, listing, removal);
            model.note_unsettled(now.at);
            self.models.insert(name, model);
        }
        let newest = |model: &ModelState| model.listed.clone().or_else(|| model.exists.clone());
        self.exists = Arc::new(self.models.values().filter_map(|model| Some((model.name.clone(), newest(model)?))).collect());
    }

    fn fold_in(&mut self, model: &mut ModelState, listing: &Listing, removal: Removal) {
        let before = model.listed.as_ref().or(model.exists.as_ref());
        model.listed = fold(before, listing.models.get(&model.name), removal, |generation| model.is_resident(generation));
        self.know_early_unload(model);
        self.resurrect(model);
        self.follow(model, Follow::AsRuled(removal));
    }

    /// Lets the model be what its source says. One that follows only when it is told to keeps its versions, unless it is told now.
    pub(super) fn follow(&mut self, model: &mut ModelState, how: Follow) {
        let next = match (&model.exists, &model.listed, how) {
            (Some(own), Some(listed), Follow::AsRuled(_)) if self.stands_still(model) => Some(adopt_decisions(own, listed)),
            (Some(own), None, Follow::AsRuled(removal)) if self.stands_still(model) => {
                fold(Some(own), None, removal, |generation| model.is_resident(generation))
            }
            (own, None, Follow::Now) => own.clone(),
            (_, listed, _) => listed.clone(),
        };
        let same = match (&model.exists, &next) {
            (Some(before), Some(after)) => Arc::ptr_eq(before, after) || before == after,
            (None, None) => true,
            _ => false,
        };
        if !same {
            model.exists = next;
            self.dirty.insert(model.name.clone());
        }
    }

    /// Whether a model does not follow what is new: it was loaded by hand, and is to be again for that.
    fn stands_still(&self, model: &ModelState) -> bool {
        let by_hand = matches!(self.operators.get(&model.name), Some(Operator::On));
        self.rules.load_mode == LoadMode::Explicit && !self.rules.live.explicit_follow && by_hand
    }

    /// A new version brings back what the operator unloaded, where that is wanted.
    fn resurrect(&mut self, model: &ModelState) {
        let Some(Operator::Off { known, .. }) = self.operators.get(&model.name) else { return };
        let Some(listed) = &model.listed else { return };
        let is_new =
            |(version, generation): (&u64, &Arc<bascule_registry::Generation>)| known.get(version) != Some(&generation.digest);
        if self.rules.live.resurrect && !self.early.contains(&model.name) && listed.versions.iter().any(is_new) {
            tracing::info!(model = %model.name, "a new version brings back what was unloaded");
            self.operators.remove(&model.name);
            self.persist(Write::Operator(model.name.clone(), None));
            self.dirty.insert(model.name.clone());
        }
    }
}
