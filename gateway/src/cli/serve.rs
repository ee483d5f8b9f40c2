//! `bascule serve`: runs a gateway until it is told to stop.

mod example;
mod reload;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::compose;
use crate::config::Effective;
use crate::config::env::Environment;
use crate::server::Server;
use crate::state_dir::StateDirError;
use crate::supervise::{self, Supervised};

use super::Outcome;
use super::args::ConfigArgs;
use super::failure::Failure;
use super::logging::{self, LogLevel};
use super::output::{note, print};

/// Serve the models of a registry or repository over HTTP and gRPC.
///
/// Without any argument ./models is served on 127.0.0.1: HTTP 8000, gRPC 8001, admin and metrics 8002. SIGTERM and SIGINT stop the
/// gateway after what is in flight; a second one stops it at once. SIGHUP reads the configuration again.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule serve --registry ./models --http 127.0.0.1:8000 --set load.mode=on_demand")]
pub(super) struct Serve {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where HTTP listens; port 0 takes any free one [default: 127.0.0.1:8000].
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
    /// Where gRPC listens [default: 127.0.0.1:8001].
    #[arg(long, value_name = "ADDRESS")]
    grpc: Option<String>,
    /// Where the admin API and the metrics listen [default: 127.0.0.1:8002].
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// The cache, and what must survive a restart [default: ./.bascule].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What makes models load: watch, explicit or on_demand [default: watch].
    #[arg(long, value_name = "MODE")]
    load_mode: Option<String>,
    /// Start the gateway again where native code, a model or its library, has crashed it. What ran then has to pass a trial before it
    /// serves again, and is kept out after a second crash; everything else serves at once.
    #[arg(long, conflicts_with = "supervised")]
    supervise: bool,
    /// What it is told by whoever supervises it.
    #[arg(long, hide = true, value_enum, default_value_t)]
    supervised: Supervised,
}

impl Serve {
    fn load(&self, environment: &Environment) -> Result<Effective, Failure> {
        let flags = [
            ("server.http", "--http", self.http.clone()),
            ("server.grpc", "--grpc", self.grpc.clone()),
            ("server.admin", "--admin", self.admin.clone()),
            ("state.dir", "--state-dir", self.state_dir.as_ref().map(|path| path.display().to_string())),
            ("load.mode", "--load-mode", self.load_mode.clone()),
        ];
        self.config.load(flags, environment)
    }

    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let effective = self.load(environment)?;
        let level = logging::start(&effective.config)?;
        if self.supervise {
            let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
            return Ok(supervise::run(&arguments)?);
        }
        for warning in &effective.warnings {
            tracing::warn!("{warning}");
        }
        // Before the first thread, both: see there.
        crate::allocator::limit_arenas();
        let runtimes = compose::runtimes(&effective.config);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("bascule-io")
            .enable_all()
            .build()
            .context("can't start the asynchronous runtime")?;
        let outcome = runtime.block_on(async {
            // From here on no signal is lost, however early it comes.
            let mut signals = Signals::listen()?;
            let server = Server::start(&effective, runtimes, self.supervised).await.map_err(not_started)?;
            let addresses = server.addresses;
            print(&format!("bascule: http {} grpc {} admin {}", addresses.http, addresses.grpc, addresses.admin))?;
            tracing::info!(http = %addresses.http, grpc = %addresses.grpc, admin = %addresses.admin, registry = %effective.config.registry.describe(), "listening");
            let hint = tokio::spawn(example::print_when_ready(server.serving.clone(), addresses.http));
            self.until_stopped(&server, &mut signals, effective, &level, environment).await;
            hint.abort();
            stop(server, signals).await
        });
        // What still blocks a thread, a file system that hangs say, must not keep the process.
        runtime.shutdown_background();
        outcome
    }

    /// Waits for a signal to stop; the others are obeyed meanwhile.
    async fn until_stopped(
        &self,
        server: &Server,
        signals: &mut Signals,
        mut effective: Effective,
        level: &LogLevel,
        environment: &Environment,
    ) {
        loop {
            match signals.next().await {
                Told::Stop(signal) => {
                    tracing::info!(signal, "stopping");
                    return;
                }
                Told::Reload => match self.load(environment) {
                    Ok(read) => effective = reload::apply(server, &effective, read, level).await,
                    Err(failure) => {
                        tracing::error!(problems = failure.text().trim_end(), "the configuration is not reloaded: nothing changes");
                    }
                },
            }
        }
    }
}

/// What can be done about a gateway that does not start.
fn not_started(error: anyhow::Error) -> Failure {
    let in_use = |error: &(dyn std::error::Error + 'static)| {
        error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    };
    let hint = match error.downcast_ref::<StateDirError>() {
        Some(StateDirError::InUse { .. }) => "a second gateway needs a state directory of its own: --state-dir",
        Some(StateDirError::Unusable { .. }) => "give it to the user that runs the gateway, or name another with --state-dir",
        None if error.chain().any(in_use) => "end what listens there, or take another port: --http, --grpc, --admin",
        None => "`bascule doctor` looks at everything that a gateway needs",
    };
    Failure::from(error).hint(hint)
}

async fn stop(server: Server, mut signals: Signals) -> Outcome {
    let second = async {
        loop {
            if let Told::Stop(signal) = signals.next().await {
                return signal;
            }
        }
    };
    tokio::select! {
        () = server.stop() => {
            note("bascule: stopped");
            Ok(())
        }
        signal = second => Err(Failure::new(format!("stopped at once by a second {signal}: what was in flight is lost"))),
    }
}

/// The signals that a gateway obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal says.
enum Told {
    /// Stop, by the name of the signal.
    Stop(&'static str),
    /// Read the configuration again.
    Reload,
}

impl Signals {
    fn listen() -> Result<Signals, Failure> {
        let listen = |kind| signal(kind).context("can't listen for signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}
