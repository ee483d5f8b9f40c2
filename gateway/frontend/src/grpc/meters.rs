//! The metrics of the gRPC port. Labels come from a fixed list, never from a request.

use metrics::{Counter, Gauge, Unit};
use tonic::Code;

const RESPONSES: &str = "bascule_grpc_responses_total";
const CONNECTIONS: &str = "bascule_grpc_connections";

/// Every code by its number, as the label shows it.
const CODES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

/// Describes every metric of the port to the installed recorder.
pub fn describe() {
    metrics::describe_counter!(RESPONSES, Unit::Count, "Answers over gRPC by code; a stream counts when it begins.");
    metrics::describe_gauge!(CONNECTIONS, Unit::Count, "Open gRPC connections.");
}

/// The handles, resolved once.
pub(crate) struct Meters {
    responses: [Counter; CODES.len()],
    connections: Gauge,
}

impl Meters {
    pub(crate) fn new() -> Meters {
        Meters {
            responses: CODES.map(|code| metrics::counter!(RESPONSES, "code" => code)),
            connections: metrics::gauge!(CONNECTIONS),
        }
    }

    pub(crate) fn answered(&self, code: Code) {
        if let Some(counter) = self.responses.get(code as usize) {
            counter.increment(1);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_name() {
        for (number, name) in CODES.into_iter().enumerate() {
            let code = Code::from(i32::try_from(number).unwrap());
            assert_eq!(format!("{code:?}").to_lowercase(), name.replace('_', ""));
        }
    }
}
