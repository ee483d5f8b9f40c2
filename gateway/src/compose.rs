//! Puts the program together: the only file that names concrete runtimes and sources.

mod journals;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bascule_registry::{
    Cache, DirectoryOptions, DirectorySource, LocalJournal, NamedSource, Registries, Registry, VersionKey, VersionSource,
};
use bascule_runtime_api::{Device, Runtime};
use bascule_runtime_onnx::{OnnxConfig, OnnxRuntime};
use bascule_runtime_plugin::{PluginConfig, PluginRuntime};
use bascule_serving::{EngineOptions, Gpus, JournalStore, LiveOptions, SettingsReader};
use serde::{Deserialize, Serialize};

use crate::config::{Config, ModelFormat, Place, TorchConfig, TrialMode, model_settings};
use crate::forbidden::Forbidden;
use crate::gpus::{self, NvidiaGpus};
use crate::state_dir::StateDir;
use crate::supervise::{self, Guard, Supervised};
use crate::trial::Trials;
use journals::{Held, Journals};

/// The folders, relative to that of the program, in which ONNX Runtime is looked for: beside an installed program, and where
/// `make deps` puts it for one that was built in this repository.
const LIBRARY_FOLDERS: [&str; 3] = ["lib", "../lib", "../../.deps/onnxruntime/lib"];

/// The same for libtorch.
const TORCH_FOLDERS: [&str; 3] = ["lib", "../lib", "../../.deps/torch/lib"];

/// The same for the plugin that runs TorchScript models: beside the program, or where its libraries are.
const PLUGIN_FOLDERS: [&str; 3] = [".", "lib", "../lib"];

/// The plugin's file.
const TORCH_PLUGIN: &str = "libbascule_torch.so";

/// Where ONNX Runtime is looked for when no file is set.
pub fn library_folders() -> Vec<PathBuf> {
    beside(&program_folder(), &LIBRARY_FOLDERS)
}

fn program_folder() -> PathBuf {
    let program = std::env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
    program.parent().unwrap_or(Path::new(".")).to_owned()
}

/// Folders relative to that of the program.
fn beside(program: &Path, folders: &[&str]) -> Vec<PathBuf> {
    folders.iter().map(|relative| tidy(&program.join(relative))).collect()
}

/// Takes `.` and `..` out where that is safe: the folder is that of a program that runs, without symbolic links.
fn tidy(path: &Path) -> PathBuf {
    let mut tidied = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(tidied.pop()),
            Component::CurDir => {}
            other => tidied.push(other),
        }
    }
    tidied
}

/// Between two tries to watch a registry, at the most, unless the poll itself is slower.
const MAX_WATCH_PAUSE: Duration = Duration::from_mins(5);

/// Every runtime of this build. To be called before the program starts threads, because a runtime may set environment variables.
pub fn runtimes(config: &Config) -> Vec<Arc<dyn Runtime>> {
    open_runtimes(&Libraries::of(config))
}

/// What of the configuration the runtimes go by; another process of the program can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Libraries {
    /// Where the program lay when it started: its file may be replaced while it runs.
    program: PathBuf,
    onnxruntime: Option<PathBuf>,
    onnxruntime_threads: u32,
    onnxruntime_operators: Vec<PathBuf>,
    torch: TorchConfig,
    formats: Vec<ModelFormat>,
}

impl Libraries {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Libraries {
        let (onnxruntime, onnxruntime_threads) = (config.onnxruntime_library.clone(), config.onnxruntime_threads);
        Libraries {
            program: program_folder(),
            onnxruntime,
            onnxruntime_threads,
            onnxruntime_operators: config.onnxruntime_operators.clone(),
            torch: config.torch.clone(),
            formats: config.load.formats.clone(),
        }
    }
}

