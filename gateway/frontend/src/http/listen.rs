//! The port and what all its connections share.

use std::sync::Arc;

use bascule_serving::Serving;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::HttpSettings;
use super::connection::{builder, serve_connection};
use super::dispatch::Context;
use crate::port::{Ending, serve_connections};

/// Serves a port until `shutdown` is cancelled. Then nothing is accepted any more, connections without a request are closed at once, and
/// those with one have the drain time-out of the settings to end; what is left after that is cut off.
pub async fn serve(listener: TcpListener, serving: Serving, settings: HttpSettings, shutdown: CancellationToken) {
    let limits = (settings.max_connections, settings.drain_timeout);
    let context = Arc::new(Context::new(serving, settings));
    let builder = Arc::new(builder(&context));
    let ending = Ending::default();
    serve_connections(listener, limits, shutdown, ending, |stream, peer, ending| {
        serve_connection(stream, peer, Arc::clone(&builder), Arc::clone(&context), ending)
    })
    .await;
}
