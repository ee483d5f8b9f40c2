//! Following the names that a source keeps for stable and candidate: what is to be written into the journal when they move, and what
//! the source is to be told when something was decided here.
//!
//! Both are pure. The journal remembers, as `alias` entries, what was last followed, so that restarts and replicas agree: while the
//! source's name points where it did then, whatever the operator decides stays. A name that was followed is written last, so that what
//! broke off half-way is done again.

mod telling;

use std::collections::BTreeSet;

use bascule_registry::{ListedModel, ModelName, Op, Rollout, Steering, SteeringAlias, VersionNumber, Weight};
use uuid::Uuid;

pub(crate) use self::telling::{Teller, owed};

/// Seeds the ids of entries, so that replicas which see one move write it once.
const NAMESPACE: Uuid = Uuid::from_u128(0x6e1f_6a1d_9f0b_4c57_a7c2_31d5_8b1e_40f3);

/// What follows from where the names point.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Course {
    /// To be written, in this order.
    pub(crate) ops: Vec<Step>,
    /// What can't be followed yet, for people.
    pub(crate) waiting: Vec<String>,
}

/// One entry to be written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) reason: String,
}

impl Course {
    fn push(&mut self, op: Op, reason: &str) {
        self.ops.push(Step { op, reason: reason.to_owned() });
    }
}

/// The name under which the journal keeps one of a source's: the two words of the rollout itself are no aliases there.
pub(crate) fn journal_name(steering: &Steering, alias: &SteeringAlias) -> String {
    if matches!(alias.name.as_str(), "stable" | "candidate") {
        return format!("{}.{}", steering.by, alias.name);
    }
    alias.name.clone()
}

/// What is to be written about a model. Nothing where the names point where they last did.
pub(crate) fn follow(steering: &Steering, usable: &BTreeSet<VersionNumber>, rollout: &Rollout) -> Course {
    if rollout.frozen.is_some() {
        return Course::default();
    }
    let mut way =
        Way { steering, usable, rollout, course: Course::default(), stable: rollout.stable, candidate: rollout.candidate };
    way.follow_stable();
    way.follow_candidate();
    way.course
}

/// The journal's state as it will be after what is to be written.
struct Way<'a> {
    steering: &'a Steering,
    usable: &'a BTreeSet<VersionNumber>,
    rollout: &'a Rollout,
    course: Course,
    stable: Option<VersionNumber>,
    candidate: Option<(VersionNumber, u32)>,
}

