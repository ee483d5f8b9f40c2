//! Letting go of a version that has left the table: what it was asked before is answered, then its threads drop their sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::Servable;
use crate::memory;
use crate::reconcile::Drained;

/// After the first interrupt, how often the runs that began since are stopped too.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(200);

/// After the first interrupt, how long a run may take to heed it. Shorter than what a stopping engine waits beyond its own limit.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3);

/// Closes a version and waits until its last session is dropped. After `limit`, what is queued is answered with "not ready" and runs are
/// stopped, where the runtime can. One that goes on all the same is left to itself: its thread drops the session when it ends. Call it
/// only after the table no longer names the version.
pub(crate) async fn drain(servable: Arc<Servable>, limit: Duration) -> Drained {
    drain_within(servable, limit, GIVE_UP_AFTER).await
}

async fn drain_within(servable: Arc<Servable>, limit: Duration, give_up_after: Duration) -> Drained {
    let started = Instant::now();
    let rss_before = memory::rss_bytes();
    servable.close();
    let (model, version) = (servable.model().to_owned(), servable.version());
    let mut interrupted_at = None;
    let mut given_up = false;
    let mut wait = limit;
    while timeout(wait, servable.closed()).await.is_err() {
        let since = *interrupted_at.get_or_insert_with(|| {
            tracing::warn!(model, version, ?limit, "a drain takes too long, its runs are stopped");
            Instant::now()
        });
        if since.elapsed() >= give_up_after {
            tracing::error!(model, version, "a run can't be stopped: its instance and memory are held until it ends");
            given_up = true;
            break;
        }
        servable.give_up();
        wait = INTERRUPT_INTERVAL.min(give_up_after);
    }
    drop(servable);
    let interrupted = interrupted_at.is_some();
    Drained { took: started.elapsed(), interrupted, given_up, rss_before, rss_after: memory::rss_bytes() }
}

#[cfg(test)]
mod tests;
