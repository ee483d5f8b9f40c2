//! What the operator wants: load, unload, and the wishes of requests for models that are loaded on demand.

use std::collections::BTreeMap;

use bascule_registry::ModelName;

use super::Reconciler;
use super::event::{Now, Unloading};
use super::look::Follow;
use super::model::ModelState;
use crate::persist::{Operator, Write};
use crate::state::{Stage, VersionState};
use crate::{CommandError, LoadMode};

/// Loads that may wait for a look. Their names come from outside.
const MAX_ASKED: usize = 1024;
/// Unloads that may come before the first look, when nobody can tell which names exist.
const MAX_EARLY: usize = 1024;

impl Reconciler {
    /// Takes the wish in; what it is about is decided by the look with this ticket or a later one. The answer is the drain of the
    /// mailbox that knows of it.
    pub(super) fn load_asked(&mut self, name: ModelName, ticket: u64) -> Result<u64, CommandError> {
        if self.stopping.is_some() {
            return Err(CommandError::Stopping);
        }
        if self.asked.len() >= MAX_ASKED {
            return Err(CommandError::Busy);
        }
        if let Some(mut model) = self.models.remove(&name) {
            self.switch_on(&mut model);
            self.models.insert(name.clone(), model);
        }
        self.asked.insert(name, ticket);
        // The look may have been quicker than the wish.
        self.answer_loads();
        Ok(self.drain + 1)
    }

    fn switch_on(&mut self, model: &mut ModelState) {
        let before = self.operators.get(&model.name).cloned();
        if self.rules.load_mode == LoadMode::Explicit {
            self.operators.insert(model.name.clone(), Operator::On);
        } else {
            self.operators.remove(&model.name);
        }
        let after = self.operators.get(&model.name).cloned();
        if before != after {
            self.persist(Write::Operator(model.name.clone(), after));
        }
        model.wanted = true;
        // Whoever asks now does not wait for the next try by itself.
        for residency in model.residencies.values_mut().filter(|residency| residency.stage() == Stage::Failed) {
            residency.go(VersionState::Pending);
        }
        self.dirty.insert(model.name.clone());
    }

    /// Loads that were asked for before a look began that has ended: their models follow what it found.
    pub(super) fn answer_loads(&mut self) {
        let looked = self.source.looked();
        let answered: Vec<ModelName> =
            self.asked.iter().filter(|(_, ticket)| **ticket <= looked).map(|(name, _)| name.clone()).collect();
        for name in answered {
            self.asked.remove(&name);
            // Whoever asked for a model that does not exist learns it from the snapshot.
            let Some(mut model) = self.models.remove(&name) else { continue };
            self.switch_on(&mut model);
            self.follow(&mut model, Follow::Now);
            self.models.insert(name, model);
        }
    }

    /// Switches a model off until it is loaded by hand.
    pub(super) fn unload_asked(&mut self, name: &ModelName, now: Now) -> Result<Unloading, CommandError> {
        if self.stopping.is_some() {
            return Err(CommandError::Stopping);
        }
        self.asked.remove(name);
        let (known, leaving) = match self.models.get_mut(name) {
            Some(model) => {
                model.wanted = false;
                (model.known(), model.residencies.keys().copied().collect())
            }
            // Nothing of that name exists: it is unloaded already, and names from outside are not kept.
            None if self.source.has_listed() => return Ok(Unloading { leaving: Vec::new(), write: 0 }),
            None if self.operators.len() >= MAX_EARLY => return Err(CommandError::Busy),
            // The first look may find it.
            None => {
                self.early.insert(name.clone());
                (BTreeMap::new(), Vec::new())
            }
        };
        let off = Operator::Off { since: now.utc, known };
        self.operators.insert(name.clone(), off.clone());
        self.persist(Write::Operator(name.clone(), Some(off)));
        self.dirty.insert(name.clone());
        Ok(Unloading { leaving, write: self.write })
    }

    /// A model that was unloaded before the first look is unloaded as the first look finds it that can tell: nothing of it is new.
    pub(super) fn know_early_unload(&mut self, model: &ModelState) {
        let settled = model.listed.as_ref().is_some_and(|listed| listed.unsettled.is_empty());
        if !settled || !self.early.remove(&model.name) {
            return;
        }
        if let Some(Operator::Off { known, .. }) = self.operators.get_mut(&model.name) {
            *known = model.known();
        }
        let operator = self.operators.get(&model.name).cloned();
        self.persist(Write::Operator(model.name.clone(), operator));
    }

    /// Somebody asked for a model that is loaded on demand.
    pub(super) fn wanted(&mut self, name: &ModelName) {
        if let Some(model) = self.models.get_mut(name) {
            model.wanted = true;
            self.dirty.insert(name.clone());
        }
    }
}
