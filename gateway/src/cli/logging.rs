//! Log lines, on standard error.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

use crate::config::{Config, LogFormat};

use super::failure::Failure;

/// Changes what is logged while the program runs.
pub(super) struct LogLevel(reload::Handle<EnvFilter, Registry>);

/// Starts logging as the configuration says.
pub(super) fn start(config: &Config) -> Result<LogLevel, Failure> {
    let filter = EnvFilter::try_new(&config.log_level).context("log.level")?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = match config.log_format {
        LogFormat::Text => fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().context("logging was started before")?;
    Ok(LogLevel(handle))
}

impl LogLevel {
    /// Applies other directives. They were checked with the configuration that they come from.
    pub(super) fn change(&self, directives: &str) -> anyhow::Result<()> {
        self.0.reload(EnvFilter::try_new(directives)?).context("the log level can't be changed")
    }
}
