//! The states that a version lives through, and the one table of the ways between them.
//!
//! Only the reconciler moves a version, and only through [`VersionState::moved_to`]: a way that is not in the table is a mistake of
//! ours and is refused.

use std::fmt;
use std::time::Duration;

/// Where a version is in its life, without the details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// It should be loaded and waits for its turn.
    Pending,
    /// Its files are brought into the cache and compared with its manifest.
    Fetching,
    /// Its format, options and golden samples are read and its memory is estimated; or it waits for that memory.
    Verifying,
    /// Sessions are made.
    Loading,
    /// Warm-up and golden samples run.
    Warming,
    /// It answers.
    Ready,
    /// It has left the table; what was asked of it before is still answered.
    Draining,
    /// Its memory is free again.
    Unloaded,
    /// It could not be loaded, and is tried again while it is aspired.
    Failed,
}

impl Stage {
    /// Every stage, in the order of a life.
    pub const ALL: [Stage; 9] = [
        Stage::Pending,
        Stage::Fetching,
        Stage::Verifying,
        Stage::Loading,
        Stage::Warming,
        Stage::Ready,
        Stage::Draining,
        Stage::Unloaded,
        Stage::Failed,
    ];

    /// The name in status, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Pending => "pending",
            Stage::Fetching => "fetching",
            Stage::Verifying => "verifying",
            Stage::Loading => "loading",
            Stage::Warming => "warming",
            Stage::Ready => "ready",
            Stage::Draining => "draining",
            Stage::Unloaded => "unloaded",
            Stage::Failed => "failed",
        }
    }

    /// What the protocol calls it.
    pub const fn outward(self) -> Outward {
        match self {
            Stage::Pending | Stage::Fetching | Stage::Verifying | Stage::Loading | Stage::Warming => Outward::Loading,
            Stage::Ready => Outward::Ready,
            Stage::Draining => Outward::Unloading,
            Stage::Unloaded | Stage::Failed => Outward::Unavailable,
        }
    }

    /// The table of legal transitions. A load that is under way runs to its end: it can't be stopped, so it has no way out but
    /// ready or failed.
    const fn successors(self) -> &'static [Stage] {
        match self {
            Stage::Pending => &[Stage::Fetching, Stage::Failed, Stage::Unloaded],
            Stage::Fetching => &[Stage::Verifying, Stage::Failed, Stage::Unloaded],
            Stage::Verifying => &[Stage::Loading, Stage::Failed, Stage::Unloaded],
            Stage::Loading => &[Stage::Warming, Stage::Failed],
            Stage::Warming => &[Stage::Ready, Stage::Failed],
            Stage::Ready => &[Stage::Draining],
            Stage::Draining => &[Stage::Unloaded],
            Stage::Unloaded => &[],
            Stage::Failed => &[Stage::Pending, Stage::Unloaded],
        }
    }

    /// Whether a version may go from here to there.
    pub fn may_become(self, next: Stage) -> bool {
        self.successors().contains(&next)
    }

    /// Whether a load is on its way, its turn included.
    pub const fn is_loading(self) -> bool {
        matches!(self.outward(), Outward::Loading)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A state as the protocol's repository index names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outward {
    /// It answers.
    Ready,
    /// It will, if all goes well.
    Loading,
    /// It is on its way out.
    Unloading,
    /// It does not answer.
    Unavailable,
}

impl Outward {
    /// Every state.
    pub const ALL: [Outward; 4] = [Outward::Ready, Outward::Loading, Outward::Unloading, Outward::Unavailable];

    /// The protocol's word.
    pub const fn name(self) -> &'static str {
        match self {
            Outward::Ready => "READY",
            Outward::Loading => "LOADING",
            Outward::Unloading => "UNLOADING",
            Outward::Unavailable => "UNAVAILABLE",
        }
    }
}

/// The step of a load that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailedStep {
    /// The model's settings could not be read.
    Settings,
    /// The files did not come, or are not what the manifest names.
    Fetching,
    /// No runtime, an unusable signature, unreadable golden samples, or a file that is no model.
    Verifying,
    /// It did not survive its trial.
    Trial,
    /// It ran when the gateway crashed, more than once, and no trial of it was made.
    Quarantine,
    /// It does not fit the memory budget.
    Memory,
    /// The runtime refused it.
    Loading,
    /// A warm-up run failed.
    Warming,
    /// It answers a golden sample otherwise than it should.
    Golden,
}

impl FailedStep {
    /// The name in status and logs.
    pub const fn name(self) -> &'static str {
        match self {
            FailedStep::Settings => "settings",
            FailedStep::Fetching => "fetching",
            FailedStep::Verifying => "verifying",
            FailedStep::Trial => "trial",
            FailedStep::Quarantine => "quarantine",
            FailedStep::Memory => "memory",
            FailedStep::Loading => "loading",
            FailedStep::Warming => "warming",
            FailedStep::Golden => "golden",
        }
    }
}

