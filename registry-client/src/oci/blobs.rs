//! Parts of blobs.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Response, StatusCode};

use super::error::OciError;
use super::http::{ANSWER_LIMIT, Ask, Client, Scope, unwanted};
use crate::digest::Digest;
use crate::source::FetchError;
use crate::transfer::{Pieces, Ranges};

/// A file of a version, as a blob of a repository.
pub(super) struct Blob {
    pub(super) client: Arc<Client>,
    pub(super) repository: String,
    pub(super) digest: Digest,
    /// For people.
    pub(super) what: String,
}

#[async_trait]
impl Ranges for Blob {
    async fn read(&self, range: Range<u64>) -> Result<Pieces, FetchError> {
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else {
            return Ok(stream::empty().boxed());
        };
        let url = self.client.blob_url(&self.repository, &self.digest);
        let mut ask = Ask { patient: true, ..self.client.get(&self.what, url, Scope::Pull(self.repository.clone())) };
        let header = format!("bytes={}-{last}", range.start).parse();
        ask.headers.insert(RANGE, header.map_err(|_| self.failed(OciError::protocol(&self.what, "no range can be asked for")))?);
        let response = self.client.send(&ask).await.map_err(|error| self.failed(error))?;
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response) == Some(range.start) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(self.failed(OciError::protocol(&self.what, "it sends another part than it was asked for")));
            }
            // It does not know ranges and sends all of it.
            StatusCode::OK => range.start,
            // It ends before.
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(stream::empty().boxed()),
            StatusCode::NOT_FOUND => {
                let what = format!("{} (blob sha256:{} of {})", self.what, self.digest, self.repository);
                return Err(FetchError::NotFound { what });
            }
            _ => return Err(self.failed(unwanted(&self.what, response).await)),
        };
        Ok(self.pieces(response, skip, range.end - range.start))
    }
}

impl Blob {
    fn failed(&self, error: OciError) -> FetchError {
        FetchError::unavailable(self.what.clone(), error)
    }

    /// What comes after the first `skip` bytes, `take` bytes at the most.
    fn pieces(&self, response: Response, skip: u64, take: u64) -> Pieces {
        let what = self.what.clone();
        let next = move |(mut response, skip, take): (Response, u64, u64)| {
            let what = what.clone();
            async move {
                if take == 0 {
                    return None;
                }
                let failed = |error| FetchError::unavailable(what.clone(), error);
                let piece = match tokio::time::timeout(ANSWER_LIMIT, response.chunk()).await {
                    Ok(Ok(piece)) => piece?,
                    Ok(Err(error)) => return Some((Err(failed(OciError::transport(&what, error))), (response, 0, 0))),
                    Err(_) => {
                        let late = OciError::Late { what: what.clone(), limit: ANSWER_LIMIT };
                        return Some((Err(failed(late)), (response, 0, 0)));
                    }
                };
                let (piece, skip, take) = cut(piece, skip, take);
                Some((Ok(piece), (response, skip, take)))
            }
        };
        stream::unfold((response, skip, take), next)
            .filter(|piece| {
                let empty = piece.as_ref().is_ok_and(Bytes::is_empty);
                std::future::ready(!empty)
            })
            .boxed()
    }
}

/// Leaves out `skip` bytes and what comes after `take` more; what is left to skip and to take.
fn cut(mut piece: Bytes, skip: u64, take: u64) -> (Bytes, u64, u64) {
    let skipped = skip.min(piece.len() as u64);
    // Not longer than the piece, so neither are these.
    let piece = piece.split_off(usize::try_from(skipped).unwrap_or(usize::MAX).min(piece.len()));
    let kept = take.min(piece.len() as u64);
    let piece = piece.slice(..usize::try_from(kept).unwrap_or(piece.len()).min(piece.len()));
    (piece, skip - skipped, take - kept)
}

/// The first byte of the part that is sent.
fn starts_at(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes")?.trim_start().split_once('-')?.0.parse().ok()
}
