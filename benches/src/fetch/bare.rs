//! What the library gives by itself: ranges read in parallel, each written to its place.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path as StorePath;
use object_store::{ObjectStore, ObjectStoreExt as _};

/// As the registry client reads.
const RANGE_BYTES: u64 = 8 << 20;
const RANGES: usize = 16;

/// Reads the object into a file and syncs it.
pub(super) async fn read(store: &Arc<dyn ObjectStore>, object: &StorePath, bytes: u64, target: &Path) -> Result<Duration> {
    let began = Instant::now();
    let file = Arc::new(std::fs::File::create(target)?);
    let ranges = (0..bytes.div_ceil(RANGE_BYTES)).map(|nth| nth * RANGE_BYTES..((nth + 1) * RANGE_BYTES).min(bytes));
    let reads = ranges.map(|range| {
        let file = Arc::clone(&file);
        async move {
            let content = store.get_range(object, range.clone()).await?;
            ensure!(content.len() as u64 == range.end - range.start, "a range is not whole");
            tokio::task::spawn_blocking(move || file.write_all_at(&content, range.start)).await??;
            Ok(())
        }
    });
    futures::stream::iter(reads).buffer_unordered(RANGES).try_collect::<()>().await?;
    let synced = Arc::clone(&file);
    tokio::task::spawn_blocking(move || synced.sync_all()).await??;
    Ok(began.elapsed())
}
