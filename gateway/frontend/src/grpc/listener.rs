//! The port and what all its connections share.

use std::sync::Arc;

use bascule_serving::Serving;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::GrpcSettings;
use super::budget::Budget;
use super::connection::{self, Port};
use super::dispatch::Dispatch;
use super::meters::Meters;
use super::service::Service;
use super::workers::Workers;
use crate::port::{Ending, serve_connections};

/// Serves the port until `shutdown` is cancelled and what is in flight has ended, for at most the drain timeout. From then on it accepts
/// nothing; clients are told to go elsewhere (GOAWAY), and connections without a call end at once.
pub async fn serve(listener: TcpListener, serving: Serving, settings: GrpcSettings, shutdown: CancellationToken) {
    let limits = (settings.max_connections, settings.drain_timeout);
    let ending = Ending::default();
    let service = Service {
        serving,
        budget: Budget::new(settings.max_buffered_bytes),
        settings: Arc::new(settings),
        workers: Workers::new(),
        meters: Arc::new(Meters::new()),
        stopping: ending.stopping.clone(),
    };
    let dispatch = Dispatch::new(service.clone());
    let port = Arc::new(Port { service, dispatch });
    serve_connections(listener, limits, shutdown, ending, |stream, peer, ending| {
        connection::serve(stream, peer, Arc::clone(&port), ending)
    })
    .await;
}