/// Why a load failed, and when it is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// At which step.
    pub step: FailedStep,
    /// What happened, with every cause behind it.
    pub cause: String,
    /// When it is tried again, on the engine's clock.
    pub retry_at: Duration,
    /// Attempts so far, this one included.
    pub attempts: u32,
}

/// Where a version is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionState {
    /// See [`Stage::Pending`].
    Pending,
    /// See [`Stage::Fetching`].
    Fetching,
    /// See [`Stage::Verifying`].
    Verifying,
    /// See [`Stage::Loading`].
    Loading,
    /// See [`Stage::Warming`].
    Warming,
    /// See [`Stage::Ready`].
    Ready,
    /// See [`Stage::Draining`].
    Draining,
    /// See [`Stage::Unloaded`].
    Unloaded,
    /// See [`Stage::Failed`].
    Failed(Failure),
}

/// A way that is not in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a version can't go from {from} to {to}")]
pub struct IllegalTransition {
    /// Where it is.
    pub from: Stage,
    /// Where it was to go.
    pub to: Stage,
}

impl VersionState {
    /// The state without the details.
    pub const fn stage(&self) -> Stage {
        match self {
            VersionState::Pending => Stage::Pending,
            VersionState::Fetching => Stage::Fetching,
            VersionState::Verifying => Stage::Verifying,
            VersionState::Loading => Stage::Loading,
            VersionState::Warming => Stage::Warming,
            VersionState::Ready => Stage::Ready,
            VersionState::Draining => Stage::Draining,
            VersionState::Unloaded => Stage::Unloaded,
            VersionState::Failed(_) => Stage::Failed,
        }
    }

    /// The next state, where the table has the way.
    ///
    /// # Errors
    /// Names both ends of a way that is not there; the version stays where it is.
    pub fn moved_to(&self, next: VersionState) -> Result<VersionState, IllegalTransition> {
        let (from, to) = (self.stage(), next.stage());
        if from.may_become(to) { Ok(next) } else { Err(IllegalTransition { from, to }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(stage: Stage) -> VersionState {
        match stage {
            Stage::Pending => VersionState::Pending,
            Stage::Fetching => VersionState::Fetching,
            Stage::Verifying => VersionState::Verifying,
            Stage::Loading => VersionState::Loading,
            Stage::Warming => VersionState::Warming,
            Stage::Ready => VersionState::Ready,
            Stage::Draining => VersionState::Draining,
            Stage::Unloaded => VersionState::Unloaded,
            Stage::Failed => VersionState::Failed(Failure {
                step: FailedStep::Loading,
                cause: "no".to_owned(),
                retry_at: Duration::ZERO,
                attempts: 1,
            }),
        }
    }

    /// Each row is a stage and its ways out, in the order of [`Stage::ALL`]: P F V L W R D U X (failed).
    const WAYS: [(&str, &str); 9] = [
        ("pending", ".F.....UX"),
        ("fetching", "..V....UX"),
        ("verifying", "...L...UX"),
        ("loading", "....W...X"),
        ("warming", ".....R..X"),
        ("ready", "......D.."),
        ("draining", ".......U."),
        ("unloaded", "........."),
        ("failed", "P......U."),
    ];

    #[test]
    fn every_pair_of_states_is_a_way_or_refused() {
        for (from, (name, ways)) in Stage::ALL.into_iter().zip(WAYS) {
            assert_eq!(from.name(), name);
            for (to, way) in Stage::ALL.into_iter().zip(ways.chars()) {
                let moved = state(from).moved_to(state(to));
                match way {
                    '.' => assert_eq!(moved, Err(IllegalTransition { from, to })),
                    _ => assert_eq!(moved, Ok(state(to)), "{from} to {to}"),
                }
            }
        }
    }

    #[test]
    fn every_way_but_the_end_leads_on_and_ready_is_reached_only_after_warm_up() {
        for stage in Stage::ALL {
            assert_eq!(stage.successors().is_empty(), stage == Stage::Unloaded, "{stage}");
            assert_eq!(stage.may_become(Stage::Ready), stage == Stage::Warming, "{stage}");
            assert_eq!(stage.may_become(Stage::Draining), stage == Stage::Ready, "{stage}");
        }
    }

    #[test]
    fn the_protocol_sees_four_states() {
        let outward: Vec<&str> = Stage::ALL.into_iter().map(|stage| stage.outward().name()).collect();
        let loading = ["LOADING"; 5];
        assert_eq!(outward, [&loading[..], &["READY", "UNLOADING", "UNAVAILABLE", "UNAVAILABLE"]].concat());
    }
}
