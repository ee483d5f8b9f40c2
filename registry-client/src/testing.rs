//! What the tests of several modules share: a store that fails on purpose, and versions to publish.

use std::fmt;
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::sync::Barrier;

use crate::name::ModelName;
use crate::registry::{PublishRequest, Registry};

/// A model name that is known to be good.
pub(crate) fn model(name: &str) -> ModelName {
    ModelName::new(name).unwrap()
}

/// A registry over this store.
pub(crate) fn registry_over(store: &Arc<dyn ObjectStore>) -> Registry {
    Registry::over(Arc::clone(store), Path::default(), "test")
}

/// Writes these files into a directory and makes a request of them. The entrypoint is the first.
pub(crate) fn request(dir: &FsPath, name: &str, version: Option<u64>, files: &[(&str, &[u8])]) -> PublishRequest {
    let written = files.iter().map(|(path, content)| {
        let place: PathBuf = dir.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, content).unwrap();
        ((*path).to_owned(), place)
    });
    let files_on_disk = written.collect();
    PublishRequest { version, publisher: "tester".into(), ..PublishRequest::new(model(name), "onnx", files[0].0, files_on_disk) }
}

/// Counts the test that calls this as skipped.
#[expect(clippy::disallowed_methods, reason = "the environment tells tests where to count")]
pub(crate) fn skip(reason: &str) {
    use std::io::Write as _;
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("unnamed test"));
    match std::env::var_os("BASCULE_SKIP_LOG") {
        Some(log) => std::fs::File::options().append(true).create(true).open(log).unwrap().write_all(line.as_bytes()).unwrap(),
        None => std::io::stderr().write_all(line.as_bytes()).unwrap(),
    }
}

/// A store that counts what is read of each object.
#[derive(Debug)]
pub(crate) struct CountingStore {
    inner: Arc<dyn ObjectStore>,
    gets: Mutex<std::collections::BTreeMap<String, usize>>,
}

impl CountingStore {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, gets: Mutex::default() }
    }

    /// How often an object was read.
    pub(crate) fn gets(&self, path: &str) -> usize {
        self.gets.lock().unwrap().get(path).copied().unwrap_or(0)
    }
}

impl fmt::Display for CountingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counting store")
    }
}

#[async_trait]
impl ObjectStore for CountingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if !options.head {
            *self.gets.lock().unwrap().entry(location.to_string()).or_default() += 1;
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// How a failing operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It is not carried out.
    Refused,
    /// It is carried out, and its answer is lost.
    AnswerLost,
}

/// A store whose operations fail from the one with this number on, as if its user were killed there.
#[derive(Debug)]
pub(crate) struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    calls: Arc<AtomicUsize>,
    fail_from: usize,
    failure: Failure,
    /// Puts to paths that end so wait for one another.
    meet_at: Option<(&'static str, Barrier)>,
    lacks_create: bool,
    ignores_create: bool,
    /// Nothing whose path ends so can be read.
    refused: Mutex<Option<&'static str>>,
    /// How long each read takes.
    slowness: Mutex<Duration>,
}

impl FaultyStore {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, fail_from: usize, failure: Failure) -> Self {
        Self {
            inner,
            calls: Arc::default(),
            fail_from,
            failure,
            meet_at: None,
            lacks_create: false,
            ignores_create: false,
            refused: Mutex::default(),
            slowness: Mutex::default(),
        }
    }

    pub(crate) fn reliable(inner: Arc<dyn ObjectStore>) -> Self {
        Self::new(inner, usize::MAX, Failure::Refused)
    }

    pub(crate) fn meeting_at(mut self, suffix: &'static str, parties: usize) -> Self {
        self.meet_at = Some((suffix, Barrier::new(parties)));
        self
    }

    pub(crate) fn without_create(mut self) -> Self {
        self.lacks_create = true;
        self
    }

    /// As servers do that take no notice of `If-None-Match`.
    pub(crate) fn ignoring_create(mut self) -> Self {
        self.ignores_create = true;
        self
    }

    /// From now on nothing whose path ends so can be read; `None` ends that.
    pub(crate) fn refuse(&self, suffix: Option<&'static str>) {
        *self.refused.lock().unwrap() = suffix;
    }

    /// From now on each read takes so long.
    pub(crate) fn slow_down(&self, by: Duration) {
        *self.slowness.lock().unwrap() = by;
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn guard<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        guard(&self.calls, self.fail_from, self.failure, work).await
    }
}

async fn guard<T>(calls: &AtomicUsize, fail_from: usize, failure: Failure, work: impl Future<Output = Result<T>>) -> Result<T> {
    let call = calls.fetch_add(1, Ordering::SeqCst);
    if call < fail_from {
        return work.await;
    }
    if call == fail_from && failure == Failure::AnswerLost {
        drop(work.await);
    }
    Err(Error::Generic { store: "faulty", source: format!("call {call} fails").into() })
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty store")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.lacks_create && options.mode == PutMode::Create {
            return Err(Error::NotImplemented { operation: "put if absent".into(), implementer: self.to_string() });
        }
        let options = if self.ignores_create { PutOptions::default() } else { options };
        if let Some((_, barrier)) = self.meet_at.as_ref().filter(|(suffix, _)| location.as_ref().ends_with(suffix)) {
            barrier.wait().await;
        }
        self.guard(self.inner.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.guard(self.inner.put_multipart_opts(location, options)).await?;
        let (calls, fail_from, failure) = (Arc::clone(&self.calls), self.fail_from, self.failure);
        Ok(Box::new(FaultyUpload { upload, calls, fail_from, failure }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (refused, slowness) = (*self.refused.lock().unwrap(), *self.slowness.lock().unwrap());
        if !slowness.is_zero() {
            tokio::time::sleep(slowness).await;
        }
        if refused.is_some_and(|suffix| location.as_ref().ends_with(suffix)) {
            let refused = async { Err(Error::Generic { store: "faulty", source: format!("{location} is refused").into() }) };
            return self.guard(refused).await;
        }
        self.guard(self.inner.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let objects = self.inner.list(prefix);
        let (calls, fail_from, failure) = (Arc::clone(&self.calls), self.fail_from, self.failure);
        let listed = async move { guard(&calls, fail_from, failure, async { Ok(objects) }).await };
        futures::stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.guard(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.guard(self.inner.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    upload: Box<dyn MultipartUpload>,
    calls: Arc<AtomicUsize>,
    fail_from: usize,
    failure: Failure,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let part = self.upload.put_part(data);
        let (calls, fail_from, failure) = (Arc::clone(&self.calls), self.fail_from, self.failure);
        Box::pin(async move { guard(&calls, fail_from, failure, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        guard(&self.calls, self.fail_from, self.failure, self.upload.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        guard(&self.calls, self.fail_from, self.failure, self.upload.abort()).await
    }
}
