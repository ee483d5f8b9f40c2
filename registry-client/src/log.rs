//! A numbered log in an object store: `<dir>/<20 digits>.json`, from 1, without gaps, each entry put once.
//!
//! Since there are no gaps and nothing is ever taken away, the end is found by halving, and following the log is one GET of
//! the next number. It is never listed.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};

/// The largest entry that is read, and may be written.
pub(crate) const MAX_ENTRY_BYTES: u64 = 1 << 20;
/// No log has as many.
const MAX_ENTRIES: u64 = 1 << 40;
/// How many entries are read at a time.
const READS: usize = 16;

/// One log.
#[derive(Debug, Clone)]
pub(crate) struct NumberedLog {
    store: Arc<dyn ObjectStore>,
    dir: Path,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read {
    Whole(Bytes),
    /// Not read: it has this many bytes.
    TooLarge(u64),
}

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    Done,
    /// Somebody else has put this number.
    Taken,
}

impl NumberedLog {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, dir: Path) -> Self {
        Self { store, dir }
    }

    pub(crate) fn path(&self, seq: u64) -> Path {
        self.dir.clone().join(format!("{seq:020}.json"))
    }

    /// One entry, where it is there.
    pub(crate) async fn get(&self, seq: u64) -> Result<Option<Read>, StoreError> {
        read_small(self.store.as_ref(), &self.path(seq), MAX_ENTRY_BYTES).await
    }

    /// The entries from `first` to `last`, in order; those that are gone are `None`.
    pub(crate) async fn range(&self, first: u64, last: u64) -> Result<Vec<(u64, Option<Read>)>, StoreError> {
        let reads = futures::stream::iter(first..=last).map(|seq| async move { (seq, self.get(seq).await) });
        let mut reads = reads.buffered(READS);
        let mut entries = Vec::new();
        while let Some((seq, content)) = reads.next().await {
            entries.push((seq, content?));
        }
        Ok(entries)
    }

    /// Puts an entry where its number is free.
    pub(crate) async fn put(&self, seq: u64, content: Vec<u8>) -> Result<Put, StoreError> {
        put_if_absent(self.store.as_ref(), &self.path(seq), content.into()).await
    }

    /// The highest number. `known` is where to start looking; it counts for nothing where it has gone.
    pub(crate) async fn tail(&self, known: u64) -> Result<u64, StoreError> {
        let known_is_there = known > 0 && self.exists(known).await?;
        let (mut there, mut step) = (if known_is_there { known } else { 0 }, 1);
        let mut gone = loop {
            let probe = there.saturating_add(step);
            if !self.exists(probe).await? {
                break probe;
            }
            // Such as a web server that has a page for every name.
            if probe >= MAX_ENTRIES {
                let why = format!("{} is there: whatever it is asked for is, so nothing that it says counts", self.path(probe));
                return Err(StoreError::Generic { store: "registry", source: why.into() });
            }
            there = probe;
            step *= 2;
        };
        while gone - there > 1 {
            let middle = there + (gone - there) / 2;
            if self.exists(middle).await? { there = middle } else { gone = middle }
        }
        Ok(there)
    }

    /// Whether an entry is there.
    pub(crate) async fn exists(&self, seq: u64) -> Result<bool, StoreError> {
        exists(self.store.as_ref(), &self.path(seq)).await
    }
}

/// Whether an object is there.
pub(crate) async fn exists(store: &dyn ObjectStore, path: &Path) -> Result<bool, StoreError> {
    match store.head(path).await {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads an object whole, where it is no larger than `limit`.
pub(crate) async fn read_small(store: &dyn ObjectStore, path: &Path, limit: u64) -> Result<Option<Read>, StoreError> {
    let result = match store.get(path).await {
        Ok(result) => result,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = result.meta.size;
    if size > limit {
        return Ok(Some(Read::TooLarge(size)));
    }
    match result.bytes().await {
        Ok(bytes) if bytes.len() as u64 == size => Ok(Some(Read::Whole(bytes))),
        // Half a manifest must not look like a bad one.
        Ok(bytes) => {
            let cut = format!("the answer has {} bytes of {size}", bytes.len());
            Err(StoreError::Generic { store: "registry", source: cut.into() })
        }
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts an object where there is none.
pub(crate) async fn put_if_absent(store: &dyn ObjectStore, path: &Path, content: PutPayload) -> Result<Put, StoreError> {
    match store.put_opts(path, content, PutOptions::from(PutMode::Create)).await {
        Ok(_) => Ok(Put::Done),
        Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(Put::Taken),
        Err(error) => Err(error),
    }
}

/// True where the store says that it has no put-if-absent.
pub(crate) fn lacks_put_if_absent(error: &StoreError) -> bool {
    matches!(error, StoreError::NotImplemented { .. } | StoreError::NotSupported { .. })
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn the_end_is_found_wherever_it_is() {
        for length in [0_u64, 1, 2, 3, 7, 8, 9, 100, 257] {
            let log = NumberedLog::new(Arc::new(InMemory::new()), Path::from("_changes"));
            for seq in 1..=length {
                assert_eq!(log.put(seq, b"{}".to_vec()).await.unwrap(), Put::Done);
            }
            for known in [0, 1, length / 2, length, length + 1, length + 1_000] {
                assert_eq!(log.tail(known).await.unwrap(), length, "from {known}");
            }
        }
    }

    #[tokio::test]
    async fn a_store_that_has_everything_has_nothing() {
        let store = InMemory::new();
        for power in 0..=40 {
            // What halving and doubling ask for.
            let name = format!("log/{:020}.json", (1_u64 << (power + 1)) - 1);
            store.put(&Path::from(name), "<html>".into()).await.unwrap();
        }
        let error = NumberedLog::new(Arc::new(store), Path::from("log")).tail(0).await.unwrap_err().to_string();
        assert!(error.contains("nothing that it says counts"), "{error}");
    }

    #[tokio::test]
    async fn a_number_is_put_once() {
        let log = NumberedLog::new(Arc::new(InMemory::new()), Path::from("log"));
        assert_eq!(log.put(1, b"first".to_vec()).await.unwrap(), Put::Done);
        assert_eq!(log.put(1, b"second".to_vec()).await.unwrap(), Put::Taken);
        assert_eq!(log.get(1).await.unwrap(), Some(Read::Whole("first".into())));
        assert_eq!(log.get(2).await.unwrap(), None);
        assert_eq!(log.path(7).as_ref(), "log/00000000000000000007.json");
    }

    #[tokio::test]
    async fn an_entry_that_is_too_large_is_not_read() {
        let log = NumberedLog::new(Arc::new(InMemory::new()), Path::from("log"));
        for (seq, bytes, expected) in [(1, MAX_ENTRY_BYTES, None), (2, MAX_ENTRY_BYTES + 1, Some(MAX_ENTRY_BYTES + 1))] {
            log.put(seq, vec![b' '; usize::try_from(bytes).unwrap()]).await.unwrap();
            let too_large = match log.get(seq).await.unwrap().unwrap() {
                Read::Whole(_) => None,
                Read::TooLarge(bytes) => Some(bytes),
            };
            assert_eq!(too_large, expected);
        }
    }
}
