//! The signatures of versions: beside the manifests, by their digest, one file a key.
//!
//! A signature is put before its manifest, so whoever sees a version sees who published it; one for a manifest that then loses its
//! number names nothing that exists. More may be added later.

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt as _, PutMode, PutOptions};

use super::changes::What;
use super::reading::is_lacking;
use super::tree::{Stamp, Stamps, object_below};
use super::{Registry, RegistryError};
use crate::digest::Digest;
use crate::log::{Put, Read, put_if_absent, read_small};
use crate::name::{ModelName, VersionKey};
use crate::signing::{MAX_SIGNATURE_BYTES, MAX_SIGNATURES, ManifestSignature, SecretKey, StoredSignature, Trust};

/// How many are read at a time.
const READS: usize = 8;

/// The signatures of one version.
pub(super) struct FoundSignatures {
    pub(super) signatures: Vec<ManifestSignature>,
    /// The objects, where they were asked for one by one because no listing shows them.
    pub(super) probed: Option<Stamps>,
}

impl Registry {
    /// Adds a key's signature to a version that exists. A second time changes nothing.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] where there is no such version, [`RegistryError::Manifest`] where its manifest breaks a rule: what
    /// nobody can load is not signed.
    pub async fn sign(&self, key: &VersionKey, with: &SecretKey) -> Result<Digest, RegistryError> {
        let generation = self.read_version(key).await?;
        self.put_signature(&key.model, &generation.digest, with).await?;
        self.note_change(&key.model, What::Signature, Some(key.version)).await;
        Ok(generation.digest)
    }

    /// Puts a signature where there is none. What lies there and is not this signature, which is always the same, is replaced.
    pub(super) async fn put_signature(&self, model: &ModelName, manifest: &Digest, with: &SecretKey) -> Result<(), RegistryError> {
        let path = self.signatures_path(model, manifest).join(format!("{}.json", with.public().id()));
        let failed = |error| RegistryError::writing(self.store.as_ref(), path.to_string(), error);
        let signature = with.sign(manifest);
        let content = serde_json::to_vec(&StoredSignature::new(signature.clone()))
            .map_err(|error| RegistryError::unavailable(path.to_string(), error))?;
        if put_if_absent(self.store.as_ref(), &path, content.clone().into()).await.map_err(failed)? == Put::Done {
            return Ok(());
        }
        if self.read_signature(path.clone()).await? != signature {
            let overwrite = PutOptions::from(PutMode::Overwrite);
            self.store.put_opts(&path, content.into(), overwrite).await.map_err(failed)?;
        }
        Ok(())
    }

    /// The signatures on the manifest with this digest, as they lie there; those of `first` come first, and of the others only so
    /// many are read. One that can't be read has the name of its file for a key, and no signature.
    pub(super) async fn signatures(
        &self,
        model: &ModelName,
        manifest: &Digest,
        first: &Trust,
        listed: Option<&Stamps>,
    ) -> Result<FoundSignatures, RegistryError> {
        let (dir, first, mut probed) = (self.signatures_path(model, manifest), first.ids(), None);
        let mut paths: Vec<Path> = match listed {
            Some(files) if !files.is_empty() => files.keys().map(|file| object_below(&dir, file)).collect(),
            _ => match self.store.list_with_delimiter(Some(&dir)).await {
                Ok(level) => level.objects.into_iter().map(|object| object.location).collect(),
                // A server that can't list can still be asked for those that count.
                Err(error) if is_lacking(&error) => {
                    let stamps = self.probe_signatures(&dir, &first).await?;
                    let paths = stamps.keys().map(|file| object_below(&dir, file)).collect();
                    probed = Some(stamps);
                    paths
                }
                Err(error) => return Err(RegistryError::unavailable(dir.to_string(), error)),
            },
        };
        let is_first = |path: &Path| first.iter().any(|id| id == stem(path));
        paths.sort_unstable_by_key(|path| (!is_first(path), path.clone()));
        paths.truncate(MAX_SIGNATURES);
        let reads = futures::stream::iter(paths).map(|path| self.read_signature(path));
        Ok(FoundSignatures { signatures: reads.buffered(READS).try_collect().await?, probed })
    }

    /// The signatures of the keys with these ids that are there, in a folder that can't be listed.
    pub(super) async fn probe_signatures(&self, dir: &Path, ids: &[String]) -> Result<Stamps, RegistryError> {
        let files: Vec<_> = ids.iter().map(|id| format!("{id}.json")).collect();
        let probes = futures::stream::iter(files).map(async |file| {
            let place = dir.clone().join(file.as_str());
            (file, self.store.head(&place).await.map_err(|error| (place, error)))
        });
        let mut probes = probes.buffer_unordered(READS);
        let mut found = Stamps::new();
        while let Some((file, probed)) = probes.next().await {
            match probed {
                Ok(object) => drop(found.insert(file, Stamp::of(&object))),
                Err((_, StoreError::NotFound { .. })) => {}
                Err((place, error)) => return Err(RegistryError::unavailable(place.to_string(), error)),
            }
        }
        Ok(found)
    }

    async fn read_signature(&self, path: Path) -> Result<ManifestSignature, RegistryError> {
        let stored = read_small(self.store.as_ref(), &path, MAX_SIGNATURE_BYTES).await;
        let stored = stored.map_err(|error| RegistryError::unavailable(path.to_string(), error))?;
        let parsed = match stored {
            Some(Read::Whole(bytes)) => StoredSignature::parse(&bytes),
            Some(Read::TooLarge(bytes)) => Err(format!("has {bytes} bytes, the limit is {MAX_SIGNATURE_BYTES}")),
            None => Err("is gone".into()),
        };
        Ok(parsed.unwrap_or_else(|why| {
            tracing::debug!(%path, why, "a signature can't be read");
            ManifestSignature { key: stem(&path).to_owned(), signature: String::new() }
        }))
    }

    pub(super) fn signatures_path(&self, model: &ModelName, manifest: &Digest) -> Path {
        self.model_path(model).join("signatures").join(manifest.to_string())
    }
}

fn stem(path: &Path) -> &str {
    let name = path.filename().unwrap_or_default();
    name.strip_suffix(".json").unwrap_or(name)
}
