//! The environment: every variable that the program reads, and the only place that reads them.
//!
//! Each setting has a variable: `BASCULE_` and its name in capitals with `_` for `.`, for example `BASCULE_REGISTRY_URL`. The others
//! are named here. A variable that belongs to no setting is not an error, since orchestrators inject variables named after
//! services; one that is a slip of the pen away from a setting is warned of.

use std::collections::BTreeMap;

use super::layers::{Layers, Origin};
use super::settings::KEYS;
use super::suggest::nearest;

/// Names the configuration file; `--config` is stronger.
pub const CONFIG_VARIABLE: &str = "BASCULE_CONFIG";
/// The address of the gateway's admin API; `--gateway` is stronger.
pub const GATEWAY_VARIABLE: &str = "BASCULE_GATEWAY";
/// Who changes a rollout or publishes, for journal and manifest.
const USER_VARIABLES: [&str; 2] = ["USER", "LOGNAME"];

const PREFIX: &str = "BASCULE_";
const NOT_SETTINGS: [&str; 4] = [CONFIG_VARIABLE, GATEWAY_VARIABLE, "BASCULE_DEPS", "BASCULE_SKIP_LOG"];

/// The environment as it was when the program started.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// That of this process. Variables that are not UTF-8 are left out.
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads the environment")]
    pub fn of_process() -> Environment {
        let utf8 =
            |(name, value): (std::ffi::OsString, std::ffi::OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Environment { variables: std::env::vars_os().filter_map(utf8).collect() }
    }

    /// One that a test makes up.
    #[cfg(test)]
    pub(crate) fn of(variables: &[(&str, &str)]) -> Environment {
        Environment { variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect() }
    }

    /// The same without the variables of settings and of the configuration file.
    #[must_use]
    pub fn without_settings(&self) -> Environment {
        let others = self.variables.iter().filter(|(name, _)| !name.starts_with(PREFIX));
        Environment { variables: others.map(|(name, value)| (name.clone(), value.clone())).collect() }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A secret that a setting says is in this variable.
    pub(super) fn secret(&self, name: &str) -> Option<&str> {
        self.get(name)
    }

    /// The configuration file that it names.
    pub fn config_file(&self) -> Option<&str> {
        self.get(CONFIG_VARIABLE)
    }

    /// Who runs this command, as far as it can be known.
    pub fn user(&self) -> String {
        use std::os::unix::fs::MetadataExt as _;
        let named = USER_VARIABLES.into_iter().find_map(|name| self.get(name)).map(str::to_owned);
        let numbered = || std::fs::metadata("/proc/self").ok().map(|process| format!("uid {}", process.uid()));
        named.or_else(numbered).unwrap_or_else(|| "unknown".to_owned())
    }

    /// Gives every setting that a variable sets, and returns warnings of likely slips.
    pub(crate) fn give_to(&self, layers: &mut Layers) -> Vec<String> {
        let mut warnings = Vec::new();
        let names: Vec<(String, &str)> = KEYS.iter().map(|key| (variable_of(key.name()), key.name())).collect();
        for (variable, value) in self.variables.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            if let Some((_, key)) = names.iter().find(|(name, _)| name == variable) {
                layers.give_word(key, value, Origin::Variable(variable.clone()));
            } else if !NOT_SETTINGS.contains(&variable.as_str()) {
                let tail = |name: &'_ str| name[PREFIX.len()..].to_owned();
                let known: Vec<String> = names.iter().map(|(name, _)| tail(name)).collect();
                if let Some(near) = nearest(&tail(variable), known.iter().map(String::as_str)) {
                    warnings.push(format!("{variable} is not a setting; did you mean {PREFIX}{near}?"));
                }
            }
        }
        warnings
    }
}

/// The variable that stands for a setting.
pub(crate) fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "_"))
}
