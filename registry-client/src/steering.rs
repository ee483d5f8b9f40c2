//! Names that a source keeps for the version that should be stable and for the one under test, and what is told back to it.
//!
//! What follows from a name that moves is the engine's to say, and deliberately absent.

use std::collections::BTreeSet;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::name::{ModelName, VersionNumber};
use crate::source::SourceError;

/// What a source says of a model's traffic: two names of its own, and where they point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steering {
    /// Who writes the journal where these names move: `mlflow`.
    pub by: String,
    /// The version that should be stable.
    pub stable: SteeringAlias,
    /// The version under test.
    pub candidate: SteeringAlias,
    /// The share that the candidate gets, in basis points: 1 to 9 999.
    pub candidate_weight_bp: u32,
}

/// A name and the version that it points at, whether that can be used or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteeringAlias {
    /// The name, as the source has it.
    pub name: String,
    /// `None` where the source has no such name for this model.
    pub version: Option<VersionNumber>,
}

/// What was decided on a version here, for the source that keeps names of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The version.
    pub version: VersionNumber,
    /// What became of it.
    pub verdict: Verdict,
    /// Who decided.
    pub by: String,
    /// When.
    pub at: DateTime<Utc>,
    /// Why; may be empty.
    pub reason: String,
    /// Where the source's name for stable may point, for this to move it: where it was last followed, and where decisions since then
    /// may have moved it. `None` stands for no such name. Anywhere else it was moved by others, who have the last word.
    pub stable_from: BTreeSet<Option<VersionNumber>>,
}

/// What became of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is stable.
    Promoted,
    /// It was the candidate and is dropped.
    Aborted,
    /// It was stable and is left for another one.
    RolledBack,
}

impl Verdict {
    /// The word in the source.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Aborted => "aborted",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// A source that takes note of what was decided here.
#[async_trait]
pub trait WriteBack: Send + Sync {
    /// Marks the version, and moves the source's names as was decided where nobody else has moved them since. Once more is as good as
    /// once; of a version that the source no longer has there is nothing to tell.
    ///
    /// # Errors
    /// The source can't be reached or refuses: worth another try.
    async fn tell(&self, model: &ModelName, decided: &Decided) -> Result<(), SourceError>;
}