/// The same as [`runtimes`], and with the same demand.
pub fn open_runtimes(libraries: &Libraries) -> Vec<Arc<dyn Runtime>> {
    gpus::count_by_slot();
    let onnx = OnnxConfig {
        library: libraries.onnxruntime.clone(),
        search: beside(&libraries.program, &LIBRARY_FOLDERS),
        shared_threads: libraries.onnxruntime_threads as usize,
        operator_libraries: libraries.onnxruntime_operators.clone(),
    };
    let torch = torch(&libraries.program, &libraries.torch);
    let all: [(ModelFormat, Arc<dyn Runtime>); 2] =
        [(ModelFormat::Onnx, Arc::new(OnnxRuntime::new(onnx))), (ModelFormat::TorchScript, Arc::new(PluginRuntime::new(torch)))];
    let allowed = |(format, runtime): (ModelFormat, Arc<dyn Runtime>)| -> Arc<dyn Runtime> {
        if libraries.formats.contains(&format) {
            return runtime;
        }
        Arc::new(Forbidden { name: runtime.name(), format: runtime.format() })
    };
    all.into_iter().map(allowed).collect()
}

/// The threads of an operator, by the format that it belongs to: the setting that says how many, and the number.
pub fn operator_threads(config: &Config) -> [(&'static str, &'static str, u32); 2] {
    [("onnx", "onnxruntime.threads", config.onnxruntime_threads), ("torchscript", "torch.threads", config.torch.threads)]
}

/// libtorch, behind a plugin that is opened with the first model that needs it.
fn torch(program: &Path, config: &TorchConfig) -> PluginConfig {
    let plugins = || beside(program, &PLUGIN_FOLDERS).into_iter().map(|folder| folder.join(TORCH_PLUGIN)).collect();
    PluginConfig {
        name: "torch",
        format: "torchscript",
        plugin: config.plugin.clone().map_or_else(plugins, |path| vec![path]),
        libraries: config.library.clone().map_or_else(|| beside(program, &TORCH_FOLDERS), |folder| vec![folder]),
        needs: vec!["libtorch_cpu.so"],
        wants: vec!["libtorch_cuda.so"],
        settings: serde_json::json!({ "threads": config.threads }),
        hint: "run `make torch`, or set torch.library and torch.plugin",
    }
}

/// Reads the settings beside models, for these runtimes.
pub fn settings_reader(config: &Config, runtimes: &[Arc<dyn Runtime>]) -> SettingsReader {
    model_settings::reader(runtimes.iter().map(|runtime| runtime.name()).collect(), config.onnxruntime_threads > 0)
}

/// The registries that are served, as one source of versions.
#[derive(Clone)]
pub struct Source {
    registries: Arc<Registries>,
    /// What can be watched, beside being polled.
    directories: Vec<Arc<DirectorySource>>,
    /// Registries that other machines hold, by their places: kept open, with their connections and credentials.
    stores: BTreeMap<Arc<str>, Arc<Registry>>,
}

impl Source {
    /// Opens the places that are served. They need not exist or be reachable yet.
    ///
    /// # Errors
    /// A kind of place that this build can't read, one that is written wrong, or credentials that the environment has by halves.
    pub fn open(config: &Config) -> Result<Source> {
        let (mut members, mut directories, mut stores) = (Vec::new(), Vec::new(), BTreeMap::new());
        for spec in &config.registry.all {
            let place: Arc<str> = identity(&spec.url)?.into();
            let source: Arc<dyn VersionSource> = match Kind::of(&spec.url)? {
                Kind::Directory(root) => {
                    let options = DirectoryOptions { settle_interval: spec.settle_interval, ..DirectoryOptions::default() };
                    let directory = Arc::new(DirectorySource::new(root, options));
                    directories.push(Arc::clone(&directory));
                    directory
                }
                Kind::Other { .. } => {
                    let registry = open_registry(&spec.url, false)?.with_settle_interval(spec.settle_interval);
                    let registry = Arc::new(registry);
                    stores.insert(Arc::clone(&place), Arc::clone(&registry));
                    registry
                }
            };
            members.push(NamedSource { name: spec.name.clone(), place, source });
        }
        Ok(Source { registries: Arc::new(Registries::new(members)), directories, stores })
    }

    /// As the engine takes it.
    pub fn versions(&self) -> Arc<dyn VersionSource> {
        Arc::<Registries>::clone(&self.registries)
    }

