//! Versions that ran when the gateway crashed: they have to pass a trial anew before they serve, and those that ran in a second crash are
//! kept out until an operator says otherwise.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bascule_registry::ModelName;
use bascule_serving::{Trial, TrialFailure, TrialJob, TrialReport, Wanted};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::board::Running;
use crate::trial::Trials;

/// Crashes that lie further apart are not taken for one cause.
const MEMORY: TimeDelta = TimeDelta::hours(24);

/// A version that ran in so many crashes is kept out.
const TOO_MANY: u32 = 2;

/// How long a suspect's trial runs each batch size: longer than another's, for it may crash now and then only.
const MEASURE: Duration = Duration::from_secs(1);

/// One version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Suspect {
    /// Its model, or the beginning of its name where that is all that is known.
    model: String,
    /// In how many crashes it ran.
    crashes: u32,
    /// When the last of them was found.
    last: DateTime<Utc>,
}

/// What is held against a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Clear,
    Suspected,
    Quarantined { crashes: u32 },
}

/// Every suspect by digest, kept in a file.
pub(super) struct Suspects {
    file: PathBuf,
    known: Mutex<BTreeMap<String, Suspect>>,
}

impl Suspects {
    /// Those that the file names, without those that are forgotten by now. One that can't be read holds nothing against anybody.
    pub(super) fn read(file: PathBuf, now: DateTime<Utc>) -> Suspects {
        let text = std::fs::read(&file).unwrap_or_default();
        let mut known: BTreeMap<String, Suspect> = serde_json::from_slice(&text).unwrap_or_default();
        known.retain(|_, suspect| now - suspect.last < MEMORY);
        Suspects { file, known: Mutex::new(known) }
    }

    /// The gateway crashed while these ran.
    pub(super) fn note(&self, running: Vec<Running>, now: DateTime<Utc>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for Running { digest, model } in running {
            let suspect = known.entry(digest).or_insert(Suspect { model, crashes: 0, last: now });
            suspect.crashes += 1;
            suspect.last = now;
            let Suspect { model, crashes, .. } = suspect;
            tracing::warn!(model, crashes, "it ran when the gateway crashed, and is tried again before it serves");
        }
        self.keep(&known);
    }

    fn standing(&self, job: &TrialJob) -> Standing {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get_mut(&job.generation.digest.to_string()) {
            None => Standing::Clear,
            Some(suspect) => {
                // On the board names are cut off.
                suspect.model = job.generation.key.model.to_string();
                match suspect.crashes {
                    crashes @ TOO_MANY.. => Standing::Quarantined { crashes },
                    _ => Standing::Suspected,
                }
            }
        }
    }

    /// Holds nothing more against a model.
    fn forgive(&self, model: &ModelName) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.len();
        known.retain(|_, suspect| suspect.model != model.as_str());
        if known.len() < before {
            self.keep(&known);
        }
    }

    fn keep(&self, known: &BTreeMap<String, Suspect>) {
        let partial = self.file.with_extension("partial");
        let written = serde_json::to_vec(known)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&partial, text))
            .and_then(|()| std::fs::rename(&partial, &self.file));
        if let Err(error) = written {
            tracing::warn!(%error, file = %self.file.display(), "which versions ran in a crash can't be kept");
        }
    }
}

/// Trials that suspects have to pass anew, and that those in quarantine don't get.
pub(super) struct Gate {
    pub(super) suspects: Suspects,
    /// Without them nobody can clear a suspect, and it is let through until it runs in another crash.
    pub(super) trials: Option<Trials>,
}

impl Trial for Gate {
    fn try_out(
        &self,
        job: &TrialJob,
        runtime: &str,
        estimate_bytes: u64,
        wanted: &Wanted,
    ) -> Result<Option<TrialReport>, TrialFailure> {
        let standing = self.suspects.standing(job);
        if let Standing::Quarantined { crashes } = standing {
            let cause = format!(
                "it ran in {crashes} crashes of the gateway within a day and is kept out; `bascule load {}` lets it in again",
                job.generation.key.model
            );
            return Err(TrialFailure { step: "quarantine".to_owned(), cause });
        }
        let Some(trials) = &self.trials else { return Ok(None) };
        if standing == Standing::Suspected {
            let job = TrialJob { measure: MEASURE, ..job.clone() };
            return trials.try_anew(&job, runtime, estimate_bytes, wanted).map(Some);
        }
        trials.try_out(job, runtime, estimate_bytes, wanted)
    }

    fn forgive(&self, model: &ModelName) {
        self.suspects.forgive(model);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::tests::generation;

    #[test]
    fn a_second_crash_within_a_day_is_one_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("suspects.json");
        let hour = |hour: i64| DateTime::UNIX_EPOCH + TimeDelta::hours(hour);
        let job = |model: &str| TrialJob::new(generation(model, 1).into(), std::sync::Arc::default(), folder.path());
        let running = |model: &str| Running { digest: generation(model, 1).digest.to_string(), model: model[..1].to_owned() };
        let after = |crash: &[&str], at: i64| {
            let suspects = Suspects::read(file.clone(), hour(at));
            suspects.note(crash.iter().map(|model| running(model)).collect(), hour(at));
            suspects
        };
        let first = after(&["alpha", "beta"], 0);
        assert_eq!([first.standing(&job("alpha")), first.standing(&job("gamma"))], [Standing::Suspected, Standing::Clear]);
        let second = after(&["alpha"], 23);
        assert_eq!(second.standing(&job("alpha")), Standing::Quarantined { crashes: 2 });
        assert_eq!(second.standing(&job("beta")), Standing::Suspected);
        let later = after(&[], 25);
        assert_eq!(later.standing(&job("beta")), Standing::Clear, "a day has passed");
        let gate = Gate { suspects: later, trials: None };
        let refused = gate.try_out(&job("alpha"), "fake", 0, &Wanted::default()).unwrap_err();
        assert_eq!(refused.step, "quarantine");
        assert!(refused.cause.ends_with("`bascule load alpha` lets it in again"), "{}", refused.cause);
        gate.forgive(&"alpha".parse().unwrap());
        assert_eq!(gate.try_out(&job("alpha"), "fake", 0, &Wanted::default()), Ok(None));
        assert_eq!(after(&[], 26).standing(&job("alpha")), Standing::Clear, "and that is kept");
    }
}
