//! Uploading blobs: what is there is not sent again, small ones go at once, large ones in pieces.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::io::AsyncReadExt as _;

use super::api::content_digest;
use super::error::OciError;
use super::http::{Ask, Client, Scope, UPLOAD_LIMIT, unwanted};
use super::place::OciPlace;
use crate::digest::{Digest, DigestBuilder};
use crate::manifest::ManifestFile;
use crate::registry::PublishError;
use crate::source::Progress;

/// Files up to this size are sent at once; larger ones in pieces of this size, or of the registry's least one.
const PIECE_BYTES: u64 = 8 << 20;
/// The largest piece that a registry can ask for: each is held in memory.
const MAX_PIECE_BYTES: u64 = 64 << 20;
/// How the registry says what its least piece is.
const LEAST_PIECE: &str = "oci-chunk-min-length";
/// How often the upload of a file is begun, where the connection breaks.
const TRIES: u32 = 3;

/// Uploads into one repository.
#[derive(Clone, Copy)]
pub(super) struct Upload<'a> {
    pub(super) client: &'a Client,
    pub(super) repository: &'a str,
    pub(super) place: &'a OciPlace,
}

enum Failure {
    File(PublishError),
    Registry(OciError),
}

impl From<OciError> for Failure {
    fn from(error: OciError) -> Self {
        Self::Registry(error)
    }
}

