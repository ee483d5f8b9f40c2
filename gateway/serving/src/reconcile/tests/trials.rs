//! Trials beside everything else: what waits for them, and when they are made again.

use super::*;
use crate::reconcile::loads::MAX_TRYING;
use crate::trial::{Trial, TrialFailure, TrialJob, TrialReport, Wanted};

/// Knows what was found of some models, and has never tried another.
struct Knowing(&'static str);

impl Trial for Knowing {
    fn known(&self, job: &TrialJob, _: &str) -> Option<TrialReport> {
        let is_known = job.generation.key.model.as_str() == self.0;
        is_known.then(|| TrialReport { memory_bytes: Some(7), peak_bytes: Some(7), ..TrialReport::default() })
    }

    fn try_out(&self, _: &TrialJob, _: &str, _: u64, _: &Wanted) -> Result<Option<TrialReport>, TrialFailure> {
        Err(TrialFailure { step: "golden".to_owned(), cause: "not as it should be".to_owned() })
    }
}

#[test]
fn trials_that_hang_hold_up_nothing_that_is_known() {
    let mut bench = bench();
    bench.trial = Some(Arc::new(Knowing("known")));
    for model in 0..2 * MAX_VERIFYING {
        bench.publish(&format!("m{model}"), 1, &constant(1.0));
    }
    bench.look();
    let hangs = |work: &Effect| matches!(work, Effect::Try { .. });
    while let Some(at) = bench.work.iter().position(|work| !hangs(work)) {
        let effect = bench.work.remove(at);
        bench.perform(effect);
    }
    assert_eq!(bench.work.len(), MAX_TRYING);
    bench.publish("known", 1, &constant(1.0));
    bench.look();
    while let Some(at) = bench.work.iter().position(|work| !hangs(work)) {
        let effect = bench.work.remove(at);
        bench.perform(effect);
    }
    assert_eq!(bench.stages("known"), "1 ready*");
    assert_eq!(bench.live_sessions(), 1);
    bench.run();
    assert_eq!(bench.live_sessions(), 1, "none of the others passes");
}

#[test]
fn whatever_a_trial_finds_is_not_tried_again_soon() {
    let mut bench = bench();
    bench.trial = Some(Arc::new(Knowing("nobody")));
    bench.publish("m", 1, &constant(1.0));
    bench.look();
    bench.run();
    let status = bench.status("m");
    assert_eq!(status.versions[0].failed_step.as_deref(), Some("golden"));
    let retry = status.versions[0].retry_at.unwrap() - bench.now().utc;
    assert!(retry >= chrono::TimeDelta::minutes(10), "{retry}");
}
