//! How long runs take, by the size of their inputs: what decides whether a request may run on the thread that brought it.
//!
//! A run that failed or was stopped tells only that runs may take as long as it did, never that they are short.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A run on the calling thread may take this long, as far as was measured.
pub(crate) const INLINE_MAX: Duration = Duration::from_micros(200);

/// Runs of a size that must have been measured before one of them may run inline.
const INLINE_SAMPLES: u64 = 8;

/// Costs by the power of two that the inputs' bytes are below.
#[derive(Debug)]
pub(crate) struct Cost {
    by_size: [SizeCost; 33],
}

#[derive(Debug, Default)]
struct SizeCost {
    samples: AtomicU64,
    /// Close to the highest of the last runs: rises at once, falls slowly.
    high_ns: AtomicU64,
}

impl Default for Cost {
    fn default() -> Self {
        Cost { by_size: std::array::from_fn(|_| SizeCost::default()) }
    }
}

impl Cost {
    fn of(&self, bytes: usize) -> &SizeCost {
        let power = (usize::BITS - bytes.leading_zeros()) as usize;
        &self.by_size[power.min(self.by_size.len() - 1)]
    }

    /// Notes a run that gave outputs.
    pub(crate) fn record(&self, bytes: usize, took: Duration) {
        let cost = self.of(bytes);
        let high = cost.high_ns.load(Ordering::Relaxed);
        // A race loses one sample, which the next makes good.
        cost.high_ns.store(nanos(took).max(high - high / 64), Ordering::Relaxed);
        cost.samples.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a run that gave none: it may have ended long before it was done.
    pub(crate) fn record_failed(&self, bytes: usize, took: Duration) {
        self.of(bytes).high_ns.fetch_max(nanos(took), Ordering::Relaxed);
    }

    /// Whether runs of this size were measured and are short.
    pub(crate) fn is_short(&self, bytes: usize) -> bool {
        let cost = self.of(bytes);
        cost.samples.load(Ordering::Relaxed) >= INLINE_SAMPLES && cost.high_ns.load(Ordering::Relaxed) <= nanos(INLINE_MAX)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(runs: u64, took: Duration) -> Cost {
        let cost = Cost::default();
        (0..runs).for_each(|_| cost.record(100, took));
        cost
    }

    #[test]
    fn a_size_is_short_once_enough_runs_of_it_were() {
        assert!(!measured(INLINE_SAMPLES - 1, Duration::from_micros(1)).is_short(100), "too few to tell");
        let cost = measured(INLINE_SAMPLES, INLINE_MAX);
        assert!(cost.is_short(100), "at the limit");
        assert!(cost.is_short(64) && cost.is_short(127), "the same power of two");
        assert!(!cost.is_short(63) && !cost.is_short(128), "other sizes were not measured");
        assert!(!measured(INLINE_SAMPLES, INLINE_MAX + Duration::from_nanos(1)).is_short(100), "over the limit");
    }

    #[test]
    fn one_long_run_weighs_until_many_short_ones_followed() {
        let cost = measured(INLINE_SAMPLES, Duration::from_micros(1));
        cost.record(100, 2 * INLINE_MAX);
        assert!(!cost.is_short(100));
        let short_again = (1..1000).find(|_| {
            cost.record(100, Duration::from_micros(1));
            cost.is_short(100)
        });
        // (63 / 64)^44 is just above one half.
        assert_eq!(short_again, Some(45));
    }

    #[test]
    fn failed_runs_show_that_a_size_is_long_and_never_that_it_is_short() {
        let cost = measured(INLINE_SAMPLES, Duration::from_micros(1));
        cost.record_failed(100, Duration::from_secs(5));
        assert!(!cost.is_short(100));
        let never_ran = Cost::default();
        (0..2 * INLINE_SAMPLES).for_each(|_| never_ran.record_failed(100, Duration::ZERO));
        assert!(!never_ran.is_short(100));
        let barred = measured(INLINE_SAMPLES, 2 * INLINE_MAX);
        (0..1000).for_each(|_| barred.record_failed(100, Duration::ZERO));
        assert!(!barred.is_short(100), "quick refusals do not wear it down");
    }

    #[test]
    fn sizes_beyond_all_measure_count_as_one() {
        let cost = Cost::default();
        (0..INLINE_SAMPLES).for_each(|_| cost.record(usize::MAX, Duration::ZERO));
        assert!(cost.is_short(1 << 32) && !cost.is_short(0));
    }
}
