//! A latency histogram that any number of threads write without a lock.
//!
//! Buckets grow by an eighth of a power of two, so a quantile is at most 12.5 % above the truth. Counts are relaxed: a snapshot taken
//! under load may miss what is being written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SUB_BITS: u32 = 3;
const SUB: usize = 1 << SUB_BITS;
/// Up to 2^42 ns, more than an hour; longer times count as that.
const MAX_EXPONENT: u32 = 42;
const BUCKETS: usize = SUB * (MAX_EXPONENT - SUB_BITS + 1) as usize;

/// Counts of durations by size.
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: Box<[AtomicU64]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }
}

fn bucket_of(nanos: u64) -> usize {
    let nanos = nanos.min((1 << MAX_EXPONENT) - 1);
    if nanos < SUB as u64 {
        return usize::try_from(nanos).unwrap_or(0);
    }
    let exponent = 63 - nanos.leading_zeros();
    let sub = (nanos >> (exponent - SUB_BITS)) as usize & (SUB - 1);
    (exponent - SUB_BITS + 1) as usize * SUB + sub
}

/// The largest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let exponent = (bucket / SUB) as u32 + SUB_BITS - 1;
    let base = 1u64 << exponent;
    base + ((bucket % SUB) as u64 + 1) * (base >> SUB_BITS) - 1
}

impl Histogram {
    pub(crate) fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(nanos)].fetch_add(1, Ordering::Relaxed);
    }

    /// Upper bounds of the buckets that hold the given quantiles (0 to 1, ascending); `None` while nothing was recorded.
    pub(crate) fn quantiles<const N: usize>(&self, quantiles: [f64; N]) -> Option<[Duration; N]> {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return None;
        }
        Some(quantiles.map(|quantile| {
            let rank = ((quantile * total as f64).ceil() as u64).clamp(1, total);
            let mut seen = 0;
            let bucket = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            Duration::from_nanos(upper_bound(bucket.unwrap_or(BUCKETS - 1)))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_every_duration_in_order() {
        let mut last = None;
        for exponent in 0..MAX_EXPONENT {
            for step in 0..16u64 {
                let nanos = (1u64 << exponent) + (step << exponent) / 16;
                let bucket = bucket_of(nanos);
                assert!(bucket < BUCKETS);
                assert!(upper_bound(bucket) >= nanos, "{nanos}");
                assert!(upper_bound(bucket) <= nanos + nanos / 8, "{nanos}");
                assert!(last.is_none_or(|last| last <= bucket), "{nanos}");
                last = Some(bucket);
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_an_eighth() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantiles([0.5]), None);
        (1..=1000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
        let [p50, p99] = histogram.quantiles([0.5, 0.99]).unwrap().map(|quantile| quantile.as_micros());
        assert!((500..=563).contains(&p50), "{p50}");
        assert!((990..=1115).contains(&p99), "{p99}");
    }
}
