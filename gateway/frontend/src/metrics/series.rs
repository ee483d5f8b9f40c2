//! The series that were recorded to, and the list of versions whose series are to go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use metrics::{CounterFn, GaugeFn, HistogramFn, Key, KeyName, SharedString};

use super::exposition::{Family, Kind, Sample, label_text};
use super::{MAX_RETIRED, RETIRED_SCRAPES, RETIRED_TIME};

/// Upper bounds of durations, in seconds.
const SECONDS: [f64; 17] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Upper bounds of everything else that is counted, such as rows in a batch.
const SIZES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// One time series. Clones share it.
#[derive(Debug, Clone)]
pub(crate) enum Series {
    Counter(Arc<CounterCell>),
    Gauge(Arc<GaugeCell>),
    Histogram(Arc<HistogramCell>),
}

impl Series {
    pub(crate) fn new(name: &str, kind: Kind) -> Series {
        match kind {
            Kind::Counter => Series::Counter(Arc::default()),
            Kind::Gauge => Series::Gauge(Arc::default()),
            Kind::Histogram => Series::Histogram(Arc::new(HistogramCell::new(bounds(name)))),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Series::Counter(_) => Kind::Counter,
            Series::Gauge(_) => Kind::Gauge,
            Series::Histogram(_) => Kind::Histogram,
        }
    }

    /// Whether somebody beside the store can still record to it.
    fn is_held(&self) -> bool {
        let holders = match self {
            Series::Counter(cell) => Arc::strong_count(cell),
            Series::Gauge(cell) => Arc::strong_count(cell),
            Series::Histogram(cell) => Arc::strong_count(cell),
        };
        holders > 1
    }

    fn samples(&self, labels: &str) -> Vec<Sample> {
        match self {
            Series::Counter(cell) => vec![Sample::new("", labels.to_owned(), cell.0.load(Ordering::Relaxed) as f64)],
            Series::Gauge(cell) => vec![Sample::new("", labels.to_owned(), cell.0.read())],
            Series::Histogram(cell) => cell.samples(labels),
        }
    }
}

fn bounds(name: &str) -> &'static [f64] {
    if name.ends_with("_seconds") { &SECONDS } else { &SIZES }
}

#[derive(Debug, Default)]
pub(crate) struct CounterCell(AtomicU64);

impl CounterFn for CounterCell {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

/// A float that threads add to.
#[derive(Debug, Default)]
struct AtomicF64(AtomicU64);

impl AtomicF64 {
    fn read(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    fn add(&self, value: f64) {
        let sum = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The closure always gives a value, so the update never fails.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
    }
}

#[derive(Debug, Default)]
pub(crate) struct GaugeCell(AtomicF64);

impl GaugeFn for GaugeCell {
    fn increment(&self, value: f64) {
        self.0.add(value);
    }

    fn decrement(&self, value: f64) {
        self.0.add(-value);
    }

    fn set(&self, value: f64) {
        self.0.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

/// Counts by fixed buckets.
#[derive(Debug)]
pub(crate) struct HistogramCell {
    bounds: &'static [f64],
    /// One more than there are bounds: the last one is for what lies above all.
    counts: Box<[AtomicU64]>,
    sum: AtomicF64,
}

impl HistogramCell {
    fn new(bounds: &'static [f64]) -> HistogramCell {
        HistogramCell { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicF64::default() }
    }

    fn samples(&self, labels: &str) -> Vec<Sample> {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        let mut samples = Vec::with_capacity(self.counts.len() + 2);
        for (index, count) in self.counts.iter().enumerate() {
            below += count.load(Ordering::Relaxed);
            let bound = self.bounds.get(index).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            samples.push(Sample::new("_bucket", format!("{labels}{comma}le=\"{bound}\""), below as f64));
        }
        samples.push(Sample::new("_sum", labels.to_owned(), self.sum.read()));
        samples.push(Sample::new("_count", labels.to_owned(), below as f64));
        samples
    }
}

impl HistogramFn for HistogramCell {
    fn record(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.add(value);
    }
}

/// The model that a series belongs to, and the version where it is not about all of them.
type Owner = (String, Option<String>);

#[derive(Debug)]
struct Entry {
    labels: String,
    owner: Option<Owner>,
    series: Series,
}

#[derive(Debug)]
struct Retired {
    owner: Owner,
    since: Instant,
    scrapes: u32,
}

/// Every series by its key.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// Kind and help of what was described.
    described: HashMap<KeyName, (Kind, SharedString)>,
    entries: HashMap<Key, Entry>,
    /// Oldest first.
    retired: Vec<Retired>,
}

impl Store {
    pub(crate) fn describe(&mut self, name: KeyName, kind: Kind, help: SharedString) {
        self.described.insert(name, (kind, help));
    }

