//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::Either;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep_until, timeout};

use super::dispatch::Dispatch;
use super::intake;
use super::service::Service;
use super::watch::{PatientSocket, Watch, Watched};
use crate::aside::race;
use crate::port::{Ending, Interruption};

/// What a client of HTTP/2 sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client of HTTP/1 is told.
const HINT: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: 45\r\n\r\n\
    this port speaks gRPC, that is, HTTP/2 only.\n";

/// How long a connection that is to close may take for what its protocol still owes.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// What all connections of a port share.
pub(crate) struct Port {
    pub(crate) service: Service,
    pub(crate) dispatch: Dispatch,
}

/// Serves a connection until it ends, or the port does.
pub(crate) async fn serve(stream: TcpStream, peer: SocketAddr, port: Arc<Port>, ending: Ending) {
    let _open = port.service.meters.connection();
    let (mut read, write) = stream.into_split();
    let greeted = tokio::select! {
        greeted = timeout(port.service.settings.handshake_timeout, preface(&mut read)) => greeted,
        // Who has asked nothing yet keeps nobody waiting.
        () = ending.stopping.cancelled() => return,
    };
    match greeted {
        Ok(Ok(true)) => calls(read, write, peer, &port, &ending).await,
        Ok(Ok(false)) => {
            let mut write = write;
            // Whether the hint arrives makes no difference.
            drop(write.write_all(HINT).await);
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "connection closed before its first call"),
        Err(_) => tracing::debug!(%peer, "connection cut off: no HTTP/2 in time"),
    }
}

/// Reads the preface; false where something else comes.
async fn preface(read: &mut OwnedReadHalf) -> io::Result<bool> {
    let mut got = [0; PREFACE.len()];
    let mut len = 0;
    while len < got.len() {
        let more = read.read(&mut got[len..]).await?;
        if more == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        len += more;
        if got[..len] != PREFACE[..len] {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn calls(read: OwnedReadHalf, write: OwnedWriteHalf, peer: SocketAddr, port: &Arc<Port>, ending: &Ending) {
    let write_timeout = port.service.settings.write_timeout;
    let watch = Watch::new(write_timeout);
    let io = TokioIo::new(PatientSocket::new(tokio::io::join(PREFACE.as_slice().chain(read), write), write_timeout));
    let of_calls = Arc::clone(&watch);
    let service = service_fn(|request| {
        let port = Arc::clone(port);
        let call = of_calls.begin(port.service.budget.share());
        // In a box: the library moves what it is given nine times, and this is some kilobytes.
        Box::pin(async move {
            let response = intake::answer(&port.service, &port.dispatch, peer, request).await;
            Ok::<_, Infallible>(response.map(|body| Watched::new(body, call)))
        })
    });
    let mut connection = pin!(builder(port).serve_connection(io, service));
    let mut look = pin!(sleep_until(Instant::now() + write_timeout));
    let mut told = false;
    loop {
        let aside = ending.interruption(told, look.as_mut());
        match race(connection.as_mut(), aside).await {
            Either::Left(ended) => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "connection failed");
                }
                return;
            }
            Either::Right(Interruption::Cut) => return,
            Either::Right(Interruption::Stopping) => {
                told = true;
                connection.as_mut().graceful_shutdown();
                look.as_mut().reset(Instant::now() + CLOSE_GRACE);
            }
            Either::Right(Interruption::Look) => {
                let (now, patience_ends) = (Instant::now(), watch.patience_ends());
                if patience_ends.is_some_and(|end| end <= now) {
                    tracing::debug!(%peer, "connection cut off: its peer does not read");
                    return;
                }
                // A peer that is gone, or stopped, does not acknowledge the end, and nobody waits for anything else.
                if told && watch.is_free() {
                    return;
                }
                let next = if told { now + CLOSE_GRACE } else { patience_ends.unwrap_or(now + write_timeout) };
                look.as_mut().reset(next);
            }
        }
    }
}

fn builder(port: &Port) -> http2::Builder<TokioExecutor> {
    let settings = &port.service.settings;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(settings.stream_window_bytes)
        .initial_connection_window_size(settings.connection_window_bytes)
        .max_frame_size(settings.max_frame_bytes)
        .max_header_list_size(settings.max_header_bytes)
        .max_concurrent_streams(settings.max_calls)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout);
    builder
}
