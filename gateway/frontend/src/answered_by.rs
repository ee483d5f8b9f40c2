//! Which version answered, as both protocols say it.

use bascule_serving::Servable;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The header that says which version answered.
pub(crate) const MODEL_VERSION: HeaderName = HeaderName::from_static("x-bascule-model-version");

/// The name of the content of the version that answered: a header of a single answer, a parameter of an answer in a stream.
pub(crate) const MODEL_DIGEST: &str = "x-bascule-model-digest";

/// Says it in an answer's head.
pub(crate) fn tell_version(headers: &mut HeaderMap, servable: &Servable) {
    let shown = servable.shown();
    let mut tell = |name, text: &Bytes| {
        // Digits are what a header may hold.
        if let Ok(value) = HeaderValue::from_maybe_shared(text.clone()) {
            headers.insert(name, value);
        }
    };
    tell(MODEL_VERSION, &shown.version);
    tell(HeaderName::from_static(MODEL_DIGEST), &shown.digest);
}
