//! Letting go of a version that has left the table: what it was asked before is answered, then its threads drop their sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::Servable;
use crate::memory;
use crate::reconcile::Drained;

/// After the first interrupt, how often the runs that began since are stopped too.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(200);

/// Closes a version and waits until its last session is dropped. Runs that are not over after `limit` are stopped, where the runtime
/// can; where it can't, this waits for as long as they take. Call it only after the table no longer names the version.
pub(crate) async fn drain(servable: Arc<Servable>, limit: Duration) -> Drained {
    let started = Instant::now();
    let rss_before = memory::rss_bytes();
    servable.close();
    let mut interrupted = false;
    let mut wait = limit;
    while timeout(wait, servable.closed()).await.is_err() {
        if !interrupted {
            let (model, version) = (servable.model(), servable.version());
            tracing::warn!(model, version, ?limit, "a drain takes too long, its runs are stopped");
        }
        interrupted = true;
        servable.interrupt();
        wait = INTERRUPT_INTERVAL;
    }
    drop(servable);
    Drained { took: started.elapsed(), interrupted, rss_before, rss_after: memory::rss_bytes() }
}
