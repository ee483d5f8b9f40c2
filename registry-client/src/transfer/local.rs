//! A local file, copied by the kernel.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use tokio::sync::mpsc;

use super::partial::Partial;
use super::{hash_file, join};
use crate::manifest::ManifestFile;
use crate::source::{FetchError, FetchedFile, Progress};

/// How much is copied before progress is told.
const COPY_STEP: u64 = 16 << 20;
/// Steps that nobody has heard of yet.
const STEPS_UNTOLD: usize = 8;

pub(super) async fn copy(
    mut source: File,
    target: PathBuf,
    file: &ManifestFile,
    progress: &dyn Progress,
) -> Result<FetchedFile, FetchError> {
    let (told, mut steps) = mpsc::channel(STEPS_UNTOLD);
    // One byte more than expected tells a longer file from one that fits.
    let (limit, expected) = (file.bytes.saturating_add(1), file.clone());
    let copy = tokio::task::spawn_blocking(move || {
        let mut partial = Partial::create(target, &expected)?;
        let mut done = 0;
        while done < limit {
            // `io::copy` between files lets the kernel copy, and reflink where it can.
            let from = &mut (&mut source).take(COPY_STEP.min(limit - done));
            let step = io::copy(from, partial.file()).map_err(|error| partial.failed(done, error))?;
            done += step;
            if step == 0 {
                break;
            }
            if told.blocking_send(done).is_err() {
                return Err(partial.failed(done, io::Error::other("nobody waits for the copy any more")));
            }
        }
        // What lies there now is what counts: it is read, not what was copied.
        let (sha256, bytes) = hash_file(partial.path()).map_err(|error| partial.failed(done, error))?;
        partial.finish_as(&expected, sha256, bytes)
    });
    while let Some(done) = steps.recv().await {
        progress.advance(&file.path, done.min(file.bytes), file.bytes);
    }
    join(copy.await)
}
