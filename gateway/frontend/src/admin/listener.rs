//! The admin port: where it may listen, and its connections.

use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::routes::{Port, router};
use super::{AdminError, AdminSettings, AdminSources};
use crate::http::watch::{Timeouts, Watch, WatchedStream};
use crate::port::{Ending, serve_connections};

/// Serves the port until `shutdown` is cancelled and what is in flight has ended, for at most the drain timeout.
///
/// # Errors
/// [`AdminError::Remote`] where the listener is on an address that is not loopback and the settings don't allow that.
pub async fn serve(
    listener: TcpListener,
    sources: AdminSources,
    settings: AdminSettings,
    shutdown: CancellationToken,
) -> Result<(), AdminError> {
    let address = listener.local_addr()?;
    let loopback = address.ip().is_loopback();
    if !loopback && !settings.allow_remote {
        return Err(AdminError::Remote { address });
    }
    let limits = (settings.max_connections, settings.drain_timeout);
    let ending = Ending::default();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(settings.read_timeout);
    // hyper itself ends connections whose next head does not come in time.
    let read = settings.read_timeout;
    let timeouts = Timeouts { header: read, write: settings.write_timeout, idle: read, stall: read };
    let waits = Semaphore::new(settings.max_waits.min(Semaphore::MAX_PERMITS));
    let port = Arc::new(Port { sources, settings, loopback, waits, stopping: ending.stopping.clone() });
    let service = TowerToHyperService::new(router(port));
    serve_connections(listener, limits, shutdown, ending, |stream, _, ending| {
        let stream = WatchedStream::new(stream, Watch::new(timeouts));
        connection(stream, builder.clone(), service.clone(), ending)
    })
    .await;
    Ok(())
}

async fn connection(
    stream: WatchedStream<TcpStream>,
    builder: http1::Builder,
    service: TowerToHyperService<Router>,
    ending: Ending,
) {
    let log = |ended: hyper::Result<()>| {
        if let Err(error) = ended {
            tracing::debug!(%error, "admin connection failed");
        }
    };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = &mut connection => return log(ended),
        () = ending.stopping.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        ended = &mut connection => log(ended),
        () = ending.cut.cancelled() => {}
    }
}
