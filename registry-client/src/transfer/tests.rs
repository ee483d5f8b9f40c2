mod broken;
mod budget;
mod http;

use std::sync::Mutex;

use futures::stream;

use super::*;

#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, u64)>>);

impl Progress for Recorder {
    fn advance(&self, file: &str, done: u64, total: u64) {
        assert_eq!(file, "sub/file.bin");
        self.0.lock().unwrap().push((done, total));
    }
}

fn expected(content: &[u8], bytes: u64) -> ManifestFile {
    ManifestFile { path: "sub/file.bin".into(), sha256: Some(Digest::of(content)), bytes }
}

/// The same bytes as a local file and as a stream of pieces.
fn both(dir: &Path, content: &[u8]) -> [Content; 2] {
    let source = dir.join("source");
    std::fs::write(&source, content).unwrap();
    let pieces: Vec<_> = content.chunks(3).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    [Content::Local(File::open(source).unwrap()), Content::Stream(stream::iter(pieces).boxed())]
}

#[tokio::test]
async fn what_fits_is_written_and_progress_only_rises() {
    let dir = tempfile::tempdir().unwrap();
    for content in [&b"0123456789"[..], b""] {
        for (nth, source) in both(dir.path(), content).into_iter().enumerate() {
            let dest = dir.path().join(format!("dest-{}-{nth}", content.len()));
            let progress = Recorder::default();
            let file = expected(content, content.len() as u64);
            let fetched = bring(source, &file, &dest, &progress).await.unwrap();
            assert_eq!((fetched.sha256, fetched.bytes), (Digest::of(content), file.bytes));
            assert_eq!(std::fs::read(dest.join("sub/file.bin")).unwrap(), content);
            let told = progress.0.into_inner().unwrap();
            assert!(told.is_sorted() && told.iter().all(|(_, total)| *total == file.bytes), "{told:?}");
            assert_eq!(told.last(), Some(&(file.bytes, file.bytes)));
        }
    }
}

#[tokio::test]
async fn what_differs_is_an_error_that_names_file_and_digests() {
    let dir = tempfile::tempdir().unwrap();
    for (nth, source) in both(dir.path(), b"0123456789").into_iter().enumerate() {
        let dest = dir.path().join(format!("corrupt-{nth}"));
        let error = bring(source, &expected(b"9876543210", 10), &dest, &Recorder::default()).await.unwrap_err();
        assert!(matches!(error, FetchError::Corrupt { .. }) && !error.is_transient());
        let text = error.to_string();
        for part in ["sub/file.bin", &Digest::of(b"0123456789").to_string(), &Digest::of(b"9876543210").to_string()] {
            assert!(text.contains(part), "{text} should name {part}");
        }
    }
    for bytes in [4, 11] {
        for (nth, source) in both(dir.path(), b"0123456789").into_iter().enumerate() {
            let dest = dir.path().join(format!("size-{bytes}-{nth}"));
            let error = bring(source, &expected(b"0123456789", bytes), &dest, &Recorder::default()).await.unwrap_err();
            assert!(matches!(error, FetchError::Size { expected, .. } if expected == bytes), "{error}");
        }
    }
}

#[tokio::test]
async fn a_longer_file_is_not_written_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[0; 64]))).boxed();
    let error = bring(Content::Stream(endless), &expected(b"", 100), dir.path(), &Recorder::default()).await.unwrap_err();
    assert!(matches!(error, FetchError::Size { actual: 128, .. }), "{error}");
    let zeros = File::open("/dev/zero").unwrap();
    let dest = dir.path().join("zeros");
    let error = bring(Content::Local(zeros), &expected(b"", 100), &dest, &Recorder::default()).await.unwrap_err();
    assert!(matches!(error, FetchError::Size { actual: 101, .. }), "{error}");
}

#[tokio::test]
async fn a_disk_that_refuses_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("sub"), b"in the way").unwrap();
    for source in both(dir.path(), b"0123456789") {
        let error = bring(source, &expected(b"0123456789", 10), dir.path(), &Recorder::default()).await.unwrap_err();
        assert!(matches!(error, FetchError::Disk { .. }) && error.to_string().contains("sub/file.bin"), "{error}");
    }
}
