//! A running gateway: the engine and the three ports over it, from start to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bascule_frontend::admin::{AdminSettings, AdminSources, WebhookSecrets};
use bascule_frontend::grpc::GrpcSettings;
use bascule_frontend::http::HttpSettings;
use bascule_frontend::metrics::Metrics;
use bascule_frontend::{admin, grpc, http};
use bascule_registry::Trust;
use bascule_runtime_api::Runtime;
use bascule_serving::{Engine, EngineOptions, Gpus, LoadMode, Serving};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::compose::{self, Retrust, Source};
use crate::config::{Effective, ServerConfig};
use crate::state_dir::StateDir;
use crate::supervise::Supervised;

/// Where the gateway really listens: port 0 of the configuration has become a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// HTTP.
    pub http: SocketAddr,
    /// gRPC.
    pub grpc: SocketAddr,
    /// Admin API and metrics.
    pub admin: SocketAddr,
}

/// A gateway that takes requests.
pub struct Server {
    /// The engine.
    pub serving: Serving,
    /// Where it listens.
    pub addresses: Addresses,
    data: Tasks,
    admin: Tasks,
    shutdown_delay: Duration,
    drain_timeout: Duration,
    shown: watch::Sender<Arc<serde_json::Value>>,
    gpus: Arc<dyn Gpus>,
    trust: Option<Arc<Trust>>,
    _background: Background,
    _state: StateDir,
}

/// Threads for looking at the registry, fetching and hashing. They let every other thread go first, because such work comes with a new
/// version, in the middle of the traffic.
struct Background(Option<tokio::runtime::Runtime>);

/// Threads for work that blocks: one for each fetch, and as many for looks, and for fetches that were called off and end only with the
/// step that they are at.
const BACKGROUND_THREADS: usize = 2 * bascule_serving::MAX_FETCHES;

/// How long such a thread waits for other work before it ends.
const BACKGROUND_KEEP_ALIVE: Duration = Duration::from_millis(500);

impl Background {
    fn start() -> std::io::Result<Background> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("bascule-fetch").on_thread_start(bascule_serving::lower_priority).enable_all();
        // A look every few seconds would else keep every thread alive that a busy moment ever started, and with it the thread's memory.
        builder.max_blocking_threads(BACKGROUND_THREADS).thread_keep_alive(BACKGROUND_KEEP_ALIVE);
        builder.build().map(|runtime| Background(Some(runtime)))
    }

    fn handle(&self) -> Option<Handle> {
        self.0.as_ref().map(|runtime| runtime.handle().clone())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // What still blocks a thread must not keep whoever drops this.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What ends together.
#[derive(Default)]
struct Tasks {
    shutdown: CancellationToken,
    running: JoinSet<()>,
}

impl Tasks {
    async fn end(mut self) {
        self.shutdown.cancel();
        while self.running.join_next().await.is_some() {}
    }
}

impl Server {
    /// Takes the state directory and the ports, starts the engine, and serves. Models load afterwards.
    ///
    /// # Errors
    /// Another process has the directory or a port; the registry is of an unknown kind.
    pub async fn start(effective: &Effective, runtimes: Vec<Arc<dyn Runtime>>, supervised: Supervised) -> Result<Server> {
        let config = effective.config.clone();
        let metrics = install_metrics();
        let retired = metrics.clone();
        let source = Source::open(&config)?;
        let (watched, trust) = (source.clone(), source.trust());
        let prepared = tokio::task::spawn_blocking(move || {
            let state = StateDir::open(&config.state_dir)?;
            let on_retired = move |key: &bascule_registry::VersionKey| retired.retire(key.model.as_str(), key.version);
            let options = compose::engine_options(&config, &source, runtimes, &state, supervised, on_retired)?;
            anyhow::Ok((state, options))
        });
        let (state, options) = prepared.await.context("a blocking thread ended early")??;
        let server = &effective.config.server;
        let (http, grpc, admin) =
            (bind("http", server.http).await?, bind("grpc", server.grpc).await?, bind("admin", server.admin).await?);
        let addresses = Addresses { http: http.local_addr()?, grpc: grpc.local_addr()?, admin: admin.local_addr()? };
        let background = Background::start().context("can't start the threads that fetch")?;
        // A model that is loaded on demand has requests waiting for its fetch.
        let is_waited_for = effective.config.load.mode == LoadMode::OnDemand;
        let fetching = background.handle().filter(|_| !is_waited_for);
        let gpus = Arc::clone(&options.gpus);
        let serving = Engine::start(EngineOptions { background: fetching, ..options }).await?;
        let (mut data, mut of_admin) = (Tasks::default(), Tasks::default());
        let shutdown = data.shutdown.clone();
        data.running.spawn(http::serve(http, serving.clone(), http_settings(effective), shutdown.clone()));
        data.running.spawn(grpc::serve(grpc, serving.clone(), grpc_settings(server), shutdown.clone()));
        data.running.spawn(watch(watched, serving.clone(), effective.config.registry.poll_interval, shutdown));
        let (shown, config) = watch::channel(Arc::new(shown(effective, addresses)));
        let webhooks = WebhookSecrets { mlflow: webhook_secret(effective) };
        let sources = AdminSources { serving: serving.clone(), metrics, config, webhooks };
        let admin_served = admin::serve(admin, sources, admin_settings(server), of_admin.shutdown.clone());
        of_admin.running.spawn(async move {
            if let Err(error) = admin_served.await {
                tracing::error!(%error, "the admin port is not served");
            }
        });
        let (shutdown_delay, drain_timeout) = (server.shutdown_delay, server.drain_timeout);
        Ok(Server {
            serving,
            addresses,
            data,
            admin: of_admin,
            shutdown_delay,
            drain_timeout,
            shown,
            gpus,
            trust,
            _background: background,
            _state: state,
        })
    }

    /// Goes by what may change while a gateway runs, and shows all that applies now.
    ///
    /// # Errors
    /// The engine is on its way out.
    pub async fn change(&self, effective: &Effective) -> Result<()> {
        let (config, gpus) = (effective.config.clone(), Arc::clone(&self.gpus));
        // The driver of GPUs is asked.
        let live = tokio::task::spawn_blocking(move || compose::live_options(&config, gpus.as_ref())).await?;
        self.serving.change(live).await?;
        self.shown.send_replace(Arc::new(shown(effective, self.addresses)));
        Ok(())
    }

    /// Reads the trusted keys again and goes by them. What was signed by none of them is not loaded any more; the next look names it, so
    /// ask for one ([`Server::change`] does).
    ///
    /// # Errors
    /// The asynchronous runtime is on its way out.
    pub async fn retrust(&self, effective: &Effective) -> Result<Retrust> {
        let (config, trust) = (effective.config.clone(), self.trust.clone());
        Ok(tokio::task::spawn_blocking(move || compose::retrust(trust.as_deref(), &config)).await?)
    }

    /// Says that it is not ready, waits so that this is seen, stops accepting, finishes what is in flight, drains the engine, and ends
    /// the admin port last: what happens on the way can be seen there. Each step takes the drain timeout at the most.
    pub async fn stop(self) {
        self.serving.announce_stop();
        tokio::time::sleep(self.shutdown_delay).await;
        self.data.end().await;
        self.serving.shutdown(self.drain_timeout).await;
        self.admin.end().await;
    }
}

/// A second gateway of one process, as tests may have, records into the first one's metrics and shows none.
fn install_metrics() -> Metrics {
    let metrics = Metrics::new();
    if metrics.install().is_ok() {
        bascule_serving::meters::describe();
        http::meters::describe();
        grpc::meters::describe();
    }
    metrics
}

async fn bind(port: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("can't listen on {address} (server.{port})"))
}

