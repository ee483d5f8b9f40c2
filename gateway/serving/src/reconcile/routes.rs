//! From what was chosen to the table: the routes of the models that were touched, published in one store.

use std::collections::BTreeMap;
use std::sync::Arc;

use bascule_registry::{Generation, ListedModel, VersionNumber};

use super::Reconciler;
use super::event::ResidencyId;
use super::model::ModelState;
use crate::aspire::Demand;
use crate::meters;
use crate::persist::{Content, Served, Write};
use crate::state::Stage;
use crate::table::{Candidate, RETRY_AFTER, Route, Split, Standing};
use crate::{LoadMode, Servable, rollout_seed};

impl Reconciler {
    /// Publishes what has changed, once; and keeps what is served on disk.
    pub(super) fn publish(&mut self) {
        let mut changes = Vec::new();
        for name in self.touched.clone() {
            let Some(mut model) = self.models.remove(&name) else {
                if self.publisher.table().route(name.as_ref()).is_some() {
                    changes.push((name, None));
                }
                continue;
            };
            let route = self.route(&model);
            if model.route.as_ref().is_none_or(|before| !same(before, &route)) {
                note_swap(model.route.as_deref(), &route);
                let route = Arc::new(route);
                model.route = Some(Arc::clone(&route));
                changes.push((name.clone(), Some(route)));
            }
            self.keep_served(&mut model);
            self.models.insert(name, model);
        }
        if changes.is_empty() {
            self.publisher.sweep();
        } else {
            self.publisher.publish(changes);
        }
    }

    fn route(&self, model: &ModelState) -> Route {
        let servable = |id: Option<ResidencyId>| model.residency(id).and_then(|residency| residency.servable.clone());
        let choice = &model.choice;
        let candidate = choice
            .candidate
            .and_then(|(id, weight_bp)| Some(Candidate { servable: servable(Some(id))?, split: Split::Canary { weight_bp } }));
        let mut route = Route::empty(model.name.clone(), Standing::Serving);
        route.stable = servable(choice.stable);
        route.candidate = candidate;
        route.others = choice.others.iter().filter_map(|id| servable(Some(*id))).collect();
        route.last_use = Arc::clone(&model.last_use);
        if let Some(exists) = &model.exists {
            route.seed = rollout_seed(&exists.rollout.id);
            route.aliases.clone_from(&exists.aliases);
        }
        let roles =
            [("stable", route.stable.as_ref()), ("candidate", route.candidate.as_ref().map(|candidate| &candidate.servable))];
        let roles = roles.map(|(alias, servable)| Some((alias.to_owned(), servable?.version())));
        // A source may have names of its own for these two.
        for (alias, version) in roles.into_iter().flatten() {
            route.aliases.entry(alias).or_insert(version);
        }
        route.pending = pending(model, &route);
        if route.stable.is_none() {
            route.standing = self.standing(model);
        }
        route
    }

    /// Why a model has no stable version.
    pub(super) fn standing(&self, model: &ModelState) -> Standing {
        let not_ready = |reason: &str| Standing::NotReady { reason: reason.to_owned(), retry_after: RETRY_AFTER };
        if self.stopping.is_some() {
            return not_ready("the gateway is stopping");
        }
        match self.demand(model) {
            Demand::Off | Demand::NotLoaded => Standing::Unloaded,
            Demand::Idle => Standing::OnDemand,
            Demand::Wanted => {
                let stages: Vec<Stage> = model.residencies.values().map(super::model::Residency::stage).collect();
                if self.rules.load_mode == LoadMode::OnDemand && is_on_its_way(model) {
                    return Standing::Waking;
                }
                not_ready(if stages.iter().any(|stage| stage.is_loading()) {
                    "it is being loaded"
                } else if stages.contains(&Stage::Failed) {
                    "no version of it could be loaded"
                } else if stages.contains(&Stage::Draining) {
                    "it is being unloaded"
                } else {
                    "no version of it takes traffic"
                })
            }
        }
    }

