//! The name of a request in answers and logs.
//!
//! A caller's own is kept where it can stand in a header and in a log line; else the request gets one that no other request of this
//! program has. Deliberately absent: any meaning.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// The header that carries it, both ways.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const MAX_BYTES: usize = 128;

/// An id as it stands in a header. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// The id of a request with these headers. It is visible ASCII.
    pub(crate) fn of(headers: &HeaderMap) -> RequestId {
        let own = headers.get(REQUEST_ID).filter(|id| !id.is_empty() && id.len() <= MAX_BYTES && id.to_str().is_ok());
        RequestId(own.cloned().unwrap_or_else(next))
    }

    /// For people.
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// Says it in an answer.
    pub(crate) fn tell(mut self, headers: &mut HeaderMap) {
        // It never comes again, and must not push what does out of HTTP/2's table of headers.
        self.0.set_sensitive(true);
        headers.insert(REQUEST_ID, self.0);
    }
}

fn next() -> HeaderValue {
    static PROGRAM: LazyLock<u64> = LazyLock::new(|| Uuid::new_v4().as_u64_pair().0);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut id = [0; 32];
    let both = [*PROGRAM, NEXT.fetch_add(1, Ordering::Relaxed)].map(u64::to_be_bytes);
    // Sixteen bytes are 32 digits.
    let _ = hex::encode_to_slice(both.as_flattened(), &mut id);
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&id)).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_s_id_is_kept_where_it_can_be_shown() {
        let check = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            RequestId::of(&headers).as_str().to_owned()
        };
        assert_eq!(check(b"abc-1"), "abc-1");
        for own in [&[b'a'; 129][..], b"", b"\xff"] {
            assert_eq!(check(own).len(), 32, "{own:?}");
        }
        let [one, other] = [(); 2].map(|()| RequestId::of(&HeaderMap::new()));
        assert_ne!(one.as_str(), other.as_str());
    }
}
