//! A store that fails in every way that stores and networks have, by a seed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::time::sleep;

use super::chance::Chance;

/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub(super) struct Unreliable(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    inner: InMemory,
    seed: u64,
    /// How many of a hundred operations fail.
    share: usize,
    range_bytes: u64,
    on: AtomicBool,
    asked: Mutex<BTreeMap<String, usize>>,
    /// What was listed before, by prefix.
    listed: Mutex<BTreeMap<String, Vec<ListResult>>>,
    manifests: Mutex<BTreeMap<Path, Bytes>>,
    faults: AtomicU64,
    corrupted: AtomicU64,
    /// Listings that were not the truth.
    lies: AtomicU64,
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Carried,
    Refused,
    AnswerLost,
    Twice,
    Hangs,
}

/// What becomes of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Whole,
    /// An error after some bytes.
    Broken,
    /// It ends as if it were whole.
    Cut,
    Empty,
    Stalls,
    Longer,
    /// One byte is another.
    Corrupt,
    /// It is that of another object, and says so.
    Another,
}

impl Unreliable {
    pub(super) fn new(seed: u64, share: usize, range_bytes: u64) -> Self {
        Self(Arc::new(Inner {
            inner: InMemory::new(),
            seed,
            share,
            range_bytes,
            on: AtomicBool::new(true),
            asked: Mutex::default(),
            listed: Mutex::default(),
            manifests: Mutex::default(),
            faults: AtomicU64::new(0),
            corrupted: AtomicU64::new(0),
            lies: AtomicU64::new(0),
        }))
    }

    pub(super) fn stop_failing(&self) {
        self.0.on.store(false, Ordering::Relaxed);
    }

    /// What it really holds.
    pub(super) fn truth(&self) -> &InMemory {
        &self.0.inner
    }

    /// Every manifest as it was when it was put.
    pub(super) fn committed(&self) -> BTreeMap<Path, Bytes> {
        self.0.manifests.lock().unwrap().clone()
    }

    pub(super) fn faults(&self) -> u64 {
        self.0.faults.load(Ordering::Relaxed)
    }

    pub(super) fn corrupted(&self) -> u64 {
        self.0.corrupted.load(Ordering::Relaxed)
    }

    pub(super) fn lies(&self) -> u64 {
        self.0.lies.load(Ordering::Relaxed)
    }

    fn on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    fn chance(&self, operation: &str, path: &str) -> Chance {
        let what = format!("{operation} {path}");
        let mut asked = self.0.asked.lock().unwrap();
        let count = asked.entry(what.clone()).or_default();
        *count += 1;
        Chance::of(self.0.seed, &what, *count)
    }

    fn fault(&self) {
        self.0.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Carries out an operation, late and with luck. Answers overtake one another.
    async fn carry<'w, T: Send>(
        &self,
        chance: &mut Chance,
        work: impl Fn() -> BoxFuture<'w, Result<T>> + Send + Sync,
    ) -> Result<T> {
        sleep(chance.wait(20)).await;
        let fails = self.on() && chance.percent(self.0.share);
        let fate = if fails { chance.pick(&[Fate::Refused, Fate::AnswerLost, Fate::Twice, Fate::Hangs]) } else { Fate::Carried };
        if fate != Fate::Carried {
            self.fault();
        }
        let outcome = match fate {
            Fate::Carried => work().await,
            Fate::Refused => Err(refusal(chance)),
            Fate::AnswerLost => {
                drop(work().await);
                Err(failure("the answer was lost"))
            }
            Fate::Twice => {
                drop(work().await);
                work().await
            }
            Fate::Hangs => {
                sleep(FOR_EVER).await;
                Err(failure("timed out"))
            }
        };
        sleep(chance.wait(20)).await;
        outcome
    }

    fn spoil(&self, result: GetResult, content: Bytes, is_blob: bool, chance: &mut Chance) -> GetResult {
        let fails = self.on() && chance.percent(self.0.share);
        let mut ways = vec![Body::Broken, Body::Cut, Body::Empty, Body::Stalls];
        if is_blob {
            // Nothing in a manifest says that it is the one that was written: what is altered on its way is another manifest, and it
            // takes signatures to tell. Blobs are named by their content.
            ways.extend([Body::Longer, Body::Another].into_iter().chain([Body::Corrupt; 6]));
        }
        let way = if fails { chance.pick(&ways) } else { Body::Whole };
        if way != Body::Whole {
            self.fault();
        }
        let (mut meta, mut content, cut) = (result.meta, content, chance.below(content_len(&result.range) + 1));
        match way {
            Body::Whole | Body::Stalls => {}
            Body::Broken | Body::Cut => content.truncate(cut),
            Body::Empty => content.clear(),
            Body::Longer => content = [&content[..], &b"more than was asked for"[..1 + chance.below(20)]].concat().into(),
            Body::Corrupt => {
                if let Some(at) = self.corrupt_at(&result.range, chance) {
                    let mut bytes = content.to_vec();
                    bytes[at] ^= 1 << chance.below(8);
                    content = bytes.into();
                    self.0.corrupted.fetch_add(1, Ordering::Relaxed);
                }
            }
            Body::Another => meta.e_tag = Some("\"another\"".into()),
        }
        let pieces = in_pieces(content, way, chance);
        GetResult { payload: GetResultPayload::Stream(pieces), meta, ..result }
    }

    /// Where in the answer a byte is altered: at its ends, beside them, in the middle, and around the bounds of ranges.
    fn corrupt_at(&self, range: &std::ops::Range<u64>, chance: &mut Chance) -> Option<usize> {
        let length = content_len(range);
        let bound = usize::try_from(self.0.range_bytes).unwrap();
        let places = [0, 1, length / 2, length.wrapping_sub(2), length.wrapping_sub(1), bound - 1, bound, bound + 1];
        let places: Vec<_> = places.into_iter().filter(|place| *place < length).collect();
        (!places.is_empty()).then(|| chance.pick(&places))
    }
}

