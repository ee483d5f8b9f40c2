//! What the operator wants: load, unload, and the wishes of requests for models that are loaded on demand.

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
        let Some(model) = self.models.get_mut(name) else {
            // Nothing of that name exists: it is unloaded already, and names from outside are not kept.
            return Ok(Unloading { leaving: Vec::new(), write: 0 });
        };
        model.wanted = false;
        let listed = model.listed.as_ref().or(model.exists.as_ref());
        let versions = listed.iter().flat_map(|listed| &listed.versions);
        let known = versions.map(|(version, generation)| (*version, generation.digest)).collect();
        let leaving = model.residencies.keys().copied().collect();
        let off = Operator::Off { since: now.utc, known };
        self.operators.insert(name.clone(), off.clone());
        self.persist(Write::Operator(name.clone(), Some(off)));
        self.dirty.insert(name.clone());
        Ok(Unloading { leaving, write: self.write })
    }

    /// Somebody asked for a model that is loaded on demand.
    pub(super) fn wanted(&mut self, name: &ModelName) {
        if let Some(model) = self.models.get_mut(name) {
            model.wanted = true;
            self.dirty.insert(name.clone());
        }
    }
}
