//! The one table that turns a cause into what a caller sees: HTTP status and gRPC code.
//!
//! Invariant: both protocols answer one cause alike, and what lies inside never leaves. Deliberately absent: texts; each error brings
//! its own.

use bascule_serving::ErrorCode;
use http::StatusCode;
use tonic::Code;

/// HTTP's `499 Client Closed Request`: nobody reads it, the log does.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The HTTP status of a cause.
pub fn http_status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorCode::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::Cancelled => StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST),
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The gRPC code of a cause.
pub fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::InvalidArgument => Code::InvalidArgument,
        ErrorCode::Overloaded | ErrorCode::TooLarge => Code::ResourceExhausted,
        ErrorCode::NotReady => Code::Unavailable,
        ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorCode::Cancelled => Code::Cancelled,
        ErrorCode::Unsupported => Code::Unimplemented,
        ErrorCode::Internal => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_own_status_and_code() {
        let table = [
            (ErrorCode::NotFound, 404, Code::NotFound),
            (ErrorCode::InvalidArgument, 400, Code::InvalidArgument),
            (ErrorCode::Overloaded, 429, Code::ResourceExhausted),
            (ErrorCode::NotReady, 503, Code::Unavailable),
            (ErrorCode::DeadlineExceeded, 504, Code::DeadlineExceeded),
            (ErrorCode::Cancelled, 499, Code::Cancelled),
            (ErrorCode::TooLarge, 413, Code::ResourceExhausted),
            (ErrorCode::Unsupported, 501, Code::Unimplemented),
            (ErrorCode::Internal, 500, Code::Internal),
        ];
        assert_eq!(table.len(), ErrorCode::ALL.len());
        for (cause, status, code) in table {
            assert_eq!(http_status(cause).as_u16(), status, "{cause:?}");
            assert_eq!(grpc_code(cause), code, "{cause:?}");
        }
    }
}
