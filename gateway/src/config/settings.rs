//! Every setting of `bascule.toml`: one line each, and the checked whole.
//!
//! Settings of a model are not here: they lie beside the model ([`super::model_toml`]).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bascule_frontend::codec::NanStyle;
use bascule_registry::ModelName;
use bascule_serving::{Absent, CrowdedTrial, LoadMode, TransitionPolicy};

use super::devices::GpuBudgets;
use super::env::Environment;
use super::key::{AnyKey, Key};
use super::layers::Layers;
use super::lists::ModelFormat;
use super::mlflow::{self, MlflowConfig};
use super::oci::{self, OciConfig};
use super::registries::{self, RegistryConfig};
use super::value::{ByteCount, Place, words};

const MIB: u64 = 1 << 20;

/// What the binding to ONNX Runtime says about each session is for its developers.
const DEFAULT_LEVEL: &str = "info,ort=warn";

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub(super) fn not_zero(duration: &Duration) -> Result<(), &'static str> {
    if duration.is_zero() { Err("expected more than no time at all") } else { Ok(()) }
}

fn at_least_one(number: &u32) -> Result<(), &'static str> {
    if *number == 0 { Err("expected 1 or more") } else { Ok(()) }
}

fn threads(number: &u32) -> Result<(), &'static str> {
    if (1..=1024).contains(number) { Ok(()) } else { Err("expected 1 to 1024") }
}

fn some_threads(number: &Option<u32>) -> Result<(), &'static str> {
    number.as_ref().map_or(Ok(()), threads)
}

fn some_bytes(size: &ByteCount) -> Result<(), &'static str> {
    if size.0 == 0 { Err("expected 1 byte or more") } else { Ok(()) }
}

fn header_bytes(size: &ByteCount) -> Result<(), &'static str> {
    if (8 << 10..=16 * MIB).contains(&size.0) { Ok(()) } else { Err("expected 8KiB to 16MiB") }
}

const HTTP: Key<SocketAddr> = Key::new("server.http", || local(8000), "where HTTP listens");
const GRPC: Key<SocketAddr> = Key::new("server.grpc", || local(8001), "where gRPC listens");
const ADMIN: Key<SocketAddr> = Key::new("server.admin", || local(8002), "where the admin API and the metrics listen");
const DRAIN_TIMEOUT: Key<Duration> =
    Key::new("server.drain_timeout", || Duration::from_secs(30), "how long what is in flight may take at a shutdown or a swap");
const SHUTDOWN_DELAY: Key<Duration> = Key::new(
    "server.shutdown_delay",
    || Duration::ZERO,
    "how long a gateway that is to stop says that it is not ready and serves on, so that balancers send nothing more",
);
const MAX_BODY_BYTES: Key<ByteCount> =
    Key::new("server.max_body_bytes", || ByteCount(64 * MIB), "largest body of a request, as sent and decompressed")
        .checked(some_bytes);
const MAX_BUFFERED_BYTES: Key<ByteCount> =
    Key::new("server.max_buffered_bytes", || ByteCount(1024 * MIB), "what all bodies under way may take together, for each port")
        .checked(some_bytes);
const MAX_HEADER_BYTES: Key<ByteCount> =
    Key::new("server.max_header_bytes", || ByteCount(64 << 10), "largest head of a request").checked(header_bytes);
const MAX_CONNECTIONS: Key<u32> =
    Key::new("server.max_connections", || 4096, "connections at once, for each data port; more wait to be accepted")
        .checked(at_least_one);
const HEADER_TIMEOUT: Key<Duration> =
    Key::new("server.header_timeout", || Duration::from_secs(10), "how long a client may take to send a head").checked(not_zero);
const BODY_STALL_TIMEOUT: Key<Duration> =
    Key::new("server.body_stall_timeout", || Duration::from_secs(10), "how long a body may pause").checked(not_zero);
const BODY_TIMEOUT: Key<Duration> =
    Key::new("server.body_timeout", || Duration::from_secs(120), "how long a whole body may take").checked(not_zero);
