//! Which entry gave each version the part that it has: who decided, and since when that counts. Pure, as the fold is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Entry, Rollout};
use crate::name::VersionNumber;

/// What a journal makes of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// It has all unversioned traffic until it is unpinned.
    Pinned,
    /// It answers whoever is not on the candidate.
    Stable,
    /// It is under test.
    Candidate,
    /// It is loaded and takes no unversioned traffic.
    Held,
    /// No policy selects it.
    Rejected,
    /// Nothing: another one is pinned, or what was decided about it has ended.
    Open,
}

impl Part {
    /// True where unversioned traffic goes to it.
    pub fn takes_traffic(self) -> bool {
        matches!(self, Self::Pinned | Self::Stable | Self::Candidate)
    }
}

/// Of each version that these entries decide about, its part after them and the entry since which it has it; a candidate's is the one that
/// gave it its present share. The entries are in their order; where the first ones are left out, what only those decided is not known.
pub fn deciding_entries(entries: &[Entry]) -> BTreeMap<VersionNumber, (Part, &Entry)> {
    let mut rollout = Rollout::default();
    let mut deciding = BTreeMap::new();
    let mut before = BTreeMap::new();
    for entry in entries {
        rollout.apply(entry);
        let after = shares(&rollout);
        let gone = before.keys().filter(|version| !after.contains_key(*version)).map(|version| (*version, (Part::Open, 0)));
        let changed = after.iter().filter(|(version, share)| before.get(*version) != Some(*share));
        for (version, (part, _)) in gone.chain(changed.map(|(version, share)| (*version, *share))) {
            deciding.insert(version, (part, entry));
        }
        before = after;
    }
    deciding
}

/// Every version that has a part, with a candidate's share in basis points.
fn shares(rollout: &Rollout) -> BTreeMap<VersionNumber, (Part, u32)> {
    let of = |versions: &std::collections::BTreeSet<VersionNumber>, part| {
        versions.iter().map(|version| (*version, (part, 0))).collect::<Vec<_>>()
    };
    let mut shares = BTreeMap::new();
    // The later ones count where a version is in several.
    shares.extend(of(&rollout.rejected, Part::Rejected));
    shares.extend(of(&rollout.held, Part::Held));
    match rollout.pinned {
        Some(pinned) => drop(shares.insert(pinned, (Part::Pinned, 0))),
        None => {
            shares.extend(rollout.candidate.map(|(version, weight_bp)| (version, (Part::Candidate, weight_bp))));
            shares.extend(rollout.stable.map(|version| (version, (Part::Stable, 0))));
        }
    }
    shares
}
