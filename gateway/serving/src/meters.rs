//! The metrics of the request path: every name, unit and help text in one place, and handles that are resolved once per version.
//!
//! Label values come from loaded versions and known models only, never from a request, so the number of series is bounded by what
//! exists.

use std::time::Duration;

use bascule_registry::{ModelName, VersionKey};
use metrics::{Counter, Gauge, Histogram, Unit};

use crate::ErrorCode;
use crate::stats::RunTimes;

const REQUESTS: &str = "bascule_requests_total";
const QUEUE: &str = "bascule_queue_seconds";
const COMPUTE: &str = "bascule_compute_seconds";
const TOTAL: &str = "bascule_request_seconds";
const BATCH: &str = "bascule_batch_size";
const IN_FLIGHT: &str = "bascule_requests_in_flight";
const NAN_OUTPUTS: &str = "bascule_nan_outputs_total";
const SWAPS: &str = "bascule_swaps_total";
const LOADS: &str = "bascule_load_seconds";
const DRAINS: &str = "bascule_drain_seconds";
const TRIMS: &str = "bascule_memory_trim_seconds";

/// Describes every metric of the request path to the installed recorder.
pub fn describe() {
    metrics::describe_counter!(
        REQUESTS,
        Unit::Count,
        "Requests by model, version (none where no version was there for it) and outcome (ok, or the error's code)."
    );
    metrics::describe_histogram!(QUEUE, Unit::Seconds, "Time that answered requests waited for an instance.");
    metrics::describe_histogram!(COMPUTE, Unit::Seconds, "Time of one run of a session.");
    metrics::describe_histogram!(TOTAL, Unit::Seconds, "Time from arrival at the version to the answer, of answered requests.");
    metrics::describe_histogram!(BATCH, Unit::Count, "Rows in one run.");
    metrics::describe_gauge!(IN_FLIGHT, Unit::Count, "Requests that wait or run.");
    metrics::describe_counter!(
        NAN_OUTPUTS,
        Unit::Count,
        "Floating-point outputs of requests with NaN among their first 1,024 elements; later ones are not looked at."
    );
    metrics::describe_counter!(SWAPS, Unit::Count, "Times that another version became stable, by model.");
    metrics::describe_histogram!(LOADS, Unit::Seconds, "Time from the first byte fetched to ready or failed, by outcome.");
    metrics::describe_histogram!(DRAINS, Unit::Seconds, "Time from leaving the table to the last session dropped.");
    metrics::describe_histogram!(
        TRIMS,
        Unit::Seconds,
        "Time that giving freed memory back took; allocations may have waited for it."
    );
}

/// The label `version` of requests for a known model that no version was there for.
const NO_VERSION: &str = "none";

/// A request for a known model that came to no version: none is ready, or not the one that was asked for.
pub(crate) fn unassigned(model: &ModelName, code: ErrorCode) {
    metrics::counter!(REQUESTS, "model" => model.to_string(), "version" => NO_VERSION, "outcome" => code.name()).increment(1);
}

/// Another version of the model became stable.
pub(crate) fn swapped(model: &ModelName) {
    metrics::counter!(SWAPS, "model" => model.to_string()).increment(1);
}

/// A load ended, well or not.
pub(crate) fn load_ended(well: bool, took: Duration) {
    metrics::histogram!(LOADS, "outcome" => if well { "ok" } else { "failed" }).record(took.as_secs_f64());
}

/// A version was drained.
pub(crate) fn drain_ended(took: Duration) {
    metrics::histogram!(DRAINS).record(took.as_secs_f64());
}

/// Freed memory was given back to the operating system.
pub(crate) fn trimmed(took: Duration) {
    metrics::histogram!(TRIMS).record(took.as_secs_f64());
}

/// The handles of one version.
pub(crate) struct Meters {
    ok: Counter,
    failed: [Counter; ErrorCode::ALL.len()],
    queue: Histogram,
    compute: Histogram,
    total: Histogram,
    batch: Histogram,
    in_flight: Gauge,
    nan_outputs: Counter,
}

impl Meters {
    pub(crate) fn new(key: &VersionKey) -> Meters {
        let model = key.model.to_string();
        let version = key.version.to_string();
        let requests = |outcome: &'static str| metrics::counter!(REQUESTS, "model" => model.clone(), "version" => version.clone(), "outcome" => outcome);
        let histogram = |name: &'static str| metrics::histogram!(name, "model" => model.clone(), "version" => version.clone());
        Meters {
            ok: requests("ok"),
            failed: ErrorCode::ALL.map(|code| requests(code.name())),
            queue: histogram(QUEUE),
            compute: histogram(COMPUTE),
            total: histogram(TOTAL),
            batch: histogram(BATCH),
            in_flight: metrics::gauge!(IN_FLIGHT, "model" => model.clone(), "version" => version.clone()),
            nan_outputs: metrics::counter!(NAN_OUTPUTS, "model" => model.clone(), "version" => version.clone()),
        }
    }

    pub(crate) fn succeeded(&self, total: Duration, queued: Duration, _times: &RunTimes) {
        self.ok.increment(1);
        self.total.record(total.as_secs_f64());
        self.queue.record(queued.as_secs_f64());
    }

    pub(crate) fn failed(&self, code: ErrorCode) {
        self.failed[code as usize].increment(1);
    }

    pub(crate) fn ran(&self, rows: u32, times: &RunTimes) {
        self.compute.record(times.infer.as_secs_f64());
        self.batch.record(f64::from(rows));
    }

    pub(crate) fn had_nan(&self, outputs: u64) {
        self.nan_outputs.increment(outputs);
    }

    pub(crate) fn in_flight(&self, change: f64) {
        self.in_flight.increment(change);
    }
}
