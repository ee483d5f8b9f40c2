//! The rollout journal of a model: who decided what about its traffic, and when.
//!
//! Entries are numbered from 1 without gaps, written once and never changed. The state is the pure fold of the entries
//! ([`Rollout`]), so any number of replicas agree on it without talking, and the journal is agreement and audit log in one.
//! What a rollout *means* for a request (which version is ready, who gets which) is the engine's and deliberately absent.

mod entries;
mod floors;
mod fold;
mod local;
mod parts;
mod shared;

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use entries::{Folded, JournalEntries};
pub use fold::Rollout;
pub use local::LocalJournal;
pub use parts::{Part, deciding_entries};
pub use shared::{SharedJournal, SharedJournalError};

use crate::name::{MAX_VERSION, VersionNumber};
use crate::source::Cause;

/// The schema that this build writes, and the highest that it reads.
pub const ENTRY_SCHEMA: u32 = 1;
/// How long a decision may take to be written, with all that has to be read before; of many that are taken over, each of them.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// All traffic, in basis points.
pub const FULL_WEIGHT_BP: u32 = 10_000;

/// One entry, as stored in `<model>/rollout/<20 digits>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredEntry", into = "StoredEntry")]
pub struct Entry {
    /// [`ENTRY_SCHEMA`].
    pub schema: u32,
    /// Its number.
    pub seq: u64,
    /// Given by the writer: an append with an id that is there already is the same append.
    pub id: Uuid,
    /// When it was decided.
    pub at: DateTime<Utc>,
    /// Who decided.
    pub by: String,
    /// Why.
    pub reason: String,
    /// The rollout that it belongs to; empty outside any.
    pub rollout: String,
    /// What was decided.
    pub op: Op,
    /// What it was decided on, unread.
    pub evidence: Option<serde_json::Value>,
    /// The highest version that existed then, where the writer knew; absent in entries of older builds. What comes later is told by
    /// it, and not by clocks: those of publishers and copied files say when something was trained, packed or begun.
    pub highest: Option<VersionNumber>,
    /// Its number in the journal of a registry that is only read here, where it was taken over from there.
    pub published: Option<u64>,
}

/// What an entry decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Gives a version this share of the unversioned traffic: it becomes the candidate; at 10 000 it becomes stable; at 0 it is
    /// dropped and rejected.
    Weight {
        /// The version.
        version: VersionNumber,
        /// Its share in basis points.
        weight_bp: u32,
    },
    /// All unversioned traffic goes to this version until it is unpinned.
    Pin {
        /// The version.
        version: VersionNumber,
    },
    /// Ends a pin.
    Unpin,
    /// Begins a judged rollout of this version.
    Start {
        /// The version.
        version: VersionNumber,
        /// The first share in basis points.
        weight_bp: u32,
    },
    /// Gives the candidate another share.
    Step {
        /// The share in basis points.
        weight_bp: u32,
    },
    /// The candidate keeps its share and is not judged.
    Pause,
    /// Ends a pause.
    Resume,
    /// The candidate, or this version, becomes stable.
    Promote {
        /// Where it is not the candidate.
        version: Option<VersionNumber>,
    },
    /// The candidate is dropped and rejected.
    Abort,
    /// The previous stable version, or this one, becomes stable again; the one that was stable is rejected.
    Rollback {
        /// Where it is not the previous one.
        version: Option<VersionNumber>,
    },
    /// Points a name at a version.
    Alias {
        /// The name.
        name: String,
        /// The version; `None` takes the name away.
        version: Option<VersionNumber>,
    },
    /// Forgets that this version, or any, was rejected or held.
    Clear {
        /// `None` for all.
        version: Option<VersionNumber>,
    },
    /// This version is loaded and takes no unversioned traffic until another entry gives it some.
    Hold {
        /// The version.
        version: VersionNumber,
    },
    /// New versions do not become stable by themselves and no rollout is started until `enable`.
    Disable,
    /// Ends `disable`.
    Enable,
    /// Written by a newer build, or unreadable. Freezes the model's route as it stood before.
    Unknown {
        /// What was found, for people.
        op: String,
    },
}

impl Op {
    /// The word in the journal.
    pub fn name(&self) -> &str {
        match self {
            Self::Weight { .. } => "weight",
            Self::Pin { .. } => "pin",
            Self::Unpin => "unpin",
            Self::Start { .. } => "start",
            Self::Step { .. } => "step",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote { .. } => "promote",
            Self::Abort => "abort",
            Self::Rollback { .. } => "rollback",
            Self::Alias { .. } => "alias",
            Self::Clear { .. } => "clear",
            Self::Hold { .. } => "hold",
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::Unknown { op } => op,
        }
    }

