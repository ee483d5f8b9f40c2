//! gzip and deflate, both ways.
//!
//! A body is unpacked within the cap that holds for bodies, so a bomb ends where a plain body of that size would. `deflate` is the zlib
//! format, as the standard says. Deliberately absent: Brotli and Zstandard, which Triton doesn't know either.

use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use hyper::HeaderMap;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue};

use super::body::{Assembly, Room};
use super::failure::Failure;

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

    fn read(name: &str) -> Option<Coding> {
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            Some(Coding::Gzip)
        } else if name.eq_ignore_ascii_case("deflate") {
            Some(Coding::Deflate)
        } else {
            None
        }
    }
}

/// How the body is compressed; `None` for not at all.
pub(crate) fn of_request(headers: &HeaderMap) -> Result<Option<Coding>, Failure> {
    let mut coding = None;
    for value in headers.get_all(CONTENT_ENCODING) {
        let unknown = || Failure::Encoding { encoding: String::from_utf8_lossy(value.as_bytes()).chars().take(64).collect() };
        let text = value.to_str().map_err(|_| unknown())?.trim();
        if text.is_empty() || text.eq_ignore_ascii_case("identity") {
            continue;
        }
        // Two codings one over the other are possible and pointless.
        coding = match coding {
            None => Some(Coding::read(text).ok_or_else(unknown)?),
            Some(_) => return Err(unknown()),
        };
    }
    Ok(coding)
}

/// The compression that a caller wants most of those that are served, gzip where they are equal; `None` for none. `*` asks for none, as
/// with Triton.
pub(crate) fn wanted(headers: &HeaderMap) -> Option<Coding> {
    let mut best: Option<(Coding, u16)> = None;
    let mut plain = 0;
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    for item in values.flat_map(|value| value.split(',')) {
        let (name, quality) = weighed(item);
        match Coding::read(name) {
            Some(coding) => {
                let better = best.is_none_or(|(other, found)| quality > found || quality == found && other == Coding::Deflate);
                if quality > 0 && better {
                    best = Some((coding, quality));
                }
            }
            None if name.eq_ignore_ascii_case("identity") => plain = quality,
            None => {}
        }
    }
    best.filter(|(_, quality)| *quality >= plain).map(|(coding, _)| coding)
}

/// A name and its weight in thousandths; a weight that can't be read is 0.
fn weighed(item: &str) -> (&str, u16) {
    let (name, parameters) = item.split_once(';').map_or((item, ""), |(name, parameters)| (name, parameters));
    let weight = parameters.split(';').find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim().eq_ignore_ascii_case("q").then(|| value.trim())
    });
    let quality = match weight {
        None => 1000,
        // A float of network origin, held between 0 and 1; what is no number becomes 0.
        Some(text) => text.parse::<f32>().map_or(0, |quality| (quality.clamp(0.0, 1.0) * 1000.0) as u16),
    };
    (name.trim(), quality)
}

/// Unpacks a body. The byte at `offset` of the result is aligned.
pub(crate) fn unpack(coding: Coding, packed: &[u8], offset: usize, room: &Room) -> Result<Bytes, Failure> {
    let mut assembly = Assembly::new(room, None, offset);
    match coding {
        Coding::Gzip => pour(MultiGzDecoder::new(packed), &mut assembly)?,
        Coding::Deflate => {
            let mut decoder = ZlibDecoder::new(packed);
            pour(&mut decoder, &mut assembly)?;
            if decoder.total_in() != packed.len() as u64 {
                return Err(broken("nothing after the compressed body"));
            }
        }
    }
    Ok(assembly.finish())
}

fn pour(mut decoder: impl Read, assembly: &mut Assembly<'_>) -> Result<(), Failure> {
    // At the cap one more byte is asked for, to learn whether there is any.
    let mut beyond = [0];
    loop {
        let space = if assembly.is_at_cap() { &mut beyond } else { assembly.space()? };
        match decoder.read(space) {
            Ok(0) => return Ok(()),
            Ok(count) => assembly.advance(count)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(broken("a body that unpacks as it says")),
        }
    }
}

fn broken(expected: &str) -> Failure {
    Failure::invalid(format!("header 'Content-Encoding': expected {expected}"))
}

