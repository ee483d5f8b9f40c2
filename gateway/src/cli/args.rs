//! Arguments that several commands have.

use std::path::PathBuf;

use clap::Args;

use crate::config::env::{Environment, GATEWAY_VARIABLE};
use crate::config::{self, Config, ConfigError, Effective, Given};

use super::failure::Failure;

/// Where settings come from.
#[derive(Debug, Clone, Args)]
pub(super) struct ConfigArgs {
    /// The configuration file [default: bascule.toml, where it exists; env: BASCULE_CONFIG].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The registry or repository: a path, a URL, or its name where the configuration lists several [default: ./models].
    #[arg(long, value_name = "PATH|URL|NAME")]
    registry: Option<String>,
    /// Any setting of the configuration file; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    /// Reads the configuration; `flags` are those with a meaning of their own, as setting, flag, value.
    pub(super) fn load(
        &self,
        flags: impl IntoIterator<Item = (&'static str, &'static str, Option<String>)>,
        environment: &Environment,
    ) -> Result<Effective, Failure> {
        Ok(self.read(flags, environment)?)
    }

    /// The same, and what can be said of a configuration that can't be used.
    pub(super) fn read(
        &self,
        flags: impl IntoIterator<Item = (&'static str, &'static str, Option<String>)>,
        environment: &Environment,
    ) -> Result<Effective, ConfigError> {
        let registry = [("registry.url", "--registry", self.registry.clone())];
        let flags = registry.into_iter().chain(flags).filter_map(|(key, flag, value)| Some((key, flag, value?))).collect();
        config::load(&Given { file: self.config.clone(), flags, sets: self.set.clone() }, environment)
    }
}

/// The configuration with the registry that `--registry` names as its only one.
pub(super) fn over(registry: &str, environment: &Environment) -> Result<Config, Failure> {
    let given = Given { flags: vec![("registry.url", "--registry", registry.to_owned())], ..Given::default() };
    Ok(config::load(&given, environment)?.config)
}

/// The admin API of a gateway that nobody has configured.
pub(super) const DEFAULT_GATEWAY: &str = "http://127.0.0.1:8002";

/// Which gateway is asked.
#[derive(Debug, Clone, Args)]
pub(super) struct GatewayArgs {
    /// The admin API of the gateway.
    #[arg(id = "gateway_url", long = "gateway", value_name = "URL", env = GATEWAY_VARIABLE, default_value = DEFAULT_GATEWAY, global = true)]
    pub(super) url: String,
}

/// Reads `name=value`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected name=value".to_owned()),
    }
}

/// Reads `name=number`.
pub(super) fn measure(text: &str) -> Result<(String, f64), String> {
    let (name, value) = pair(text)?;
    match value.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok((name, value)),
        _ => Err(format!("expected name=number, got {value:?}")),
    }
}
