//! Versions that ran when the gateway crashed: they have to pass a trial anew before they serve, and what ran in a second crash is kept out
//! until an operator says otherwise.
//!
//! Several versions may have run in the same crashes, and the busiest one is in most of them whoever's fault they are. So only as many are
//! kept out as it takes to explain what happens twice: first those that ran in a crash all alone, then those that survived the fewest runs.
//! Who else ran then is clear, unless crashes go on without the one that is kept out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bascule_registry::{Generation, ModelName};
use bascule_serving::{Trial, TrialFailure, TrialJob, TrialReport, Wanted};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::board::{NAME_BYTES, Running};
use crate::trial::Trials;

/// Crashes that lie further apart are not taken for one cause.
const MEMORY: TimeDelta = TimeDelta::hours(24);

/// A version that ran in so many crashes which nobody else explains is kept out.
const TOO_MANY: u32 = 2;

/// How long a suspect's trial runs each batch size: longer than another's, for it may crash now and then only.
const MEASURE: Duration = Duration::from_secs(1);

/// One version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Suspect {
    /// Its model, or the beginning of its name where that is all that is known.
    model: String,
    /// Whether that is the whole name for sure.
    is_whole: bool,
    /// In how many crashes it ran, where it is kept out for them.
    kept_out: Option<u32>,
}

impl Suspect {
    fn is_of(&self, model: &ModelName) -> bool {
        let is_cut = !self.is_whole && self.model.len() == NAME_BYTES;
        self.model == model.as_str() || is_cut && model.as_str().starts_with(&self.model)
    }
}

/// One crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Crash {
    at: DateTime<Utc>,
    /// What ran, by digest: the runs that it had survived by then.
    ran: BTreeMap<String, u64>,
    /// Whether nothing else did.
    alone: bool,
}

impl Crash {
    fn has_any<T>(&self, versions: &BTreeMap<String, T>) -> bool {
        self.ran.keys().any(|digest| versions.contains_key(digest))
    }
}

/// What is held against a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Clear,
    Suspected,
    Quarantined { crashes: u32 },
}

/// What is known of crashes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// Oldest first.
    crashes: Vec<Crash>,
    /// By digest.
    versions: BTreeMap<String, Suspect>,
    /// What ran in the crash after which this gateway was started.
    #[serde(skip)]
    fresh: BTreeSet<String>,
}

impl Known {
    /// Forgets what is too old to count, but nobody who is kept out.
    fn forget(&mut self, now: DateTime<Utc>) {
        self.crashes.retain(|crash| now - crash.at < MEMORY && !crash.ran.is_empty());
        let ran: BTreeSet<&String> = self.crashes.iter().flat_map(|crash| crash.ran.keys()).collect();
        self.versions.retain(|digest, suspect| suspect.kept_out.is_some() || ran.contains(digest));
    }

    /// In how many crashes a version ran, and how many runs it survived.
    fn record_of(&self, digest: &str) -> (u32, u64) {
        let ran = self.crashes.iter().filter_map(|crash| crash.ran.get(digest));
        ran.fold((0, 0), |(crashes, runs), more| (crashes + 1, u64::saturating_add(runs, *more)))
    }

    /// The versions that explain every crash that is not the only one of its kind, with the number of those that each ran in.
    fn culprits(&self) -> BTreeMap<String, u32> {
        let mut found = BTreeMap::new();
        loop {
            let open: Vec<&Crash> = self.crashes.iter().filter(|crash| !crash.has_any(&found)).collect();
            let times = |digest: &str| open.iter().filter(|crash| crash.ran.contains_key(digest)).count();
            let candidates = self.versions.keys().filter(|digest| times(digest) >= TOO_MANY as usize);
            let order = |digest: &&String| {
                let was_alone = self.crashes.iter().any(|crash| crash.alone && crash.ran.contains_key(*digest));
                let is_out = self.versions.get(*digest).is_some_and(|suspect| suspect.kept_out.is_some());
                let (crashes, runs) = self.record_of(digest);
                (!was_alone, runs, Reverse(crashes), !is_out)
            };
            let Some(digest) = candidates.min_by_key(order) else { break };
            found.insert(digest.clone(), self.record_of(digest).0);
        }
        // Whoever was found later may explain all that one was found for.
        for digest in found.keys().cloned().collect::<Vec<_>>() {
            let others: BTreeMap<_, _> = found.iter().filter(|(other, _)| **other != digest).collect();
            let explained = |crash: &Crash| crash.ran.keys().any(|ran| others.contains_key(ran));
            if self.crashes.iter().filter(|crash| crash.ran.contains_key(&digest)).all(explained) {
                found.remove(&digest);
            }
        }
        found
    }