async fn watch(source: Source, serving: Serving, pause: Duration, shutdown: CancellationToken) {
    shutdown.run_until_cancelled(source.watch(pause, || serving.kick())).await;
}

fn http_settings(effective: &Effective) -> HttpSettings {
    let server = &effective.config.server;
    HttpSettings {
        max_body_bytes: size(server.max_body_bytes.0),
        max_buffered_bytes: size(server.max_buffered_bytes.0),
        max_header_bytes: size(server.max_header_bytes.0),
        max_connections: server.max_connections as usize,
        header_timeout: server.header_timeout,
        body_stall_timeout: server.body_stall_timeout,
        body_timeout: server.body_timeout,
        write_timeout: server.write_timeout,
        idle_timeout: server.idle_timeout,
        drain_timeout: server.drain_timeout,
        nan: effective.config.nan,
        remote_repository_commands: server.allow_remote,
        ..HttpSettings::default()
    }
}

fn grpc_settings(server: &ServerConfig) -> GrpcSettings {
    GrpcSettings {
        max_request_bytes: size(server.max_body_bytes.0),
        max_buffered_bytes: size(server.max_buffered_bytes.0),
        max_header_bytes: u32::try_from(server.max_header_bytes.0).unwrap_or(u32::MAX),
        max_connections: server.max_connections as usize,
        handshake_timeout: server.header_timeout,
        body_stall_timeout: server.body_stall_timeout,
        body_timeout: server.body_timeout,
        write_timeout: server.write_timeout,
        drain_timeout: server.drain_timeout,
        remote_repository_commands: server.allow_remote,
        ..GrpcSettings::default()
    }
}

fn admin_settings(server: &ServerConfig) -> AdminSettings {
    let defaults = AdminSettings::default();
    AdminSettings { allow_remote: server.allow_remote, drain_timeout: defaults.drain_timeout.min(server.drain_timeout), ..defaults }
}

fn webhook_secret(effective: &Effective) -> Option<Arc<[u8]>> {
    effective.config.mlflow.webhook_secret.as_ref().map(|secret| secret.expose().as_bytes().into())
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// What `/admin/v1/config` answers.
fn shown(effective: &Effective, addresses: Addresses) -> serde_json::Value {
    json!({
        "addresses": { "http": addresses.http, "grpc": addresses.grpc, "admin": addresses.admin },
        "settings": effective.entries,
        "file": effective.file,
    })
}
