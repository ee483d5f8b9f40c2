//! Publishing to an OCI registry: blobs first, the manifest under its number last.

use async_trait::async_trait;
use futures::StreamExt as _;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};

use super::OciRegistry;
use super::api::{IMAGE_MANIFEST, MAX_IMAGE_MANIFEST_BYTES, content_digest};
use super::artifact::image_manifest;
use super::error::OciError;
use super::http::{Ask, Scope, unwanted};
use super::place::is_repository;
use super::upload::Upload;
use crate::digest::Digest;
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest, ManifestError};
use crate::name::{MAX_VERSION, VersionKey, VersionNumber, parse_version, quoted};
use crate::registry::{PublishError, PublishRequest, PublishTarget, Published, checked_draft, measure_all};
use crate::signing::SecretKey;
use crate::source::Progress;

/// How often a publish without a number tries the next, where others take the one that it wanted.
const NUMBER_TRIES: u32 = 64;
/// How many files are uploaded at a time.
const UPLOADS: usize = 4;
/// A tag is put only where there is none, by registries that know this of manifests.
const ONLY_IF_ABSENT: (HeaderName, HeaderValue) = (IF_NONE_MATCH, HeaderValue::from_static("*"));

#[async_trait]
impl PublishTarget for OciRegistry {
    fn describe(&self) -> String {
        self.place.to_string()
    }

    async fn publish(&self, request: PublishRequest, progress: &dyn Progress) -> Result<Published, PublishError> {
        OciRegistry::publish(self, request, progress).await
    }
}

impl OciRegistry {
    /// Publishes a version and returns once its tag is there: to this repository where the model has its name, else to the one of
    /// that name below it. Killed or failed half way it leaves blobs that no tag names.
    ///
    /// A tag that is there is never written. Of two publishers of one number at the same moment exactly one wins where the
    /// registry knows `If-None-Match` for manifests. Where it does not, both may write the tag, and the last one's content is the
    /// version: each looks at the tag after writing it and fails where it finds another's content, so only one whose look came
    /// before the other's write is not told.
    ///
    /// # Errors
    /// [`PublishError::AlreadyExists`] where the number is taken; see there for the others.
    pub async fn publish(&self, request: PublishRequest, progress: &dyn Progress) -> Result<Published, PublishError> {
        let mut manifest = checked_draft(&request, self.clock.now())?;
        let repository = self.place.repository_of(&request.model);
        if !is_repository(&repository) {
            let problem = format!(
                "should be lower-case letters and digits with single `.`, `_` or dashes between them, not {}",
                quoted(request.model.as_str())
            );
            return Err(PublishError::Invalid(ManifestError::Field { field: "model", problem }));
        }
        let failed = |error| self.failed(error);
        if request.version.is_some() && self.tagged(&repository, manifest.version).await.map_err(failed)?.is_some() {
            return Err(PublishError::AlreadyExists { key: manifest.key() });
        }
        let paths: Vec<_> = request.files.iter().map(|(_, path)| path.as_path()).collect();
        for (file, measured) in manifest.files.iter_mut().zip(measure_all(&paths, u64::MAX).await?) {
            (file.sha256, file.bytes) = (Some(measured.sha256), measured.bytes);
        }
        manifest.validate().map_err(PublishError::Invalid)?;
        let upload = Upload { client: &self.client, repository: &repository, place: &self.place };
        let sources: Vec<_> = manifest.files.iter().cloned().zip(request.files.iter().map(|(_, source)| source.clone())).collect();
        let uploads = futures::stream::iter(sources);
        let mut uploads =
            uploads.map(|(file, source)| async move { upload.file(&file, &source, progress).await }).buffer_unordered(UPLOADS);
        let mut reused_bytes = 0;
        while let Some(reused) = uploads.next().await {
            reused_bytes += reused?;
        }
        drop(uploads);
        let bytes = manifest.bytes();
        let (key, digest) = self.commit(&repository, manifest, &request).await?;
        Ok(Published { key, digest, bytes, reused_bytes })
    }

    fn failed(&self, error: OciError) -> PublishError {
        PublishError::unavailable(self.place.to_string(), error)
    }

