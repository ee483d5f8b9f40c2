//! Publishing a version: blobs first, the manifest last.
//!
//! Blobs are named by their content, so publishers can't hurt each other and a retry finds what is there. Putting the
//! manifest where there is none is the only commit: before it nothing is seen, and of two publishers one wins whole. Signatures
//! come between the two.

mod files;
mod resume;
mod upload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::{Error as StoreError, ObjectStore};
use uuid::Uuid;

use super::changes::What;
use super::{Registry, RegistryError};
use crate::digest::Digest;
use crate::log::{Put, Read, exists, lacks_put_if_absent, put_if_absent};
use crate::manifest::{Lineage, MANIFEST_SCHEMA, Manifest, ManifestError, ManifestFile};
use crate::name::{MAX_VERSION, ModelName, VersionKey, VersionNumber};
use crate::signing::SecretKey;
use crate::source::{Cause, Progress};

use files::Measured;
pub(super) use files::PART_BYTES;
pub use files::collect_files;
pub(crate) use files::measure_all;

/// How often a publish without a number tries the next, where others take the one that it wanted.
const NUMBER_TRIES: u32 = 256;

/// What is to be published.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// The model; made with its first version.
    pub model: ModelName,
    /// The number; `None` for the one after the highest.
    pub version: Option<VersionNumber>,
    /// Path inside the version, and where the content lies now.
    pub files: Vec<(String, PathBuf)>,
    /// Which runtime executes it: `onnx`, `torchscript`.
    pub format: String,
    /// The file that the runtime opens.
    pub entrypoint: String,
    /// Inputs and outputs, where they are known.
    pub signature: Option<serde_json::Value>,
    /// The file of golden samples.
    pub golden: Option<String>,
    /// What it was made from.
    pub lineage: Lineage,
    /// What its training measured; finite.
    pub metrics: BTreeMap<String, f64>,
    /// The user's own marks.
    pub tags: BTreeMap<String, String>,
    /// Who publishes.
    pub publisher: String,
    /// It is to take no traffic until a rollout says so.
    pub hold: bool,
    /// Where to remember uploads of large files that broke off, so that publishing the same file again continues them; made where
    /// it is not there. Needs a store that was given to [`Registry::with_multipart`]. `None`: what was uploaded of a file that
    /// fails is thrown away.
    pub resume_dir: Option<PathBuf>,
    /// Who signs its manifest.
    pub signers: Vec<SecretKey>,
}

impl PublishRequest {
    /// These files as the next version, and nothing else said about it.
    pub fn new(model: ModelName, format: impl Into<String>, entrypoint: impl Into<String>, files: Vec<(String, PathBuf)>) -> Self {
        Self {
            model,
            version: None,
            files,
            format: format.into(),
            entrypoint: entrypoint.into(),
            signature: None,
            golden: None,
            lineage: Lineage::default(),
            metrics: BTreeMap::new(),
            tags: BTreeMap::new(),
            publisher: String::new(),
            hold: false,
            resume_dir: None,
            signers: Vec::new(),
        }
    }
}

/// Where versions can be published.
#[async_trait]
pub trait PublishTarget: Send + Sync {
    /// For people: `directory ./models`.
    fn describe(&self) -> String;

    /// Publishes a version and returns once it is there for all. Killed or failed half way it leaves nothing that is served.
    ///
    /// # Errors
    /// [`PublishError::AlreadyExists`] where the number is taken; see there for the others.
    async fn publish(&self, request: PublishRequest, progress: &dyn Progress) -> Result<Published, PublishError>;
}

#[async_trait]
impl PublishTarget for Registry {
    fn describe(&self) -> String {
        Registry::describe(self).to_owned()
    }

    async fn publish(&self, request: PublishRequest, progress: &dyn Progress) -> Result<Published, PublishError> {
        Registry::publish(self, request, progress).await
    }
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Model and version.
    pub key: VersionKey,
    /// The digest of the manifest: names the content.
    pub digest: Digest,
    /// All files together.
    pub bytes: u64,
    /// Of them, what was there already and was not uploaded.
    pub reused_bytes: u64,
}