const WRITE_TIMEOUT: Key<Duration> =
    Key::new("server.write_timeout", || Duration::from_secs(30), "how long a client may read nothing of an answer")
        .checked(not_zero);
const IDLE_TIMEOUT: Key<Duration> =
    Key::new("server.idle_timeout", || Duration::from_secs(75), "how long an HTTP connection without a request is kept")
        .checked(not_zero);
const ALLOW_REMOTE: Key<bool> = Key::new(
    "admin.allow_remote",
    || false,
    "allow the admin API on an address other than loopback: whoever reaches it can change what is served",
);
const JOURNAL: Key<Option<Place>> = Key::new(
    "rollout.journal",
    || None,
    "where replicas share the rollout journals of models whose registry can't hold them: a directory, s3://, gs:// or az://; unset for \
     one of this gateway's own",
);
const LOAD_MODE: Key<LoadMode> = Key::new("load.mode", || LoadMode::Watch, "what makes models load");
const LOAD_FORMATS: Key<Vec<ModelFormat>> = Key::new(
    "load.formats",
    || vec![ModelFormat::Onnx, ModelFormat::TorchScript],
    "the formats of models that are allowed; TorchScript models are programs",
);
const LOAD_MODELS: Key<Vec<ModelName>> = Key::new("load.models", Vec::new, "models that explicit mode loads at the start");
const EXPLICIT_FOLLOW: Key<bool> =
    Key::new("load.explicit_follow", || false, "explicit mode follows new versions without a load command").live();
const RESURRECT: Key<bool> =
    Key::new("load.resurrect", || false, "a new version loads a model that the operator had unloaded").live();
const TRANSITION: Key<TransitionPolicy> = Key::new(
    "load.transition",
    || TransitionPolicy::AvailabilityPreserving,
    "whether the new version is loaded before the old one leaves",
)
.live();
const ON_DEMAND_WAIT: Key<Duration> =
    Key::new("load.on_demand_wait", || Duration::from_secs(10), "how long a request waits for the model that it makes load").live();
const MEMORY_BUDGET: Key<Option<ByteCount>> =
    Key::new("load.memory_budget", || None, "main memory that all loaded versions may take together; unset for no limit").live();
const GPU_MEMORY_BUDGET: Key<Option<GpuBudgets>> = Key::new(
    "load.gpu_memory_budget",
    || None,
    "memory of each GPU that all loaded versions may take together, or a list such as [\"cuda:0=20GiB\"]; unset for no limit",
)
.live();
const LOADER_THREADS: Key<u32> =
    Key::new("load.loader_threads", || 2, "versions that load side by side").live().checked(at_least_one);
const STRICT: Key<bool> = Key::new("ready.strict", || false, "a failed model makes the server unready").live();
const RUNTIME_THREADS: Key<Option<u32>> = Key::new(
    "runtime.threads",
    || None,
    "threads that an operator may have, whichever runtime runs it; unset for that of the run alone",
)
.checked(some_threads);
const LIBRARY: Key<Option<PathBuf>> = Key::new("onnxruntime.library", || None, "your own libonnxruntime.so");
const THREADS: Key<u32> =
    Key::new("onnxruntime.threads", || 0, "threads that sessions without their own share; 0 for none; follows runtime.threads");
const OPERATORS: Key<Vec<PathBuf>> = Key::new(
    "onnxruntime.operator_libraries",
    Vec::new,
    "libraries with operators of your own that ONNX models may use; their code runs in the gateway",
);
const TORCH_LIBRARY: Key<Option<PathBuf>> = Key::new("torch.library", || None, "the folder of your own libtorch_cpu.so");
const TORCH_PLUGIN: Key<Option<PathBuf>> = Key::new("torch.plugin", || None, "your own libbascule_torch.so");
const TORCH_THREADS: Key<u32> =
    Key::new("torch.threads", || 1, "threads of one operator of any TorchScript model; follows runtime.threads").checked(threads);
const TRIAL_MODE: Key<TrialMode> =
    Key::new("trial.mode", || TrialMode::Process, "whether a version is tried out in a process of its own before it is loaded");
