//! Parts of a file behind the proxy, or in a store.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use object_store::path::Path;
use object_store::{Error as StoreError, GetOptions, GetRange, ObjectStore};
use reqwest::Url;
use reqwest::header::CONTENT_RANGE;

use super::super::client::Client;
use super::super::error::MlflowError;
use crate::source::FetchError;
use crate::transfer::{Pieces, Ranges};

/// A file behind the proxy.
pub(super) struct ProxyFile {
    pub(super) client: Arc<Client>,
    pub(super) url: Url,
    pub(super) what: String,
    /// As it was listed.
    pub(super) bytes: u64,
}

#[async_trait]
impl Ranges for ProxyFile {
    async fn read(&self, range: Range<u64>) -> Result<Pieces, FetchError> {
        // An empty range can't be asked for; the whole file, which is empty then, can.
        let asked = (!range.is_empty()).then(|| format!("bytes={}-{}", range.start, range.end - 1));
        let response = self.client.file(&self.what, self.url.clone(), asked.as_deref()).await.map_err(MlflowError::into_fetch)?;
        let changed = || FetchError::Changed { what: self.what.clone() };
        let skip = match response.status().as_u16() {
            206 => {
                let whole = response.headers().get(CONTENT_RANGE).and_then(|range| of_whole(range.to_str().ok()?));
                match whole {
                    Some((start, bytes)) if start == range.start && bytes == self.bytes => 0,
                    Some((start, _)) if start == range.start => return Err(changed()),
                    _ => {
                        let problem = "says with Content-Range that it is another part of the file than was asked for";
                        return Err(MlflowError::malformed(&self.what, problem).into_fetch());
                    }
                }
            }
            // A server that knows no ranges sends all of it.
            200 if response.content_length().is_some_and(|bytes| bytes != self.bytes) => return Err(changed()),
            200 => range.start,
            _ => return Err(changed()),
        };
        let what = self.what.clone();
        let pieces =
            response.bytes_stream().map(move |piece| piece.map_err(|error| MlflowError::unreachable(&what, error).into_fetch()));
        Ok(part(pieces, skip, range.end - range.start).boxed())
    }
}

/// Start of the part and size of the whole in a `Content-Range`.
fn of_whole(header: &str) -> Option<(u64, u64)> {
    let (part, whole) = header.strip_prefix("bytes ")?.split_once('/')?;
    Some((part.split_once('-')?.0.parse().ok()?, whole.parse().ok()?))
}

/// What is left of pieces without those that come before and after a part. An empty part lets everything through: whoever expects
/// nothing is to notice that there is something.
fn part(
    pieces: impl Stream<Item = Result<Bytes, FetchError>> + Send + 'static,
    skip: u64,
    take: u64,
) -> impl Stream<Item = Result<Bytes, FetchError>> + Send + 'static {
    let cut = move |state: &mut (u64, u64), piece: Result<Bytes, FetchError>| {
        let (skip, left) = state;
        let piece = piece.map(|mut piece| {
            let skipped = (*skip).min(piece.len() as u64);
            *skip -= skipped;
            // Both are at most the piece's length, which is a usize.
            let piece = piece.split_off(skipped as usize);
            if take == 0 {
                return piece;
            }
            let kept = (*left).min(piece.len() as u64);
            *left -= kept;
            piece.slice(..kept as usize)
        });
        let is_over = take > 0 && *left == 0;
        futures::future::ready(if is_over && matches!(&piece, Ok(piece) if piece.is_empty()) { None } else { Some(piece) })
    };
    pieces.scan((skip, take), cut).filter(|piece| futures::future::ready(!matches!(piece, Ok(piece) if piece.is_empty())))
}

/// A file in a store.
pub(super) struct StoreFile {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: Path,
    pub(super) what: String,
    pub(super) e_tag: Option<String>,
    /// As it was listed.
    pub(super) bytes: u64,
}

#[async_trait]
impl Ranges for StoreFile {
    async fn read(&self, range: Range<u64>) -> Result<Pieces, FetchError> {
        let asked = (!range.is_empty()).then_some(GetRange::Bounded(range));
        let options = GetOptions { range: asked, if_match: self.e_tag.clone(), ..GetOptions::default() };
        let what = self.what.clone();
        let failed = move |error| match error {
            StoreError::Precondition { .. } => FetchError::Changed { what: what.clone() },
            error => MlflowError::store(&what, error).into_fetch(),
        };
        let found = self.store.get_opts(&self.path, options).await.map_err(&failed)?;
        if found.meta.size != self.bytes {
            return Err(FetchError::Changed { what: self.what.clone() });
        }
        Ok(found.into_stream().map(move |piece| piece.map_err(&failed)).boxed())
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;
    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn a_part_of_pieces() {
        let check = async |skip, take, expected: &str| {
            let pieces = stream::iter(["012", "345", "", "6789"].map(|piece| Ok(Bytes::from(piece))));
            let got: Vec<Bytes> = part(pieces, skip, take).try_collect().await.unwrap();
            assert_eq!(got.concat(), expected.as_bytes(), "{skip} {take}");
        };
        check(0, 10, "0123456789").await;
        check(0, 3, "012").await;
        check(1, 4, "1234").await;
        check(6, 100, "6789").await;
        check(3, 3, "345").await;
        check(0, 0, "0123456789").await;
    }

    #[test]
    fn content_ranges() {
        assert_eq!(of_whole("bytes 4-9/10"), Some((4, 10)));
        for wrong in ["", "bytes */10", "bytes 4-9/*", "4-9/10", "bytes -/x"] {
            assert_eq!(of_whole(wrong), None, "{wrong}");
        }
    }
}
