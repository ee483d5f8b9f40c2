//! The standard health service, read from the engine when it is asked: what it says is never older than the engine's last snapshot.

use std::pin::Pin;

use bascule_serving::{Readiness, Serving};
use futures::{Stream, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use super::dispatch::SERVICE;

/// Answers for the whole server, whose services are ready together. Who watches a service that is not there is told so.
pub(crate) struct Health {
    serving: Serving,
    stopping: CancellationToken,
}

impl Health {
    pub(crate) fn new(serving: Serving, stopping: CancellationToken) -> Health {
        Health { serving, stopping }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn status(readiness: &Readiness, stopping: &CancellationToken) -> ServingStatus {
    if readiness.is_ready() && !stopping.is_cancelled() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn is_known(service: &str) -> bool {
    service.is_empty() || service == SERVICE
}

#[async_trait]
impl health_server::Health for Health {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        // Whatever the name, as Triton does: a probe that names a service of its own is about the whole server.
        Ok(Response::new(answer(status(&self.serving.readiness(), &self.stopping))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = is_known(&request.get_ref().service);
        let start = (self.serving.clone(), self.stopping.clone(), None);
        let statuses = stream::unfold(start, move |(serving, stopping, told)| async move {
            let next = next(&serving, &stopping, told, known).await?;
            Some((Ok(answer(next)), (serving, stopping, Some(next))))
        });
        Ok(Response::new(Box::pin(statuses)))
    }
}

/// The next status that differs from the one that was told; none once the server stops and that was told.
async fn next(serving: &Serving, stopping: &CancellationToken, told: Option<ServingStatus>, known: bool) -> Option<ServingStatus> {
    // Made before the status is read, so that no change falls between.
    let mut changes = serving.changes();
    loop {
        let now = if known { status(&serving.readiness(), stopping) } else { ServingStatus::ServiceUnknown };
        if told != Some(now) {
            return Some(now);
        }
        if stopping.is_cancelled() {
            return None;
        }
        tokio::select! {
            goes_on = changes.next() => if !goes_on { stopping.cancelled().await },
            () = stopping.cancelled() => {}
        }
    }
}