fn content_len(range: &std::ops::Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap()
}

fn in_pieces(content: Bytes, way: Body, chance: &mut Chance) -> BoxStream<'static, Result<Bytes>> {
    let mut pieces = Vec::new();
    let mut rest = content;
    while !rest.is_empty() {
        let piece = rest.split_to((1 + chance.below(40)).min(rest.len()));
        pieces.push((chance.wait(3), Ok(piece)));
    }
    match way {
        Body::Broken => pieces.push((Duration::ZERO, Err(failure("the connection broke")))),
        Body::Stalls => {
            let at = chance.below(pieces.len() + 1);
            pieces.insert(at, (FOR_EVER, Err(failure("the connection stood still"))));
        }
        _ => {}
    }
    let pieces = futures::stream::iter(pieces).then(|(wait, piece)| async move {
        sleep(wait).await;
        piece
    });
    pieces.boxed()
}

fn failure(why: &str) -> Error {
    Error::Generic { store: "unreliable", source: why.into() }
}

fn refusal(chance: &mut Chance) -> Error {
    let denied = |path: &str| (path.to_owned(), "403".into());
    match chance.below(3) {
        0 => failure("500 internal server error"),
        1 => {
            let (path, source) = denied("somewhere");
            Error::PermissionDenied { path, source }
        }
        _ => failure("503 slow down"),
    }
}

impl fmt::Display for Unreliable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unreliable store")
    }
}

#[async_trait]
impl ObjectStore for Unreliable {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let mut chance = self.chance("put", location.as_ref());
        let put = || -> BoxFuture<'_, _> {
            Box::pin(async {
                let put = self.0.inner.put_opts(location, payload.clone(), options.clone()).await;
                if put.is_ok() && location.as_ref().ends_with("manifest.json") {
                    let before = self.0.manifests.lock().unwrap().insert(location.clone(), payload.clone().into());
                    assert!(before.is_none(), "{location} was written a second time");
                }
                put
            })
        };
        self.carry(&mut chance, put).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let mut chance = self.chance("begin", location.as_ref());
        self.carry(&mut chance, || Box::pin(self.0.inner.put_multipart_opts(location, options.clone()))).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let operation = if options.head { "head" } else { "get" };
        let mut chance = self.chance(operation, location.as_ref());
        // An entity tag that was made up is not known here.
        let known = options.if_match.as_deref() != Some("\"another\"");
        let options = GetOptions { if_match: options.if_match.filter(|_| known), ..options };
        let result = self.carry(&mut chance, || Box::pin(self.0.inner.get_opts(location, options.clone()))).await?;
        if options.head {
            return Ok(result);
        }
        let (meta, range, attributes) = (result.meta.clone(), result.range.clone(), result.attributes.clone());
        let content = result.bytes().await?;
        let whole = GetResult {
            payload: GetResultPayload::Stream(futures::stream::empty().boxed()),
            meta,
            range,
            attributes,
            extensions: Default::default(),
        };
        Ok(self.spoil(whole, content, location.as_ref().contains("/blobs/"), &mut chance))
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let all = async move {
            let mut chance = this.chance("list all", prefix.as_ref().map_or("", Path::as_ref));
            let all = || -> BoxFuture<'_, _> { Box::pin(this.0.inner.list(prefix.as_ref()).try_collect::<Vec<_>>()) };
            let mut all = this.carry(&mut chance, all).await?;
            if this.on() && chance.percent(this.0.share) {
                this.0.lies.fetch_add(1, Ordering::Relaxed);
                this.fault();
                all.clear();
            }
            Ok::<_, Error>(futures::stream::iter(all.into_iter().map(Ok)))
        };
        futures::stream::once(all).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let name = prefix.map_or(String::new(), ToString::to_string);
        let mut chance = self.chance("list", &name);
        let list = || -> BoxFuture<'_, _> { Box::pin(self.0.inner.list_with_delimiter(prefix)) };
        let level = self.carry(&mut chance, list).await?;
        if !self.on() || !chance.percent(self.0.share) {
            self.0.listed.lock().unwrap().entry(name).or_default().push(clone(&level));
            return Ok(level);
        }
        self.0.lies.fetch_add(1, Ordering::Relaxed);
        self.fault();
        let listed = self.0.listed.lock().unwrap();
        let before = listed.get(&name).filter(|_| chance.percent(60));
        Ok(before.map_or_else(empty, |before| clone(&before[chance.below(before.len())])))
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.inner.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Unreliable {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        let mut chance = self.chance("begin", path.as_ref());
        self.carry(&mut chance, || Box::pin(self.0.inner.create_multipart(path))).await
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, nth: usize, data: PutPayload) -> Result<PartId> {
        let mut chance = self.chance("part", path.as_ref());
        self.carry(&mut chance, || Box::pin(self.0.inner.put_part(path, id, nth, data.clone()))).await
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let mut chance = self.chance("complete", path.as_ref());
        self.carry(&mut chance, || Box::pin(self.0.inner.complete_multipart(path, id, parts.clone()))).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        let mut chance = self.chance("abort", path.as_ref());
        self.carry(&mut chance, || Box::pin(self.0.inner.abort_multipart(path, id))).await
    }
}

fn clone(level: &ListResult) -> ListResult {
    let (common_prefixes, objects) = (level.common_prefixes.clone(), level.objects.clone());
    ListResult { common_prefixes, objects, extensions: Default::default() }
}

fn empty() -> ListResult {
    ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() }
}