    /// The version that it names, if any.
    pub fn version(&self) -> Option<VersionNumber> {
        match self {
            Self::Weight { version, .. } | Self::Pin { version } | Self::Start { version, .. } | Self::Hold { version } => {
                Some(*version)
            }
            Self::Promote { version } | Self::Rollback { version } | Self::Alias { version, .. } | Self::Clear { version } => {
                *version
            }
            _ => None,
        }
    }

    /// True where the version has to exist for the decision to make sense.
    pub(crate) fn needs_version(&self) -> bool {
        match self {
            Self::Weight { weight_bp, .. } => *weight_bp > 0,
            Self::Clear { .. } => false,
            _ => self.version().is_some(),
        }
    }

    /// True where it says which version is stable.
    fn decides_stable(&self) -> bool {
        match self {
            Self::Weight { weight_bp, .. } | Self::Step { weight_bp } => *weight_bp >= FULL_WEIGHT_BP,
            Self::Promote { .. } | Self::Rollback { .. } => true,
            _ => false,
        }
    }

    fn weight_bp(&self) -> Option<u32> {
        match self {
            Self::Weight { weight_bp, .. } | Self::Start { weight_bp, .. } | Self::Step { weight_bp } => Some(*weight_bp),
            _ => None,
        }
    }
}

/// The entry as it lies in the store.
#[derive(Serialize, Deserialize)]
struct StoredEntry {
    schema: u32,
    seq: u64,
    id: Uuid,
    at: DateTime<Utc>,
    #[serde(default)]
    by: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    rollout: String,
    op: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<VersionNumber>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight_bp: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alias: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    evidence: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    highest: Option<VersionNumber>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    published: Option<u64>,
}

impl TryFrom<StoredEntry> for Entry {
    type Error = String;

    fn try_from(stored: StoredEntry) -> Result<Self, String> {
        let op = if stored.schema > ENTRY_SCHEMA {
            // What another gateway has read says so already.
            let schema = format!(" of schema {}", stored.schema);
            Op::Unknown { op: format!("{}{schema}", stored.op.strip_suffix(&schema).unwrap_or(&stored.op)) }
        } else {
            stored.read_op()?
        };
        let StoredEntry { schema, seq, id, at, by, reason, rollout, evidence, highest, published, .. } = stored;
        Ok(Self { schema, seq, id, at, by, reason, rollout, op, evidence, highest, published })
    }
}

impl StoredEntry {
    fn read_op(&self) -> Result<Op, String> {
        let version = match self.version {
            Some(version) if !(1..=MAX_VERSION).contains(&version) => return Err(format!("version {version} is out of range")),
            version => version,
        };
        let weight = match self.weight_bp {
            Some(weight) if weight > FULL_WEIGHT_BP => return Err(format!("weight_bp {weight} is above {FULL_WEIGHT_BP}")),
            weight => weight,
        };
        let needs = |field: &str| format!("op {} needs `{field}`", self.op);
        let the_version = || version.ok_or_else(|| needs("version"));
        let the_weight = || weight.ok_or_else(|| needs("weight_bp"));
        Ok(match self.op.as_str() {
            "weight" => Op::Weight { version: the_version()?, weight_bp: the_weight()? },
            "pin" => Op::Pin { version: the_version()? },
            "unpin" => Op::Unpin,
            "start" => Op::Start { version: the_version()?, weight_bp: weight.unwrap_or(0) },
            "step" => Op::Step { weight_bp: the_weight()? },
            "pause" => Op::Pause,
            "resume" => Op::Resume,
            "promote" => Op::Promote { version },
            "abort" => Op::Abort,
            "rollback" => Op::Rollback { version },
            "alias" => Op::Alias { name: self.alias.clone().ok_or_else(|| needs("alias"))?, version },
            "clear" => Op::Clear { version },
            "hold" => Op::Hold { version: the_version()? },
            "disable" => Op::Disable,
            "enable" => Op::Enable,
            other => Op::Unknown { op: other.to_owned() },
        })
    }
}

impl From<Entry> for StoredEntry {
    fn from(entry: Entry) -> Self {
        let (version, weight_bp, op) = (entry.op.version(), entry.op.weight_bp(), entry.op.name().to_owned());
        let alias = match entry.op {
            Op::Alias { name, .. } => Some(name),
            _ => None,
        };
        let Entry { schema, seq, id, at, by, reason, rollout, evidence, highest, published, .. } = entry;
        Self { schema, seq, id, at, by, reason, rollout, op, version, weight_bp, alias, evidence, highest, published }
    }
}

