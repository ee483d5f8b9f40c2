//! What a version has done: counts and times, for statistics calls and `status`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Nanoseconds in all.
#[derive(Debug, Default)]
struct AtomicTime(AtomicU64);

impl AtomicTime {
    fn add(&self, duration: Duration) {
        // Most requests wait for nothing, and are neither joined nor split.
        if !duration.is_zero() {
            self.0.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    fn phase(&self, count: u64) -> Phase {
        Phase { count, ns: self.0.load(Ordering::Relaxed) }
    }
}

#[derive(Debug, Default)]
struct AtomicTimes {
    input: AtomicTime,
    infer: AtomicTime,
    output: AtomicTime,
}

impl AtomicTimes {
    fn add(&self, times: &RunTimes) {
        self.input.add(times.input);
        self.infer.add(times.infer);
        self.output.add(times.output);
    }
}

/// Runs of one batch size.
#[derive(Debug, Default)]
struct AtomicBatch {
    runs: AtomicU64,
    times: AtomicTimes,
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
    successes: AtomicU64,
    success: AtomicTime,
    failures: AtomicU64,
    fail: AtomicTime,
    queue: AtomicTime,
    compute: AtomicTimes,
    rows: AtomicU64,
    runs: AtomicU64,
    nan_outputs: AtomicU64,
    last_ms: AtomicU64,
    in_flight: AtomicU64,
    latency: Histogram,
    batches: Batches,
}

/// By [`batch_place`].
#[derive(Debug)]
struct Batches(Box<[AtomicBatch]>);

impl Default for Batches {
    fn default() -> Self {
        Batches((0..=batch_place(u32::MAX)).map(|_| AtomicBatch::default()).collect())
    }
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
    /// Outputs of requests that had NaN among their first 1,024 elements.
    pub nan_outputs: u64,
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

/// Where runs of so many rows are counted.
fn batch_place(rows: u32) -> usize {
    let place = match rows {
        exact if exact <= EXACT_BATCH_SIZES => exact,
        // Those up to the next power of two have as many leading zeros as the last exact size, when one is taken off.
        larger => EXACT_BATCH_SIZES + 1 + EXACT_BATCH_SIZES.leading_zeros() - (larger - 1).leading_zeros(),
    };
    place as usize
}

/// The size by which a place is shown.
fn batch_size(place: usize) -> u32 {
    match u32::try_from(place).unwrap_or(u32::MAX) {
        exact if exact <= EXACT_BATCH_SIZES => exact,
        larger => EXACT_BATCH_SIZES.checked_shl(larger - EXACT_BATCH_SIZES).filter(|size| *size != 0).unwrap_or(u32::MAX),
    }
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
        self.successes.fetch_add(1, Ordering::Relaxed);
        self.success.add(total);
        self.latency.record(total);
        self.queue.add(queued);
        self.compute.add(times);
    }

    pub(crate) fn failed(&self, total: Duration) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.fail.add(total);
    }

    pub(crate) fn ran(&self, rows: u32, times: &RunTimes) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(u64::from(rows), Ordering::Relaxed);
        self.last_ms.store(unix_millis(), Ordering::Relaxed);
        let batch = &self.batches.0[batch_place(rows)];
        batch.runs.fetch_add(1, Ordering::Relaxed);
        batch.times.add(times);
    }

    pub(crate) fn had_nan(&self, outputs: u64) {
        self.nan_outputs.fetch_add(outputs, Ordering::Relaxed);
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> Snapshot {
        let successes = self.successes.load(Ordering::Relaxed);
        Snapshot {
            success: self.success.phase(successes),
            fail: self.fail.phase(self.failures.load(Ordering::Relaxed)),
            queue: self.queue.phase(successes),
            compute_input: self.compute.input.phase(successes),
            compute_infer: self.compute.infer.phase(successes),
            compute_output: self.compute.output.phase(successes),
            inference_count: self.rows.load(Ordering::Relaxed),
            execution_count: self.runs.load(Ordering::Relaxed),
            nan_outputs: self.nan_outputs.load(Ordering::Relaxed),
            last_inference_ms: self.last_ms.load(Ordering::Relaxed),
            in_flight: self.in_flight(),
            latency: self.latency.quantiles([0.5, 0.99]),
            batches: self.batches.read(),
        }
    }
}

impl Batches {
    fn read(&self) -> BTreeMap<u32, BatchStats> {
        let read = |(place, batch): (usize, &AtomicBatch)| {
            let runs = batch.runs.load(Ordering::Relaxed);
            let stats = BatchStats {
                compute_input: batch.times.input.phase(runs),
                compute_infer: batch.times.infer.phase(runs),
                compute_output: batch.times.output.phase(runs),
            };
            (runs > 0).then(|| (batch_size(place), stats))
        };
        self.0.iter().enumerate().filter_map(read).collect()
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
