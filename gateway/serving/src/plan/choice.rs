//! Which of the residencies that are ready the table should name: a pure function.

use bascule_registry::VersionNumber;

use super::{Phase, ResidencyView};
use crate::TransitionPolicy;
use crate::aspire::Aspired;
use crate::reconcile::ResidencyId;

/// The residencies that a route should name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Choice {
    pub(crate) stable: Option<ResidencyId>,
    /// And its weight in basis points.
    pub(crate) candidate: Option<(ResidencyId, u32)>,
    pub(crate) others: Vec<ResidencyId>,
}

impl Choice {
    /// Every residency that it names.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ResidencyId> + '_ {
        self.stable.into_iter().chain(self.candidate.map(|(id, _)| id)).chain(self.others.iter().copied())
    }

    /// Whether it names this one.
    pub(crate) fn names(&self, id: ResidencyId) -> bool {
        self.ids().any(|named| named == id)
    }
}

/// One residency a version: the one whose content and settings are aspired, else, where availability counts, the one that it is to
/// replace.
pub(crate) fn choose(aspired: &Aspired, transition: TransitionPolicy, residencies: &[ResidencyView]) -> Choice {
    let pick = |version: VersionNumber| {
        let ready = residencies.iter().filter(|residency| residency.version == version && residency.phase == Phase::Ready);
        let usable = ready.filter(|residency| residency.current || transition == TransitionPolicy::AvailabilityPreserving);
        usable.max_by_key(|residency| (residency.current, residency.id)).map(|residency| residency.id)
    };
    let stable = aspired.stable.and_then(pick);
    let candidate = aspired.candidate.filter(|(version, _)| aspired.stable != Some(*version));
    let candidate = candidate.and_then(|(version, weight_bp)| Some((pick(version)?, weight_bp)));
    let named = |id: &ResidencyId| stable == Some(*id) || candidate.is_some_and(|(candidate, _)| candidate == *id);
    let others = aspired.versions.keys().filter_map(|version| pick(*version)).filter(|id| !named(id)).collect();
    Choice { stable, candidate, others }
}
