//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::dispatch::Dispatch;
use super::intake;
use super::service::Service;

/// What a client of HTTP/2 sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client of HTTP/1 is told.
const HINT: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: 45\r\n\r\n\
    this port speaks gRPC, that is, HTTP/2 only.\n";

/// What all connections of a port share.
pub(crate) struct Port {
    pub(crate) service: Service,
    pub(crate) dispatch: Dispatch,
    /// Cancelled where connections have had their time to end.
    pub(crate) cut: CancellationToken,
}

/// Serves a connection until it ends, or the port does.
pub(crate) async fn serve(stream: TcpStream, peer: SocketAddr, port: Arc<Port>) {
    let _open = port.service.meters.connection();
    let (mut read, write) = stream.into_split();
    let greeted = tokio::select! {
        greeted = timeout(port.service.settings.handshake_timeout, preface(&mut read)) => greeted,
        // Who has asked nothing yet keeps nobody waiting.
        () = port.service.stopping.cancelled() => return,
    };
    match greeted {
        Ok(Ok(true)) => calls(read, write, peer, &port).await,
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

async fn calls(read: OwnedReadHalf, write: OwnedWriteHalf, peer: SocketAddr, port: &Arc<Port>) {
    let io = TokioIo::new(tokio::io::join(PREFACE.as_slice().chain(read), write));
    let service = service_fn(|request| {
        let port = Arc::clone(port);
        async move { Ok::<_, Infallible>(intake::answer(&port.service, &port.dispatch, peer, request).await) }
    });
    let mut connection = pin!(builder(port).serve_connection(io, service));
    let stopping = port.service.stopping.cancelled();
    let mut stopping = pin!(stopping);
    let mut told = false;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "connection failed");
                }
                return;
            }
            () = &mut stopping, if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            () = port.cut.cancelled() => return,
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