    /// Names that were described, whether or not anything was recorded.
    #[cfg(test)]
    pub(crate) fn described(&self) -> Vec<(KeyName, Kind)> {
        self.described.iter().map(|(name, (kind, _))| (name.clone(), *kind)).collect()
    }

    pub(crate) fn find(&self, key: &Key) -> Option<Series> {
        self.entries.get(key).map(|entry| entry.series.clone())
    }

    pub(crate) fn register(&mut self, key: &Key, kind: Kind) -> Series {
        // A name has one kind, whatever the labels: as described, else its first.
        let kind = self.described.get(key.name()).map(|(kind, _)| *kind).or_else(|| self.kind(key.name())).unwrap_or(kind);
        let entry = self.entries.entry(key.to_retained()).or_insert_with(|| {
            let value = |name| key.labels().find(|label| label.key() == name).map(|label| label.value().to_owned());
            let pairs: Vec<(&str, &str)> = key.labels().map(|label| (label.key(), label.value())).collect();
            let owner = value("model").map(|model| (model, value("version")));
            Entry { labels: label_text(&pairs), owner, series: Series::new(key.name(), kind) }
        });
        entry.series.clone()
    }

    fn kind(&self, name: &str) -> Option<Kind> {
        self.entries.iter().find(|(key, _)| key.name() == name).map(|(_, entry)| entry.series.kind())
    }

    /// Everything that was recorded, by name, and within a name by labels.
    pub(crate) fn families(&self) -> Vec<Family> {
        let mut families: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for (key, entry) in &self.entries {
            families.entry(key.name()).or_default().push(entry);
        }
        let family = |(name, mut entries): (&str, Vec<&Entry>)| {
            entries.sort_by(|a, b| a.labels.cmp(&b.labels));
            let kind = entries.first()?.series.kind();
            let help = self.described.get(name).map_or_else(String::new, |(_, help)| help.to_string());
            let samples = entries.iter().flat_map(|entry| entry.series.samples(&entry.labels)).collect();
            Some(Family { name: name.to_owned(), kind, help, samples })
        };
        families.into_iter().filter_map(family).collect()
    }

    pub(crate) fn retire(&mut self, model: &str, version: u64, now: Instant) {
        let owner = (model.to_owned(), Some(version.to_string()));
        self.retired.retain(|retired| retired.owner != owner);
        self.retired.push(Retired { owner, since: now, scrapes: 0 });
        self.sweep(now);
    }

    /// Notes that everything was shown.
    pub(crate) fn scraped(&mut self, now: Instant) {
        self.retired.iter_mut().for_each(|retired| retired.scrapes += 1);
        self.sweep(now);
    }

    fn sweep(&mut self, now: Instant) {
        let surplus = self.retired.len().saturating_sub(MAX_RETIRED);
        let retired = std::mem::take(&mut self.retired);
        for (age, retired) in retired.into_iter().enumerate() {
            let due = age < surplus || retired.scrapes >= RETIRED_SCRAPES || now.duration_since(retired.since) >= RETIRED_TIME;
            if !due {
                self.retired.push(retired);
            } else if self.is_held(&retired.owner) {
                // It came back, or a handle is about to be dropped: look again after another grace.
                self.retired.push(Retired { since: now, scrapes: 0, ..retired });
            } else {
                self.forget(retired.owner);
            }
        }
    }

    /// Drops a version's series, and with those of its last version the model's own.
    fn forget(&mut self, version: Owner) {
        self.entries.retain(|_, entry| entry.owner.as_ref() != Some(&version));
        let model = (version.0, None);
        let others = self.entries.values().filter_map(|entry| entry.owner.as_ref());
        if !others.clone().any(|owner| owner.0 == model.0 && owner.1.is_some()) {
            self.entries.retain(|_, entry| entry.owner.as_ref() != Some(&model));
        }
    }

    /// Whether a version's series may still be recorded to: it came back, or its last handle is about to be dropped.
    fn is_held(&self, owner: &Owner) -> bool {
        self.entries.values().any(|entry| entry.owner.as_ref() == Some(owner) && entry.series.is_held())
    }
}
