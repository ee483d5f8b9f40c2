//! A runtime that is looked for, and opened when it is needed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bascule_runtime_api::{Device, Footprint, LoadError, LoadOptions, Runtime, Session};

use crate::host::Host;
use crate::library;

/// Which plugin, and where it and its libraries may be.
#[derive(Debug, Clone)]
pub struct PluginConfig {
    /// The runtime's name.
    pub name: &'static str,
    /// The format that it loads.
    pub format: &'static str,
    /// Files that may be the plugin; the first that is there is taken.
    pub plugin: Vec<PathBuf>,
    /// Folders that may hold its libraries; the first that has the first of them is taken.
    pub libraries: Vec<PathBuf>,
    /// The libraries that have to be open before it, in this order.
    pub needs: Vec<&'static str>,
    /// Libraries that are opened where the folder has them.
    pub wants: Vec<&'static str>,
    /// What the plugin is opened with.
    pub settings: serde_json::Value,
    /// What can be done where something is missing.
    pub hint: &'static str,
}

/// A runtime whose library is opened when the first of its models is loaded: it takes memory that a gateway without such models has
/// better use for.
pub struct PluginRuntime {
    config: PluginConfig,
    opened: OnceLock<Arc<Host>>,
    /// Held by whoever opens it.
    opening: Mutex<()>,
}

/// What was found, and not opened yet.
struct Found<'a> {
    plugin: &'a Path,
    libraries: &'a Path,
}

impl PluginRuntime {
    /// A runtime of which nothing is opened yet.
    pub fn new(config: PluginConfig) -> PluginRuntime {
        PluginRuntime { config, opened: OnceLock::new(), opening: Mutex::new(()) }
    }

    fn unavailable(&self, message: String) -> LoadError {
        LoadError::Unavailable {
            message: format!("{} is not available: {message}", self.config.name),
            hint: self.config.hint.to_owned(),
        }
    }

    fn find(&self) -> Result<Found<'_>, LoadError> {
        let first = self.config.needs.first().copied().unwrap_or_default();
        let libraries = self.config.libraries.iter().find(|folder| library::is_there(&folder.join(first)));
        let Some(libraries) = libraries else {
            return Err(self.unavailable(not_found(first, self.config.libraries.iter().map(|folder| folder.join(first)))));
        };
        let Some(plugin) = self.config.plugin.iter().find(|path| library::is_there(path)) else {
            return Err(self.unavailable(not_found("the plugin", self.config.plugin.iter().cloned())));
        };
        Ok(Found { plugin, libraries })
    }

    fn host(&self) -> Result<&Arc<Host>, LoadError> {
        if let Some(host) = self.opened.get() {
            return Ok(host);
        }
        let _turn = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = self.opened.get() {
            return Ok(host);
        }
        // A failure is not kept: the files may be there at the next load.
        let host = Arc::new(self.open()?);
        Ok(self.opened.get_or_init(|| host))
    }

    fn open(&self) -> Result<Host, LoadError> {
        let Found { plugin, libraries } = self.find()?;
        let open = |path: PathBuf| {
            let opened =
                library::open(&path).map_err(|said| self.unavailable(format!("{} can't be opened: {said}", path.display())))?;
            std::mem::forget(opened);
            Ok::<(), LoadError>(())
        };
        self.config.needs.iter().try_for_each(|name| open(libraries.join(name)))?;
        let wanted = self.config.wants.iter().map(|name| libraries.join(name)).filter(|path| library::is_there(path));
        for path in wanted {
            // Models on the processor do without.
            if let Err(error) = open(path) {
                tracing::warn!(runtime = self.config.name, %error, "a library that is there can't be used");
            }
        }
        let table = library::table(plugin, self.config.hint)?;
        let host = Host::open(table, &self.config.settings)?;
        let about = host.about()?;
        if about.format != self.config.format {
            let (path, other, ours) = (plugin.display(), about.format, self.config.format);
            return Err(self.unavailable(format!("{path} is a plugin for the format {other}, expected {ours}")));
        }
        let version = host.version()?;
        tracing::info!(runtime = self.config.name, version, plugin = %plugin.display(), libraries = %libraries.display(), "opened a runtime");
        Ok(host)
    }
}

fn not_found(what: &str, places: impl Iterator<Item = PathBuf>) -> String {
    let places: Vec<String> = places.map(|place| place.display().to_string()).collect();
    format!("{what} was not found, looked for {}", places.join(", "))
}

impl Runtime for PluginRuntime {
    fn name(&self) -> &'static str {
        self.config.name
    }

    fn format(&self) -> &'static str {
        self.config.format
    }

    /// Looks for the files and opens nothing; the version is that of the library once it was opened, and before that what its folder
    /// says.
    fn version(&self) -> Result<String, LoadError> {
        if let Some(host) = self.opened.get() {
            return host.version();
        }
        let Found { libraries, .. } = self.find()?;
        let said = libraries.parent().and_then(|folder| std::fs::read_to_string(folder.join("build-version")).ok());
        Ok(said.map_or_else(|| "not opened yet".to_owned(), |said| said.trim().to_owned()))
    }

    fn is_optional(&self) -> bool {
        true
    }

    fn check_device(&self, device: Device) -> Result<(), LoadError> {
        match device {
            // It can: nothing is to be opened for that.
            Device::Cpu => Ok(()),
            Device::Cuda(_) => self.host()?.check_device(device),
        }
    }

    fn estimate(&self, dir: &Path, options: &LoadOptions) -> Result<Footprint, LoadError> {
        self.host()?.estimate(dir, options)
    }

    fn load(&self, dir: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, LoadError> {
        self.host()?.load(dir, options)
    }
}
