//! The files of a version, out of its registry's blobs.

use std::ops::Range;
use std::path::Path as FsPath;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{Error as StoreError, GetOptions, GetResult, GetResultPayload, ObjectMeta, ObjectStore};

use super::Registry;
use crate::listing::Generation;
use crate::manifest::ManifestFile;
use crate::source::{FetchError, Fetched, Progress};
use crate::transfer::{Content, OpenFile, Pieces, Ranges, bring_all};

impl Registry {
    pub(super) async fn fetch_files(
        &self,
        generation: &Generation,
        dest: &FsPath,
        progress: &dyn Progress,
    ) -> Result<Fetched, FetchError> {
        let blobs = Blobs { registry: self, generation };
        let files = bring_all(&self.transfers, &blobs, &generation.manifest.files, dest, progress).await?;
        Ok(Fetched { files })
    }
}

/// The blobs of one version.
struct Blobs<'a> {
    registry: &'a Registry,
    generation: &'a Generation,
}

#[async_trait]
impl OpenFile for Blobs<'_> {
    async fn open(&self, file: &ManifestFile) -> Result<Content, FetchError> {
        let (registry, key) = (self.registry, &self.generation.key);
        let place = format!("file `{}` of {key}", file.path);
        let Some(sha256) = file.sha256.as_ref() else {
            return Err(FetchError::NotFound { what: format!("the digest of {place}") });
        };
        let blob = StoredBlob {
            store: Arc::clone(&registry.store),
            path: registry.blob_path(&key.model, sha256),
            place,
            file: file.clone(),
            e_tag: OnceLock::new(),
            first: Mutex::default(),
        };
        blob.open(registry.transfers.limits().range_bytes).await
    }
}

/// A blob as a file of which parts can be read.
struct StoredBlob {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// For people.
    place: String,
    file: ManifestFile,
    /// That of the first answer. What has another is not the same object.
    e_tag: OnceLock<Option<String>>,
    /// The first range is on its way already.
    first: Mutex<Option<(Range<u64>, Pieces)>>,
}

impl StoredBlob {
    /// What is asked first is part of the file, so that nothing is asked twice.
    async fn open(self, range_bytes: u64) -> Result<Content, FetchError> {
        let first = 0..range_bytes.min(self.file.bytes);
        let answer = match self.ask(&first).await {
            // A server that knows no ranges: all of it, then, in one go. It can't go on where it breaks off.
            Err(StoreError::NotSupported { .. }) => {
                let whole = self.get(&(0..self.file.bytes)).await?;
                return Ok(Content::Stream(self.pieces(whole)?));
            }
            answer => answer,
        };
        let result = match answer.map_err(|error| self.failed(error)) {
            // Whoever reads the ranges tries again.
            Err(FetchError::Unavailable { .. }) => return Ok(Content::Ranged(Arc::new(self))),
            result => result?,
        };
        if let GetResultPayload::File(local, _) = result.payload {
            return Ok(Content::Local(local));
        }
        let pieces = self.pieces(result)?;
        *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some((first, pieces));
        Ok(Content::Ranged(Arc::new(self)))
    }

    async fn get(&self, range: &Range<u64>) -> Result<GetResult, FetchError> {
        self.ask(range).await.map_err(|error| self.failed(error))
    }

    async fn ask(&self, range: &Range<u64>) -> Result<GetResult, StoreError> {
        // A whole file is asked for without a range: not every server knows them.
        let whole = *range == (0..self.file.bytes);
        let options = GetOptions {
            range: (!whole).then(|| range.clone().into()),
            if_match: self.e_tag.get().cloned().flatten().filter(|e_tag| is_strong(e_tag)),
            ..GetOptions::default()
        };
        self.store.get_opts(&self.path, options).await
    }

    fn failed(&self, error: StoreError) -> FetchError {
        match error {
            StoreError::NotFound { .. } => FetchError::NotFound { what: format!("{} ({})", self.place, self.path) },
            StoreError::Precondition { .. } => self.changed(),
            error => FetchError::unavailable(self.place.clone(), error),
        }
    }

    /// What an answer brings, if it is one about the same object.
    fn pieces(&self, result: GetResult) -> Result<Pieces, FetchError> {
        self.check(&result.meta)?;
        let place = self.place.clone();
        let failed = move |error| FetchError::unavailable(place.clone(), error);
        Ok(result.into_stream().map(move |piece| piece.map_err(&failed)).boxed())
    }

    fn check(&self, meta: &ObjectMeta) -> Result<(), FetchError> {
        if meta.size != self.file.bytes {
            return Err(FetchError::Size { file: self.file.path.clone(), expected: self.file.bytes, actual: meta.size });
        }
        let first = self.e_tag.get_or_init(|| meta.e_tag.clone());
        if first.is_some() && meta.e_tag.is_some() && *first != meta.e_tag { Err(self.changed()) } else { Ok(()) }
    }

    fn changed(&self) -> FetchError {
        FetchError::Changed { what: self.place.clone() }
    }

    fn take_first(&self, range: &Range<u64>) -> Option<Pieces> {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.take_if(|(of, _)| of == range).map(|(_, pieces)| pieces)
    }
}

/// Servers must refuse a weak entity tag as a condition, even where it is the right one.
fn is_strong(e_tag: &str) -> bool {
    !e_tag.starts_with("W/")
}

#[async_trait]
impl Ranges for StoredBlob {
    async fn read(&self, range: Range<u64>) -> Result<Pieces, FetchError> {
        match self.take_first(&range) {
            Some(pieces) => Ok(pieces),
            None => self.pieces(self.get(&range).await?),
        }
    }
}
