//! What a version has done: counts and times, for statistics calls and `status`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::histogram::Histogram;

/// Batch sizes up to this are counted one by one; a larger one as the next power of two, since callers choose it.
const EXACT_BATCH_SIZES: u32 = 128;

/// How often something happened and how long it took in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Phase {
    /// Times.
    pub count: u64,
    /// Nanoseconds in all.
    pub ns: u64,
}

#[derive(Debug, Default)]
struct AtomicPhase {
    count: AtomicU64,
    ns: AtomicU64,
}

impl AtomicPhase {
    fn add(&self, count: u64, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.count.fetch_add(count, Ordering::Relaxed);
        self.ns.fetch_add(nanos.saturating_mul(count), Ordering::Relaxed);
    }

    fn read(&self) -> Phase {
        Phase { count: self.count.load(Ordering::Relaxed), ns: self.ns.load(Ordering::Relaxed) }
    }
}

/// Runs of one batch size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct BatchStats {
    /// Joining the inputs.
    pub compute_input: Phase,
    /// Inside the session.
    pub compute_infer: Phase,
    /// Splitting the outputs.
    pub compute_output: Phase,
}

/// How long the parts of one run took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RunTimes {
    pub(crate) input: Duration,
    pub(crate) infer: Duration,
    pub(crate) output: Duration,
}

/// Counts and times of one version; every method may be called by any thread.
#[derive(Debug, Default)]
pub struct Stats {
    success: AtomicPhase,
    fail: AtomicPhase,
    queue: AtomicPhase,
    compute_input: AtomicPhase,
    compute_infer: AtomicPhase,
    compute_output: AtomicPhase,
    rows: AtomicU64,
    runs: AtomicU64,
    last_ms: AtomicU64,
    in_flight: AtomicU64,
    latency: Histogram,
    batches: Mutex<BTreeMap<u32, BatchStats>>,
}

/// A consistent enough copy of [`Stats`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Snapshot {
    /// Answered requests, from arrival at the version to the answer.
    pub success: Phase,
    /// Requests that the version failed to answer.
    pub fail: Phase,
    /// Waiting in the queue, by request.
    pub queue: Phase,
    /// Joining inputs, by request.
    pub compute_input: Phase,
    /// Inside the session, by request.
    pub compute_infer: Phase,
    /// Splitting outputs, by request.
    pub compute_output: Phase,
    /// Rows computed: a request of batch size 3 counts 3.
    pub inference_count: u64,
    /// Runs of a session.
    pub execution_count: u64,
    /// Unix time of the last run in milliseconds; 0 where there was none.
    pub last_inference_ms: u64,
    /// Requests that are waiting or running.
    pub in_flight: u64,
    /// Median and 99th percentile of the successful requests' times, at most 12.5 % above the truth.
    pub latency: Option<[Duration; 2]>,
    /// By batch size; beyond 128 by the power of two that is not below it.
    pub batches: BTreeMap<u32, BatchStats>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the protocol tells clients the time of day of the last run; nothing is decided by it"
)]
fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn counted_size(rows: u32) -> u32 {
    if rows <= EXACT_BATCH_SIZES { rows } else { rows.checked_next_power_of_two().unwrap_or(u32::MAX) }
}

impl Stats {
    pub(crate) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests that are waiting or running.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn succeeded(&self, total: Duration, queued: Duration, times: &RunTimes) {
        self.success.add(1, total);
        self.latency.record(total);
        self.queue.add(1, queued);
        self.compute_input.add(1, times.input);
        self.compute_infer.add(1, times.infer);
        self.compute_output.add(1, times.output);
    }

    pub(crate) fn failed(&self, total: Duration) {
        self.fail.add(1, total);
    }

    pub(crate) fn ran(&self, rows: u32, times: &RunTimes) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(u64::from(rows), Ordering::Relaxed);
        self.last_ms.store(unix_millis(), Ordering::Relaxed);
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = batches.entry(counted_size(rows)).or_default();
        for (phase, duration) in [
            (&mut batch.compute_input, times.input),
            (&mut batch.compute_infer, times.infer),
            (&mut batch.compute_output, times.output),
        ] {
            phase.count += 1;
            phase.ns += u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        }
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            success: self.success.read(),
            fail: self.fail.read(),
            queue: self.queue.read(),
            compute_input: self.compute_input.read(),
            compute_infer: self.compute_infer.read(),
            compute_output: self.compute_output.read(),
            inference_count: self.rows.load(Ordering::Relaxed),
            execution_count: self.runs.load(Ordering::Relaxed),
            last_inference_ms: self.last_ms.load(Ordering::Relaxed),
            in_flight: self.in_flight(),
            latency: self.latency.quantiles([0.5, 0.99]),
            batches: self.batches.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_that_choose_many_batch_sizes_make_few_entries() {
        let stats = Stats::default();
        (0..=100_000).chain([u32::MAX]).for_each(|rows| stats.ran(rows, &RunTimes::default()));
        let batches = stats.snapshot().batches;
        let sizes: Vec<u32> = batches.keys().copied().collect();
        let exact = 0..=EXACT_BATCH_SIZES;
        let powers = (8..=17).map(|power| 1 << power);
        assert_eq!(sizes, exact.chain(powers).chain([u32::MAX]).collect::<Vec<_>>());
        assert_eq!((batches[&128].compute_infer.count, batches[&256].compute_infer.count), (1, 128));
    }
}