const TRIAL_TIMEOUT: Key<Duration> =
    Key::new("trial.timeout", || Duration::from_secs(300), "how long a trial may take").checked(not_zero);
const TRIAL_MEMORY: Key<Option<ByteCount>> = Key::new(
    "trial.memory_limit",
    || None,
    "main memory that a trial may take; unset for four times what the version is thought to take, and 1 GiB",
);
const TRIAL_DEVICE: Key<CrowdedTrial> = Key::new(
    "trial.device",
    || CrowdedTrial::Cpu,
    "what is done with the trial of a version whose GPU has no room for a second copy: tried on the \"cpu\", \"skip\", or \"fail\"",
);
const FORMAT: Key<LogFormat> = Key::new("log.format", || LogFormat::Text, "how log lines look");
const LEVEL: Key<String> = Key::new(
    "log.level",
    || DEFAULT_LEVEL.to_owned(),
    "what is logged: a level, or directives such as \"info,bascule_serving=debug\"",
)
.live()
.checked(directives);
const STATE_DIR: Key<PathBuf> =
    Key::new("state.dir", || PathBuf::from("./.bascule"), "the cache, and what must survive a restart; one process at a time");
const CACHE_MAX_BYTES: Key<ByteCount> = Key::new(
    "cache.max_bytes",
    || ByteCount(20 * 1024 * MIB),
    "what fetched versions may take on disk together; those that are loaded are never evicted",
)
.checked(some_bytes);
const NAN: Key<NanStyle> = Key::new("json.nan", || NanStyle::Bare, "how NaN and Infinity are written in JSON answers");

/// Every setting.
pub(crate) static KEYS: &[&dyn AnyKey] = &[
    &HTTP,
    &GRPC,
    &ADMIN,
    &DRAIN_TIMEOUT,
    &SHUTDOWN_DELAY,
    &MAX_BODY_BYTES,
    &MAX_BUFFERED_BYTES,
    &MAX_HEADER_BYTES,
    &MAX_CONNECTIONS,
    &HEADER_TIMEOUT,
    &BODY_STALL_TIMEOUT,
    &BODY_TIMEOUT,
    &WRITE_TIMEOUT,
    &IDLE_TIMEOUT,
    &ALLOW_REMOTE,
    &registries::URL,
    &registries::POLL_INTERVAL,
    &registries::SETTLE_INTERVAL,
    &registries::ABSENT,
    &registries::TRUST,
    &oci::USERNAME,
    &oci::PASSWORD,
    &JOURNAL,
    &LOAD_MODE,
    &LOAD_FORMATS,
    &LOAD_MODELS,
    &EXPLICIT_FOLLOW,
    &RESURRECT,
    &TRANSITION,
    &ON_DEMAND_WAIT,
    &MEMORY_BUDGET,
    &GPU_MEMORY_BUDGET,
    &LOADER_THREADS,
    &STRICT,
    &RUNTIME_THREADS,
    &LIBRARY,
    &THREADS,
    &OPERATORS,
    &TORCH_LIBRARY,
    &TORCH_PLUGIN,
    &TORCH_THREADS,
    &TRIAL_MODE,
    &TRIAL_TIMEOUT,
    &TRIAL_MEMORY,
    &TRIAL_DEVICE,
    &FORMAT,
    &LEVEL,
    &STATE_DIR,
    &CACHE_MAX_BYTES,
    &NAN,
    &mlflow::TOKEN,
    &mlflow::USERNAME,
    &mlflow::PASSWORD,
    &mlflow::STABLE_ALIAS,
    &mlflow::CANDIDATE_ALIAS,
    &mlflow::CANDIDATE_WEIGHT,
    &mlflow::WRITE_BACK,
    &mlflow::WEBHOOK_SECRET,
];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