    /// Keeps what answers on disk. While nothing does but something will, on the next request too, or while the gateway stops, what was
    /// kept stays.
    fn keep_served(&mut self, model: &mut ModelState) {
        if self.stopping.is_some() {
            return;
        }
        let route = model.route.as_deref();
        let serves = route.is_some_and(|route| route.servables().next().is_some());
        let served = match (&model.exists, route) {
            (Some(exists), Some(route)) if serves => Some(Arc::new(Served {
                model: model.name.clone(),
                layout: exists.layout,
                registry: exists.registry.clone(),
                stable: stable_version(Some(route)),
                versions: route.versions().iter().map(|servable| newest(exists, &servable.spec().generation)).collect(),
                settings: model.settings.good_files().iter().map(|(name, bytes)| (name.clone(), Content::of(bytes))).collect(),
                rollout: exists.rollout.clone(),
                aliases: exists.aliases.clone(),
                refused: Vec::new(),
                steering: exists.steering.clone(),
            })),
            _ => match self.demand(model) {
                Demand::Wanted if !model.aspired.versions.is_empty() => return,
                Demand::Idle => return,
                // Whoever refuses it today by mistake has it again tomorrow.
                Demand::Wanted if model.served.as_ref().is_some_and(|served| !served.refused.is_empty()) => return,
                Demand::Wanted | Demand::NotLoaded | Demand::Off => None,
            },
        };
        if model.served != served {
            model.served.clone_from(&served);
            self.persist(Write::Served(model.name.clone(), served));
        }
    }
}

/// Whether something of a model is being loaded, or will be without waiting for a failed load's next try.
fn is_on_its_way(model: &ModelState) -> bool {
    let lives = |version: &VersionNumber| {
        let mut residencies = model.residencies.values();
        residencies.any(|residency| residency.version() == *version && residency.stage() != Stage::Draining)
    };
    model.residencies.values().any(|residency| residency.stage().is_loading())
        || model.aspired.versions.keys().any(|version| !lives(version))
}

/// Versions that should answer and don't, for callers who ask for one of them.
fn pending(model: &ModelState, route: &Route) -> BTreeMap<VersionNumber, String> {
    let missing = model.aspired.versions.keys().filter(|version| route.version(**version).is_none());
    let reason = |version: &VersionNumber| {
        let mut lives = model.residencies.values().filter(|residency| residency.version() == *version);
        let failed = lives.next_back().is_some_and(|residency| residency.stage() == Stage::Failed);
        if failed { "failed and is tried again".to_owned() } else { "being loaded".to_owned() }
    };
    missing.map(|version| (*version, reason(version))).collect()
}

/// Logs and counts that another residency became stable.
fn note_swap(before: Option<&Route>, after: &Route) {
    let (Some(from), Some(to)) = (before.and_then(|before| before.stable.as_ref()), &after.stable) else { return };
    if !Arc::ptr_eq(from, to) {
        let (model, from, to, digest) = (&after.model, from.version(), to.version(), to.digest().short());
        tracing::info!(%model, from, to, digest, "swapped");
        meters::swapped(model);
    }
}

fn stable_version(route: Option<&Route>) -> Option<VersionNumber> {
    route?.stable.as_ref().map(|servable| servable.version())
}

/// Whether two routes answer alike, by the very same servables.
fn same(a: &Route, b: &Route) -> bool {
    let same_one = |a: &Arc<Servable>, b: &Arc<Servable>| Arc::ptr_eq(a, b);
    let stable = match (&a.stable, &b.stable) {
        (Some(a), Some(b)) => same_one(a, b),
        (None, None) => true,
        _ => false,
    };
    let candidate = match (&a.candidate, &b.candidate) {
        (Some(a), Some(b)) => same_one(&a.servable, &b.servable) && a.split == b.split,
        (None, None) => true,
        _ => false,
    };
    let others = a.others.len() == b.others.len() && a.others.iter().zip(&b.others).all(|(a, b)| same_one(a, b));
    let rest = a.aliases == b.aliases && a.pending == b.pending && a.seed == b.seed && a.standing == b.standing;
    stable && candidate && others && rest
}

impl ModelState {
    /// Whether anything of the model is named by the table.
    pub(super) fn role(&self, id: ResidencyId) -> Option<&'static str> {
        if self.choice.stable == Some(id) {
            Some("stable")
        } else if self.choice.candidate.is_some_and(|(candidate, _)| candidate == id) {
            Some("candidate")
        } else {
            self.choice.others.contains(&id).then_some("other")
        }
    }
}

/// A version as the last look has it: it may have been signed again since it was loaded.
fn newest(exists: &ListedModel, loaded: &Arc<Generation>) -> Arc<Generation> {
    let listed = exists.versions.get(&loaded.key.version).filter(|listed| listed.digest == loaded.digest);
    Arc::clone(listed.unwrap_or(loaded))
}
