//! Uploads of large files: in parallel, continued, and cleaned up.

use std::collections::BTreeSet;
use std::path::Path as FsPath;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Error, MultipartId, ObjectStore, ObjectStoreExt as _, PutPayload, PutResult, Result};

use crate::digest::Digest;
use crate::registry::{PublishError, PublishRequest, Published, Registry};
use crate::source::{NoProgress, Progress};
use crate::testing::{registry_over, request};

const PART: usize = 1_000;
const PARTS: usize = 9;

/// A store whose uploads fail from some part on, and that counts what it is asked.
struct Uploads {
    store: Arc<InMemory>,
    /// Parts that are taken before it fails.
    takes: AtomicUsize,
    fails_to_complete: AtomicUsize,
    parts: Mutex<Vec<usize>>,
    begun: Mutex<BTreeSet<String>>,
    ended: Mutex<BTreeSet<String>>,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Uploads {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            store: Arc::default(),
            takes: AtomicUsize::new(usize::MAX),
            fails_to_complete: AtomicUsize::new(0),
            parts: Mutex::default(),
            begun: Mutex::default(),
            ended: Mutex::default(),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }

    fn registry(self: &Arc<Self>) -> Registry {
        let store: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&self.store);
        let uploads: Arc<dyn MultipartStore> = Arc::<Self>::clone(self);
        registry_over(&store).with_multipart(uploads).with_part_bytes(PART as u64)
    }

    /// What was sent since it was asked last.
    fn sent(&self) -> Vec<usize> {
        let mut sent = std::mem::take(&mut *self.parts.lock().unwrap());
        sent.sort_unstable();
        sent
    }

    fn open_uploads(&self) -> usize {
        self.begun.lock().unwrap().difference(&self.ended.lock().unwrap()).count()
    }
}

#[async_trait]
impl MultipartStore for Uploads {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        let id = self.store.create_multipart(path).await?;
        self.begun.lock().unwrap().insert(id.clone());
        Ok(id)
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, nth: usize, data: PutPayload) -> Result<PartId> {
        if !self.begun.lock().unwrap().contains(id) || self.ended.lock().unwrap().contains(id) {
            return Err(Error::NotFound { path: path.to_string(), source: "there is no such upload".into() });
        }
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        let takes = self.takes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |takes| takes.checked_sub(1));
        if takes.is_err() {
            return Err(Error::Generic { store: "uploads", source: "the line is dead".into() });
        }
        self.store.put_part(path, id, nth, data).await?;
        self.parts.lock().unwrap().push(nth);
        Ok(PartId { content_id: format!("part {nth}") })
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let expected: Vec<_> = (0..parts.len()).map(|nth| format!("part {nth}")).collect();
        assert_eq!(parts.iter().map(|part| part.content_id.clone()).collect::<Vec<_>>(), expected, "in their order, each once");
        let done = self.store.complete_multipart(path, id, parts).await?;
        self.ended.lock().unwrap().insert(id.clone());
        match self.fails_to_complete.swap(0, Ordering::SeqCst) {
            0 => Ok(done),
            _ => Err(Error::Generic { store: "uploads", source: "the answer was lost".into() }),
        }
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.ended.lock().unwrap().insert(id.clone());
        self.store.abort_multipart(path, id).await
    }
}

fn content() -> Vec<u8> {
    (0..(PARTS - 1) * PART + 17).map(|nth| (nth / PART + nth % 7) as u8).collect()
}

fn wanted(dir: &FsPath, resume_dir: Option<&FsPath>) -> PublishRequest {
    let request = request(dir, "m", None, &[("model.onnx", b"small"), ("large.bin", &content())]);
    PublishRequest { resume_dir: resume_dir.map(FsPath::to_owned), ..request }
}

async fn assert_whole(uploads: &Uploads, published: &Published) {
    let blob = Path::from(format!("m/blobs/{}", Digest::of(&content())));
    assert!(uploads.store.get(&blob).await.unwrap().bytes().await.unwrap() == content());
    assert_eq!(published.bytes, content().len() as u64 + 5);
    assert_eq!(uploads.open_uploads(), 0, "no upload is left open");
}

fn kept(dir: &FsPath) -> Vec<std::path::PathBuf> {
    dir.read_dir().map_or(Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
}

#[tokio::test]
async fn an_upload_that_broke_off_is_continued() {
    for taken in 0..=PARTS {
        let (files, state, uploads) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Uploads::new());
        let resume_dir = state.path().join("uploads");
        uploads.takes.store(taken, Ordering::SeqCst);
        let first = uploads.registry().publish(wanted(files.path(), Some(&resume_dir)), &NoProgress).await;
        let sent = uploads.sent();
        assert_eq!((first.is_ok(), sent.len()), (taken == PARTS, taken));
        uploads.takes.store(usize::MAX, Ordering::SeqCst);
        let published = uploads.registry().publish(wanted(files.path(), Some(&resume_dir)), &NoProgress).await.unwrap();
        assert_whole(&uploads, &published).await;
        let mut all = [sent.clone(), uploads.sent()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..PARTS).collect::<Vec<_>>(), "each part is sent once, after {taken}");
        let bytes = |parts: &[usize]| parts.iter().map(|nth| if nth + 1 == PARTS { 17 } else { PART as u64 }).sum::<u64>();
        assert_eq!(published.reused_bytes, if taken == 0 { 5 } else { 5 + bytes(&sent) }, "after {taken}");
        assert_eq!(kept(&resume_dir).len(), 0, "what is done is forgotten");
    }
}