impl Way<'_> {
    /// Where a name pointed when it was last followed.
    fn followed(&self, alias: &SteeringAlias) -> Option<VersionNumber> {
        self.rollout.aliases.get(&journal_name(self.steering, alias)).copied()
    }

    fn note(&mut self, alias: &SteeringAlias, reason: &str) {
        self.course.push(Op::Alias { name: journal_name(self.steering, alias), version: alias.version }, reason);
    }

    fn wait(&mut self, alias: &SteeringAlias, version: VersionNumber, why: &str) {
        self.course.waiting.push(format!("alias {} points at version {version}: {why}", alias.name));
    }

    fn follow_stable(&mut self) {
        let alias = &self.steering.stable;
        if self.followed(alias) == alias.version {
            return;
        }
        let Some(version) = alias.version else { return self.note(alias, &removed(alias)) };
        if !self.usable.contains(&version) {
            return self.wait(alias, version, "it is followed once that version can be used");
        }
        let reason = moved(alias, version);
        let other = self.candidate.filter(|(candidate, _)| *candidate != version);
        if other.is_some() {
            self.course.push(Op::Abort, &reason);
        }
        if self.stable != Some(version) || self.candidate.is_some() {
            self.course.push(Op::Promote { version: Some(version) }, &reason);
        }
        self.note(alias, &reason);
        (self.stable, self.candidate) = (Some(version), None);
        // What is under test stays so, beside another stable version.
        if let Some((candidate, weight_bp)) = other.filter(|(candidate, _)| self.steering.candidate.version == Some(*candidate)) {
            self.keep_candidate(candidate, weight_bp, &reason);
        }
    }

    /// Brings back what was under test, or forgets that its name was followed: then it is again once nothing else is pinned.
    fn keep_candidate(&mut self, version: VersionNumber, weight_bp: u32, reason: &str) {
        let alias = &self.steering.candidate;
        if self.rollout.pinned.is_none_or(|pinned| pinned == version) {
            self.course.push(Op::Weight { version, weight_bp }, reason);
            self.candidate = Some((version, weight_bp));
        } else if self.followed(alias) == Some(version) {
            self.course.push(Op::Alias { name: journal_name(self.steering, alias), version: None }, reason);
        }
    }

    fn follow_candidate(&mut self) {
        let alias = &self.steering.candidate;
        let followed = self.followed(alias);
        if followed == alias.version {
            return;
        }
        let Some(version) = alias.version else {
            let reason = removed(alias);
            if self.candidate.is_some_and(|(candidate, _)| Some(candidate) == followed) {
                self.course.push(Op::Abort, &reason);
            }
            return self.note(alias, &reason);
        };
        let reason = moved(alias, version);
        if self.stable == Some(version) || self.candidate.is_some_and(|(candidate, _)| candidate == version) {
            return self.note(alias, &reason);
        }
        if let Some(why) = self.obstacle(version) {
            return self.wait(alias, version, &why);
        }
        if self.candidate.is_some() {
            self.course.push(Op::Abort, &reason);
        }
        self.course.push(Op::Weight { version, weight_bp: self.steering.candidate_weight_bp }, &reason);
        self.note(alias, &reason);
    }

    /// Why a version can't be the candidate now.
    fn obstacle(&self, version: VersionNumber) -> Option<String> {
        if !self.usable.contains(&version) {
            return Some("it is followed once that version can be used".to_owned());
        }
        if let Some(pinned) = self.rollout.pinned.filter(|pinned| *pinned != version) {
            return Some(format!("it is followed once version {pinned} is no longer pinned"));
        }
        // Beside nothing there is nothing to be tested against.
        let alone = match self.steering.stable.version {
            Some(_) => self.stable.is_none(),
            None => {
                self.stable.is_none() && self.usable.iter().all(|other| *other == version || self.rollout.rejected.contains(other))
            }
        };
        alone.then(|| "it is followed once another version is stable".to_owned())
    }
}

fn moved(alias: &SteeringAlias, version: VersionNumber) -> String {
    format!("alias {} points at version {version}", alias.name)
}

fn removed(alias: &SteeringAlias) -> String {
    format!("alias {} was removed", alias.name)
}

/// The id of an entry that follows this one: the same on every replica that decides the same on the same.
pub(crate) fn id_after(seq: u64, model: &ModelName, op: &Op) -> Uuid {
    let share = match op {
        Op::Weight { weight_bp, .. } => Weight(*weight_bp).to_string(),
        Op::Alias { name, .. } => name.clone(),
        _ => String::new(),
    };
    let version = op.version().unwrap_or(0);
    Uuid::new_v5(&NAMESPACE, format!("{model}\n{seq}\n{}\n{version}\n{share}", op.name()).as_bytes())
}

/// Versions that a name may stand for.
pub(crate) fn usable(model: &ListedModel) -> BTreeSet<VersionNumber> {
    model.versions.iter().filter(|(_, generation)| !generation.tombstoned).map(|(version, _)| *version).collect()
}

/// Whether a source says which version is stable: then none becomes so by itself.
pub(crate) fn names_stable(model: &ListedModel) -> bool {
    model.steering.as_ref().is_some_and(|steering| steering.stable.version.is_some())
}

/// Whether it does and that was never followed: then nobody knows which version is to be stable.
pub(crate) fn leaves_stable_open(model: &ListedModel, rollout: &Rollout) -> bool {
    names_stable(model) && rollout.stable.is_none() && rollout.pinned.is_none() && rollout.frozen.is_none()
}

#[cfg(test)]
mod tests;
