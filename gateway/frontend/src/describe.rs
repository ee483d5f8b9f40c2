//! What is served, as both protocols tell it: computed from the serving table and the status, in structs that serialise to the
//! protocol's JSON and that gRPC copies into its messages.
//!
//! Invariant: nothing here loads a model or counts as a use of one, so a dashboard never keeps a model in memory. Deliberately absent:
//! transport, and any text that names what lies inside.

mod config;
mod index;
mod metadata;
mod repository;
mod statistics;

use std::sync::Arc;

use bascule_serving::{InferError, Route, Servable, Standing};

pub use self::config::{model_config, model_config_json};
pub(crate) use self::index::latest;
pub use self::index::{IndexEntry, index};
pub use self::metadata::{ModelMetadata, ServerMetadata, TensorMetadata, model_metadata, server_metadata};
pub(crate) use self::repository::UNLOAD_DEPENDENTS;
pub use self::repository::{check_load_parameters, refusal};
pub use self::statistics::{BatchStatistics, Duration, InferenceStatistics, ModelStatistics, StatisticsReport, statistics};

/// Whether a model, or one version of it, would answer now.
///
/// # Errors
/// Why it would not.
pub fn ready(table: &bascule_serving::ServingTable, model: &str, version: Option<u64>) -> Result<(), InferError> {
    let route = known(table, model)?;
    match version {
        // A candidate alone answers nobody who does not ask for it.
        None => route.stable.as_ref().map(drop).ok_or_else(|| absent(route)),
        Some(version) => answering(route, Some(version)).map(drop),
    }
}

/// A version as clients write it: empty for none. 0 is read, so that it is answered as a version that is not there.
///
/// # Errors
/// For everything that is not a whole number.
pub fn parse_version(text: &str) -> Result<Option<u64>, InferError> {
    if text.is_empty() {
        return Ok(None);
    }
    let digits = text.len() <= 19 && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(version) if digits => Ok(Some(version)),
        _ => {
            let shown: String = text.chars().take(32).collect();
            Err(InferError::invalid(format!("version '{shown}' is not a whole number above 0")))
        }
    }
}

fn known<'t>(table: &'t bascule_serving::ServingTable, model: &str) -> Result<&'t Arc<Route>, InferError> {
    table.route(model).ok_or_else(|| InferError::UnknownModel { model: model.to_owned() })
}

/// The versions that answer, ascending, or the one asked for: never none.
fn answering(route: &Route, version: Option<u64>) -> Result<Vec<&Arc<Servable>>, InferError> {
    let Some(version) = version else {
        let versions = route.versions();
        return if versions.is_empty() { Err(absent(route)) } else { Ok(versions) };
    };
    if let Some(servable) = route.version(version) {
        return Ok(vec![servable]);
    }
    if let Some(stage) = route.pending.get(&version) {
        return Err(not_ready(route, format!("version {version} is {stage}")));
    }
    let served: Vec<String> = route.versions().iter().map(|servable| servable.version().to_string()).collect();
    let served = if served.is_empty() { "none".to_owned() } else { served.join(", ") };
    Err(InferError::UnknownVersion { model: route.model.to_string(), version, served })
}

/// Why no version takes traffic.
fn absent(route: &Route) -> InferError {
    match &route.standing {
        Standing::Unloaded => InferError::Unloaded { model: route.model.to_string() },
        Standing::NotReady { reason, retry_after } => {
            InferError::NotReady { model: route.model.to_string(), reason: reason.clone(), retry_after: *retry_after }
        }
        Standing::Waking => not_ready(route, "it is being loaded".to_owned()),
        Standing::OnDemand => not_ready(route, "the first request loads it".to_owned()),
        Standing::Serving => not_ready(route, "no version takes traffic".to_owned()),
    }
}

fn not_ready(route: &Route, reason: String) -> InferError {
    InferError::NotReady { model: route.model.to_string(), reason, retry_after: std::time::Duration::from_secs(1) }
}

#[cfg(test)]
mod tests;
