//! Uploading the files of a publish: several at a time, and large ones in parts, several at a time.
//!
//! A blob is named by its content, so one that is there is not uploaded again, and whoever else uploads the same does no harm.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetResultPayload, MultipartUpload, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions,
};
use tokio::sync::Semaphore;

use super::files::Measured;
use super::resume::{Earlier, Opened, Resume};
use super::{PublishError, PublishRequest};
use crate::digest::Digest;
use crate::log::{Put, put_if_absent};
use crate::registry::Registry;
use crate::registry::access::has_forgotten_upload;
use crate::source::Progress;

/// Files that are uploaded at a time.
const FILES: usize = 4;
/// Parts that are in memory at a time, over all files of a publish.
const PARTS: usize = 8;

/// What all files of a publish share.
struct Uploads<'a> {
    request: &'a PublishRequest,
    slots: Semaphore,
    /// What versions of the model name: read once, where it matters.
    needed: tokio::sync::OnceCell<BTreeSet<Digest>>,
    /// One file has failed: the others stop at their next part, and leave nothing behind.
    failed: AtomicBool,
}

/// One file on its way.
struct Upload<'a> {
    all: &'a Uploads<'a>,
    /// Its path inside the version.
    path: &'a str,
    measured: &'a Measured,
    blob: Path,
    done: AtomicU64,
    progress: &'a dyn Progress,
}

/// What lies where a blob belongs.
enum There {
    Nothing,
    Whole {
        /// So old that it may be taken for something that nobody needs.
        ageing: bool,
    },
    /// Another size or content than it should have.
    Damaged,
}

/// Why an upload in parts has failed.
struct Broken {
    error: PublishError,
    /// The store does not know it any more.
    forgotten: bool,
}

impl From<PublishError> for Broken {
    fn from(error: PublishError) -> Self {
        Self { error, forgotten: false }
    }
}

impl Upload<'_> {
    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.progress.advance(self.path, done, self.measured.bytes);
    }

    /// Reads a part once there is room for it in memory.
    async fn part(&self, nth: usize) -> Result<(bytes::Bytes, tokio::sync::SemaphorePermit<'_>), PublishError> {
        let stopped = || PublishError::unavailable(self.blob.to_string(), io::Error::other("another file has failed"));
        let slot = self.all.slots.acquire().await.map_err(|_| stopped())?;
        if self.all.failed.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        Ok((self.measured.read_part(nth).await?, slot))
    }
}

