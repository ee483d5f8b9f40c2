//! Letting go of a version that has left the table: what it was asked before is answered, then its threads drop their sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::Servable;
use crate::memory;
use crate::reconcile::Drained;

/// After the first interrupt, how often the runs that began since are stopped too.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(200);

/// Closes a version and waits until its last session is dropped. After `limit`, what is queued is answered with "not ready" and runs are
/// stopped, where the runtime can. One that goes on all the same is waited for: its memory is not free before it ends. Call it only
/// after the table no longer names the version.
pub(crate) async fn drain(servable: Arc<Servable>, limit: Duration) -> Drained {
    let started = Instant::now();
    let rss_before = memory::rss_bytes();
    servable.close();
    let mut interrupted = false;
    while timeout(if interrupted { INTERRUPT_INTERVAL } else { limit }, servable.closed()).await.is_err() {
        if !interrupted {
            tracing::warn!(
                model = servable.model(),
                version = servable.version(),
                ?limit,
                "a drain takes too long, its runs are stopped"
            );
        }
        interrupted = true;
        servable.give_up();
    }
    drop(servable);
    Drained { took: started.elapsed(), interrupted, rss_before, rss_after: memory::rss_bytes() }
}

#[cfg(test)]
mod tests;