#[tokio::test]
async fn an_upload_that_nobody_continues_is_thrown_away() {
    let (files, uploads) = (tempfile::tempdir().unwrap(), Uploads::new());
    uploads.takes.store(3, Ordering::SeqCst);
    let error = uploads.registry().publish(wanted(files.path(), None), &NoProgress).await.unwrap_err();
    assert!(matches!(error, PublishError::Unavailable { .. }), "{error}");
    let begun = uploads.begun.lock().unwrap().len();
    assert_eq!((begun, uploads.open_uploads()), (1, 0));
    uploads.takes.store(usize::MAX, Ordering::SeqCst);
    uploads.sent();
    let published = uploads.registry().publish(wanted(files.path(), None), &NoProgress).await.unwrap();
    assert_eq!(uploads.sent().len(), PARTS);
    assert_whole(&uploads, &published).await;
}

/// What is kept on this machine is a hint: whatever stands in it, what is published is right.
#[tokio::test]
async fn what_is_remembered_wrongly_does_no_harm() {
    /// What is done to the text, and how many parts are missing then.
    type Change<'a> = (&'a str, &'a dyn Fn(String) -> Vec<u8>, usize);
    // What can't be read any more can't be thrown away either.
    const LOST: [&str; 3] = ["the store has forgotten it", "it is empty", "it is not text"];
    let changes: [Change<'_>; 8] = [
        ("as it was", &|text| text.into_bytes(), PARTS - 4),
        ("its last line is cut", &|text| text.as_bytes()[..text.len() - 9].to_vec(), PARTS - 3),
        ("the store has forgotten it", &|text| text.replace("\"upload\":\"", "\"upload\":\"99").into_bytes(), PARTS),
        ("a part had other content", &|text| change_first_part(&text), PARTS - 3),
        ("it is of other parts", &|text| text.replace("\"part_bytes\":1000", "\"part_bytes\":999").into_bytes(), PARTS),
        ("it is newer", &|text| text.replace("\"schema\":1", "\"schema\":2").into_bytes(), PARTS),
        ("it is empty", &|_| Vec::new(), PARTS),
        ("it is not text", &|_| vec![0xff; 10_000], PARTS),
    ];
    for (what, change, missing) in changes {
        let (files, state, uploads) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Uploads::new());
        uploads.takes.store(4, Ordering::SeqCst);
        uploads.registry().publish(wanted(files.path(), Some(state.path())), &NoProgress).await.unwrap_err();
        assert_eq!((uploads.sent().len(), uploads.open_uploads()), (4, 1));
        let [place] = &kept(state.path())[..] else { panic!("one upload is remembered") };
        let text = std::fs::read_to_string(place).unwrap();
        std::fs::write(place, change(text)).unwrap();
        uploads.takes.store(usize::MAX, Ordering::SeqCst);
        let published = uploads.registry().publish(wanted(files.path(), Some(state.path())), &NoProgress).await.unwrap();
        assert_eq!(uploads.sent().len(), missing, "{what}");
        let blob = Path::from(format!("m/blobs/{}", Digest::of(&content())));
        assert!(uploads.store.get(&blob).await.unwrap().bytes().await.unwrap() == content(), "{what}");
        assert_eq!((published.key.version, kept(state.path()).len()), (1, 0), "{what}");
        assert_eq!(uploads.open_uploads(), usize::from(LOST.contains(&what)), "{what}");
    }
}

#[tokio::test]
async fn an_upload_that_broke_off_is_thrown_away_once_somebody_else_has_brought_the_blob() {
    let (files, state, uploads) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Uploads::new());
    uploads.takes.store(4, Ordering::SeqCst);
    uploads.registry().publish(wanted(files.path(), Some(state.path())), &NoProgress).await.unwrap_err();
    uploads.takes.store(usize::MAX, Ordering::SeqCst);
    uploads.registry().publish(wanted(files.path(), None), &NoProgress).await.unwrap();
    assert_eq!((uploads.open_uploads(), kept(state.path()).len()), (1, 1));
    let published = uploads.registry().publish(wanted(files.path(), Some(state.path())), &NoProgress).await.unwrap();
    assert_eq!((published.reused_bytes, kept(state.path()).len()), (published.bytes, 0));
    assert_whole(&uploads, &published).await;
}

