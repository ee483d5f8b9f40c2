//! Ranges that break off, stall, and answer what they were not asked.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::source::NoProgress;

/// What one answer does.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// It breaks after so many bytes.
    Breaks(u64),
    /// It ends after so many, as if that were all.
    Ends(u64),
    /// It stands still after so many.
    Stalls(u64),
    /// It does not even begin.
    Silent,
    Refused,
    /// As if no range had been asked for.
    FromTheStart,
    /// It says that the file is another by now.
    Changed,
    Right,
}

/// A file that answers as it is told, and rightly once the script is over.
struct Scripted {
    content: Bytes,
    script: Mutex<VecDeque<Answer>>,
    afterwards: Answer,
    asked: Mutex<Vec<Range<u64>>>,
}

impl Scripted {
    fn new(content: &[u8], script: impl Into<VecDeque<Answer>>) -> Arc<Self> {
        let content = Bytes::copy_from_slice(content);
        Arc::new(Self { content, script: Mutex::new(script.into()), afterwards: Answer::Right, asked: Mutex::default() })
    }

    fn always(content: &[u8], afterwards: Answer) -> Arc<Self> {
        let mut scripted = Self::new(content, []);
        Arc::get_mut(&mut scripted).unwrap().afterwards = afterwards;
        scripted
    }

    fn asked(&self) -> Vec<Range<u64>> {
        self.asked.lock().unwrap().clone()
    }

    fn slice(&self, range: Range<u64>) -> Bytes {
        let length = self.content.len() as u64;
        self.content.slice(range.start.min(length) as usize..range.end.min(length) as usize)
    }
}

fn unavailable() -> FetchError {
    FetchError::unavailable("the file", io::Error::other("it broke"))
}

#[async_trait]
impl Ranges for Scripted {
    async fn read(&self, range: Range<u64>) -> Result<Pieces, FetchError> {
        self.asked.lock().unwrap().push(range.clone());
        let answer = self.script.lock().unwrap().pop_front().unwrap_or(self.afterwards);
        let cut = |bytes: u64| range.start..range.end.min(range.start + bytes);
        let (content, then): (Bytes, Option<Pieces>) = match answer {
            Answer::Right => (self.slice(range), None),
            Answer::Breaks(bytes) => (self.slice(cut(bytes)), Some(stream::iter([Err(unavailable())]).boxed())),
            Answer::Ends(bytes) => (self.slice(cut(bytes)), None),
            Answer::Stalls(bytes) => (self.slice(cut(bytes)), Some(stream::pending().boxed())),
            Answer::FromTheStart => (self.content.clone(), None),
            Answer::Silent => return std::future::pending().await,
            Answer::Refused => return Err(unavailable()),
            Answer::Changed => return Err(FetchError::Changed { what: "the file".into() }),
        };
        let pieces: Vec<_> = content.chunks(7).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(stream::iter(pieces).chain(then.unwrap_or_else(|| stream::empty().boxed())).boxed())
    }
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|nth| (nth * 31 % 251) as u8).collect()
}

fn transfers(range_bytes: u64, ranges: usize) -> Transfers {
    let (stall, backoff) = (Duration::from_secs(30), Duration::from_millis(100));
    Transfers::new(TransferLimits { range_bytes, ranges, stall, backoff, tries: 4, sync_bytes: 1, ..TransferLimits::default() }, 7)
}

struct Brought {
    outcome: Result<FetchedFile, FetchError>,
    dir: tempfile::TempDir,
}

impl Brought {
    fn is_there(&self) -> bool {
        self.dir.path().join("sub/file.bin").exists()
    }

