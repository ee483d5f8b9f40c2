//! The recorder behind the `metrics` facade, and the text that Prometheus scrapes.
//!
//! It is our own because series must be able to leave: a gateway that swaps versions for months would otherwise show every version it
//! ever had. [`Metrics::retire`] marks the series of a version that left. They stay visible for a while, so that a scraper sees their
//! last values: until they were part of [`RETIRED_SCRAPES`] more scrapes, or for [`RETIRED_TIME`], or until [`MAX_RETIRED`] younger
//! versions have left as well. With the last version of a model go the series of the model itself. A series whose handle somebody still holds is never dropped, so a version that comes back in the
//! meantime keeps counting where it stopped.
//!
//! Invariant: recording takes no lock; a scrape and a registration do. Deliberately absent: summaries, exemplars, push, and any
//! knowledge of what the names mean.

mod exposition;
mod gauges;
mod series;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SetRecorderError, SharedString, Unit};

pub use self::exposition::{CONTENT_TYPE, Family, Kind, Sample};
pub use self::gauges::families;
use self::series::{Series, Store};

/// Scrapes that still show a version that left.
pub const RETIRED_SCRAPES: u32 = 3;
/// How long a version that left is shown where nobody scrapes.
pub const RETIRED_TIME: Duration = Duration::from_mins(15);
/// Versions that left and are still shown, at the most.
pub const MAX_RETIRED: usize = 32;

/// The recorder, and the only handle on what it holds. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    store: Arc<RwLock<Store>>,
}

impl Metrics {
    /// A recorder that nothing records to yet.
    pub fn new() -> Metrics {
        Metrics::default()
    }

    /// Makes it the recorder of the whole program.
    ///
    /// # Errors
    /// Where the program has one already.
    pub fn install(&self) -> Result<(), SetRecorderError<Metrics>> {
        metrics::set_global_recorder(self.clone())
    }

    /// Says that a version left: its series go after the grace described above.
    pub fn retire(&self, model: &str, version: u64) {
        self.retire_at(model, version, Instant::now());
    }

    /// One scrape: everything that was recorded, and `computed`, which is read at the time of the scrape.
    pub fn render(&self, computed: &[Family]) -> String {
        self.render_at(computed, Instant::now())
    }

    fn retire_at(&self, model: &str, version: u64, now: Instant) {
        self.store.write().unwrap_or_else(PoisonError::into_inner).retire(model, version, now);
    }

    fn render_at(&self, computed: &[Family], now: Instant) -> String {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        let mut families = store.families();
        store.scraped(now);
        drop(store);
        families.extend(computed.iter().cloned());
        exposition::render(families)
    }

    /// The unit is part of the name, as Prometheus has it.
    fn describe(&self, name: KeyName, kind: Kind, help: SharedString) {
        self.store.write().unwrap_or_else(PoisonError::into_inner).describe(name, kind, help);
    }

    /// The series of a key, registered where it is new.
    fn series(&self, key: &Key, kind: Kind) -> Series {
        let known = self.store.read().unwrap_or_else(PoisonError::into_inner).find(key);
        let series = match known {
            Some(series) => series,
            None => self.store.write().unwrap_or_else(PoisonError::into_inner).register(key, kind),
        };
        // A name that is used for two kinds is a mistake in this program: the second one records into nothing that is shown.
        if series.kind() == kind { series } else { Series::new(key.name(), kind) }
    }
}

impl Recorder for Metrics {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(name, Kind::Counter, help);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(name, Kind::Gauge, help);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(name, Kind::Histogram, help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, Kind::Counter) {
            Series::Counter(counter) => Counter::from_arc(counter),
            Series::Gauge(_) | Series::Histogram(_) => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, Kind::Gauge) {
            Series::Gauge(gauge) => Gauge::from_arc(gauge),
            Series::Counter(_) | Series::Histogram(_) => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match self.series(key, Kind::Histogram) {
            Series::Histogram(histogram) => Histogram::from_arc(histogram),
            Series::Counter(_) | Series::Gauge(_) => Histogram::noop(),
        }
    }
}

#[cfg(test)]
mod tests;