/// Two files: one fails while the other is about to be continued. What is there of the other stays, to be continued.
#[tokio::test]
async fn a_file_that_fails_does_not_throw_away_what_is_there_of_another() {
    let (files, state, uploads) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Uploads::new());
    let other = vec![3_u8; 4 * PART];
    let wanted = || {
        let files = request(files.path(), "m", None, &[("large.bin", &content()), ("other.bin", &other)]);
        PublishRequest { resume_dir: Some(state.path().to_owned()), ..files }
    };
    uploads.takes.store(2, Ordering::SeqCst);
    uploads.registry().publish(wanted(), &NoProgress).await.unwrap_err();
    let mut sent = uploads.sent().len();
    let begun = uploads.begun.lock().unwrap().clone();
    assert_eq!((sent, begun.len(), kept(state.path()).len()), (2, 2, 2));
    // Each time the first part of all fails, and with it its file.
    for takes in [0, 0, 1, 0] {
        uploads.takes.store(takes, Ordering::SeqCst);
        uploads.registry().publish(wanted(), &NoProgress).await.unwrap_err();
        sent += uploads.sent().len();
        assert_eq!(*uploads.begun.lock().unwrap(), begun, "nothing is begun afresh");
    }
    uploads.takes.store(usize::MAX, Ordering::SeqCst);
    uploads.registry().publish(wanted(), &NoProgress).await.unwrap();
    assert_eq!(sent + uploads.sent().len(), PARTS + 4, "each part is sent once");
    assert_eq!((uploads.open_uploads(), kept(state.path()).len()), (0, 0));
}

fn change_first_part(text: &str) -> Vec<u8> {
    let (head, parts) = text.split_once('\n').unwrap();
    let (first, rest) = parts.split_once('\n').unwrap();
    let at = first.find("\"sha256\":\"").unwrap() + 10;
    let first = format!("{}{}{}", &first[..at], "0".repeat(64), &first[at + 64..]);
    format!("{head}\n{first}\n{rest}").into_bytes()
}

#[tokio::test]
async fn a_directory_that_can_not_be_used_hinders_nobody() {
    let (files, uploads) = (tempfile::tempdir().unwrap(), Uploads::new());
    let in_the_way = files.path().join("file");
    std::fs::write(&in_the_way, b"").unwrap();
    let published = uploads.registry().publish(wanted(files.path(), Some(&in_the_way)), &NoProgress).await.unwrap();
    assert_whole(&uploads, &published).await;
    // Two at once: one of them remembers, and both publish.
    let state = tempfile::tempdir().unwrap();
    let uploads = Uploads::new();
    let (one, two) = (uploads.registry(), uploads.registry());
    let both = tokio::join!(
        one.publish(wanted(files.path(), Some(state.path())), &NoProgress),
        two.publish(wanted(files.path(), Some(state.path())), &NoProgress)
    );
    assert_whole(&uploads, &both.0.unwrap()).await;
    assert_whole(&uploads, &both.1.unwrap()).await;
}

#[tokio::test]
async fn an_answer_that_was_lost_at_the_end_is_no_failure() {
    let (files, uploads) = (tempfile::tempdir().unwrap(), Uploads::new());
    uploads.fails_to_complete.store(1, Ordering::SeqCst);
    let published = uploads.registry().publish(wanted(files.path(), None), &NoProgress).await.unwrap();
    assert_whole(&uploads, &published).await;
}

/// Writes to a file once a part of it has been taken.
struct Meddler<'a>(&'a FsPath);

impl Progress for Meddler<'_> {
    fn advance(&self, file: &str, done: u64, _total: u64) {
        if file == "large.bin" && done > 0 {
            std::fs::write(self.0, vec![9; content().len()]).unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_that_changes_meanwhile_leaves_no_upload_behind() {
    let (files, state, uploads) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Uploads::new());
    let place = files.path().join("large.bin");
    let error = uploads.registry().publish(wanted(files.path(), Some(state.path())), &Meddler(&place)).await.unwrap_err();
    assert!(matches!(error, PublishError::FileChanged { .. }), "{error}");
    assert_eq!((uploads.open_uploads(), kept(state.path()).len()), (0, 0));
}

/// Adds up what is told of each file.
#[derive(Default)]
struct Sum(Mutex<std::collections::BTreeMap<String, u64>>);

impl Progress for Sum {
    fn advance(&self, file: &str, done: u64, total: u64) {
        let before = self.0.lock().unwrap().insert(file.to_owned(), done);
        assert!(before.is_none_or(|before| before <= done) && done <= total, "{file}: {before:?}, then {done} of {total}");
    }
}

#[tokio::test]
async fn parts_and_files_go_side_by_side_and_progress_counts_all_of_them() {
    let (files, uploads, sum) = (tempfile::tempdir().unwrap(), Uploads::new(), Sum::default());
    let other = vec![3_u8; 4 * PART];
    let all: &[(&str, &[u8])] = &[("model.onnx", b"small"), ("large.bin", &content()), ("other.bin", &other), ("same.bin", &other)];
    let published = uploads.registry().publish(request(files.path(), "m", None, all), &sum).await.unwrap();
    let told: u64 = sum.0.lock().unwrap().values().sum();
    assert_eq!((told, published.reused_bytes), (published.bytes, other.len() as u64), "what is there twice is sent once");
    assert_eq!(uploads.sent().len(), PARTS + 4);
    let most = uploads.most.load(Ordering::SeqCst);
    assert!((2..=8).contains(&most), "{most} parts at a time");
}
