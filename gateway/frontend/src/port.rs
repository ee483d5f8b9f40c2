//! A listening port: connections within a limit, and an end in two steps.
//!
//! When the port is told to stop, it closes its socket and lets connections end by themselves; those that have not when the drain
//! timeout passes are cut off. Deliberately absent: what is spoken on a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long accepting rests after it failed, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How connections learn that they are to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    /// Finish what is under way and take nothing new.
    pub(crate) stopping: CancellationToken,
    /// End now.
    pub(crate) cut: CancellationToken,
}

/// Serves connections until `shutdown` is cancelled, then waits for them, for `drain_timeout` at the most. `serve` is called for each
/// and has to heed `ending`.
pub(crate) async fn serve_connections<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    limits: (usize, Duration),
    shutdown: CancellationToken,
    ending: Ending,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) {
    let (max_connections, drain_timeout) = limits;
    let places = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
    let connections = TaskTracker::new();
    loop {
        let (stream, peer, place) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "connection without TCP_NODELAY");
        }
        let connection = serve(stream, peer);
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    drop(listener);
    ending.stopping.cancel();
    connections.close();
    if timeout(drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections are cut off: the drain timeout has passed");
        ending.cut.cancel();
        connections.wait().await;
    }
}

/// Waits for a place first: a connection that can't be served is better left in the system's queue.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        let Ok(place) = Arc::clone(places).acquire_owned().await else {
            // Nobody closes the semaphore.
            std::future::pending().await
        };
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
            Err(error) => {
                tracing::warn!(%error, "a connection can't be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