    /// Nothing lies there that counts, or would be taken for something that counts.
    fn assert_nothing_is_left(&self) {
        let left = std::fs::read_dir(self.dir.path().join("sub")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{:?}", self.outcome);
    }
}

/// Brings the file and checks what lies there afterwards.
async fn bring_from(ranges: &Arc<Scripted>, transfers: &Transfers, expected: &ManifestFile) -> Brought {
    let (dir, progress) = (tempfile::tempdir().unwrap(), Recorder::default());
    let content = Content::Ranged(Arc::<Scripted>::clone(ranges));
    let outcome = write(transfers, content, expected, dir.path(), &progress).await;
    // What a cancelled write still holds goes with it.
    while transfers.free_slots() < transfers.limits().ranges {
        tokio::task::yield_now().await;
    }
    let told = progress.0.into_inner().unwrap();
    assert!(told.is_sorted(), "progress only rises: {told:?}");
    match &outcome {
        Ok(_) => {
            assert_eq!(std::fs::read(dir.path().join("sub/file.bin")).unwrap(), ranges.content);
            assert_eq!(told.last(), Some(&(expected.bytes, expected.bytes)));
        }
        Err(_) => assert!(!dir.path().join("sub/file.bin").exists()),
    }
    Brought { outcome, dir }
}

fn file(content: &[u8]) -> ManifestFile {
    expected(content, content.len() as u64)
}

#[tokio::test(start_paused = true)]
async fn a_range_that_breaks_goes_on_where_it_broke_and_nothing_is_asked_twice() {
    let content = content(1_000);
    for after in [0, 1, 6, 7, 8, 63, 64, 99, 100] {
        for way in [Answer::Breaks(after), Answer::Ends(after), Answer::Stalls(after)] {
            let ranges = Scripted::new(&content, [way]);
            let brought = bring_from(&ranges, &transfers(100, 4), &file(&content)).await;
            assert!(brought.outcome.is_ok() && brought.is_there(), "{way:?}: {:?}", brought.outcome);
            let asked = ranges.asked();
            let again: Vec<_> = asked.iter().filter(|range| range.start % 100 != 0).collect();
            let whole = matches!(way, Answer::Ends(100));
            match after {
                0 => assert_eq!(asked.iter().filter(|range| range.start == 0).count(), 2),
                100 if whole => assert_eq!(asked.len(), 10),
                100 => assert!(asked.len() <= 11 && again.is_empty(), "{way:?}: {asked:?}"),
                _ => assert_eq!(again, [&(after..100)], "{way:?}: only what is missing"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_answer_may_break_as_long_as_bytes_come() {
    let content = content(1_000);
    let ranges = Scripted::always(&content, Answer::Breaks(3));
    let brought = bring_from(&ranges, &transfers(100, 4), &file(&content)).await;
    assert!(brought.outcome.is_ok());
    assert!(ranges.asked().len() > 300, "each answer brought three bytes");
}

#[tokio::test(start_paused = true)]
async fn tries_without_a_byte_are_bounded() {
    let content = content(1_000);
    for way in [Answer::Breaks(0), Answer::Ends(0), Answer::Stalls(0), Answer::Silent, Answer::Refused] {
        let ranges = Scripted::always(&content, way);
        let brought = bring_from(&ranges, &transfers(1_000, 4), &file(&content)).await;
        let error = brought.outcome.as_ref().unwrap_err();
        assert!(
            error.to_string().contains("sub/file.bin") || matches!(way, Answer::Breaks(_) | Answer::Refused),
            "{way:?}: {error}"
        );
        assert_eq!(ranges.asked().len(), 4, "{way:?}");
        brought.assert_nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_byte_that_comes_begins_the_count_anew() {
    let content = content(100);
    let script: Vec<_> = (0..5).flat_map(|_| [Answer::Refused, Answer::Refused, Answer::Refused, Answer::Breaks(1)]).collect();
    let ranges = Scripted::new(&content, script);
    assert!(bring_from(&ranges, &transfers(1_000, 4), &file(&content)).await.outcome.is_err(), "a break after a byte is a try too");
    let script: Vec<_> = (0..5).flat_map(|_| [Answer::Refused, Answer::Refused, Answer::Breaks(1)]).collect();
    let ranges = Scripted::new(&content, script);
    assert!(bring_from(&ranges, &transfers(1_000, 4), &file(&content)).await.outcome.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_another_place_does_not_count() {
    let content = content(1_000);
    // One that ignores the range sends more than was asked for.
    let ranges =
        Scripted::new(&content, [Answer::Right, Answer::FromTheStart, Answer::Right, Answer::Breaks(20), Answer::FromTheStart]);
    let brought = bring_from(&ranges, &transfers(100, 1), &file(&content)).await;
    assert!(brought.outcome.is_ok(), "{:?}", brought.outcome);
    let ranges = Scripted::always(&content, Answer::FromTheStart);
    let brought = bring_from(&ranges, &transfers(100, 4), &file(&content)).await;
    assert!(matches!(brought.outcome, Err(FetchError::Unavailable { .. })), "{:?}", brought.outcome);
    brought.assert_nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_file_that_has_changed_is_not_tried_again() {
    let content = content(1_000);
    let ranges = Scripted::new(&content, [Answer::Right, Answer::Changed]);
    let brought = bring_from(&ranges, &transfers(100, 1), &file(&content)).await;
    assert!(matches!(brought.outcome, Err(FetchError::Changed { .. })));
    assert_eq!(ranges.asked().len(), 2);
    brought.assert_nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_file_of_another_size_or_content_is_refused() {
    let content = content(1_000);
    for bytes in [999, 1_001, 1_100] {
        let ranges = Scripted::new(&content, []);
        let brought = bring_from(&ranges, &transfers(100, 4), &expected(&content, bytes)).await;
        let error = brought.outcome.as_ref().unwrap_err();
        // A file that is longer than it should be is never asked for what comes after.
        let right =
            if bytes < 1_000 { matches!(error, FetchError::Corrupt { .. }) } else { matches!(error, FetchError::Size { .. }) };
        assert!(right, "{bytes}: {error}");
        brought.assert_nothing_is_left();
    }
    for at in [0, 1, 99, 100, 101, 500, 998, 999] {
        let mut other = content.clone();
        other[at] ^= 1;
        let ranges = Scripted::new(&other, []);
        let brought = bring_from(&ranges, &transfers(100, 4), &file(&content)).await;
        assert!(matches!(brought.outcome, Err(FetchError::Corrupt { .. })), "at {at}");
        brought.assert_nothing_is_left();
    }
}

#[tokio::test]
async fn what_lies_there_whole_is_not_brought_again_and_what_is_damaged_is() {
    let content = content(1_000);
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("sub/file.bin");
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let elsewhere = dir.path().join("shared");
    for (lies, expected_asks) in [(&content[..], 0), (&content[1..], 1), (&[7; 1_000][..], 1)] {
        std::fs::write(&elsewhere, lies).unwrap();
        drop(std::fs::remove_file(&place));
        std::fs::hard_link(&elsewhere, &place).unwrap();
        let ranges = Scripted::new(&content, []);
        let brought = bring(Content::Ranged(Arc::<Scripted>::clone(&ranges)), &file(&content), dir.path(), &NoProgress).await;
        assert!(brought.is_ok());
        assert_eq!((ranges.asked().len(), std::fs::read(&place).unwrap() == content), (expected_asks, true));
        assert_eq!(std::fs::read(&elsewhere).unwrap(), lies, "what is shared is never written to");
    }
}
