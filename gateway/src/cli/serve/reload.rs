//! What SIGHUP does: the configuration is read again, what may change while the gateway runs applies, the rest is refused by name.

use crate::cli::logging::LogLevel;
use crate::compose::Retrust;
use crate::config::{Changes, Effective, changes};
use crate::server::Server;

/// The setting that the log goes by; all others that may change are the engine's, but for the one below.
const LOG_LEVEL: &str = "log.level";

/// The setting whose files are read again, whether it has changed or not.
const TRUST: &str = "registry.trust";

/// Applies what was read to a gateway that goes by `effective`; returns what it goes by now.
pub(super) async fn apply(server: &Server, effective: &Effective, mut read: Effective, level: &LogLevel) -> Effective {
    let mut changes = changes(&effective.entries, &read.entries);
    if !trusts_anew(server, &read, &mut changes).await {
        keep(effective, &mut read, TRUST);
    }
    for change in &changes.refused {
        tracing::warn!(setting = change.name, old = change.old, new = change.new, "needs a restart: the old value stays");
        keep(effective, &mut read, change.name);
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

/// Reads the trusted keys again; whether those count that the configuration names now.
async fn trusts_anew(server: &Server, read: &Effective, changes: &mut Changes) -> bool {
    match server.retrust(read).await {
        Ok(Retrust::Replaced { gone, new }) => {
            if !gone.is_empty() || !new.is_empty() {
                let (withdrawn, added) = (gone.join(","), new.join(","));
                tracing::info!(
                    setting = TRUST,
                    withdrawn,
                    added,
                    "other keys are trusted: what none of them has signed is not loaded"
                );
            }
            true
        }
        Ok(Retrust::NeedsRestart) => {
            changes.refuse(TRUST);
            false
        }
        Ok(Retrust::Kept(error)) => {
            tracing::error!(setting = TRUST, error, "can't be read: who is trusted stays as it was");
            changes.live.retain(|change| change.name != TRUST);
            false
        }
        Err(error) => {
            tracing::error!(setting = TRUST, error = format!("{error:#}"), "can't be read again");
            changes.live.retain(|change| change.name != TRUST);
            false
        }
    }
}

/// Shows a setting as it was.
fn keep(effective: &Effective, read: &mut Effective, name: &str) {
    let old = effective.entries.iter().find(|entry| entry.name == name);
    if let (Some(entry), Some(old)) = (read.entries.iter_mut().find(|entry| entry.name == name), old) {
        entry.clone_from(old);
    }
}
