//! The configuration: what can be set, where a value comes from, and everything that is wrong with it at once.
//!
//! Flag > environment > file > default. A value is checked where it is read, so nothing that [`Config`] holds is checked again.
//! No setting holds a secret: it says where one is ([`secret`]).

mod devices;
pub mod env;
mod fields;
mod key;
mod layers;
mod lists;
mod mlflow;
pub mod model_settings;
mod model_toml;
mod oci;
mod raw;
mod registries;
mod reload;
mod schema;
mod secret;
mod settings;
mod suggest;
mod triton;
mod trust;
mod value;
mod warmup;

use std::path::PathBuf;

pub use devices::GpuBudgets;
pub use layers::{ConfigError, Entry, Origin, Problem};
pub use lists::ModelFormat;
pub use mlflow::MlflowConfig;
pub use model_toml::declared_signature;
pub use oci::OciConfig;
pub use registries::{RegistryConfig, RegistrySpec};
pub use reload::{Change, Changes, changes};
pub use schema::schema;
pub use secret::{SecretPlace, SecretText};
pub use settings::{Config, LoadConfig, LogFormat, ServerConfig, TorchConfig, TrialConfig, TrialMode};
pub use trust::TrustedKey;
pub use value::{ByteCount, Place};

use env::Environment;
use layers::Layers;
use settings::KEYS;

/// The file that is read where none is named and it exists.
pub const DEFAULT_FILE: &str = "bascule.toml";

/// What the command line says of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Settings with a flag of their own: setting, flag, value.
    pub flags: Vec<(&'static str, &'static str, String)>,
    /// `--set key=value`, as written.
    pub sets: Vec<String>,
}

/// A configuration that can be used, and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// The values.
    pub config: Config,
    /// Each as text, with its origin, by name.
    pub entries: Vec<Entry>,
    /// The file, where one was read.
    pub file: Option<PathBuf>,
    /// What looks wrong and is no error.
    pub warnings: Vec<String>,
}

/// Reads every layer.
///
/// # Errors
/// All problems of all layers.
pub fn load(given: &Given, environment: &Environment) -> Result<Effective, ConfigError> {
    let mut layers = Layers::new(KEYS);
    let file = file_to_read(given, environment);
    if let Some(path) = &file {
        match layers::read_file(path) {
            Ok(text) => layers.give_file(path, &text),
            Err(problem) => layers.refuse(problem.origin, problem.message),
        }
    }
    let warnings = environment.give_to(&mut layers);
    for (key, flag, value) in &given.flags {
        layers.give_word(key, value, Origin::Flag((*flag).to_owned()));
    }
    for set in &given.sets {
        let origin = Origin::Flag("--set".to_owned());
        match set.split_once('=') {
            Some((key, value)) => layers.give_word(key.trim(), value.trim(), origin),
            None => layers.refuse(origin, format!("expected key=value, got {set:?}")),
        }
    }
    let mut config = Config::take(&mut layers, environment);
    config.oci.open(environment, &mut layers);
    layers.finish().map(|entries| Effective { config, entries, file, warnings })
}

fn file_to_read(given: &Given, environment: &Environment) -> Option<PathBuf> {
    let named = given.file.clone().or_else(|| environment.config_file().map(PathBuf::from));
    named.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.is_file()))
}

/// The variable that stands for a setting, for texts.
pub fn variable_of(key: &str) -> String {
    env::variable_of(key)
}

/// What a setting means, in one line.
pub fn help_of(key: &str) -> Option<&'static str> {
    KEYS.iter().find(|known| known.name() == key).map(|known| known.help())
}

#[cfg(test)]
mod tests;
