//! What should be loaded of a model, and which version should answer: a pure function of what exists and what was decided.
//!
//! Resident are the versions that the policy selects, stable, candidate, pins, and the previous stable while it is kept. Rejected and
//! tombstoned versions are selected by no policy.
//!
//! Stable is the pinned version, else:
//! - While new versions may become stable by themselves (strategy `immediate`, rollouts not disabled), the highest ready version
//!   that the policy allows and that is neither held nor the candidate. A decision in the journal (promote, rollback, a weight of
//!   100 %) overrides every version that was there when it was made: only those are followed that are higher than all of them.
//! - Otherwise the version that the journal decided on; before any decision the one that serves, and before that the lowest, which
//!   was the first. So a new version takes no traffic on any replica, the one that starts today included.
//!
//! Where the source itself names the stable version, the strategy counts as `manual`, and versions are not resident for being the latest.
//!
//! Until its successor is ready the version that serves stays stable and resident, unless it is tombstoned or memory counts more than
//! availability. A frozen journal changes neither stable nor candidate.

mod existing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bascule_registry::{Generation, ListedModel, VersionNumber};
use chrono::{DateTime, Utc};

pub(crate) use self::existing::{Removal, adopt_decisions, counts_not_yet, fold};
use crate::steering::names_stable;
use crate::{RolloutStrategy, TransitionPolicy, VersionPolicy};

/// Whether a model is to be loaded at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// It is.
    Wanted,
    /// Nobody has asked for it yet, or its memory was needed.
    Idle,
    /// Nobody has loaded it, in explicit mode.
    NotLoaded,
    /// The operator has unloaded it.
    Off,
}

/// All that decides what is aspired of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    /// What exists, and the journal's fold.
    pub(crate) model: &'a ListedModel,
    pub(crate) policy: &'a VersionPolicy,
    pub(crate) strategy: RolloutStrategy,
    pub(crate) transition: TransitionPolicy,
    pub(crate) demand: Demand,
    /// Versions that are ready, whatever their content.
    pub(crate) ready: &'a BTreeSet<VersionNumber>,
    /// The version that is stable, or was before a restart.
    pub(crate) serving: Option<VersionNumber>,
    /// How long a previous stable version is kept.
    pub(crate) keep_previous: Duration,
    pub(crate) now: DateTime<Utc>,
}

/// What should be.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Aspired {
    /// What should be resident.
    pub(crate) versions: BTreeMap<VersionNumber, Arc<Generation>>,
    /// The ready version that should be stable now.
    pub(crate) stable: Option<VersionNumber>,
    /// The version that should be stable once it is ready; the same as `stable` where it is.
    pub(crate) next: Option<VersionNumber>,
    /// The candidate and its weight in basis points, ready or not.
    pub(crate) candidate: Option<(VersionNumber, u32)>,
    /// The version that served until now, where its successor is not ready: the first to be loaded after a restart.
    pub(crate) fallback: Option<VersionNumber>,
    /// When time alone changes this.
    pub(crate) until: Option<DateTime<Utc>>,
}

/// What should be of a model.
pub(crate) fn aspire(circumstances: &Circumstances<'_>) -> Aspired {
    if circumstances.demand != Demand::Wanted {
        return Aspired::default();
    }
    let usable: BTreeMap<VersionNumber, &Arc<Generation>> =
        circumstances.model.versions.iter().filter(|(_, generation)| !generation.tombstoned).map(|(n, g)| (*n, g)).collect();
    Wish { circumstances, usable }.aspired()
}

/// The circumstances and the versions that may be loaded.
struct Wish<'a> {
    circumstances: &'a Circumstances<'a>,
    usable: BTreeMap<VersionNumber, &'a Arc<Generation>>,
}

