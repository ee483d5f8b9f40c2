//! `--wait`: asks gateways until they serve what was published.

use std::time::Duration;

use anyhow::anyhow;
use bascule_registry::Published;
use clap::ValueEnum;
use serde::Deserialize;
use tokio::task::JoinSet;

use super::super::failure::Failure;
use super::super::gateway::{Gateway, model_path};

/// How many of several gateways have to serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Quorum {
    /// One.
    Any,
    /// Every one.
    All,
}

/// What a gateway says about a version that is waited for.
#[derive(Debug, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Waited {
    Ready,
    Failed { stage: Option<String>, cause: Option<String> },
    Held { reason: String },
    Pending { stage: Option<String> },
}

/// Waits until enough gateways serve the version; those that do.
pub(super) async fn wait_for(
    urls: &[String],
    quorum: Quorum,
    published: &Published,
    limit: Duration,
) -> Result<Vec<String>, Failure> {
    let mut asked = JoinSet::new();
    for url in urls {
        let gateway = Gateway::at(url)?;
        let path = format!("{}/versions/{}/wait", model_path(published.key.model.as_str())?, published.key.version);
        let query = [("timeout", format!("{}ms", limit.as_millis())), ("digest", published.digest.to_string())];
        let key = published.key.to_string();
        asked.spawn(async move {
            let waited = gateway.get(&path, &query).await?;
            judge(&key, &gateway.place(), waited, limit).map(|()| gateway.place())
        });
    }
    let (mut served, mut failure) = (Vec::new(), None);
    while let Some(answer) = asked.join_next().await {
        match answer.unwrap_or_else(|error| Err(anyhow::Error::new(error).into())) {
            Ok(place) => served.push(place),
            Err(error) if quorum == Quorum::All => return Err(error),
            Err(error) => failure = Some(error),
        }
        if quorum == Quorum::Any && !served.is_empty() {
            return Ok(served);
        }
    }
    match failure {
        Some(failure) if served.is_empty() => Err(failure),
        _ => Ok(served),
    }
}

fn judge(key: &str, gateway: &str, waited: Waited, limit: Duration) -> Result<(), Failure> {
    let unknown = || "unknown".to_owned();
    match waited {
        Waited::Ready => Ok(()),
        Waited::Failed { stage, cause } => {
            let error = anyhow!(cause.unwrap_or_else(unknown));
            let error = error.context(format!("{key} is published, but failed at {} on {gateway}", stage.unwrap_or_else(unknown)));
            Err(Failure::from(error).hint("what was served before is still served; publish a mended version"))
        }
        Waited::Held { reason } => {
            let model = key.split('@').next().unwrap_or(key);
            Err(Failure::new(format!("{key} is published, but {gateway} does not load it: {reason}"))
                .hint(format!("bascule load {model}")))
        }
        Waited::Pending { stage } => {
            let stage = stage.map_or_else(|| "it has not seen it".to_owned(), |stage| format!("it is {stage}"));
            let waited = humantime::format_duration(limit);
            Err(Failure::new(format!("{key} is published, but {gateway} does not serve it after {waited}: {stage}"))
                .hint("does that gateway serve this registry, and does the model's version_policy select this version? --wait-timeout waits longer"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<(), String> {
        judge("m@2", "http://g", serde_json::from_str(json).unwrap(), Duration::from_secs(5)).map_err(|failure| failure.text())
    }

    #[test]
    fn the_outcome_names_stage_and_cause() {
        assert_eq!(check(r#"{"outcome":"ready","model":"m","version":2}"#), Ok(()));
        let failed = check(r#"{"outcome":"failed","stage":"loading","cause":"not a model"}"#).unwrap_err();
        assert!(
            failed.starts_with("error: m@2 is published, but failed at loading on http://g\ncaused by: not a model\n"),
            "{failed}"
        );
        let held = check(r#"{"outcome":"held","reason":"held: unloaded by operator"}"#).unwrap_err();
        assert!(held.contains("held: unloaded by operator") && held.contains("hint: bascule load m\n"), "{held}");
        let pending = check(r#"{"outcome":"pending","stage":null}"#).unwrap_err();
        assert!(pending.contains("does not serve it after 5s: it has not seen it"), "{pending}");
    }
}