/// Why nothing was published.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// What is to be published breaks a rule.
    #[error("the request can't be published")]
    Invalid(#[source] ManifestError),
    /// A file can't be read.
    #[error("{} can't be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// A file was written to meanwhile.
    #[error("{} has changed while it was published", path.display())]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// The version is there, and versions never change: publish another number.
    #[error("{key} exists already")]
    AlreadyExists {
        /// The version.
        key: VersionKey,
    },
    /// The model lies in the plain layout, which this would hide.
    #[error("model {model} is in the plain layout: publishing into it would hide its numbered directories")]
    PlainLayout {
        /// The model.
        model: ModelName,
    },
    /// No number is left, or others took each that was tried.
    #[error("no version number was free in {0} tries")]
    Contended(u32),
    /// The store can't commit.
    #[error("{store} can't be published to: it lacks put-if-absent")]
    NoPutIfAbsent {
        /// The store.
        store: String,
    },
    /// The store can't be reached or refuses. It is safe to publish again.
    #[error("{place} can't be reached")]
    Unavailable {
        /// What was asked.
        place: String,
        /// Why.
        source: Cause,
    },
}

impl PublishError {
    /// What to do about it, for people.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::AlreadyExists { .. } => Some("leave out the version to publish as the next one".into()),
            Self::PlainLayout { model } => {
                Some(format!("copy a numbered directory into {model}/ instead, or publish under another name"))
            }
            _ => None,
        }
    }

    pub(crate) fn unavailable(place: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Unavailable { place: place.into(), source: crate::source::cause(source) }
    }

    fn writing(store: &dyn ObjectStore, place: impl Into<String>, error: StoreError) -> Self {
        if lacks_put_if_absent(&error) {
            return Self::NoPutIfAbsent { store: store.to_string() };
        }
        Self::unavailable(place, error)
    }
}

impl From<RegistryError> for PublishError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Unavailable { place, source } => Self::Unavailable { place, source },
            RegistryError::NoPutIfAbsent { store } => Self::NoPutIfAbsent { store },
            other => Self::unavailable("the registry", other),
        }
    }
}

impl Registry {
    /// Publishes a version and returns once it is committed. Killed or failed half way it leaves nothing that is seen.
    ///
    /// # Errors
    /// [`PublishError::AlreadyExists`] where the number is taken; see there for the others.
    pub async fn publish(&self, request: PublishRequest, progress: &dyn Progress) -> Result<Published, PublishError> {
        let mut manifest = checked_draft(&request, self.clock.now())?;
        let shape = self.shape(&request.model).await?;
        if !shape.ours && !shape.numeric.is_empty() {
            return Err(PublishError::PlainLayout { model: request.model });
        }
        if request.version.is_some() && self.manifest_bytes(&manifest.key()).await?.is_some() {
            return Err(PublishError::AlreadyExists { key: manifest.key() });
        }
        let paths: Vec<_> = request.files.iter().map(|(_, path)| path.as_path()).collect();
        let measured = measure_all(&paths, self.part_bytes).await?;
        for (file, measured) in manifest.files.iter_mut().zip(&measured) {
            (file.sha256, file.bytes) = (Some(measured.sha256), measured.bytes);
        }
        manifest.validate().map_err(PublishError::Invalid)?;
        let reused_bytes = self.upload_all(&request, &measured, progress).await?;
        let bytes = manifest.bytes();
        let (key, digest) = self.commit(manifest, &request).await?;
        self.note_change(&key.model, What::Publish, Some(key.version)).await;
        self.mend(&request, &measured, progress).await?;
        Ok(Published { key, digest, bytes, reused_bytes })
    }

    /// Uploads again what somebody has removed between its upload and the commit: see [`super::gc`]. A look that fails is no reason
    /// to say that nothing was published.
    async fn mend(&self, request: &PublishRequest, files: &[Measured], progress: &dyn Progress) -> Result<(), PublishError> {
        let mut gone = false;
        for file in files {
            let blob = self.blob_path(&request.model, &file.sha256);
            match exists(self.store.as_ref(), &blob).await {
                Ok(there) => {
                    if !there {
                        tracing::warn!(%blob, "a blob was removed while it was published and is uploaded again");
                    }
                    gone |= !there;
                }
                Err(error) => tracing::warn!(%blob, %error, "it is not known whether a blob is still there"),
            }
        }
        // What is there is not uploaded again.
        if gone { self.upload_all(request, files, progress).await.map(drop) } else { Ok(()) }
    }