impl Registry {
    /// Makes sure that all blobs are there. Returns how many bytes were there already.
    pub(super) async fn upload_all(
        &self,
        request: &PublishRequest,
        measured: &[Measured],
        progress: &dyn Progress,
    ) -> Result<u64, PublishError> {
        let all =
            Uploads { request, slots: Semaphore::new(PARTS), needed: tokio::sync::OnceCell::new(), failed: AtomicBool::new(false) };
        let (mut seen, mut reused) = (BTreeSet::new(), 0);
        let mut uploads = Vec::new();
        for ((path, _), measured) in request.files.iter().zip(measured) {
            let blob = self.blob_path(&request.model, &measured.sha256);
            let upload = Upload { all: &all, path, measured, blob, done: AtomicU64::new(0), progress };
            if seen.insert(measured.sha256) {
                uploads.push(self.upload_or_stop(upload));
            } else {
                // The same content under another path: one of them brings it.
                reused += measured.bytes;
                upload.add(measured.bytes);
            }
        }
        // All of them end before the first error is told: a failed one has its upload to throw away.
        let outcomes: Vec<_> = futures::stream::iter(uploads).buffer_unordered(FILES).collect().await;
        let mut failure = None;
        for outcome in outcomes {
            match outcome {
                Ok(bytes) => reused += bytes,
                // The first one is the cause of the others, unless it was only told to stop.
                Err((true, error)) => failure = Some(error),
                Err((false, error)) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(reused), Err)
    }

    /// An error says also whether it was the first.
    async fn upload_or_stop(&self, upload: Upload<'_>) -> Result<u64, (bool, PublishError)> {
        let outcome = self.upload(&upload).await;
        outcome.map_err(|error| (!upload.all.failed.swap(true, Ordering::Relaxed), error))
    }

    async fn upload(&self, upload: &Upload<'_>) -> Result<u64, PublishError> {
        let measured = upload.measured;
        upload.progress.advance(upload.path, 0, measured.bytes);
        let mend = match self.look_at(&upload.blob, measured).await? {
            There::Whole { ageing } if !ageing || self.is_needed(upload).await? => {
                self.drop_remembered(upload).await;
                upload.add(measured.bytes);
                return Ok(measured.bytes);
            }
            There::Whole { .. } | There::Damaged => true,
            There::Nothing => false,
        };
        if measured.bytes <= self.part_bytes {
            self.upload_whole(upload, mend).await?;
            return Ok(0);
        }
        match &self.multipart {
            Some(store) => self.upload_resumable(store.as_ref(), upload).await,
            None => self.upload_parts(upload).await.map(|()| 0),
        }
    }

    /// Whether a version names an old blob already, so that nobody takes it away before this one does. Others are put again, which
    /// makes them young.
    async fn is_needed(&self, upload: &Upload<'_>) -> Result<bool, PublishError> {
        let needed = upload.all.needed.get_or_try_init(|| self.needed_blobs(&upload.all.request.model)).await?;
        Ok(needed.contains(&upload.measured.sha256))
    }

    /// What lies there. Stores of other machines check content themselves and would have to send all of it; a local disk can lose
    /// bits, and publishing again has to mend what every fetch refuses.
    async fn look_at(&self, blob: &Path, measured: &Measured) -> Result<There, PublishError> {
        let unreadable = |error| PublishError::unavailable(blob.to_string(), error);
        let result = match self.store.get_opts(blob, GetOptions { head: true, ..GetOptions::default() }).await {
            Ok(result) => result,
            Err(StoreError::NotFound { .. }) => return Ok(There::Nothing),
            Err(error) => return Err(unreadable(error)),
        };
        if result.meta.size != measured.bytes {
            return Ok(There::Damaged);
        }
        let ageing = self.is_ageing(&result.meta);
        let GetResultPayload::File(file, _) = result.payload else { return Ok(There::Whole { ageing }) };
        let hashed = tokio::task::spawn_blocking(move || crate::transfer::hash(file)).await;
        let hashed = hashed.unwrap_or_else(|error| Err(io::Error::other(error)));
        let (actual, _): (Digest, _) = hashed.map_err(|error| PublishError::unavailable(blob.to_string(), error))?;
        if actual == measured.sha256 {
            return Ok(There::Whole { ageing });
        }
        tracing::warn!(%blob, %actual, "a blob is damaged and is written again");
        Ok(There::Damaged)
    }

    fn broken(&self, blob: &Path, error: StoreError) -> Broken {
        let forgotten = has_forgotten_upload(&error);
        Broken { error: self.upload_failed(blob, error), forgotten }
    }

    fn upload_failed(&self, blob: &Path, error: StoreError) -> PublishError {
        PublishError::writing(self.store.as_ref(), blob.to_string(), error)
    }

    /// `mend` where a blob of the wrong size or content lies there.
    async fn upload_whole(&self, upload: &Upload<'_>, mend: bool) -> Result<(), PublishError> {
        let (content, _slot) = upload.part(0).await?;
        let blob = &upload.blob;
        let put = if mend {
            let options = PutOptions::from(PutMode::Overwrite);
            self.store.put_opts(blob, content.into(), options).await.map(|_| Put::Done)
        } else {
            // Where somebody else was faster the content is the same.
            put_if_absent(self.store.as_ref(), blob, content.into()).await
        };
        put.map_err(|error| self.upload_failed(blob, error))?;
        upload.add(upload.measured.bytes);
        Ok(())
    }

    /// In parts, to a store whose uploads can't be continued.
    async fn upload_parts(&self, upload: &Upload<'_>) -> Result<(), PublishError> {
        let blob = &upload.blob;
        let failed = |error| self.upload_failed(blob, error);
        let mut sink = self.store.put_multipart(blob).await.map_err(failed)?;
        let sent = match self.send_in_order(upload, sink.as_mut()).await {
            // Completing is what makes the blob visible, whole: until then it can be left.
            Ok(()) => sink.complete().await.map(drop).map_err(failed),
            Err(error) => Err(error),
        };
        if sent.is_err()
            && let Err(error) = sink.abort().await
        {
            tracing::debug!(%blob, %error, "cannot abort an upload");
        }
        sent
    }

    async fn send_in_order(&self, upload: &Upload<'_>, sink: &mut dyn MultipartUpload) -> Result<(), PublishError> {
        let parts = futures::stream::iter(0..upload.measured.parts.len()).map(|nth| upload.part(nth));
        let mut parts = parts.buffered(PARTS).fuse();
        let mut sending = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(part) = parts.next() => {
                    let (content, slot) = part?;
                    let bytes = content.len() as u64;
                    let put = sink.put_part(content.into());
                    sending.push(async move { put.await.map(|()| (bytes, slot)) });
                }
                Some(sent) = sending.next() => {
                    let (bytes, _slot) = sent.map_err(|error| self.upload_failed(&upload.blob, error))?;
                    upload.add(bytes);
                }
                else => return Ok(()),
            }
        }
    }

    /// Throws away an upload that broke off, of a blob that somebody else has brought since.
    async fn drop_remembered(&self, upload: &Upload<'_>) {
        let Some(store) = &self.multipart else { return };
        let dir = upload.all.request.resume_dir.as_deref();
        if let Some(id) = Resume::take(dir, &self.description, &upload.blob, upload.measured).await {
            abort(store.as_ref(), &upload.blob, &id).await;
        }
    }

    /// In parts, to a store whose uploads can be continued. Returns how many bytes an earlier try had uploaded.
    async fn upload_resumable(&self, store: &dyn MultipartStore, upload: &Upload<'_>) -> Result<u64, PublishError> {
        let dir = upload.all.request.resume_dir.as_deref();
        let Opened { resume, earlier, abandoned } = Resume::open(dir, &self.description, &upload.blob, upload.measured).await;
        if let Some(id) = abandoned {
            abort(store, &upload.blob, &id).await;
        }
        if let Some(earlier) = earlier {
            let id = earlier.id.clone();
            let reused = earlier.parts.keys().map(|nth| upload.measured.part_len(*nth)).sum();
            match self.send(store, upload, &resume, earlier).await {
                Ok(()) => return Ok(reused),
                // Nothing of it works any more: stores forget uploads after a while.
                Err(Broken { error, forgotten: true }) if !upload.all.failed.load(Ordering::Relaxed) => {
                    tracing::info!(blob = %upload.blob, %error, "an earlier upload can't be continued: starting afresh");
                    abort(store, &upload.blob, &id).await;
                    upload.done.store(0, Ordering::Relaxed);
                }
                Err(Broken { error, .. }) => {
                    self.leave(store, upload, &resume, &id, &error).await;
                    return Err(error);
                }
            }
        }
        let id = store.create_multipart(&upload.blob).await.map_err(|error| self.upload_failed(&upload.blob, error))?;
        resume.begin(&id).await;
        let sent = self.send(store, upload, &resume, Earlier::new(id.clone())).await.map_err(|broken| broken.error);
        if let Err(error) = &sent {
            self.leave(store, upload, &resume, &id, error).await;
        }
        sent.map(|()| 0)
    }

    /// Sends the parts that are missing and completes the upload.
    async fn send(&self, store: &dyn MultipartStore, upload: &Upload<'_>, resume: &Resume, earlier: Earlier) -> Result<(), Broken> {
        let Earlier { id, mut parts } = earlier;
        let (blob, measured) = (&upload.blob, upload.measured);
        upload.add(parts.keys().map(|nth| measured.part_len(*nth)).sum());
        let missing: Vec<_> = (0..measured.parts.len()).filter(|nth| !parts.contains_key(nth)).collect();
        let stopped = AtomicBool::new(false);
        let sends = missing.into_iter().map(|nth| {
            let (id, stopped) = (&id, &stopped);
            async move {
                let (content, _slot) = upload.part(nth).await?;
                if stopped.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let sent = store.put_part(blob, id, nth, content.into()).await;
                let part = sent.map_err(|error| self.broken(blob, error))?;
                upload.add(measured.part_len(nth));
                resume.note(nth, measured.parts.get(nth), &part).await;
                Ok::<_, Broken>(Some((nth, part)))
            }
        });
        let mut sends = futures::stream::iter(sends).buffer_unordered(PARTS);
        let mut failure = None;
        while let Some(sent) = sends.next().await {
            match sent {
                Ok(part) => parts.extend(part),
                // What is on its way may still arrive, and is remembered then.
                Err(error) => {
                    stopped.store(true, Ordering::Relaxed);
                    failure.get_or_insert(error);
                }
            }
        }
        drop(sends);
        if let Some(error) = failure {
            return Err(error);
        }
        // They are numbered without gaps: in their order they are what the store wants.
        let completed = store.complete_multipart(blob, &id, parts.into_values().collect()).await;
        if let Err(error) = completed {
            // An answer that was lost is no failure.
            let there = self.store.head(blob).await.is_ok_and(|meta| meta.size == measured.bytes);
            if !there {
                return Err(self.broken(blob, error));
            }
        }
        resume.forget().await;
        Ok(())
    }

    /// What becomes of an upload that has failed: it stays where it can be continued, else it is thrown away.
    async fn leave(&self, store: &dyn MultipartStore, upload: &Upload<'_>, resume: &Resume, id: &str, error: &PublishError) {
        if resume.is_kept() && !matches!(error, PublishError::FileChanged { .. }) {
            return;
        }
        resume.forget().await;
        abort(store, &upload.blob, id).await;
    }
}

/// Throws away an upload: what stores keep of one costs until then.
async fn abort(store: &dyn MultipartStore, blob: &Path, id: &str) {
    match store.abort_multipart(blob, &id.to_owned()).await {
        Ok(()) | Err(StoreError::NotFound { .. }) => {}
        Err(error) => tracing::debug!(%blob, %error, "cannot abort an upload"),
    }
}
