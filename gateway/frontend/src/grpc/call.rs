//! What a call's headers say: deadline, route key, request id.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bascule_serving::{InferError, RouteKey, VersionChoice};
use http::HeaderMap;

use super::decode::RequestParameters;
use crate::codec::version_choice;
use crate::request_id::RequestId;

const KEY: &str = "x-bascule-key";
const OWN_VERSION: &str = "x-bascule-version";
const VERSION: &str = "version";
const TIMEOUT: &str = "grpc-timeout";
const STRICT: &str = "triton_grpc_error";

/// What a call's headers say.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    id: RequestId,
    arrived: Instant,
    deadline: Option<Instant>,
    key: Option<Arc<[u8]>>,
    version: Option<VersionChoice>,
    strict: bool,
}

impl Call {
    /// Reads the headers of a call that arrives now.
    ///
    /// # Errors
    /// Names the header and what was expected.
    pub(crate) fn read(headers: &HeaderMap, arrived: Instant) -> Result<Call, InferError> {
        let mut call = Call::unread(headers, arrived);
        let mut other_version = None;
        // One walk over the few that there are: looking each up by its name costs more. Of several the first that says something counts.
        for (name, value) in headers {
            let text = value.as_bytes();
            match name.as_str() {
                TIMEOUT if call.deadline.is_none() => call.deadline = arrived.checked_add(timeout(text)?),
                OWN_VERSION if call.version.is_none() => call.version = Some(version(OWN_VERSION, text)?),
                VERSION if other_version.is_none() => other_version = Some(text),
                KEY if call.key.is_none() => call.key = Some(text).filter(|key| !key.is_empty()).map(Arc::from),
                STRICT if !call.strict => call.strict = text.eq_ignore_ascii_case(b"true"),
                _ => {}
            }
        }
        if let (None, Some(text)) = (&call.version, other_version) {
            call.version = Some(version(VERSION, text)?);
        }
        Ok(call)
    }

    /// A call whose headers can't be read.
    pub(crate) fn unread(headers: &HeaderMap, arrived: Instant) -> Call {
        Call { id: RequestId::of(headers), arrived, deadline: None, key: None, version: None, strict: false }
    }

    /// The request's id.
    pub(crate) fn id(&self) -> &RequestId {
        &self.id
    }

    /// When it arrived.
    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// The deadline of the whole call.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The version that the headers name.
    pub(crate) fn version(&self) -> Option<&VersionChoice> {
        self.version.as_ref()
    }

    /// Whether an error ends a stream.
    pub(crate) fn is_strict(&self) -> bool {
        self.strict
    }

    /// One request of the call, which arrives now: the lesser of both deadlines, and the caller's key, else its sequence.
    pub(crate) fn terms(&self, parameters: &RequestParameters, now: Instant) -> (Option<Instant>, RouteKey) {
        let own = parameters.timeout.and_then(|timeout| now.checked_add(timeout));
        let deadline = [self.deadline, own].into_iter().flatten().min();
        let key = self.key.as_ref().or(parameters.sequence_id.as_ref());
        (deadline, key.map_or(RouteKey::Request, |key| RouteKey::Caller(Arc::clone(key))))
    }
}

fn version(name: &str, text: &[u8]) -> Result<VersionChoice, InferError> {
    let text = std::str::from_utf8(text).ok().filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| InferError::invalid(format!("header '{name}': expected a version number or an alias")))?;
    version_choice(text).map_err(|error| InferError::invalid(format!("header '{name}': {error}")))
}

/// `grpc-timeout`: at most eight digits and a unit.
fn timeout(text: &[u8]) -> Result<Duration, InferError> {
    let parsed = || {
        let (unit, digits) = text.split_last()?;
        let number: u64 = std::str::from_utf8(digits).ok().filter(|digits| digits.len() <= 8)?.parse().ok()?;
        let is_number = digits.iter().all(u8::is_ascii_digit);
        Some(match unit {
            _ if !is_number => return None,
            b'H' => Duration::from_secs(number * 3600),
            b'M' => Duration::from_secs(number * 60),
            b'S' => Duration::from_secs(number),
            b'm' => Duration::from_millis(number),
            b'u' => Duration::from_micros(number),
            b'n' => Duration::from_nanos(number),
            _ => return None,
        })
    };
    parsed().ok_or_else(|| {
        InferError::invalid(format!("header '{TIMEOUT}': expected at most eight digits and one of H, M, S, m, u, n"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn timeouts_are_read_strictly() {
        let cases: [(&str, Option<Duration>); 12] = [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("0n", Some(Duration::ZERO)),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("+1S", None),
            ("1", None),
            ("1s", None),
        ];
        for (text, expected) in cases {
            assert_eq!(timeout(text.as_bytes()).ok(), expected, "{text}");
        }
    }

    #[test]
    fn the_lesser_deadline_and_the_callers_key_win() {
        let now = Instant::now();
        let call = Call::read(&headers(&[("grpc-timeout", "2S"), ("x-bascule-key", "alice")]), now).unwrap();
        let terms = |micros, sequence: Option<&[u8]>| {
            let parameters = RequestParameters {
                timeout: Some(Duration::from_micros(micros)),
                sequence_id: sequence.map(Arc::from),
                ..RequestParameters::default()
            };
            call.terms(&parameters, now)
        };
        let alice = RouteKey::Caller(Arc::from(b"alice".as_slice()));
        assert_eq!(terms(1_000_000, Some(b"7")), (Some(now + Duration::from_secs(1)), alice.clone()));
        assert_eq!(terms(3_000_000, None), (Some(now + Duration::from_secs(2)), alice));
        let plain = Call::read(&HeaderMap::new(), now).unwrap();
        let sequence = RequestParameters { sequence_id: Some(Arc::from(b"7".as_slice())), ..RequestParameters::default() };
        assert_eq!(plain.terms(&sequence, now), (None, RouteKey::Caller(Arc::from(b"7".as_slice()))));
        assert_eq!(plain.terms(&RequestParameters::default(), now), (None, RouteKey::Request));
    }

    #[test]
    fn headers_may_name_a_version() {
        let version = |pairs: &[(&'static str, &str)]| {
            let call = Call::read(&headers(pairs), Instant::now()).map_err(|error| error.to_string())?;
            Ok(call.version().cloned())
        };
        assert_eq!(version(&[]), Ok(None));
        assert_eq!(version(&[("version", "canary")]), Ok(Some(VersionChoice::Alias("canary".to_owned()))));
        assert_eq!(version(&[("version", "canary"), ("x-bascule-version", "3")]), Ok(Some(VersionChoice::Number(3))));
        assert_eq!(version(&[("version", "")]), Err("header 'version': expected a version number or an alias".to_owned()));
    }
}
