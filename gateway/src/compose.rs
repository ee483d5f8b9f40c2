//! Puts the program together: the only place, with the files of its folder, that names concrete runtimes and sources.

mod journals;
mod sources;
mod told;
mod trust;

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use bascule_registry::{Cache, VersionKey};
use bascule_runtime_api::{Device, Runtime};
use bascule_runtime_onnx::{OnnxConfig, OnnxRuntime};
use bascule_runtime_plugin::{PluginConfig, PluginRuntime};
use bascule_serving::{Admit, EngineOptions, Gpus, JournalStore, LiveOptions, SettingsReader};
use serde::{Deserialize, Serialize};

use crate::config::{Config, ModelFormat, TorchConfig, TrialMode, model_settings};
use crate::forbidden::Forbidden;
use crate::gpus::{self, NvidiaGpus};
use crate::state_dir::StateDir;
use crate::supervise::{self, Guard, Supervised};
use crate::trial::Trials;
pub use journals::shared_journal;
use journals::{Beside, Held, Journals};
use sources::identity;
pub use sources::{Source, holds_journals, local_path, open_publish_target, open_registry};
pub use trust::{Retrust, retrust, trust};

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

    /// What of it belongs to one runtime and makes a difference to what that computes, as text.
    pub(crate) fn of_runtime(&self, name: &str) -> String {
        match name {
            "onnxruntime" => {
                format!("{:?} {} {:?}", self.onnxruntime, self.onnxruntime_threads, self.onnxruntime_operators)
            }
            "torch" => format!("{:?} {}", self.torch.library, self.torch.threads),
            _ => String::new(),
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
    let identities = config.registry.all.iter().map(|spec| identity(&spec.url)).collect::<Result<Vec<_>>>()?;
    let own = state.of_registries(&identities)?;
    let journal = journal(config, source, &own)?;
    let defaults = EngineOptions::new(source.versions(), journal, cache, own);
    let trials = match config.trial.mode {
        TrialMode::Off => None,
        TrialMode::Process => {
            let trials = Trials::new(config, Arc::clone(&gpus), state.trials_dir());
            Some(trials.context("can't start the thread that tries versions")?)
        }
    };
    let admit: Admit = match source.trust() {
        Some(trust) => Arc::new(move |generation| trust.judge(generation).map_err(|why| why.to_string())),
        None => defaults.admit.clone(),
    };
    let Guard { trial, marks } = supervise::guard(supervised, state, trials)?;
    Ok(EngineOptions {
        write_back: source.told_of_decisions().filter(|_| config.mlflow.write_back),
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
        admit,
        ..defaults
    })
}

/// A limit of GPUs' memory that limits nothing as things stand: what is set, and why.
pub fn idle_budget(config: &Config, gpus: &dyn Gpus) -> Option<String> {
    let budgets = config.load.gpu_memory_budget.as_ref()?;
    let there: Vec<Device> = gpus.list().iter().map(|gpu| Device::Cuda(gpu.ordinal)).collect();
    if there.is_empty() {
        return Some(
            "load.gpu_memory_budget is set and no GPU can be seen: libnvidia-ml.so.1 of the driver is not found, or \
             CUDA_VISIBLE_DEVICES hides every GPU; nothing is limited that is found later, until a reload"
                .to_owned(),
        );
    }
    let limits = budgets.limits(std::iter::empty());
    let absent: Vec<String> = limits.keys().filter(|device| !there.contains(device)).map(Device::to_string).collect();
    (!absent.is_empty()).then(|| format!("load.gpu_memory_budget names {}, which can't be seen", absent.join(", ")))
}

/// What of the engine's options may change while it runs: the settings that say so. A limit that limits nothing is warned of.
pub fn live_options(config: &Config, gpus: &dyn Gpus) -> LiveOptions {
    if let Some(idle) = idle_budget(config, gpus) {
        tracing::warn!("{idle}");
    }
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

/// Where rollout decisions go: into the registry that is served, for models in its own layout; for others beside it.
fn journal(config: &Config, source: &Source, own: &Path) -> Result<Arc<dyn JournalStore>> {
    let places = config.registry.all.iter().map(|spec| Ok((identity(&spec.url)?.into(), spec.url.clone())));
    let held = Held { places: places.collect::<Result<_>>()?, stores: source.stores.clone() };
    Ok(Arc::new(Journals::new(Arc::clone(&source.registries), held, Beside::open(config, own)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Place;

    #[test]
    fn places_of_this_machine() {
        let check = |place: &str| local_path(&Place(place.to_owned())).map_err(|error| error.to_string());
        assert_eq!(check("./models"), Ok("./models".into()));
        assert_eq!(check("file:///srv/my%20models"), Ok("/srv/my models".into()));
        assert_eq!(check("s3://bucket/x"), Err("a directory is expected, not a place at s3://".into()));
        assert!(check("file://server/share").is_err());
        assert_eq!(check("OCI://host/x"), Err("a directory is expected, not a place at oci://".into()));
        let holds = |place: &str| holds_journals(&Place(place.to_owned())).unwrap();
        assert!(holds("./models") && !holds("oci://host/x") && !holds("oci+http://host/x"));
    }

    #[test]
    fn a_limit_that_limits_nothing_is_told() {
        struct Seen(u32);
        impl Gpus for Seen {
            fn list(&self) -> Vec<bascule_serving::Gpu> {
                let gpu = |ordinal| bascule_serving::Gpu { ordinal, name: "a".to_owned(), total_bytes: 9, free_bytes: 9 };
                (0..self.0).map(gpu).collect()
            }
        }
        let idle = |sets: &[&str], gpus: u32| {
            let given = crate::config::Given { sets: sets.iter().map(|set| (*set).to_owned()).collect(), ..Default::default() };
            let config = crate::config::load(&given, &crate::config::env::Environment::default()).unwrap().config;
            idle_budget(&config, &Seen(gpus)).unwrap_or_default()
        };
        assert_eq!(idle(&[], 0), "");
        assert_eq!(idle(&["load.gpu_memory_budget=1GiB"], 1), "");
        assert!(idle(&["load.gpu_memory_budget=1GiB"], 0).contains("no GPU can be seen"));
        let named = "load.gpu_memory_budget=cuda:0=1GiB,cuda:3=1GiB";
        assert_eq!(idle(&[named], 2), "load.gpu_memory_budget names cuda:3, which can't be seen");
        assert_eq!(idle(&[named], 4), "");
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
