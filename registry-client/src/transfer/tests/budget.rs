//! Memory is bounded whatever the files' sizes.

use super::*;
use crate::source::NoProgress;

/// A file of zeros, of any size.
struct Zeros;

#[async_trait]
impl Ranges for Zeros {
    async fn read(&self, range: Range<u64>) -> Result<Pieces, FetchError> {
        const PIECE: u64 = 64 << 10;
        let pieces = range.clone().step_by(PIECE as usize).map(move |at| {
            let length = PIECE.min(range.end - at) as usize;
            // Each piece has memory of its own, as those of a network have.
            Ok(Bytes::from(vec![0_u8; length]))
        });
        let pieces: Vec<_> = pieces.collect();
        Ok(stream::iter(pieces)
            .then(|piece| async {
                tokio::task::yield_now().await;
                piece
            })
            .boxed())
    }
}

struct AllZeros;

#[async_trait]
impl OpenFile for AllZeros {
    async fn open(&self, _file: &ManifestFile) -> Result<Content, FetchError> {
        Ok(Content::Ranged(Arc::new(Zeros)))
    }
}

fn zeros(path: &str, bytes: u64) -> ManifestFile {
    ManifestFile { path: path.into(), sha256: None, bytes }
}

/// The most bytes that were held at a time while all of these were brought.
async fn most_held(limits: TransferLimits, files: &[ManifestFile]) -> usize {
    let (dir, transfers) = (tempfile::tempdir().unwrap(), Transfers::new(limits, 1));
    let fetched = bring_all(&transfers, &AllZeros, files, dir.path(), &NoProgress).await.unwrap();
    for (file, fetched) in files.iter().zip(fetched) {
        assert_eq!((fetched.bytes, std::fs::metadata(dir.path().join(&file.path)).unwrap().len()), (file.bytes, file.bytes));
    }
    assert_eq!(transfers.free_slots(), limits.ranges);
    transfers.most_held()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_files_together_hold_no_more_than_the_budget() {
    let limits = TransferLimits { range_bytes: 1 << 20, ranges: 4, files: 3, ..TransferLimits::default() };
    let files: Vec<_> = (0..6).map(|nth| zeros(&format!("dir/{nth}"), (10 << 20) + nth)).collect();
    let held = most_held(limits, &files).await;
    assert!((1 << 20..=4 << 20).contains(&held), "{held} bytes were held, the budget is {}", 4 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_of_one_range_is_enough_for_many_files() {
    let limits = TransferLimits { range_bytes: 1000, ranges: 1, files: 8, ..TransferLimits::default() };
    let files: Vec<_> = (0..50).map(|nth| zeros(&format!("{nth}"), nth * 331)).collect();
    assert!(most_held(limits, &files).await <= 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: a file of 2 GB"]
async fn a_file_of_two_gigabytes_takes_no_more_memory_than_any() {
    let limits = TransferLimits::default();
    let budget = limits.range_bytes as usize * limits.ranges;
    let held = most_held(limits, &[zeros("large", 2 << 30)]).await;
    assert!(held <= budget, "{held} bytes were held, the budget is {budget}");
}
