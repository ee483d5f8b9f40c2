//! How much is on its way at a time, and how long is waited for it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

/// What bounds transfers. Memory is bounded by `range_bytes` × `ranges`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransferLimits {
    /// Large files are read in ranges of this size.
    pub(crate) range_bytes: u64,
    /// Ranges that are read, or wait for the disk, at a time, over all files.
    pub(crate) ranges: usize,
    /// Files of one version that are brought at a time.
    pub(crate) files: usize,
    /// So much of a file is written before the disk is asked for it, so that at the end little is left to wait for.
    pub(crate) sync_bytes: u64,
    /// An answer that does not move for so long has broken off.
    pub(crate) stall: Duration,
    /// How often a range is tried without a byte coming; a byte that comes begins the count anew.
    pub(crate) tries: u32,
    /// The wait after the first try; it doubles with each that follows, and is up to half as long again by chance.
    pub(crate) backoff: Duration,
    /// No wait is longer, but for the part that is chance.
    pub(crate) max_backoff: Duration,
}

impl Default for TransferLimits {
    fn default() -> Self {
        Self {
            range_bytes: 8 << 20,
            ranges: 16,
            files: 8,
            sync_bytes: 32 << 20,
            stall: Duration::from_secs(30),
            tries: 5,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
        }
    }
}

/// All transfers that share one budget.
pub(crate) struct Transfers {
    limits: TransferLimits,
    slots: Arc<Semaphore>,
    chance: AtomicU64,
    held: Arc<Held>,
}

/// Bytes that were received and are not on disk yet.
#[derive(Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// The right to hold the bytes of one range.
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
    bytes: usize,
    held: Arc<Held>,
}

impl Transfers {
    pub(crate) fn new(limits: TransferLimits, seed: u64) -> Self {
        let slots = Arc::new(Semaphore::new(limits.ranges.max(1)));
        Self { limits, slots, chance: AtomicU64::new(seed), held: Arc::default() }
    }

    /// Those of this process.
    pub(crate) fn of_process() -> &'static Arc<Self> {
        static OF_PROCESS: OnceLock<Arc<Transfers>> = OnceLock::new();
        OF_PROCESS.get_or_init(|| Arc::new(Self::new(TransferLimits::default(), Uuid::new_v4().as_u64_pair().0)))
    }

    pub(crate) fn limits(&self) -> &TransferLimits {
        &self.limits
    }

    /// Waits for a slot; in the order of asking.
    pub(super) async fn slot(&self) -> Option<Slot> {
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        Some(Slot { _permit: permit, bytes: 0, held: Arc::clone(&self.held) })
    }

    /// How long to wait after so many tries in a row that brought nothing; at least one.
    pub(super) fn backoff(&self, tries: u32) -> Duration {
        let doubled = self.limits.backoff.saturating_mul(1 << tries.saturating_sub(1).min(16));
        let wait = doubled.min(self.limits.max_backoff);
        // Splitmix64: readers of one store that broke off together must not come back together.
        let mut z = self.chance.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        wait + wait.mul_f64(f64::from((z >> 40) as u32) / f64::from(1 << 24) / 2.0)
    }

    /// The most bytes that were ever held at a time.
    #[cfg(test)]
    pub(crate) fn most_held(&self) -> usize {
        self.held.most.load(Ordering::Relaxed)
    }

    /// Slots that nobody has.
    #[cfg(test)]
    pub(crate) fn free_slots(&self) -> usize {
        self.slots.available_permits()
    }
}

impl Slot {
    pub(super) fn hold(&mut self, bytes: usize) {
        self.bytes += bytes;
        let now = self.held.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.held.most.fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn let_go(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.held.now.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.let_go(self.bytes);
    }
}