    /// Puts the manifest under its number, or the next that is free.
    async fn commit(&self, mut manifest: Manifest, request: &PublishRequest) -> Result<(VersionKey, Digest), PublishError> {
        if request.version.is_some() {
            let digest = self.put_manifest(&manifest, &request.signers).await?;
            let key = manifest.key();
            return digest.map(|digest| (key.clone(), digest)).ok_or(PublishError::AlreadyExists { key });
        }
        manifest.version = self.highest(&manifest.model).await?.unwrap_or(0).saturating_add(1);
        for _ in 0..NUMBER_TRIES {
            if manifest.version > MAX_VERSION {
                break;
            }
            if let Some(digest) = self.put_manifest(&manifest, &request.signers).await? {
                return Ok((manifest.key(), digest));
            }
            manifest.version += 1;
        }
        Err(PublishError::Contended(NUMBER_TRIES))
    }

    /// Signatures first: whoever sees the manifest sees them. `None` where the number is taken.
    async fn put_manifest(&self, manifest: &Manifest, signers: &[SecretKey]) -> Result<Option<Digest>, PublishError> {
        let path = self.manifest_path(&manifest.key());
        let content = serde_json::to_vec_pretty(manifest).map_err(|error| PublishError::unavailable("the manifest", error))?;
        let (digest, length) = (Digest::of(&content), content.len() as u64);
        if length > crate::manifest::MAX_MANIFEST_BYTES {
            return Err(PublishError::Invalid(ManifestError::TooLarge(length)));
        }
        for signer in signers {
            self.put_signature(&manifest.model, &digest, signer).await?;
        }
        let is_ours = |stored: &Read| matches!(stored, Read::Whole(stored) if *stored == content);
        match put_if_absent(self.store.as_ref(), &path, content.clone().into()).await {
            Ok(Put::Done) => Ok(Some(digest)),
            // The store may have tried twice by itself, and met its own first try.
            Ok(Put::Taken) => Ok(self.manifest_bytes(&manifest.key()).await?.filter(|stored| is_ours(stored)).map(|_| digest)),
            Err(error) => {
                let error = PublishError::writing(self.store.as_ref(), path.to_string(), error);
                match self.manifest_bytes(&manifest.key()).await {
                    Ok(Some(stored)) if is_ours(&stored) => Ok(Some(digest)),
                    _ => Err(error),
                }
            }
        }
    }
}

/// The manifest as far as it is known before the files are read, which keeps the rules.
pub(crate) fn checked_draft(request: &PublishRequest, now: chrono::DateTime<chrono::Utc>) -> Result<Manifest, PublishError> {
    if let Some((name, _)) = request.metrics.iter().find(|(_, value)| !value.is_finite()) {
        let problem = format!("has {}, which is not finite", crate::name::quoted(name));
        return Err(PublishError::Invalid(ManifestError::Field { field: "metrics", problem }));
    }
    let manifest = draft(request, now);
    manifest.validate().map_err(PublishError::Invalid)?;
    Ok(manifest)
}

fn draft(request: &PublishRequest, now: chrono::DateTime<chrono::Utc>) -> Manifest {
    let files = request.files.iter().map(|(path, _)| ManifestFile { path: path.clone(), sha256: None, bytes: 0 });
    // Makes the bytes of every publish differ, so that a publisher knows its own manifest from another's.
    let publish_id = serde_json::Value::String(Uuid::new_v4().to_string());
    Manifest {
        schema: MANIFEST_SCHEMA,
        model: request.model.clone(),
        version: request.version.unwrap_or(1),
        format: request.format.clone(),
        entrypoint: request.entrypoint.clone(),
        files: files.collect(),
        signature: request.signature.clone(),
        golden: request.golden.clone(),
        lineage: request.lineage.clone(),
        metrics: request.metrics.clone(),
        tags: request.tags.clone(),
        created: now,
        publisher: request.publisher.clone(),
        hold: request.hold,
        extra: BTreeMap::from([("publish_id".to_owned(), publish_id)]),
    }
}
