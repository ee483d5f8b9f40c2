//! One connection: hyper drives it, the watch ends it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::Either;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};

use super::body::Upload;
use super::dispatch::{Context, dispatch};
use super::watch::{CLOSE_GRACE, Verdict, Watch, WatchedStream};
use crate::aside::race;
use crate::port::{Ending, Interruption};

/// How often HTTP/2 asks whether the peer is still there, and how long it waits for the answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Flow control of HTTP/2: room for a large tensor in flight, so that it does not wait for a round trip every 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES: u32 = 1 << 20;

/// The settings of hyper, the same for every connection.
pub(crate) fn builder(context: &Context) -> Builder<TokioExecutor> {
    let settings = &context.settings;
    let mut builder = Builder::new(TokioExecutor::new());
    // hyper's time-out for heads also runs while a connection rests: the watch has one that does not.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(settings.max_header_bytes.max(8 << 10))
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(settings.max_streams)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL);
    builder
}

/// Serves one connection until its end.
pub(crate) async fn serve_connection<S>(
    stream: S,
    peer: SocketAddr,
    builder: Arc<Builder<TokioExecutor>>,
    context: Arc<Context>,
    ending: Ending,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _open = context.meters.connection();
    let watch = Watch::new(context.settings.timeouts());
    let io = TokioIo::new(WatchedStream::new(stream, Arc::clone(&watch)));
    let of_requests = Arc::clone(&watch);
    let service = service_fn(move |request: Request<Incoming>| {
        let handling = of_requests.handling();
        let request = request.map(|body| Upload::new(body, &of_requests));
        let context = Arc::clone(&context);
        async move {
            let answer = dispatch(context, peer, request).await;
            Ok::<_, Infallible>(answer.map(|body| body.watched(handling.sending())))
        }
    });
    let connection = builder.serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let timer = sleep_until(Instant::now());
    let mut timer = std::pin::pin!(timer);
    let mut closing: Option<Instant> = None;
    loop {
        let aside = ending.interruption(closing.is_some(), timer.as_mut());
        match race(connection.as_mut(), aside).await {
            Either::Left(result) => {
                if let Err(error) = result {
                    tracing::debug!(%peer, error = %error, "connection ended");
                }
                return;
            }
            Either::Right(Interruption::Cut) => return,
            Either::Right(Interruption::Stopping) => {}
            Either::Right(Interruption::Look) => match closing.map_or_else(|| watch.verdict(), |since| watch.closing(since)) {
                Verdict::Stalled => {
                    tracing::debug!(%peer, "connection cut off: too slow");
                    return;
                }
                Verdict::Keep(until) => {
                    timer.as_mut().reset(until);
                    continue;
                }
                Verdict::Idle if closing.is_some() => return,
                Verdict::Idle => {}
            },
        }
        let since = Instant::now();
        closing = Some(since);
        connection.as_mut().graceful_shutdown();
        timer.as_mut().reset(since + CLOSE_GRACE);
    }
}