words!(LogFormat, "text" => LogFormat::Text, "json" => LogFormat::Json);
words!(NanStyle, "bare" => NanStyle::Bare, "null" => NanStyle::Null);
words!(LoadMode, "watch" => LoadMode::Watch, "explicit" => LoadMode::Explicit, "on_demand" => LoadMode::OnDemand);
words!(
    TransitionPolicy,
    "availability_preserving" => TransitionPolicy::AvailabilityPreserving,
    "resource_preserving" => TransitionPolicy::ResourcePreserving,
);
words!(Absent, "keep" => Absent::Keep, "unload" => Absent::Unload);

fn directives(text: &String) -> Result<(), &'static str> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(()),
        Err(_) => Err("expected a level such as \"info\", or directives such as \"info,bascule_serving=debug\""),
    }
}

/// Everything that can be set, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[server]` and `[admin]`.
    pub server: ServerConfig,
    /// `[registry]`.
    pub registry: RegistryConfig,
    /// `[oci]`.
    pub oci: OciConfig,
    /// `rollout.journal`.
    pub journal: Option<Place>,
    /// `[load]`.
    pub load: LoadConfig,
    /// `ready.strict`.
    pub strict_ready: bool,
    /// `onnxruntime.library`.
    pub onnxruntime_library: Option<PathBuf>,
    /// `onnxruntime.threads`.
    pub onnxruntime_threads: u32,
    /// `onnxruntime.operator_libraries`.
    pub onnxruntime_operators: Vec<PathBuf>,
    /// `[torch]`.
    pub torch: TorchConfig,
    /// `[trial]`.
    pub trial: TrialConfig,
    /// `log.format`.
    pub log_format: LogFormat,
    /// `log.level`.
    pub log_level: String,
    /// `state.dir`.
    pub state_dir: PathBuf,
    /// `cache.max_bytes`.
    pub cache_max_bytes: ByteCount,
    /// `json.nan`.
    pub nan: NanStyle,
    /// `[mlflow]`.
    pub mlflow: MlflowConfig,
}

/// Ports and their limits.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each field is the setting of the same name, which has its help text above")]
pub struct ServerConfig {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    pub allow_remote: bool,
    pub drain_timeout: Duration,
    pub shutdown_delay: Duration,
    pub max_body_bytes: ByteCount,
    pub max_buffered_bytes: ByteCount,
    pub max_header_bytes: ByteCount,
    pub max_connections: u32,
    pub header_timeout: Duration,
    pub body_stall_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub idle_timeout: Duration,
}

/// Where versions are tried out before they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialMode {
    /// In a process of their own.
    Process,
    /// Nowhere.
    Off,
}

words!(TrialMode, "process" => TrialMode::Process, "off" => TrialMode::Off);

/// Trials of versions.
#[derive(Debug, Clone, PartialEq)]
pub struct TrialConfig {
    /// `trial.mode`.
    pub mode: TrialMode,
    /// `trial.timeout`.
    pub timeout: Duration,
    /// `trial.memory_limit`.
    pub memory_limit: Option<ByteCount>,
    /// `trial.device`.
    pub crowded: CrowdedTrial,
}

/// libtorch.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TorchConfig {
    /// `torch.library`.
    pub library: Option<PathBuf>,
    /// `torch.plugin`.
    pub plugin: Option<PathBuf>,
    /// `torch.threads`.
    pub threads: u32,
}

/// What is loaded.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each field is the setting of the same name, which has its help text above")]
pub struct LoadConfig {
    pub mode: LoadMode,
    pub formats: Vec<ModelFormat>,
    pub models: Vec<ModelName>,
    pub explicit_follow: bool,
    pub resurrect: bool,
    pub transition: TransitionPolicy,
    pub on_demand_wait: Duration,
    pub memory_budget: Option<ByteCount>,
    pub gpu_memory_budget: Option<GpuBudgets>,
    pub loader_threads: u32,
}

