//! What SIGHUP does: the configuration is read again, what may change while the gateway runs applies, the rest is refused by name.

use crate::cli::logging::LogLevel;
use crate::config::{Effective, changes};
use crate::server::Server;

/// The setting that the log goes by; all others that may change are the engine's.
const LOG_LEVEL: &str = "log.level";

/// Applies what was read to a gateway that goes by `effective`; returns what it goes by now.
pub(super) async fn apply(server: &Server, effective: &Effective, mut read: Effective, level: &LogLevel) -> Effective {
    let changes = changes(&effective.entries, &read.entries);
    for change in &changes.refused {
        tracing::warn!(setting = change.name, old = change.old, new = change.new, "needs a restart: the old value stays");
        let old = effective.entries.iter().find(|entry| entry.name == change.name);
        if let (Some(entry), Some(old)) = (read.entries.iter_mut().find(|entry| entry.name == change.name), old) {
            entry.clone_from(old);
        }
    }
    for change in &changes.live {
        tracing::info!(setting = change.name, old = change.old, new = change.new, "changed");
    }
    if changes.live.iter().any(|change| change.name == LOG_LEVEL)
        && let Err(error) = level.change(&read.config.log_level)
    {
        tracing::error!(setting = LOG_LEVEL, error = format!("{error:#}"), "can't be changed");
    }
    if let Err(error) = server.change(&read).await {
        tracing::error!(error = format!("{error:#}"), "the engine does not take the new settings");
    }
    tracing::info!(changed = changes.live.len(), refused = changes.refused.len(), "configuration read again");
    read
}