    /// Tags the manifest with its number, or the next that is free.
    async fn commit(
        &self,
        repository: &str,
        mut manifest: Manifest,
        request: &PublishRequest,
    ) -> Result<(VersionKey, Digest), PublishError> {
        let fixed = request.version.is_some();
        if !fixed {
            manifest.version = self.highest(repository).await.map_err(|error| self.failed(error))?.saturating_add(1);
        }
        for _ in 0..NUMBER_TRIES {
            if manifest.version > MAX_VERSION {
                break;
            }
            let key = manifest.key();
            match self.put_manifest(repository, &manifest, &request.signers).await? {
                Some(digest) => return Ok((key, digest)),
                None if fixed => return Err(PublishError::AlreadyExists { key }),
                None => manifest.version += 1,
            }
        }
        Err(PublishError::Contended(NUMBER_TRIES))
    }

    async fn highest(&self, repository: &str) -> Result<VersionNumber, OciError> {
        let tags = self.client.tags(repository).await?;
        Ok(tags.iter().filter_map(|tag| parse_version(tag).ok()).max().unwrap_or(0))
    }

    async fn tagged(&self, repository: &str, version: VersionNumber) -> Result<Option<Digest>, OciError> {
        self.client.manifest_digest(repository, &version.to_string(), true).await
    }

    /// `None` where the number is taken.
    async fn put_manifest(
        &self,
        repository: &str,
        manifest: &Manifest,
        signers: &[SecretKey],
    ) -> Result<Option<Digest>, PublishError> {
        let unwritable = |error: serde_json::Error| PublishError::unavailable("the manifest", error);
        let config = serde_json::to_vec_pretty(manifest).map_err(unwritable)?;
        let content = image_manifest(manifest, &config, signers).map_err(unwritable)?;
        for (length, limit) in [(config.len(), MAX_MANIFEST_BYTES), (content.len(), MAX_IMAGE_MANIFEST_BYTES)] {
            if length as u64 > limit {
                return Err(PublishError::Invalid(ManifestError::TooLarge(length as u64)));
            }
        }
        let upload = Upload { client: &self.client, repository, place: &self.place };
        upload.small(config).await.map_err(|error| self.failed(error))?;
        if self.tagged(repository, manifest.version).await.map_err(|error| self.failed(error))?.is_some() {
            return Ok(None);
        }
        let digest = Digest::of(&content);
        let put = self.put_tag(repository, manifest.version, content).await;
        // Whatever the answer was, the tag says what became of it. Whoever finds another's content there has lost.
        match (put, self.tagged(repository, manifest.version).await) {
            (_, Ok(Some(there))) if there == digest => Ok(Some(digest)),
            (Ok(_), Ok(Some(_))) => Ok(None),
            (Err(error), _) | (Ok(_), Err(error)) => Err(self.failed(error)),
            (Ok(taken), Ok(None)) => {
                let problem = if taken { "the tag is taken, and is not there" } else { "the tag was put, and is not there" };
                let what = format!("the manifest of {repository}:{}", manifest.version);
                Err(self.failed(OciError::protocol(what, problem)))
            }
        }
    }

    /// Puts a manifest under a number; true where the registry says that it is taken.
    async fn put_tag(&self, repository: &str, version: VersionNumber, content: Vec<u8>) -> Result<bool, OciError> {
        let what = format!("putting the manifest of {repository}:{version}");
        let url = self.client.url(&format!("{repository}/manifests/{version}"));
        let expected = Digest::of(&content);
        let mut ask = Ask {
            method: Method::PUT,
            body: content.into(),
            patient: true,
            ..self.client.get(&what, url, Scope::Push(repository.to_owned()))
        };
        ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static(IMAGE_MANIFEST));
        ask.headers.insert(ONLY_IF_ABSENT.0, ONLY_IF_ABSENT.1);
        let response = self.client.send(&ask).await?;
        match response.status() {
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => Ok(true),
            status if status.is_success() => match content_digest(&response) {
                Some(actual) if actual != expected => Err(OciError::Digest { what, expected, actual }),
                _ => Ok(false),
            },
            _ => Err(unwanted(&what, response).await),
        }
    }
}
