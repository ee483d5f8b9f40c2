//! Medians with the interval that holds them, for figures that come in pairs on a noisy machine.

/// A median and its interval of 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    /// The interval's ends; `None` where there are too few values to know one.
    pub(crate) interval: Option<(f64, f64)>,
}

/// The middle value; NaN of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// The median and the interval between two of the values that holds it with 95 % confidence, whatever their distribution: fewer than
/// `rank` of `n` values fall below a median with the binomial's probability, and half of 5 % may be missed on each side.
pub(crate) fn estimate(values: &[f64]) -> Estimate {
    let sorted = sorted(values);
    let mut missed = 0.0;
    let mut probability = 0.5f64.powi(i32::try_from(sorted.len()).unwrap_or(i32::MAX));
    let mut rank = 0;
    for below in 0..sorted.len() / 2 {
        missed += probability;
        if missed > 0.025 {
            break;
        }
        rank = below + 1;
        probability *= (sorted.len() - below) as f64 / (below + 1) as f64;
    }
    let interval = (rank > 0).then(|| (sorted[rank - 1], sorted[sorted.len() - rank]));
    Estimate { median: median(values), interval }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_interval_has_the_ranks_of_the_sign_test() {
        let interval = |count: u32| estimate(&(1..=count).map(f64::from).collect::<Vec<_>>()).interval;
        assert_eq!(interval(5), None);
        assert_eq!(interval(6), Some((1.0, 6.0)));
        assert_eq!(interval(9), Some((2.0, 8.0)));
        assert_eq!(interval(15), Some((4.0, 12.0)));
        assert_eq!(interval(25), Some((8.0, 18.0)));
    }
}
