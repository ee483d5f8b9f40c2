//! The name of a request in answers and logs.
//!
//! A caller's own is kept where it can stand in a header and in a log line; else the request gets one that no other request of this
//! program has. Deliberately absent: any meaning.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use http::HeaderMap;
use uuid::Uuid;

/// The header that carries it, both ways.
pub(crate) const REQUEST_ID: &str = "x-request-id";

const MAX_BYTES: usize = 128;

/// The id of a request with these headers. It is visible ASCII.
pub(crate) fn request_id(headers: &HeaderMap) -> Arc<str> {
    let own = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    match own.filter(|id| !id.is_empty() && id.len() <= MAX_BYTES) {
        Some(id) => Arc::from(id),
        None => next(),
    }
}

fn next() -> Arc<str> {
    static PROGRAM: LazyLock<u64> = LazyLock::new(|| Uuid::new_v4().as_u64_pair().0);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut id = String::with_capacity(32);
    // Writing to a string can't fail.
    let _ = write!(id, "{:016x}{:016x}", *PROGRAM, NEXT.fetch_add(1, Ordering::Relaxed));
    Arc::from(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_s_id_is_kept_where_it_can_be_shown() {
        let check = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, http::HeaderValue::from_bytes(value).unwrap());
            request_id(&headers).to_string()
        };
        assert_eq!(check(b"abc-1"), "abc-1");
        for own in [&[b'a'; 129][..], b"", b"\xff"] {
            assert_eq!(check(own).len(), 32, "{own:?}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
