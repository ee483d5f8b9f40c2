//! gzip and deflate of messages, both ways.
//!
//! A message is unpacked within the cap and the budget that hold for a plain one. Deliberately absent: other algorithms, which Triton's
//! clients don't have either.

use std::io::{self, Read, Write};

use bascule_serving::InferError;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http::{HeaderMap, HeaderValue};
use tonic::Status;
use tonic::metadata::MetadataValue;

use super::budget::Share;

/// How the messages of a request are packed.
pub(crate) const ENCODING: &str = "grpc-encoding";
/// How those of the answer may be.
pub(crate) const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// What an unpacked message takes at first.
const FIRST_BYTES: usize = 64 << 10;

/// A compression that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Deflate,
}

impl Coding {
    pub(crate) fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Coding::Gzip => "gzip",
            Coding::Deflate => "deflate",
        })
    }

    fn read(name: &[u8]) -> Option<Coding> {
        match name {
            b"gzip" => Some(Coding::Gzip),
            b"deflate" => Some(Coding::Deflate),
            _ => None,
        }
    }
}

/// How the messages of a call are packed; `None` for not at all.
pub(crate) fn of_request(headers: &HeaderMap) -> Result<Option<Coding>, Status> {
    let Some(name) = headers.get(ENCODING).map(HeaderValue::as_bytes).filter(|name| *name != b"identity") else {
        return Ok(None);
    };
    Coding::read(name).map(Some).ok_or_else(|| {
        let shown: String = String::from_utf8_lossy(name).chars().take(64).collect();
        let message = format!("header '{ENCODING}': expected gzip, deflate or identity, got '{shown}'");
        let mut status = Status::unimplemented(message);
        status.metadata_mut().insert(ACCEPT_ENCODING, MetadataValue::from_static("gzip,deflate,identity"));
        status
    })
}

/// How the answer is to be packed: as the request is, where that is accepted. Most clients accept packed answers whatever their network.
pub(crate) fn of_answer(headers: &HeaderMap) -> Option<Coding> {
    let coding = Coding::read(headers.get(ENCODING)?.as_bytes())?;
    let accepted = headers.get(ACCEPT_ENCODING)?.to_str().ok()?;
    accepted.split(',').any(|one| coding.name() == one.trim()).then_some(coding)
}

/// Unpacks a message of at most `limit_bytes`; what it takes is taken of `share` while it grows.
///
/// # Errors
/// [`InferError::InvalidArgument`] where it is not what it says, [`InferError::TooLarge`], [`InferError::Overloaded`].
pub(crate) fn unpack(coding: Coding, packed: &[u8], limit_bytes: usize, share: &Share) -> Result<Bytes, InferError> {
    match coding {
        Coding::Gzip => pour(GzDecoder::new(packed), limit_bytes, share),
        Coding::Deflate => pour(ZlibDecoder::new(packed), limit_bytes, share),
    }
}

fn pour(mut decoder: impl Read, limit_bytes: usize, share: &Share) -> Result<Bytes, InferError> {
    let mut unpacked = Vec::new();
    loop {
        // One byte beyond the cap tells whether there is more.
        let step = unpacked.len().max(FIRST_BYTES).min(limit_bytes.saturating_add(1) - unpacked.len());
        share.take(step)?;
        unpacked.reserve_exact(step);
        let read = decoder.by_ref().take(step as u64).read_to_end(&mut unpacked);
        let read = read.map_err(|error| InferError::invalid(format!("request: a message does not unpack: {error}")))?;
        if unpacked.len() > limit_bytes {
            return Err(InferError::TooLarge { what: "an unpacked message".to_owned(), limit_bytes });
        }
        if read < step {
            return Ok(unpacked.into());
        }
    }
}

/// Packs a message that comes in parts, behind `head`.
pub(crate) fn pack<'a>(coding: Coding, head: Vec<u8>, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<Vec<u8>> {
    // The network is seldom so slow that a better level pays.
    let level = Compression::fast();
    match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(head, level);
            parts.into_iter().try_for_each(|part| encoder.write_all(part))?;
            encoder.finish()
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(head, level);
            parts.into_iter().try_for_each(|part| encoder.write_all(part))?;
            encoder.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use bascule_serving::ErrorCode;

    use super::*;
    use crate::grpc::budget::Budget;

    fn unpacked(coding: Coding, packed: &[u8], limit_bytes: usize, budget_bytes: usize) -> Result<Bytes, ErrorCode> {
        unpack(coding, packed, limit_bytes, &Budget::new(budget_bytes).share()).map_err(|error| error.code())
    }

    #[test]
    fn what_is_packed_unpacks_within_cap_and_budget() {
        let text: Vec<u8> = (0..300_000u32).map(|number| (number * 7 / 3) as u8).collect();
        for coding in [Coding::Gzip, Coding::Deflate] {
            let packed = pack(coding, Vec::new(), [&text[..100], &text[100..]].into_iter()).unwrap();
            let plenty = 1 << 20;
            assert_eq!(unpacked(coding, &packed, plenty, plenty).unwrap(), text);
            assert_eq!(unpacked(coding, &packed, text.len(), plenty).unwrap(), text);
            assert_eq!(unpacked(coding, &packed, text.len() - 1, plenty), Err(ErrorCode::TooLarge));
            assert_eq!(unpacked(coding, &packed, plenty, text.len() - 1), Err(ErrorCode::Overloaded));
            assert_eq!(unpacked(coding, &packed[..packed.len() / 2], plenty, plenty), Err(ErrorCode::InvalidArgument));
            assert_eq!(unpacked(coding, b"neither", plenty, plenty), Err(ErrorCode::InvalidArgument));
        }
    }

    #[test]
    fn answers_are_packed_as_requests_are() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let pair = |(name, value): &(&'static str, &'static str)| {
                (http::HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            pairs.iter().map(pair).collect::<HeaderMap>()
        };
        for (pairs, request, answer) in [
            (&[][..], Some(None), None),
            (&[(ACCEPT_ENCODING, "gzip")], Some(None), None),
            (&[(ENCODING, "gzip")], Some(Some(Coding::Gzip)), None),
            (&[(ENCODING, "gzip"), (ACCEPT_ENCODING, "deflate")], Some(Some(Coding::Gzip)), None),
            (&[(ENCODING, "deflate"), (ACCEPT_ENCODING, "gzip, deflate")], Some(Some(Coding::Deflate)), Some(Coding::Deflate)),
            (&[(ENCODING, "identity"), (ACCEPT_ENCODING, "identity")], Some(None), None),
            (&[(ENCODING, "br"), (ACCEPT_ENCODING, "br")], None, None),
        ] {
            let headers = headers(pairs);
            assert_eq!((of_request(&headers).ok(), of_answer(&headers)), (request, answer), "{pairs:?}");
        }
    }
}