    /// Calls `hint` whenever something may have changed, for as long as the returned future is polled. Where nothing can be watched,
    /// it tries again after `pause`, and after ever longer ones while that goes on: each try walks the whole directory.
    pub async fn watch(self, pause: Duration, hint: impl Fn()) {
        let hint = &hint;
        futures::future::join_all(self.directories.into_iter().map(|directory| watch(directory, pause, hint))).await;
    }
}

async fn watch(directory: Arc<DirectorySource>, pause: Duration, hint: &impl Fn()) {
    let mut next = pause;
    loop {
        match directory.watch().await {
            Ok(mut watch) => {
                next = pause;
                // What changed before the watch began.
                hint();
                while watch.changed().await.is_some() {
                    hint();
                }
            }
            Err(error) => tracing::debug!(%error, "the registry can't be watched, only polled"),
        }
        tokio::time::sleep(next).await;
        next = next.saturating_mul(2).min(MAX_WATCH_PAUSE.max(pause));
    }
}

/// What kind of place a registry is at.
enum Kind {
    /// A path, or `file://`.
    Directory(PathBuf),
    /// Anything else, by the scheme of its URL, in lower case.
    Other { scheme: String },
}

impl Kind {
    fn of(place: &Place) -> Result<Kind> {
        if !place.is_url() {
            return Ok(Kind::Directory(PathBuf::from(&place.0)));
        }
        // What other schemes have in their places is for those who open them to judge.
        let scheme = place.0.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).unwrap_or_default();
        if scheme != "file" {
            return Ok(Kind::Other { scheme });
        }
        let url = reqwest::Url::parse(&place.0).with_context(|| format!("registry {} is not a URL", place.0))?;
        let path = url.to_file_path();
        path.map(Kind::Directory).map_err(|()| anyhow::anyhow!("registry {} names no path on this machine", place.0))
    }
}

/// The directory that a place names.
///
/// # Errors
/// A place that is not a directory of this machine.
pub fn local_path(place: &Place) -> Result<PathBuf> {
    match Kind::of(place)? {
        Kind::Directory(path) => Ok(path),
        Kind::Other { scheme } => bail!("a directory is expected, not a place at {scheme}://"),
    }
}

/// What makes a registry the same one after a restart: its place as it is named, since a link that leads elsewhere tomorrow is still
/// this registry.
fn identity(place: &Place) -> Result<String> {
    let Kind::Directory(path) = Kind::of(place)? else { return Ok(place.0.trim_end_matches('/').to_owned()) };
    let path = std::path::absolute(&path).with_context(|| format!("registry {} names no place", place.0))?;
    Ok(path.display().to_string())
}

/// What the state of a gateway is kept under: its registry, or the first of several, so that it keeps what it knows when others join.
fn state_identity(config: &Config) -> Result<String> {
    config.registry.all.first().context("no registry is configured").and_then(|spec| identity(&spec.url))
}

/// Opens a registry to publish to or to write a journal in; `create` makes a directory where it is not there. Blocks.
///
/// # Errors
/// A directory that is not there, a place that is written wrong, or credentials that the environment has by halves.
pub fn open_registry(place: &Place, create: bool) -> Result<Registry> {
    let open = if create { Registry::open_or_create } else { Registry::open };
    // What is wrong with a place names it, without the passwords that it may hold.
    let named = place.is_url() && matches!(Kind::of(place), Ok(Kind::Other { .. }));
    let opened = open(&place.0);
    if named {
        opened.context("can't open the registry")
    } else {
        opened.with_context(|| format!("can't open registry {}", place.0))
    }
}

/// Looks at this machine's GPUs.
pub fn gpus() -> Arc<dyn Gpus> {
    Arc::new(NvidiaGpus::default())
}