/// Packs an answer's parts into one.
pub(crate) fn pack<'a>(coding: Coding, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<Bytes> {
    // The network is seldom so slow that a better level pays.
    let level = Compression::fast();
    let packed = match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), level);
            parts.into_iter().try_for_each(|part| encoder.write_all(part))?;
            encoder.finish()?
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), level);
            parts.into_iter().try_for_each(|part| encoder.write_all(part))?;
            encoder.finish()?
        }
    };
    Ok(packed.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::Budget;

    fn headers(name: hyper::header::HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_caller_s_weights_decide() {
        for (accepted, expected) in [
            (&["gzip"][..], Some(Coding::Gzip)),
            (&["gzip, deflate"], Some(Coding::Gzip)),
            (&["deflate, gzip"], Some(Coding::Gzip)),
            (&["deflate, gzip;q=0.5"], Some(Coding::Deflate)),
            (&["deflate;q=0.2", "gzip; q=0.3"], Some(Coding::Gzip)),
            (&["DEFLATE"], Some(Coding::Deflate)),
            (&["gzip;q=0"], None),
            (&["gzip;q=abc"], None),
            (&["gzip;q=NaN"], None),
            (&["gzip;q=-1, deflate;q=9"], Some(Coding::Deflate)),
            (&["gzip;q=0.5, identity"], None),
            (&["gzip, identity"], Some(Coding::Gzip)),
            (&["br"], None),
            (&["*"], None),
            (&["identity"], None),
            (&["", ";;=,,"], None),
            (&[], None),
        ] {
            assert_eq!(wanted(&headers(ACCEPT_ENCODING, accepted)), expected, "{accepted:?}");
        }
    }

    #[test]
    fn unknown_codings_are_refused() {
        let check = |values: &[&str]| of_request(&headers(CONTENT_ENCODING, values)).map_err(|failure| failure.status().as_u16());
        assert_eq!(check(&[]), Ok(None));
        assert_eq!(check(&["identity"]), Ok(None));
        assert_eq!(check(&["GZIP"]), Ok(Some(Coding::Gzip)));
        assert_eq!(check(&["deflate"]), Ok(Some(Coding::Deflate)));
        for unknown in [&["br"][..], &["gzip, deflate"], &["gzip", "gzip"]] {
            assert_eq!(check(unknown), Err(501), "{unknown:?}");
        }
    }

    fn unpacked(coding: Coding, packed: &[u8], limit: usize) -> Result<Bytes, u16> {
        let budget = Budget::new(1 << 30);
        unpack(coding, packed, 5, &budget.room(limit)).map_err(|failure| failure.status().as_u16())
    }

    #[test]
    fn what_is_packed_unpacks_aligned_where_asked() {
        let text: Vec<u8> = (0..200_000u32).map(|number| (number * 7 / 3) as u8).collect();
        for coding in [Coding::Gzip, Coding::Deflate] {
            let packed = pack(coding, [&text[..100], &text[100..]].into_iter()).unwrap();
            let back = unpacked(coding, &packed, 1 << 20).unwrap();
            assert_eq!(back, text);
            assert!(back[5..].as_ptr().addr().is_multiple_of(8));
            assert_eq!(unpacked(coding, &packed, text.len()), Ok(back));
            assert_eq!(unpacked(coding, &packed, text.len() - 1), Err(413));
            assert_eq!(unpacked(coding, &packed[..packed.len() - 1], 1 << 20), Err(400));
            assert_eq!(unpacked(coding, &[&packed[..], b"x"].concat(), 1 << 20), Err(400));
        }
        assert_eq!(unpacked(Coding::Gzip, b"{\"inputs\":[]}", 1 << 20), Err(400));
        assert_eq!(unpacked(Coding::Deflate, b"", 1 << 20), Err(400));
    }

    #[test]
    fn a_bomb_ends_at_the_cap() {
        let zeros = vec![0u8; 8 << 20];
        let packed = pack(Coding::Gzip, std::iter::once(zeros.as_slice())).unwrap();
        assert!(packed.len() < 64 << 10);
        assert_eq!(unpacked(Coding::Gzip, &packed, 1 << 20), Err(413));
    }
}