impl Wish<'_> {
    fn aspired(&self) -> Aspired {
        let rollout = &self.circumstances.model.rollout;
        let available = self.circumstances.transition == TransitionPolicy::AvailabilityPreserving;
        let usable = |version: VersionNumber| self.usable.contains_key(&version);
        let is_ready = |version: &VersionNumber| self.circumstances.ready.contains(version);
        let serving = self.circumstances.serving.filter(|version| usable(*version));
        let followers = self.followers();
        let next = self.next(&followers, serving);
        let follower = followers.iter().rev().copied().find(|version| is_ready(version));
        let served = serving.filter(|version| available && is_ready(version));
        let stable = match next {
            Some(next) if is_ready(&next) => Some(next),
            // A lower one that the policy allows answers meanwhile, but for a pin or a freeze: those name one version.
            _ => follower.or(served).or(self.decided().filter(|version| self.follows() && is_ready(version))),
        };
        let fallback = serving.filter(|serving| available && next != Some(*serving) && !next.is_some_and(|next| is_ready(&next)));
        let tested = rollout.candidate.filter(|(version, _)| usable(*version) && next != Some(*version));
        let pinned = rollout.pinned.filter(|version| usable(*version));
        let candidate = tested.filter(|_| pinned.is_none());
        let (previous, until) = self.previous();
        let named = [next, stable, fallback, tested.map(|(version, _)| version), pinned, self.decided(), previous];
        let mut resident = self.selected();
        resident.extend(named.into_iter().flatten());
        let versions = resident.iter().filter_map(|version| Some((*version, Arc::clone(self.usable.get(version)?)))).collect();
        Aspired { versions, stable, next, candidate, fallback, until }
    }

    /// What a policy may select from.
    fn selectable(&self) -> BTreeSet<VersionNumber> {
        let rejected = &self.circumstances.model.rollout.rejected;
        self.usable.keys().copied().filter(|version| !rejected.contains(version)).collect()
    }

    /// What the policy selects. Where the source says which version is stable, the latest ones are not loaded for being that.
    fn selected(&self) -> BTreeSet<VersionNumber> {
        match self.circumstances.policy {
            VersionPolicy::Latest(_) if names_stable(self.circumstances.model) => BTreeSet::new(),
            policy => select(policy, &self.selectable()),
        }
    }

    /// What may become stable without a decision.
    fn eligible(&self) -> BTreeSet<VersionNumber> {
        let rollout = &self.circumstances.model.rollout;
        let candidate = rollout.candidate.map(|(version, _)| version);
        let held = |version: &VersionNumber| {
            let by_manifest = self.usable.get(version).is_some_and(|generation| generation.manifest.hold);
            rollout.holds(*version, by_manifest)
        };
        self.selectable().into_iter().filter(|version| Some(*version) != candidate && !held(version)).collect()
    }

    /// Whether stable follows what is published, rather than what is decided.
    fn follows(&self) -> bool {
        let rollout = &self.circumstances.model.rollout;
        self.circumstances.strategy == RolloutStrategy::Immediate
            && !names_stable(self.circumstances.model)
            && !rollout.disabled
            && rollout.frozen.is_none()
            && rollout.pinned.is_none_or(|pinned| !self.usable.contains_key(&pinned))
    }

    /// The version that the journal made stable, where it still exists.
    fn decided(&self) -> Option<VersionNumber> {
        self.circumstances.model.rollout.stable.filter(|version| self.usable.contains_key(version))
    }

    /// The versions that stable may follow, by policy.
    fn followers(&self) -> BTreeSet<VersionNumber> {
        if !self.follows() {
            return BTreeSet::new();
        }
        let mut eligible = self.eligible();
        if self.decided().is_some() {
            let rollout = &self.circumstances.model.rollout;
            eligible.retain(|version| {
                self.usable.get(version).is_some_and(|generation| rollout.came_after(*version, generation.manifest.created))
            });
        }
        select(self.circumstances.policy, &eligible)
    }

    /// The version that should be stable, ready or not.
    fn next(&self, followers: &BTreeSet<VersionNumber>, serving: Option<VersionNumber>) -> Option<VersionNumber> {
        let rollout = &self.circumstances.model.rollout;
        if let Some(pinned) = rollout.pinned.filter(|pinned| self.usable.contains_key(pinned)) {
            return Some(pinned);
        }
        if let Some(highest) = followers.last() {
            return Some(*highest);
        }
        if rollout.frozen.is_some()
            && let Some(serving) = serving
        {
            return Some(serving);
        }
        if let Some(decided) = self.decided() {
            return Some(decided);
        }
        if self.follows() {
            return None;
        }
        match rollout.stable {
            // What was decided on is gone: back to what was before it.
            Some(gone) => {
                let previous = rollout.previous_stable.filter(|version| self.usable.contains_key(version));
                previous.or_else(|| self.eligible().range(..gone).next_back().copied())
            }
            // The source says which, and has not been followed yet.
            None if names_stable(self.circumstances.model) => serving,
            None => serving.or_else(|| self.eligible().first().copied()),
        }
    }

    /// The version that was stable before the last decision, while it is kept, and when that ends.
    fn previous(&self) -> (Option<VersionNumber>, Option<DateTime<Utc>>) {
        let rollout = &self.circumstances.model.rollout;
        let usable = rollout.previous_stable.filter(|version| self.usable.contains_key(version));
        let (Some(previous), Some(since)) = (usable, rollout.stable_since) else { return (None, None) };
        let keep = chrono::Duration::from_std(self.circumstances.keep_previous).unwrap_or(chrono::Duration::MAX);
        let until = since.checked_add_signed(keep).unwrap_or(DateTime::<Utc>::MAX_UTC);
        if until > self.circumstances.now { (Some(previous), Some(until)) } else { (None, None) }
    }
}

/// The versions that a policy selects.
fn select(policy: &VersionPolicy, versions: &BTreeSet<VersionNumber>) -> BTreeSet<VersionNumber> {
    match policy {
        VersionPolicy::Latest(count) => {
            versions.iter().rev().take(usize::try_from(*count).unwrap_or(usize::MAX)).copied().collect()
        }
        VersionPolicy::All => versions.clone(),
        VersionPolicy::Specific(wanted) => wanted.iter().copied().filter(|version| versions.contains(version)).collect(),
    }
}

#[cfg(test)]
mod tests;