impl Config {
    /// Takes every setting out of the layers and checks how they go together.
    pub(crate) fn take(layers: &mut Layers, environment: &Environment) -> Config {
        let threads = layers.take(&RUNTIME_THREADS);
        let config = Config {
            server: ServerConfig {
                http: layers.take(&HTTP),
                grpc: layers.take(&GRPC),
                admin: layers.take(&ADMIN),
                allow_remote: layers.take(&ALLOW_REMOTE),
                drain_timeout: layers.take(&DRAIN_TIMEOUT),
                shutdown_delay: layers.take(&SHUTDOWN_DELAY),
                max_body_bytes: layers.take(&MAX_BODY_BYTES),
                max_buffered_bytes: layers.take(&MAX_BUFFERED_BYTES),
                max_header_bytes: layers.take(&MAX_HEADER_BYTES),
                max_connections: layers.take(&MAX_CONNECTIONS),
                header_timeout: layers.take(&HEADER_TIMEOUT),
                body_stall_timeout: layers.take(&BODY_STALL_TIMEOUT),
                body_timeout: layers.take(&BODY_TIMEOUT),
                write_timeout: layers.take(&WRITE_TIMEOUT),
                idle_timeout: layers.take(&IDLE_TIMEOUT),
            },
            registry: RegistryConfig::take(layers),
            oci: OciConfig::take(layers),
            journal: layers.take(&JOURNAL),
            load: LoadConfig {
                mode: layers.take(&LOAD_MODE),
                formats: layers.take(&LOAD_FORMATS),
                models: layers.take(&LOAD_MODELS),
                explicit_follow: layers.take(&EXPLICIT_FOLLOW),
                resurrect: layers.take(&RESURRECT),
                transition: layers.take(&TRANSITION),
                on_demand_wait: layers.take(&ON_DEMAND_WAIT),
                memory_budget: layers.take(&MEMORY_BUDGET),
                gpu_memory_budget: layers.take(&GPU_MEMORY_BUDGET),
                loader_threads: layers.take(&LOADER_THREADS),
            },
            strict_ready: layers.take(&STRICT),
            onnxruntime_library: layers.take(&LIBRARY),
            onnxruntime_threads: layers.take_following(&THREADS, &RUNTIME_THREADS, threads),
            onnxruntime_operators: layers.take(&OPERATORS),
            torch: TorchConfig {
                library: layers.take(&TORCH_LIBRARY),
                plugin: layers.take(&TORCH_PLUGIN),
                threads: layers.take_following(&TORCH_THREADS, &RUNTIME_THREADS, threads),
            },
            trial: TrialConfig {
                mode: layers.take(&TRIAL_MODE),
                timeout: layers.take(&TRIAL_TIMEOUT),
                memory_limit: layers.take(&TRIAL_MEMORY),
                crowded: layers.take(&TRIAL_DEVICE),
            },
            log_format: layers.take(&FORMAT),
            log_level: layers.take(&LEVEL),
            state_dir: layers.take(&STATE_DIR),
            cache_max_bytes: layers.take(&CACHE_MAX_BYTES),
            nan: layers.take(&NAN),
            mlflow: MlflowConfig::take(layers, environment),
        };
        config.check_together(layers);
        config
    }

    fn check_together(&self, layers: &mut Layers) {
        let server = &self.server;
        if !server.admin.ip().is_loopback() && !server.allow_remote {
            let message = format!(
                "`server.admin`: {} is not a loopback address, and whoever reaches the admin API can change what is served; set \
                 `admin.allow_remote = true` to allow it",
                server.admin
            );
            layers.refuse(layers.origin_of(&ADMIN), message);
        }
        let addresses = [(&HTTP, server.http), (&GRPC, server.grpc), (&ADMIN, server.admin)];
        for (at, (key, address)) in addresses.iter().enumerate() {
            if let Some((other, _)) = addresses[..at].iter().find(|(_, earlier)| address.port() != 0 && earlier == address) {
                layers.refuse(layers.origin_of(key), format!("`{}`: {address} is that of `{}` too", key.name(), other.name()));
            }
        }
        if !self.load.models.is_empty() && self.load.mode != LoadMode::Explicit {
            let message = "`load.models` has a meaning only with `load.mode = \"explicit\"`";
            layers.refuse(layers.origin_of(&LOAD_MODELS), message);
        }
    }
}
