//! The metrics of the HTTP port. Labels come from a fixed list, never from a request.

use metrics::{Counter, Gauge, Unit};

const RESPONSES: &str = "bascule_http_responses_total";
const IGNORED: &str = "bascule_http_ignored_members_total";
const COPIED: &str = "bascule_http_copied_tensors_total";
const CONNECTIONS: &str = "bascule_http_connections";

/// Every status that this port answers with.
const STATUSES: [u16; 15] = [200, 400, 403, 404, 405, 408, 413, 429, 431, 499, 500, 501, 503, 504, 0];

/// Describes every metric of the port to the installed recorder.
pub fn describe() {
    metrics::describe_counter!(RESPONSES, Unit::Count, "Answers over HTTP by status; 499 are callers that went away first.");
    metrics::describe_counter!(IGNORED, Unit::Count, "Members and parameters of request bodies that have no meaning here.");
    metrics::describe_counter!(COPIED, Unit::Count, "Binary tensors that were copied because they were misaligned in the body.");
    metrics::describe_gauge!(CONNECTIONS, Unit::Count, "Open HTTP connections.");
}

/// The handles, resolved once.
pub(crate) struct Meters {
    responses: [Counter; STATUSES.len()],
    ignored: Counter,
    copied: Counter,
    connections: Gauge,
}

impl Meters {
    pub(crate) fn new() -> Meters {
        let of = |status: u16| {
            let label = if status == 0 { "other".to_owned() } else { status.to_string() };
            metrics::counter!(RESPONSES, "status" => label)
        };
        Meters {
            responses: STATUSES.map(of),
            ignored: metrics::counter!(IGNORED),
            copied: metrics::counter!(COPIED),
            connections: metrics::gauge!(CONNECTIONS),
        }
    }

    pub(crate) fn answered(&self, status: u16) {
        let place = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        self.responses[place].increment(1);
    }

    pub(crate) fn decoded(&self, ignored: u32, copied: u32) {
        if ignored > 0 {
            self.ignored.increment(u64::from(ignored));
        }
        if copied > 0 {
            self.copied.increment(u64::from(copied));
        }
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn connection(&self) -> OpenConnection {
        self.connections.increment(1.0);
        OpenConnection(self.connections.clone())
    }
}

/// A connection that is open.
pub(crate) struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
