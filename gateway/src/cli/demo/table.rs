//! What came of the demo, as a table, and whether it went well.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::super::output::{micros, rows, table};
use super::clients::{Answered, Tally};
use super::repository::Stage;

/// Everything that happened.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// From the publish until the new version was served, in milliseconds.
    swap_ms: u128,
    phases: Vec<Phase>,
    versions: Vec<Version>,
    /// The first few, as they were told.
    failures: Vec<String>,
}

/// A part of the traffic.
#[derive(Debug, Serialize)]
struct Phase {
    name: &'static str,
    requests: usize,
    failed: usize,
    answered_by: BTreeMap<u64, usize>,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
}

/// How one version did.
#[derive(Debug, Serialize)]
struct Version {
    version: u64,
    requests: usize,
    /// Pictures of the test set that it was sent.
    samples: usize,
    /// The share of them that it got right.
    accuracy: Option<f64>,
    /// What its manifest promises.
    published_accuracy: Option<f64>,
}

/// Failures that are shown.
const SHOWN_FAILURES: usize = 3;

impl Report {
    pub(super) fn of(stage: &Stage, tally: &Tally, (began, served): (Instant, Instant)) -> Report {
        let phase = |name, within: &dyn Fn(Instant) -> bool| Phase::of(name, tally.iter().filter(|one| within(one.sent)));
        let phases = vec![
            phase("before", &|sent| sent < began),
            phase("during", &|sent| began <= sent && sent < served),
            phase("after", &|sent| served <= sent),
            phase("all", &|_| true),
        ];
        let published = |metrics: &BTreeMap<String, f64>| metrics.get("accuracy").copied();
        let versions =
            [&stage.first, &stage.second].map(|manifest| Version::of(manifest.version, published(&manifest.metrics), tally));
        let failures = tally.iter().filter_map(|one| one.answer.as_ref().err()).take(SHOWN_FAILURES).cloned();
        Report {
            swap_ms: served.duration_since(began).as_millis(),
            phases,
            versions: versions.into(),
            failures: failures.collect(),
        }
    }

    /// What went wrong.
    pub(super) fn verdict(&self) -> Result<(), String> {
        let failed = self.phases.last().map_or(0, |all| all.failed);
        if failed > 0 {
            return Err(format!("{failed} requests failed, for example: {}", self.failures.join("; ")));
        }
        match self.versions.iter().find(|version| version.requests == 0) {
            Some(silent) => Err(format!("version {} answered no request", silent.version)),
            None => Ok(()),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut traffic = table(["TRAFFIC", "REQUESTS", "FAILED", "ANSWERED BY", "P50", "P99"]);
        for phase in &self.phases {
            let by: Vec<String> = phase.answered_by.iter().map(|(version, count)| format!("version {version}: {count}")).collect();
            let time = |time: Option<u64>| time.map_or_else(|| "-".to_owned(), micros);
            traffic.add_row([
                phase.name.to_owned(),
                phase.requests.to_string(),
                phase.failed.to_string(),
                by.join(", "),
                time(phase.p50_us),
                time(phase.p99_us),
            ]);
        }
        let mut versions = table(["VERSION", "REQUESTS", "PICTURES", "ACCURACY", "AS PUBLISHED"]);
        for version in &self.versions {
            let share = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{:.2} %", share * 100.0));
            versions.add_row([
                version.version.to_string(),
                version.requests.to_string(),
                version.samples.to_string(),
                share(version.accuracy),
                share(version.published_accuracy),
            ]);
        }
        let requests = self.phases.last().map_or(0, |all| all.requests);
        let verdict = match self.verdict() {
            Ok(()) => format!("{requests} requests, none failed; the swap took {} ms from publish to traffic", self.swap_ms),
            Err(problem) => problem,
        };
        format!("{}\n\n{}\n\n{verdict}", rows(&traffic), rows(&versions))
    }
}

impl Phase {
    fn of<'a>(name: &'static str, answers: impl Iterator<Item = &'a Answered>) -> Phase {
        let mut phase = Phase { name, requests: 0, failed: 0, answered_by: BTreeMap::new(), p50_us: None, p99_us: None };
        let mut times = Vec::new();
        for one in answers {
            phase.requests += 1;
            match &one.answer {
                Ok((version, _)) => *phase.answered_by.entry(*version).or_default() += 1,
                Err(_) => phase.failed += 1,
            }
            times.push(one.micros);
        }
        times.sort_unstable();
        phase.p50_us = quantile(&times, 50);
        phase.p99_us = quantile(&times, 99);
        phase
    }
}

/// The smallest of these times that is not exceeded by so many percent of them.
fn quantile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

impl Version {
    fn of(version: u64, published_accuracy: Option<f64>, tally: &Tally) -> Version {
        let mut right: BTreeMap<usize, bool> = BTreeMap::new();
        let mut requests = 0;
        for one in tally {
            if let Ok((by, is_right)) = &one.answer
                && *by == version
            {
                requests += 1;
                // One wrong answer to a picture counts against all right ones.
                *right.entry(one.sample).or_insert(true) &= *is_right;
            }
        }
        let count = right.values().filter(|right| **right).count();
        let accuracy = (!right.is_empty()).then(|| count as f64 / right.len() as f64);
        Version { version, requests, samples: right.len(), accuracy, published_accuracy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(micros: u64, sample: usize, answer: Result<(u64, bool), &str>) -> Answered {
        Answered { sent: Instant::now(), micros, sample, answer: answer.map_err(str::to_owned) }
    }

    fn report(tally: &Tally) -> Report {
        let versions = [1, 2].map(|version| Version::of(version, None, tally));
        let failures = tally.iter().filter_map(|one| one.answer.clone().err()).collect();
        Report { swap_ms: 5, phases: vec![Phase::of("all", tally.iter())], versions: versions.into(), failures }
    }

    #[test]
    fn a_failed_request_or_a_silent_version_is_no_success() {
        let good = vec![answered(1, 0, Ok((1, true))), answered(2, 0, Ok((2, true)))];
        assert_eq!(report(&good).verdict(), Ok(()));
        assert!(report(&good).text().ends_with("2 requests, none failed; the swap took 5 ms from publish to traffic"));
        let failed = [good.clone(), vec![answered(3, 1, Err("503"))]].concat();
        assert_eq!(report(&failed).verdict(), Err("1 requests failed, for example: 503".into()));
        assert_eq!(report(&good[..1].to_vec()).verdict(), Err("version 2 answered no request".into()));
    }

    #[test]
    fn accuracy_counts_pictures_and_not_requests() {
        let tally = vec![
            answered(1, 0, Ok((1, true))),
            answered(1, 0, Ok((1, true))),
            answered(1, 1, Ok((1, false))),
            answered(1, 0, Ok((2, false))),
        ];
        let version = Version::of(1, None, &tally);
        assert_eq!((version.requests, version.samples, version.accuracy), (3, 2, Some(0.5)));
    }

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let times: Vec<u64> = (1..=200).collect();
        assert_eq!(
            (quantile(&times, 50), quantile(&times, 99), quantile(&[7], 99), quantile(&[], 50)),
            (Some(100), Some(198), Some(7), None)
        );
    }
}