    /// Keeps out whoever explains the crashes, and lets those in whose crashes somebody else explains by now.
    fn judge(&mut self) {
        let culprits = self.culprits();
        for (digest, suspect) in &mut self.versions {
            let mut own = self.crashes.iter().filter(|crash| crash.ran.contains_key(digest)).peekable();
            let Suspect { model, kept_out, .. } = suspect;
            if let Some(crashes) = culprits.get(digest) {
                *kept_out = Some(*crashes);
                tracing::error!(model, crashes, "it ran in crashes of the gateway again, and is kept out");
            } else if kept_out.is_some() && own.peek().is_some() && own.all(|crash| crash.has_any(&culprits)) {
                *kept_out = None;
                tracing::warn!(model, "it is let in again: another one ran in the same crashes, and in more");
            }
        }
    }

    fn standing(&self, digest: &str) -> Standing {
        let out: BTreeMap<String, ()> = self
            .versions
            .iter()
            .filter(|(_, suspect)| suspect.kept_out.is_some())
            .map(|(digest, _)| (digest.clone(), ()))
            .collect();
        if let Some(crashes) = self.versions.get(digest).and_then(|suspect| suspect.kept_out) {
            return Standing::Quarantined { crashes };
        }
        let counts = |crash: &Crash| crash.ran.contains_key(digest) && !crash.has_any(&out);
        let is_suspected = self.fresh.contains(digest) || self.crashes.iter().any(counts);
        if is_suspected { Standing::Suspected } else { Standing::Clear }
    }
}

/// Every suspect, kept in a file.
pub(super) struct Suspects {
    file: PathBuf,
    known: Mutex<Known>,
}

impl Suspects {
    /// Those that the file names, without those that are forgotten by now. One that can't be read holds nothing against anybody.
    pub(super) fn read(file: PathBuf, now: DateTime<Utc>) -> Suspects {
        let text = std::fs::read(&file).unwrap_or_default();
        let mut known: Known = serde_json::from_slice(&text).unwrap_or_default();
        known.forget(now);
        Suspects { file, known: Mutex::new(known) }
    }

    /// The gateway crashed while these ran.
    pub(super) fn note(&self, running: Vec<Running>, now: DateTime<Utc>) {
        if running.is_empty() {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut crash = Crash { at: now, ran: BTreeMap::new(), alone: running.len() == 1 };
        for Running { digest, model, runs } in running {
            tracing::warn!(model, runs, "it ran when the gateway crashed, and is tried again before it serves");
            crash.ran.insert(digest.clone(), runs);
            known.fresh.insert(digest.clone());
            known.versions.entry(digest).or_insert(Suspect { model, is_whole: false, kept_out: None });
        }
        known.crashes.push(crash);
        known.judge();
        self.keep(&known);
    }

    fn standing(&self, generation: &Generation) -> Standing {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = generation.digest.to_string();
        if let Some(suspect) = known.versions.get_mut(&digest) {
            // On the board names are cut off.
            suspect.model = generation.key.model.to_string();
            suspect.is_whole = true;
        }
        known.standing(&digest)
    }

    /// Holds nothing more against a model. Crashes that it was kept out for are held against nobody: it was thought to explain them.
    fn forgive(&self, model: &ModelName) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let its_own = known.versions.iter().filter(|(_, suspect)| suspect.is_of(model));
        let its_own: BTreeMap<String, Suspect> = its_own.map(|(digest, suspect)| (digest.clone(), suspect.clone())).collect();
        if its_own.is_empty() {
            return;
        }
        let Known { crashes, versions, fresh } = &mut *known;
        versions.retain(|digest, _| !its_own.contains_key(digest));
        fresh.retain(|digest| !its_own.contains_key(digest));
        let out =
            its_own.iter().filter(|(_, suspect)| suspect.kept_out.is_some()).map(|(digest, _)| (digest.clone(), ())).collect();
        crashes.retain(|crash| !crash.has_any(&out));
        crashes.iter_mut().for_each(|crash| crash.ran.retain(|digest, _| !its_own.contains_key(digest)));
        self.keep(&known);
    }

