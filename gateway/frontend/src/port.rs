//! A listening port: connections within a limit, and an end in two steps.
//!
//! When the port is told to stop, it takes what the system has accepted for it, closes its socket and lets connections end by themselves;
//! those that have not when the drain timeout passes are cut off. Deliberately absent: what is spoken on a connection.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long accepting rests after it failed, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the last connections have for their first requests before they are told to stop: those may be here already, and unread.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(100);

/// How connections learn that they are to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    /// Finish what is under way and take nothing new.
    pub(crate) stopping: CancellationToken,
    /// End now.
    pub(crate) cut: CancellationToken,
}

/// What comes between a connection and its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interruption {
    /// To end now.
    Cut,
    /// To take nothing new.
    Stopping,
    /// To look at how things stand.
    Look,
}

impl Ending {
    /// Waits for what comes first; a connection that was `told` to stop is not told again.
    pub(crate) async fn interruption(&self, told: bool, look: Pin<&mut Sleep>) -> Interruption {
        tokio::select! {
            () = self.cut.cancelled() => Interruption::Cut,
            () = self.stopping.cancelled(), if !told => Interruption::Stopping,
            () = look => Interruption::Look,
        }
    }
}

/// Serves connections until `shutdown` is cancelled, then waits for them, for `drain_timeout` at the most. `serve` is called for each
/// and has to heed the ending that it is given: that of the port, but for connections that came last, which are told to stop later.
pub(crate) async fn serve_connections<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    limits: (usize, Duration),
    shutdown: CancellationToken,
    ending: Ending,
    serve: impl Fn(TcpStream, SocketAddr, Ending) -> F,
) {
    let (max_connections, drain_timeout) = limits;
    let places = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
    let connections = TaskTracker::new();
    let start = |stream: TcpStream, peer, place: OwnedSemaphorePermit, ending: &Ending| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "connection without TCP_NODELAY");
        }
        let connection = serve(stream, peer, ending.clone());
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    };
    loop {
        let (stream, peer, place) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        start(stream, peer, place, &ending);
    }
    let late = Ending { stopping: CancellationToken::new(), cut: ending.cut.clone() };
    let last = waiting(listener, &places);
    let grace = if last.is_empty() { Duration::ZERO } else { FIRST_REQUEST_GRACE };
    for (stream, peer, place) in last {
        start(stream, peer, place, &late);
    }
    ending.stopping.cancel();
    sleep(grace).await;
    late.stopping.cancel();
    connections.close();
    if timeout(drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections are cut off: the drain timeout has passed");
        ending.cut.cancel();
        connections.wait().await;
    }
}

/// What the system has accepted already: it would be reset with the socket, which is closed here. Connections without a place are.
fn waiting(listener: TcpListener, places: &Arc<Semaphore>) -> Vec<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let taken = |listener: &std::net::TcpListener| {
        let place = Arc::clone(places).try_acquire_owned().ok()?;
        // The socket does not block, so an error says that nobody waits, or that nobody can be served.
        let (stream, peer) = listener.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer, place))
    };
    listener.into_std().map_or_else(|_| Vec::new(), |listener| std::iter::from_fn(|| taken(&listener)).collect())
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Answers one byte by the next, until it is to stop.
    async fn echo(mut stream: TcpStream, ending: Ending) {
        let mut byte = [0];
        tokio::select! {
            biased;
            () = ending.stopping.cancelled() => {}
            read = stream.read_exact(&mut byte) => {
                read.unwrap();
                stream.write_all(&[byte[0] + 1]).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn what_the_system_has_accepted_is_served_before_the_end() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for byte in 1..4u8 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(&[byte]).await.unwrap();
            clients.push((client, byte + 1));
        }
        let silent = TcpStream::connect(address).await.unwrap();
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let limits = (10, Duration::from_hours(1));
        serve_connections(listener, limits, shutdown, Ending::default(), |stream, _, ending| echo(stream, ending)).await;
        for (mut client, expected) in clients {
            assert_eq!(client.read_u8().await.unwrap(), expected);
        }
        drop(silent);
        assert!(TcpStream::connect(address).await.is_err());
    }
}
