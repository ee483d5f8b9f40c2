//! The state of a journal: a pure fold.
//!
//! [`Rollout::apply`] takes any entry, sensible or not, and never fails: a journal is read long after it was written, by other
//! builds, and all of them have to arrive at the same state. What makes sense is checked before writing, by
//! [`Rollout::validate`].

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Entry, FULL_WEIGHT_BP, JournalError, Op, Weight};
use crate::digest::DigestBuilder;
use crate::name::{ModelName, VersionNumber};

/// What the journal of one model says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rollout {
    /// Names the current or the last rollout, and seeds the hash that assigns callers; empty before the first. Raising the
    /// candidate's weight keeps it, so no caller is taken back.
    pub id: String,
    /// The version that was made stable by promote, rollback or a weight of 100%.
    pub stable: Option<VersionNumber>,
    /// When that was decided, also where it was stable already.
    pub stable_since: Option<DateTime<Utc>>,
    /// The highest version that existed then: higher ones may follow it. Where the entry does not say, those that were made after
    /// `stable_since` may.
    pub stable_highest: Option<VersionNumber>,
    /// The version that has all unversioned traffic, whatever else is said here.
    pub pinned: Option<VersionNumber>,
    /// The version under test, and its share of the traffic in basis points (0 to 9 999).
    pub candidate: Option<(VersionNumber, u32)>,
    /// Versions that no policy selects until they are cleared.
    pub rejected: BTreeSet<VersionNumber>,
    /// Versions that are loaded and take no unversioned traffic.
    pub held: BTreeSet<VersionNumber>,
    /// Versions that an entry has given traffic to or cleared: a hold in their manifest no longer counts.
    pub released: BTreeSet<VersionNumber>,
    /// The same for every version up to this one, which was the highest when all were cleared.
    pub released_through: VersionNumber,
    /// New versions do not become stable by themselves and no rollout starts.
    pub disabled: bool,
    /// The candidate keeps its share and is not judged.
    pub paused: bool,
    /// Names that point at versions.
    pub aliases: BTreeMap<String, VersionNumber>,
    /// The version that was stable before `stable`.
    pub previous_stable: Option<VersionNumber>,
    /// The last entry that is folded in.
    pub seq: u64,
    /// The entry that this build could not follow. Nothing after it counts.
    pub frozen: Option<String>,
    /// When stable, pin, candidate or weight last changed.
    pub since: Option<DateTime<Utc>>,
    /// The last entry of a registry's own journal that was taken over into this one; 0 where none was.
    #[serde(skip_serializing_if = "is_zero")]
    pub followed: u64,
    /// The id of that entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub followed_id: Option<Uuid>,
    /// The id of the last entry that is folded in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_id: Option<Uuid>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Rollout {
    /// The state after these entries.
    pub fn fold<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut rollout = Self::default();
        for entry in entries {
            rollout.apply(entry);
        }
        rollout
    }

    /// Takes one more entry in. An entry that is in already changes nothing.
    pub fn apply(&mut self, entry: &Entry) {
        if entry.seq <= self.seq {
            return;
        }
        (self.seq, self.last_id) = (entry.seq, Some(entry.id));
        if let Some(published) = entry.published.filter(|published| *published > self.followed) {
            (self.followed, self.followed_id) = (published, Some(entry.id));
        }
        if self.frozen.is_some() {
            return;
        }
        let before = (self.stable, self.pinned, self.candidate);
        match &entry.op {
            Op::Weight { version, weight_bp } => self.weigh(*version, *weight_bp, entry),
            Op::Start { version, weight_bp } => self.begin(*version, *weight_bp, entry),
            Op::Step { weight_bp } => {
                if let Some((version, _)) = self.candidate {
                    self.weigh(version, *weight_bp, entry);
                }
            }
            Op::Pin { version } => {
                self.pinned = Some(*version);
                self.release(*version);
            }
            Op::Unpin => self.pinned = None,
            Op::Pause => self.paused = self.candidate.is_some(),
            Op::Resume => self.paused = false,
            Op::Promote { version } => {
                if let Some(version) = version.or(self.candidate.map(|(version, _)| version)) {
                    self.promote(version);
                }
            }
            Op::Abort => self.drop_candidate(),
            Op::Rollback { version } => self.roll_back(*version),
            Op::Alias { name, version: Some(version) } => drop(self.aliases.insert(name.clone(), *version)),
            Op::Alias { name, version: None } => drop(self.aliases.remove(name)),
            Op::Clear { version: Some(version) } => self.release(*version),
            Op::Clear { version: None } => {
                self.released.append(&mut self.held);
                self.released.append(&mut self.rejected);
                self.released_through = self.released_through.max(entry.highest.unwrap_or(0));
            }
            Op::Hold { version } => {
                self.released.remove(version);
                self.held.insert(*version);
            }
            Op::Disable => self.disabled = true,
            Op::Enable => self.disabled = false,
            Op::Unknown { op } => self.frozen = Some(format!("entry {}: {op}", entry.seq)),
        }
        if before != (self.stable, self.pinned, self.candidate) {
            self.since = Some(entry.at);
        }
        if self.stable.is_some() && entry.op.decides_stable() {
            self.stable_since = Some(entry.at);
            self.stable_highest = entry.highest;
        }
    }

    /// Whether something was decided in this journal itself: until then a registry's own journal counts, however much of it was taken over
    /// here.
    pub fn is_decided_here(&self) -> bool {
        // Without an entry of its own it has as many as the other one has up to there.
        self.seq > self.followed
    }

    /// Asks whether a registry's own journal still is the one that entries were taken over from.
    ///
    /// # Errors
    /// [`JournalError::Replaced`] where it ends before them, or where the last of them is another one there. What lies behind is not told
    /// by a journal that goes on.
    pub fn agree_with(&self, registrys: &Rollout) -> Result<(), JournalError> {
        match registrys.seq.cmp(&self.followed) {
            Ordering::Less => Err(JournalError::Replaced { followed: self.followed, last: registrys.seq }),
            Ordering::Equal => self.agree_on(registrys.last_id, registrys.seq),
            Ordering::Greater => Ok(()),
        }
    }

    /// The same of entries of that journal from the last one on that was taken over.
    pub(super) fn agree_with_entries(&self, published: &[Entry]) -> Result<(), JournalError> {
        if self.followed == 0 {
            return Ok(());
        }
        let last = published.last().map_or(0, |entry| entry.seq);
        match published.binary_search_by_key(&self.followed, |entry| entry.seq) {
            Ok(at) => self.agree_on(published.get(at).map(|entry| entry.id), last),
            Err(_) => Err(JournalError::Replaced { followed: self.followed, last }),
        }
    }

    /// An id that is not known, and that of an entry which can't be read, tell nothing.
    fn agree_on(&self, theirs: Option<Uuid>, last: u64) -> Result<(), JournalError> {
        match (self.followed_id, theirs) {
            (Some(ours), Some(theirs)) if ours != theirs && !theirs.is_nil() && !ours.is_nil() => {
                Err(JournalError::Replaced { followed: self.followed, last })
            }
            _ => Ok(()),
        }
    }

    /// Whether an entry makes sense now.
    ///
    /// # Errors
    /// [`JournalError::Refused`] with the reason, [`JournalError::Frozen`] where nothing may be written.
    pub fn validate(&self, op: &Op) -> Result<(), JournalError> {
        if let Some(entry) = &self.frozen {
            return Err(JournalError::Frozen(entry.clone()));
        }
        let reason = self.objection(op);
        reason.map_or(Ok(()), |reason| Err(JournalError::refused(op, reason)))
    }

    /// True where this op begins another rollout: callers are assigned anew.
    pub(crate) fn begins(&self, op: &Op) -> bool {
        let current = self.candidate.map(|(version, _)| version);
        match op {
            Op::Start { .. } => true,
            Op::Weight { version, weight_bp } => (1..FULL_WEIGHT_BP).contains(weight_bp) && current != Some(*version),
            _ => false,
        }
    }

    /// True where this version is to take no unversioned traffic, `held_by_manifest` being what its publisher said.
    pub fn holds(&self, version: VersionNumber, held_by_manifest: bool) -> bool {
        let released = version <= self.released_through || self.released.contains(&version);
        self.held.contains(&version) || (held_by_manifest && !released)
    }

    /// True where this version came after what was decided on: it is higher than every version that existed then. `created` is its
    /// publisher's word, which counts for decisions of older builds only.
    pub fn came_after(&self, version: VersionNumber, created: DateTime<Utc>) -> bool {
        match (self.stable, self.stable_highest) {
            (None, _) => true,
            (Some(stable), Some(highest)) => version > stable.max(highest),
            (Some(stable), None) => version > stable && self.stable_since.is_none_or(|since| created > since),
        }
    }

    pub(crate) fn describe_to(&self, state: &mut DigestBuilder) {
        // A struct of numbers, texts and sets always has a JSON form.
        state.field(&serde_json::to_vec(self).unwrap_or_default());
    }

    fn objection(&self, op: &Op) -> Option<String> {
        let candidate = self.candidate.map(|(version, _)| version);
        match op {
            Op::Weight { weight_bp, .. } | Op::Start { weight_bp, .. } | Op::Step { weight_bp } if *weight_bp > FULL_WEIGHT_BP => {
                Some(format!("a weight is 0 to {FULL_WEIGHT_BP} basis points, not {weight_bp}"))
            }
            Op::Weight { version, weight_bp } => self.objection_to_weight(*version, *weight_bp),
            Op::Start { version, .. } => match (self.disabled, candidate) {
                (true, _) => Some("rollouts are disabled: enable them first".into()),
                (_, Some(other)) => Some(format!("version {other} is being rolled out: promote or abort it first")),
                _ => self.objection_to_weight(*version, 1),
            },
            Op::Step { .. } | Op::Pause | Op::Resume | Op::Abort if candidate.is_none() => Some("there is no candidate".into()),
            Op::Step { .. } | Op::Pause if self.paused => Some("the rollout is paused".into()),
            Op::Resume if !self.paused => Some("the rollout is not paused".into()),
            Op::Promote { version } => match (version, candidate) {
                (None, None) => Some("there is no candidate: name a version".into()),
                (Some(version), Some(other)) if *version != other => {
                    Some(format!("version {other} is the candidate: promote or abort it first"))
                }
                _ => None,
            },
            Op::Rollback { version } if version.or(self.previous_stable).is_none() => {
                Some("no previous stable version is known: name one".into())
            }
            Op::Rollback { version: Some(version) } if self.stable == Some(*version) => {
                Some(format!("version {version} is stable already"))
            }
            Op::Unpin if self.pinned.is_none() => Some("nothing is pinned".into()),
            Op::Hold { version } if [self.stable, self.pinned, candidate].contains(&Some(*version)) => {
                Some(format!("version {version} takes traffic already"))
            }
            Op::Alias { name, version } => self.objection_to_alias(name, version.is_some()),
            Op::Disable if self.disabled => Some("rollouts are disabled already".into()),
            Op::Enable if !self.disabled => Some("rollouts are enabled already".into()),
            Op::Unknown { .. } => Some("this build does not know it".into()),
            _ => None,
        }
    }

    fn objection_to_weight(&self, version: VersionNumber, weight_bp: u32) -> Option<String> {
        if let Some(pinned) = self.pinned.filter(|pinned| *pinned != version) {
            return Some(format!("version {pinned} is pinned: unpin it first"));
        }
        if self.stable == Some(version) && weight_bp < FULL_WEIGHT_BP {
            return Some(format!("version {version} is stable: give a weight to the other version"));
        }
        match self.candidate {
            Some((other, share)) if other != version && (1..FULL_WEIGHT_BP).contains(&weight_bp) => {
                let share = Weight(share);
                Some(format!("version {other} is the candidate with {share}: give it 0% or 100% first"))
            }
            _ => None,
        }
    }

    fn objection_to_alias(&self, name: &str, point: bool) -> Option<String> {
        if !point {
            return (!self.aliases.contains_key(name)).then(|| "there is no such alias".into());
        }
        // A number would be taken for a version, and the two words below for what a rollout says.
        if name.bytes().all(|byte| byte.is_ascii_digit()) || matches!(name, "stable" | "candidate") {
            return Some("an alias is neither a number nor `stable` or `candidate`".into());
        }
        ModelName::new(name).err().map(|_| "an alias follows the rule of model names: letters, digits, `.`, `_`, `-`".into())
    }

    fn weigh(&mut self, version: VersionNumber, weight_bp: u32, entry: &Entry) {
        match weight_bp {
            0 if self.candidate.is_some_and(|(candidate, _)| candidate == version) => self.drop_candidate(),
            0 => drop(self.rejected.insert(version)),
            FULL_WEIGHT_BP.. => self.promote(version),
            _ if self.candidate.is_some_and(|(candidate, _)| candidate == version) => self.candidate = Some((version, weight_bp)),
            _ => self.begin(version, weight_bp, entry),
        }
    }

    fn begin(&mut self, version: VersionNumber, weight_bp: u32, entry: &Entry) {
        if self.candidate.is_some_and(|(candidate, _)| candidate != version) {
            self.drop_candidate();
        }
        self.id = if entry.rollout.is_empty() { entry.id.to_string() } else { entry.rollout.clone() };
        self.release(version);
        self.candidate = Some((version, weight_bp.min(FULL_WEIGHT_BP - 1)));
        self.paused = false;
    }

    fn promote(&mut self, version: VersionNumber) {
        if self.candidate.is_some_and(|(candidate, _)| candidate != version) {
            self.drop_candidate();
        }
        if self.stable != Some(version) {
            self.previous_stable = self.stable;
        }
        self.stable = Some(version);
        self.candidate = None;
        self.paused = false;
        self.release(version);
    }

    fn roll_back(&mut self, version: Option<VersionNumber>) {
        let Some(target) = version.or(self.previous_stable) else { return };
        self.drop_candidate();
        if let Some(left) = self.stable.filter(|stable| *stable != target) {
            self.rejected.insert(left);
        }
        self.stable = Some(target);
        self.previous_stable = None;
        self.release(target);
    }

    fn drop_candidate(&mut self) {
        if let Some((version, _)) = self.candidate.take() {
            self.rejected.insert(version);
        }
        self.paused = false;
    }

    fn release(&mut self, version: VersionNumber) {
        self.held.remove(&version);
        self.rejected.remove(&version);
        self.released.insert(version);
    }
}
