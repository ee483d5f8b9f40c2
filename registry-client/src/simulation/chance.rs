use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Splitmix64.
pub(super) struct Chance(u64);

impl Chance {
    /// What happens to one thing in one history.
    pub(super) fn of(seed: u64, what: &str, count: usize) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, what, count).hash(&mut hasher);
        Self(hasher.finish())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    pub(super) fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Up to so many milliseconds.
    pub(super) fn wait(&mut self, limit_ms: usize) -> std::time::Duration {
        std::time::Duration::from_millis(self.below(limit_ms + 1) as u64)
    }
}