/// Entries of a journal that is read from its end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JournalPage {
    /// The number of the journal's last entry; 0 while it has none.
    pub seq: u64,
    /// The entries, newest first. What can't be read is an entry, too, whose op says why.
    pub entries: Vec<Entry>,
    /// Asked for the entries before this one, the journal goes on; nothing where its first entry is among these.
    pub before: Option<u64>,
}

/// What somebody wants to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// What is decided.
    pub op: Op,
    /// Who decides.
    pub by: String,
    /// Why.
    pub reason: String,
    /// The same on every retry of the same decision.
    pub id: Uuid,
    /// What it is decided on, unread.
    pub evidence: Option<serde_json::Value>,
    /// The highest version that exists; a registry looks for itself.
    pub highest: Option<VersionNumber>,
}

impl Proposal {
    /// A decision with a fresh id, no evidence and nothing said of what exists.
    pub fn new(op: Op, by: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { op, by: by.into(), reason: reason.into(), id: Uuid::new_v4(), evidence: None, highest: None }
    }
}

/// Why an entry is not written, or a journal not read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// It makes no sense as things stand.
    #[error("{op} is refused: {reason}")]
    Refused {
        /// The op's word.
        op: String,
        /// Why, and what to do instead.
        reason: Cow<'static, str>,
    },
    /// The journal has an entry that this build can't follow.
    #[error("the journal is frozen at an entry that this build does not know ({0}): upgrade this program")]
    Frozen(String),
    /// There is no such version, or it is tombstoned.
    #[error("version {version} of {model} {problem}")]
    Version {
        /// The model.
        model: String,
        /// The version.
        version: VersionNumber,
        /// `does not exist`, `is tombstoned`.
        problem: &'static str,
    },
    /// The place has no journal for this model.
    #[error("model {model} {problem}")]
    Model {
        /// The model.
        model: String,
        /// Why, as the end of a sentence.
        problem: &'static str,
    },
    /// Others have written at every try.
    #[error("others kept writing the journal: nothing was written after {0} tries")]
    Contended(u32),
    /// The store can't hold a journal.
    #[error("{store} can't hold a journal: it lacks put-if-absent")]
    NoPutIfAbsent {
        /// The store.
        store: String,
    },
    /// The registry's own journal is not the one that entries were taken over from.
    #[error(
        "the registry's journal ends at entry {last}, and up to entry {followed} it was taken over here as another one: it was restored \
         from a backup, as it seems, and is not followed; to begin with it anew, stop the gateway and remove the journal of this model here"
    )]
    Replaced {
        /// The last entry that was taken over.
        followed: u64,
        /// Its last entry now.
        last: u64,
    },
    /// The store can't be reached or refuses. The entry may have been written: retry with the same id.
    #[error("{place} can't be reached")]
    Unavailable {
        /// What was asked.
        place: String,
        /// Why.
        source: Cause,
    },
}

impl JournalError {
    pub(crate) fn refused(op: &Op, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused { op: op.name().to_owned(), reason: reason.into() }
    }

    pub(crate) fn unavailable(place: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Unavailable { place: place.into(), source: crate::source::cause(source) }
    }
}

/// A share of traffic, written `10%`, `0.5%` or `12.34%`; in basis points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight(pub u32);

/// The text is no share of traffic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a weight: write 0% to 100%, with two digits after the point at the most")]
pub struct WeightError(String);

impl FromStr for Weight {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        let refuse = || WeightError(crate::name::quoted(text));
        let percent = text.strip_suffix('%').ok_or_else(refuse)?;
        let (whole, fraction) = percent.split_once('.').unwrap_or((percent, "0"));
        let digits = |part: &str, most| (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole, 3) || !digits(fraction, 2) {
            return Err(refuse());
        }
        let whole: u32 = whole.parse().map_err(|_| refuse())?;
        let tail: u32 = fraction.parse().map_err(|_| refuse())?;
        let weight = whole * 100 + if fraction.len() == 1 { tail * 10 } else { tail };
        if weight > FULL_WEIGHT_BP { Err(refuse()) } else { Ok(Self(weight)) }
    }
}

impl std::fmt::Display for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, fraction) = (self.0 / 100, self.0 % 100);
        match fraction {
            0 => f.pad(&format!("{whole}%")),
            _ if fraction % 10 == 0 => f.pad(&format!("{whole}.{}%", fraction / 10)),
            _ => f.pad(&format!("{whole}.{fraction:02}%")),
        }
    }
}

#[cfg(test)]
mod tests;
