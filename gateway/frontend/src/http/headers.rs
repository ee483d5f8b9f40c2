//! What the headers of an inference request say.
//!
//! | header | meaning |
//! | --- | --- |
//! | `x-bascule-key` | the key by which a caller stays on one side of a split; else the sequence id of the body, else each request for itself |
//! | `x-bascule-version`, or `version` | a version number or an alias; the number in the path wins over it, and it wins over the body's parameter `version` |
//! | `x-bascule-timeout-ms` | how long the caller waits, in milliseconds; the lesser of it and the body's parameter `timeout` (microseconds) counts |
//! | `Inference-Header-Content-Length` | where the JSON ends; 0 for a raw body |

use std::sync::Arc;
use std::time::Duration;

use bascule_serving::{InferError, VersionChoice};
use hyper::HeaderMap;

use super::compression::{self, Coding};
use super::failure::Failure;
use crate::codec::{Framing, version_choice};

const KEY: &str = "x-bascule-key";
const OWN_VERSION: &str = "x-bascule-version";
const VERSION: &str = "version";
const TIMEOUT: &str = "x-bascule-timeout-ms";
pub(crate) const JSON_BYTES: &str = "inference-header-content-length";

/// What the headers of an inference request say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InferHeaders {
    pub(crate) key: Option<Arc<[u8]>>,
    pub(crate) version: Option<VersionChoice>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) framing: Framing,
    /// How the body is compressed.
    pub(crate) coding: Option<Coding>,
    /// How the answer may be.
    pub(crate) wanted: Option<Coding>,
}

impl InferHeaders {
    /// Reads them.
    ///
    /// # Errors
    /// Names the header and what was expected.
    pub(crate) fn read(headers: &HeaderMap) -> Result<InferHeaders, Failure> {
        let mut read = InferHeaders { key: None, version: None, timeout: None, framing: Framing::Json, coding: None, wanted: None };
        let (mut other_version, mut is_coded, mut is_wanted) = (None, false, false);
        // One walk over the few that there are: looking each up by its name costs more. Of several the first that says something counts.
        for (name, value) in headers {
            let bytes = value.as_bytes();
            match name.as_str() {
                KEY if read.key.is_none() => read.key = Some(bytes).filter(|key| !key.is_empty()).map(Arc::from),
                TIMEOUT if read.timeout.is_none() => read.timeout = Some(timeout(bytes)?),
                JSON_BYTES if read.framing == Framing::Json => read.framing = Framing::from_header(Some(bytes))?,
                OWN_VERSION if read.version.is_none() => read.version = Some(version(OWN_VERSION, bytes)?),
                VERSION if other_version.is_none() => other_version = Some(bytes),
                "content-encoding" => is_coded = true,
                "accept-encoding" => is_wanted = true,
                _ => {}
            }
        }
        if is_coded {
            read.coding = compression::of_request(headers)?;
        }
        if is_wanted {
            read.wanted = compression::wanted(headers);
        }
        if let (None, Some(text)) = (&read.version, other_version) {
            read.version = Some(version(VERSION, text)?);
        }
        Ok(read)
    }
}

fn version(name: &str, text: &[u8]) -> Result<VersionChoice, InferError> {
    let text = str::from_utf8(text).ok().filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| InferError::invalid(format!("header '{name}': expected a version number or an alias")))?;
    version_choice(text).map_err(|error| InferError::invalid(format!("header '{name}': {error}")))
}

fn timeout(text: &[u8]) -> Result<Duration, InferError> {
    let digits = str::from_utf8(text).ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => Err(InferError::invalid(format!("header '{TIMEOUT}': expected a whole number of milliseconds"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &str)]) -> Result<InferHeaders, String> {
        let headers =
            pairs.iter().map(|(name, value)| (hyper::header::HeaderName::from_static(name), value.parse().unwrap())).collect();
        InferHeaders::read(&headers).map_err(|failure| failure.message("r"))
    }

    #[test]
    fn headers_have_their_meaning() {
        let none = read(&[]).unwrap();
        assert_eq!((none.key, none.version, none.timeout, none.framing), (None, None, None, Framing::Json));
        assert_eq!(read(&[("x-bascule-key", "")]).unwrap().key, None);
        assert_eq!(read(&[("x-bascule-key", "ann")]).unwrap().key.as_deref(), Some(b"ann".as_slice()));
        assert_eq!(read(&[("version", "canary")]).unwrap().version, Some(VersionChoice::Alias("canary".into())));
        assert_eq!(read(&[("version", "canary"), ("x-bascule-version", "3")]).unwrap().version, Some(VersionChoice::Number(3)));
        assert_eq!(read(&[("x-bascule-timeout-ms", "250")]).unwrap().timeout, Some(Duration::from_millis(250)));
        assert_eq!(read(&[("x-bascule-timeout-ms", "0")]).unwrap().timeout, Some(Duration::ZERO));
        assert_eq!(read(&[("inference-header-content-length", "7")]).unwrap().framing, Framing::Split { json_bytes: 7 });
        assert_eq!(read(&[("inference-header-content-length", "0")]).unwrap().framing, Framing::Raw);
    }

    #[test]
    fn wrong_headers_are_named() {
        for (name, value, expected) in [
            ("x-bascule-timeout-ms", "1.5", "header 'x-bascule-timeout-ms': expected a whole number of milliseconds"),
            (
                "x-bascule-timeout-ms",
                "99999999999999999999",
                "header 'x-bascule-timeout-ms': expected a whole number of milliseconds",
            ),
            ("x-bascule-version", "", "header 'x-bascule-version': expected a version number or an alias"),
            ("version", "0", "header 'version': version \"0\" is not a whole number from 1 to 9223372036854775807"),
            ("content-encoding", "br", "header 'Content-Encoding': expected gzip, deflate or identity, got 'br'"),
        ] {
            assert_eq!(read(&[(name, value)]).unwrap_err(), expected);
        }
    }
}