impl Upload<'_> {
    /// Makes sure that the blob of a file is there. Returns how many bytes were there already.
    pub(super) async fn file(self, file: &ManifestFile, source: &Path, progress: &dyn Progress) -> Result<u64, PublishError> {
        let Some(digest) = file.sha256 else {
            return Err(PublishError::FileChanged { path: source.to_owned() });
        };
        let failed = |error| PublishError::unavailable(format!("{} of {}", self.repository, self.place.host), error);
        progress.advance(&file.path, 0, file.bytes);
        if self.exists(&digest, file.bytes).await.map_err(failed)? {
            progress.advance(&file.path, file.bytes, file.bytes);
            return Ok(file.bytes);
        }
        let mut tries = 1;
        loop {
            match self.send_file(file, &digest, source, progress).await {
                Ok(()) => break,
                Err(Failure::File(error)) => return Err(error),
                Err(Failure::Registry(error)) if tries < TRIES && error.is_passing() => {
                    tracing::debug!(file = file.path, %error, "an upload broke off and is begun again");
                    tries += 1;
                }
                Err(Failure::Registry(error)) => return Err(failed(error)),
            }
        }
        progress.advance(&file.path, file.bytes, file.bytes);
        Ok(0)
    }

    /// Makes sure that a small blob is there.
    pub(super) async fn small(self, content: Vec<u8>) -> Result<(), OciError> {
        let digest = Digest::of(&content);
        if self.exists(&digest, content.len() as u64).await? {
            return Ok(());
        }
        let (url, _) = self.begin(&digest).await?;
        self.finish(url, &digest, content.into()).await
    }

    async fn exists(self, digest: &Digest, bytes: u64) -> Result<bool, OciError> {
        let what = self.what("the look for", digest);
        let ask = Ask { method: Method::HEAD, ..self.ask(&what, self.client.blob_url(self.repository, digest)) };
        let response = self.client.send(&ask).await?;
        match response.status() {
            StatusCode::OK => {
                let there = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
                Ok(there.is_none_or(|there: u64| there == bytes))
            }
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(unwanted(&what, response).await),
        }
    }

    async fn send_file(self, file: &ManifestFile, digest: &Digest, source: &Path, progress: &dyn Progress) -> Result<(), Failure> {
        let unreadable = |error: io::Error| Failure::File(PublishError::File { path: source.to_owned(), source: Arc::new(error) });
        let changed = || Failure::File(PublishError::FileChanged { path: source.to_owned() });
        let mut reader = tokio::fs::File::open(source).await.map_err(unreadable)?;
        let (mut url, piece_bytes) = self.begin(digest).await?;
        let (mut hash, mut done) = (DigestBuilder::default(), 0_u64);
        loop {
            let mut piece = Vec::new();
            (&mut reader).take(piece_bytes).read_to_end(&mut piece).await.map_err(unreadable)?;
            hash.bytes(&piece);
            let length = piece.len() as u64;
            if done.saturating_add(length) > file.bytes || (length == 0 && done < file.bytes) {
                return Err(changed());
            }
            let last = done + length == file.bytes;
            if last && hash.clone().finish() != *digest {
                return Err(changed());
            }
            if last && done == 0 {
                return Ok(self.finish(url, digest, piece.into()).await?);
            }
            url = self.piece(url, digest, done, piece.into()).await?;
            done += length;
            progress.advance(&file.path, done, file.bytes);
            if last {
                return Ok(self.finish(url, digest, Bytes::new()).await?);
            }
        }
    }

    /// Begins an upload: where to send it, and in pieces of which size.
    async fn begin(self, digest: &Digest) -> Result<(Url, u64), OciError> {
        let what = self.what("the upload of", digest);
        let url = self.client.url(&format!("{}/blobs/uploads/", self.repository));
        let ask = Ask { method: Method::POST, ..self.ask(&what, url) };
        let response = self.client.send(&ask).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(unwanted(&what, response).await);
        }
        let least = response.headers().get(LEAST_PIECE).and_then(|least| least.to_str().ok()?.parse().ok()).unwrap_or(0);
        if least > MAX_PIECE_BYTES {
            return Err(OciError::protocol(what, format!("it takes no piece smaller than {least} bytes")));
        }
        Ok((self.next(&what, &ask.url, &response)?, PIECE_BYTES.max(least)))
    }

    /// Sends one piece; where the next one goes.
    async fn piece(self, url: Url, digest: &Digest, start: u64, piece: Bytes) -> Result<Url, OciError> {
        let what = self.what("a piece of", digest);
        let range = format!("{start}-{}", start + piece.len() as u64 - 1).parse();
        let range = range.map_err(|_| OciError::protocol(&what, "no range can be named"))?;
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, octets()), (CONTENT_RANGE, range)]);
        let ask = Ask { method: Method::PATCH, headers, body: piece, limit: UPLOAD_LIMIT, ..self.ask(&what, url) };
        let response = self.client.send(&ask).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(unwanted(&what, response).await);
        }
        self.next(&what, &ask.url, &response)
    }

    /// Ends an upload with what is left of it; from then on the blob is there.
    async fn finish(self, mut url: Url, digest: &Digest, rest: Bytes) -> Result<(), OciError> {
        let what = self.what("the end of the upload of", digest);
        url.query_pairs_mut().append_pair("digest", &format!("sha256:{digest}"));
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, octets())]);
        let ask = Ask { method: Method::PUT, headers, body: rest, limit: UPLOAD_LIMIT, ..self.ask(&what, url) };
        let response = self.client.send(&ask).await?;
        if response.status() != StatusCode::CREATED {
            return Err(unwanted(&what, response).await);
        }
        match content_digest(&response) {
            Some(actual) if actual != *digest => Err(OciError::Digest { what, expected: *digest, actual }),
            _ => Ok(()),
        }
    }

    fn next(self, what: &str, from: &Url, response: &Response) -> Result<Url, OciError> {
        let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
        let target = target.ok_or_else(|| OciError::protocol(what, "it does not say where to go on"))?;
        self.client.resolve(what, from, target)
    }

    fn what(self, doing: &str, digest: &Digest) -> String {
        format!("{doing} blob {} of {}", digest.short(), self.repository)
    }

    fn ask(self, what: &str, url: Url) -> Ask {
        Ask { patient: true, ..self.client.get(what, url, Scope::Push(self.repository.to_owned())) }
    }
}

fn octets() -> HeaderValue {
    HeaderValue::from_static("application/octet-stream")
}