    fn keep(&self, known: &Known) {
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
    fn admit(&self, generation: &Generation) -> Result<(), TrialFailure> {
        let Standing::Quarantined { crashes } = self.suspects.standing(generation) else { return Ok(()) };
        let model = &generation.key.model;
        let cause = format!(
            "it ran in {crashes} crashes of the gateway within a day and is kept out; `bascule load {model}` lets it in again"
        );
        Err(TrialFailure { step: "quarantine".to_owned(), cause })
    }

    fn known(&self, job: &TrialJob, runtime: &str) -> Option<TrialReport> {
        let trials = self.trials.as_ref()?;
        if self.suspects.standing(&job.generation) == Standing::Clear { trials.known(job, runtime) } else { None }
    }

    fn try_out(
        &self,
        job: &TrialJob,
        runtime: &str,
        estimate_bytes: u64,
        wanted: &Wanted,
    ) -> Result<Option<TrialReport>, TrialFailure> {
        let Some(trials) = &self.trials else { return Ok(None) };
        if self.suspects.standing(&job.generation) == Standing::Suspected {
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

    /// A state directory that outlives gateways.
    struct History {
        folder: tempfile::TempDir,
    }

    fn history() -> History {
        History { folder: tempfile::tempdir().unwrap() }
    }

    fn hour(hour: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::hours(hour)
    }

    impl History {
        /// A gateway that is started so many hours later, after a crash in which these ran that had survived so many runs.
        fn after(&self, at: i64, crash: &[(&str, u64)]) -> Suspects {
            let suspects = Suspects::read(self.folder.path().join("suspects.json"), hour(at));
            let running = crash.iter().map(|(model, runs)| Running {
                digest: generation(model, 1).digest.to_string(),
                model: model[..model.len().min(NAME_BYTES)].to_owned(),
                runs: *runs,
            });
            suspects.note(running.collect(), hour(at));
            suspects
        }
    }

    impl Suspects {
        /// `.` for a model that is clear, `?` for a suspect, `x` for one that is kept out.
        fn of(&self, models: &[&str]) -> String {
            let each = models.iter().map(|model| match self.standing(&generation(model, 1)) {
                Standing::Clear => '.',
                Standing::Suspected => '?',
                Standing::Quarantined { .. } => 'x',
            });
            each.collect()
        }
    }

    #[test]
    fn a_second_crash_within_a_day_is_one_too_many() {
        let history = history();
        let models = ["alpha", "beta", "gamma"];
        assert_eq!(history.after(0, &[("alpha", 0), ("beta", 0)]).of(&models), "??.");
        assert_eq!(history.after(23, &[("alpha", 0)]).of(&models), "x..", "alpha explains both");
        assert_eq!(history.after(400, &[]).of(&models), "x..", "it is kept out for as long as it takes");
        let gate = Gate { suspects: history.after(401, &[]), trials: None };
        let refused = gate.admit(&generation("alpha", 1)).unwrap_err();
        assert_eq!(refused.step, "quarantine");
        assert!(refused.cause.starts_with("it ran in 2 crashes"), "{}", refused.cause);
        assert!(refused.cause.ends_with("`bascule load alpha` lets it in again"), "{}", refused.cause);
        gate.forgive(&"alpha".parse().unwrap());
        assert_eq!(gate.admit(&generation("alpha", 1)), Ok(()));
        assert_eq!(history.after(402, &[]).of(&models), "...", "and that is kept");
        assert_eq!(history.after(500, &[("beta", 0)]).of(&models), ".?.");
        assert_eq!(history.after(524, &[("beta", 0)]).of(&models), ".?.", "a day has passed");
    }

    #[test]
    fn who_is_always_busy_is_not_kept_out_with_the_culprit() {
        let history = history();
        let models = ["busy", "new", "newer"];
        assert_eq!(history.after(0, &[("busy", 90_000), ("new", 3)]).of(&models), "??.");
        assert_eq!(history.after(1, &[("busy", 50_000), ("new", 0)]).of(&models), "?x.", "it ran in the last crash");
        assert_eq!(history.after(2, &[]).of(&models), ".x.");
        assert_eq!(history.after(3, &[("busy", 70_000), ("newer", 9)]).of(&models), "?x?", "what is explained does not count");
        assert_eq!(history.after(4, &[("busy", 80_000), ("newer", 9)]).of(&models), "?xx");
        // Alone it has nobody else to blame, and nobody else has done anything.
        assert_eq!(history.after(5, &[("busy", 4000)]).of(&models), "x..");
    }

    #[test]
    fn who_is_kept_out_is_let_in_where_crashes_go_on_with_another() {
        let history = history();
        let models = ["a", "b", "c"];
        history.after(0, &[("a", 10), ("b", 5)]);
        assert_eq!(history.after(1, &[("a", 10), ("b", 5)]).of(&models), "?x.");
        assert_eq!(history.after(2, &[("a", 10), ("c", 20)]).of(&models), "?x?", "once is not enough");
        assert_eq!(history.after(3, &[("a", 10), ("c", 20)]).of(&models), "x.?", "a ran in all of them");
    }

    #[test]
    fn names_that_the_board_has_cut_are_forgiven_by_their_beginning() {
        let history = history();
        let (long, other) = ("a-model-whose-name-is-longer-than-its-room", "a-model-whose-name");
        history.after(0, &[(long, 0)]);
        let suspects = history.after(1, &[(long, 0)]);
        suspects.forgive(&other.parse().unwrap());
        assert_eq!(history.after(1, &[]).of(&[long]), "x", "that is another one");
        history.after(1, &[]).forgive(&long.parse().unwrap());
        assert_eq!(history.after(1, &[]).of(&[long]), ".");
    }
}
