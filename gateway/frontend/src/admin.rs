//! The admin port: the JSON that `bascule` itself asks for, and what probes and Prometheus read.
//!
//! There is no authentication yet, so the port is on a loopback address unless the operator says otherwise, and even there it refuses
//! what a web page could make a browser send.
//!
//! | path | what it does |
//! | --- | --- |
//! | `GET /livez`, `GET /readyz` | probes; `/readyz` is 503 with a reason while the gateway is not ready |
//! | `GET /metrics` | Prometheus' text format |
//! | `GET /admin/v1/status` | [`bascule_serving::Status`] with live counters |
//! | `GET /admin/v1/config` | every effective setting and where it comes from |
//! | `POST /admin/v1/kick`, `POST /admin/v1/registry/kick` | looks at the registry now; a body is ignored, so webhooks may call it |
//! | `POST /admin/webhooks/mlflow` | the same where the headers prove that MLflow sends it; the body is not read |
//! | `GET /admin/v1/models/{m}` | [`bascule_serving::ModelStatus`] |
//! | `POST /admin/v1/models/{m}/load` | waits for ready or failed; 422 with `stage` and `cause` where it failed |
//! | `POST /admin/v1/models/{m}/unload?wait=true` | the receipts of the drain, where it waits for it |
//! | `GET /admin/v1/models/{m}/rollout` | stable, candidate, pin, rejected, aliases |
//! | `POST /admin/v1/models/{m}/rollout` | a decision: `{"op","version"?,"weight_bp"?,"alias"?,"by"?,"reason"?,"id"?}`; answers its `seq` |
//! | `GET /admin/v1/models/{m}/journal?limit=100&before=SEQ` | [`bascule_serving::ModelJournal`]: entries, newest first, 1,000 at the most and fewer where they are large; `before` says how to ask for older ones |
//! | `GET /admin/v1/models/{m}/versions/{n}/wait?timeout=30s&digest=` | `outcome`: `ready` (`traffic_bp`, `no_traffic`), `on_demand`, `failed` (`stage`, `cause`), `held` (`reason`, `hint`), `pending` (`stage`) |
//!
//! What waits (`load`, `unload?wait=true`, `wait`, `journal`) is limited in number, else 429. Invariant: every error is JSON with `error` and `hint`.
//! Deliberately absent: inference.

mod command;
mod guard;
mod listener;
mod refusal;
mod rollout;
mod routes;
mod wait;
mod webhook;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bascule_serving::Serving;
use tokio::sync::watch;

pub use self::listener::serve;
pub use self::webhook::WebhookSecrets;
use crate::metrics::Metrics;

/// How the port behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// Whether it may listen on an address that is not loopback.
    pub allow_remote: bool,
    /// The largest body of a request.
    pub max_body_bytes: usize,
    /// How long head and body of a request may take to come.
    pub read_timeout: Duration,
    /// The longest wait for a version.
    pub max_wait: Duration,
    /// How long a client may read nothing of an answer.
    pub write_timeout: Duration,
    /// Connections at one time; more wait to be accepted.
    pub max_connections: usize,
    /// Requests at one time that wait for a version or a model; more are refused, so that they leave connections to the probes.
    pub max_waits: usize,
    /// How long requests may go on after the shutdown has begun.
    pub drain_timeout: Duration,
}

impl Default for AdminSettings {
    fn default() -> Self {
        AdminSettings {
            allow_remote: false,
            max_body_bytes: 64 << 10,
            read_timeout: Duration::from_secs(10),
            max_wait: Duration::from_mins(10),
            write_timeout: Duration::from_secs(30),
            max_connections: 256,
            max_waits: 64,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Why the port is not served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It would be open to others.
    #[error("the admin port has no authentication and may not listen on {address}, which is not a loopback address")]
    Remote {
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// The listener has no address.
    #[error("the admin port has no address")]
    Listener(#[from] std::io::Error),
}

/// What the port tells of.
#[derive(Clone)]
pub struct AdminSources {
    /// The engine.
    pub serving: Serving,
    /// What was recorded.
    pub metrics: Metrics,
    /// Every effective setting and where it comes from, as the program shows it.
    pub config: watch::Receiver<Arc<serde_json::Value>>,
    /// Who may call the webhooks.
    pub webhooks: WebhookSecrets,
}

#[cfg(test)]
mod tests;
