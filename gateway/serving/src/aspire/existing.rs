//! What exists, from one look to the next: a pure fold of listings.
//!
//! A look that failed in part, or that came back empty after one that did not, adds and never removes. A version that is loaded and
//! whose directory is gone stays, unless the user wants it otherwise. So does one whose files or settings have not settled yet.

use std::sync::Arc;

use bascule_registry::{Generation, ListedModel};

/// What a listing may take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Nothing: it may be wrong.
    Nothing,
    /// What is not loaded.
    NotResident,
    /// All that it does not name.
    All,
}

/// Said of a model that its source no longer has.
pub(crate) const ABSENT: &str = "the source no longer has it; what is loaded stays served";

/// What exists of a model after a look: what existed before it, what the look says, and what that may take away.
pub(crate) fn fold(
    before: Option<&Arc<ListedModel>>,
    listed: Option<&Arc<ListedModel>>,
    removal: Removal,
    is_resident: impl Fn(&Generation) -> bool,
) -> Option<Arc<ListedModel>> {
    let stays = |generation: &Generation| match removal {
        Removal::Nothing => true,
        Removal::NotResident => is_resident(generation),
        Removal::All => false,
    };
    let Some(before) = before else { return listed.cloned() };
    let Some(listed) = listed else { return without_source(before, removal, stays) };
    if counts_not_yet(listed) {
        // Its settings neither, as at every first look: what was before a restart still does.
        return Some(with_tombstones(before, listed));
    }
    let kept = before.versions.iter().filter(|(version, generation)| {
        // What has not settled is there all the same.
        !listed.versions.contains_key(version) && (listed.unsettled.contains(version) || stays(generation))
    });
    let kept: Vec<_> = kept.map(|(version, generation)| (*version, Arc::clone(generation))).collect();
    if kept.is_empty() {
        // Shared where nothing has changed, so that whoever compares can compare pointers.
        return Some(Arc::clone(if before == listed { before } else { listed }));
    }
    let mut model = ListedModel::clone(listed);
    model.versions.extend(kept);
    Some(if model == **before { Arc::clone(before) } else { Arc::new(model) })
}

/// Whether nothing of a model counts yet but what was taken out of service, which has not settled either.
pub(crate) fn counts_not_yet(listed: &ListedModel) -> bool {
    let mut versions = listed.versions.iter();
    !listed.unsettled.is_empty()
        && versions.all(|(version, generation)| generation.tombstoned && listed.unsettled.contains(version))
}

/// A model, without the versions that were taken out of service since.
fn with_tombstones(own: &Arc<ListedModel>, listed: &ListedModel) -> Arc<ListedModel> {
    let mut model = Arc::clone(own);
    for (version, now) in listed.versions.iter().filter(|(_, now)| now.tombstoned) {
        let is_yanked = |known: &Arc<Generation>| !known.tombstoned && known.digest == now.digest;
        if let Some(known) = own.versions.get(version).filter(|known| is_yanked(known)) {
            let yanked = Generation { tombstoned: true, ..Generation::clone(known) };
            Arc::make_mut(&mut model).versions.insert(*version, Arc::new(yanked));
        }
    }
    model
}

fn without_source(before: &Arc<ListedModel>, removal: Removal, stays: impl Fn(&Generation) -> bool) -> Option<Arc<ListedModel>> {
    if removal == Removal::Nothing {
        return Some(Arc::clone(before));
    }
    let mut model = ListedModel::clone(before);
    model.versions.retain(|_, generation| stays(generation));
    if model.versions.is_empty() {
        return None;
    }
    if !model.problems.iter().any(|problem| problem == ABSENT) {
        model.problems.push(ABSENT.to_owned());
    }
    Some(if model == **before { Arc::clone(before) } else { Arc::new(model) })
}

/// For a model that does not follow new versions: its own versions and settings, with the tombstones and rollout decisions of the
/// listing, which count for every replica at once.
pub(crate) fn adopt_decisions(own: &Arc<ListedModel>, listed: &ListedModel) -> Arc<ListedModel> {
    let mut model = ListedModel::clone(own);
    model.rollout = listed.rollout.clone();
    model.aliases = listed.aliases.clone();
    model.problems = listed.problems.clone();
    model.steering = listed.steering.clone();
    let own = if model == **own { Arc::clone(own) } else { Arc::new(model) };
    with_tombstones(&own, listed)
}