/// Everything that the engine needs. Blocks.
///
/// # Errors
/// Where the registry is of an unknown kind, or the state directory can't be used.
pub fn engine_options(
    config: &Config,
    source: &Source,
    runtimes: Vec<Arc<dyn Runtime>>,
    state: &StateDir,
    supervised: Supervised,
    on_retired: impl Fn(&VersionKey) + Send + Sync + 'static,
) -> Result<EngineOptions> {
    let gpus = gpus();
    let cache = Cache::open(state.cache_dir())?;
    let own = state.of_registry(&state_identity(config)?)?;
    let journal = journal(config, source, &own)?;
    let defaults = EngineOptions::new(source.versions(), journal, cache, own);
    let trials = match config.trial.mode {
        TrialMode::Off => None,
        TrialMode::Process => {
            let limit = config.trial.memory_limit.map(|limit| limit.0);
            let trials = Trials::new(Libraries::of(config), config.trial.timeout, limit, state.trials_dir());
            Some(trials.context("can't start the thread that tries versions")?)
        }
    };
    let Guard { trial, marks } = supervise::guard(supervised, state, trials)?;
    Ok(EngineOptions {
        read_settings: settings_reader(config, &runtimes),
        runtimes,
        load_mode: config.load.mode,
        explicit_models: config.load.models.clone(),
        live: live_options(config, gpus.as_ref()),
        crowded_trial: config.trial.crowded,
        gpus,
        drain_timeout: config.server.drain_timeout,
        cache_max_bytes: config.cache_max_bytes.0,
        on_retired: Arc::new(on_retired),
        on_trim: Arc::new(crate::allocator::collect),
        trial,
        marks,
        ..defaults
    })
}

/// What of the engine's options may change while it runs: the settings that say so.
pub fn live_options(config: &Config, gpus: &dyn Gpus) -> LiveOptions {
    let on_gpus = config.load.gpu_memory_budget.as_ref();
    let on_gpus = on_gpus.map(|budgets| budgets.limits(gpus.list().iter().map(|gpu| gpu.ordinal))).unwrap_or_default();
    let main = config.load.memory_budget.map(|budget| (Device::Cpu, budget.0));
    let memory_budgets = on_gpus.into_iter().chain(main).collect();
    LiveOptions {
        explicit_follow: config.load.explicit_follow,
        resurrect: config.load.resurrect,
        transition: config.load.transition,
        absent: config.registry.absent,
        poll_interval: config.registry.poll_interval,
        strict_ready: config.strict_ready,
        memory_budgets,
        on_demand_wait: config.load.on_demand_wait,
        loader_threads: config.load.loader_threads as usize,
    }
}

/// Where rollout decisions go: into the registry that is served, for models in its own layout; for plain models beside it.
fn journal(config: &Config, source: &Source, own: &Path) -> Result<Arc<dyn JournalStore>> {
    let beside = match &config.journal {
        Some(place) => {
            let dir = local_path(place).context("rollout.journal")?;
            std::fs::create_dir_all(&dir).with_context(|| format!("rollout.journal: can't make {}", dir.display()))?;
            dir
        }
        None => own.join("journal"),
    };
    let beside = LocalJournal::open(&beside)?;
    let places = config.registry.all.iter().map(|spec| Ok((identity(&spec.url)?.into(), spec.url.clone())));
    let held = Held { places: places.collect::<Result<_>>()?, stores: source.stores.clone() };
    Ok(Arc::new(Journals::new(Arc::clone(&source.registries), held, beside, config.journal.is_some())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_this_machine() {
        let check = |place: &str| local_path(&Place(place.to_owned())).map_err(|error| error.to_string());
        assert_eq!(check("./models"), Ok("./models".into()));
        assert_eq!(check("file:///srv/my%20models"), Ok("/srv/my models".into()));
        assert_eq!(check("s3://bucket/x"), Err("a directory is expected, not a place at s3://".into()));
        assert!(check("file://server/share").is_err());
    }

    #[test]
    fn the_library_is_looked_for_beside_the_program() {
        let folders = library_folders();
        assert_eq!(folders.len(), 3);
        assert!(folders.iter().all(|folder| folder.is_absolute() && !folder.to_string_lossy().contains("..")), "{folders:?}");
        assert!(folders[2].ends_with(".deps/onnxruntime/lib"));
        assert_eq!(tidy(Path::new("/a/b/../c/../../d")), PathBuf::from("/d"));
    }
}
