//! `--wait`: asks gateways until they serve what was published.

use std::time::Duration;

use anyhow::anyhow;
use bascule_registry::Published;
use clap::ValueEnum;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

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
    Ready {
        #[serde(default)]
        no_traffic: Option<String>,
    },
    OnDemand,
    Failed {
        stage: Option<String>,
        cause: Option<String>,
    },
    Held {
        reason: String,
        #[serde(default)]
        hint: Option<String>,
    },
    Pending {
        stage: Option<String>,
    },
}

/// A gateway that has the version, and what is true of it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    /// Where the gateway is.
    pub(super) gateway: String,
    /// What it does with the version, as the end of a sentence.
    pub(super) how: String,
}

/// A gateway ends a wait after some minutes at the most, so a longer one is asked for in pieces.
const PIECE: Duration = Duration::from_mins(5);

/// The gateways at these URLs; nothing is sent yet.
pub(super) fn gateways(urls: &[String]) -> Result<Vec<Gateway>, Failure> {
    urls.iter().map(|url| Ok(Gateway::at(url)?.patient(PIECE))).collect()
}

/// Waits until enough gateways serve the version; those that do.
pub(super) async fn wait_for(
    gateways: Vec<Gateway>,
    quorum: Quorum,
    published: &Published,
    limit: Duration,
) -> Result<Vec<Served>, Failure> {
    let mut asked = JoinSet::new();
    for gateway in gateways {
        let path = format!("{}/versions/{}/wait", model_path(published.key.model.as_str())?, published.key.version);
        let (digest, key) = (published.digest.to_string(), published.key.to_string());
        asked.spawn(async move {
            let waited = ask(&gateway, &path, &digest, limit).await?;
            let how = judge(&key, &gateway.place(), waited, limit)?;
            Ok(Served { gateway: gateway.place(), how })
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

/// What became of the version, at the latest after `limit`.
async fn ask(gateway: &Gateway, path: &str, digest: &str, limit: Duration) -> Result<Waited, Failure> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let piece = left.min(PIECE);
        let query = [("timeout", format!("{}ms", piece.as_millis())), ("digest", digest.to_owned())];
        match gateway.get(path, &query).await? {
            Waited::Pending { .. } if left > piece => {}
            waited => return Ok(waited),
        }
    }
}

/// What is true of the version on a gateway, as the end of a sentence.
fn judge(key: &str, gateway: &str, waited: Waited, limit: Duration) -> Result<String, Failure> {
    let unknown = || "unknown".to_owned();
    match waited {
        Waited::Ready { no_traffic: None } => Ok(format!("is served by {gateway}")),
        Waited::Ready { no_traffic: Some(reason) } => {
            Ok(format!("is ready on {gateway}, and takes no traffic that names no version: {reason}"))
        }
        Waited::OnDemand => Ok(format!("is known to {gateway}, which loads it with the first request")),
        Waited::Failed { stage, cause } => {
            let error = anyhow!(cause.unwrap_or_else(unknown));
            let error = error.context(format!("{key} is published, but failed at {} on {gateway}", stage.unwrap_or_else(unknown)));
            Err(Failure::from(error).hint("what was served before is still served; publish a mended version"))
        }
        Waited::Held { reason, hint } => {
            Err(Failure::new(format!("{key} is published, but {gateway} does not load it: {reason}")).maybe_hint(hint))
        }
        Waited::Pending { stage } => {
            let stage = stage.map_or_else(|| "it has not seen it".to_owned(), |stage| format!("it is {stage}"));
            let waited = humantime::format_duration(limit);
            Err(Failure::new(format!("{key} is published, but {gateway} does not serve it after {waited}: {stage}"))
                .hint("does that gateway serve this registry? --wait-timeout waits longer"))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

    use super::*;

    fn check(json: &str) -> Result<String, String> {
        judge("m@2", "http://g", serde_json::from_str(json).unwrap(), Duration::from_secs(5)).map_err(|failure| failure.text())
    }

    #[test]
    fn what_is_said_is_true() {
        assert_eq!(check(r#"{"outcome":"ready","model":"m","version":2}"#), Ok("is served by http://g".to_owned()));
        let pinned = check(r#"{"outcome":"ready","traffic_bp":0,"no_traffic":"version 1 is pinned"}"#).unwrap();
        assert!(pinned.contains("takes no traffic") && pinned.ends_with("version 1 is pinned"), "{pinned}");
        assert!(check(r#"{"outcome":"on_demand"}"#).unwrap().contains("first request"));
    }

    #[test]
    fn the_outcome_names_stage_and_cause() {
        let failed = check(r#"{"outcome":"failed","stage":"loading","cause":"not a model"}"#).unwrap_err();
        assert!(
            failed.starts_with("error: m@2 is published, but failed at loading on http://g\ncaused by: not a model\n"),
            "{failed}"
        );
        let held = check(r#"{"outcome":"held","reason":"held: unloaded by operator","hint":"bascule load m"}"#).unwrap_err();
        assert!(held.contains("held: unloaded by operator") && held.contains("hint: bascule load m\n"), "{held}");
        let pending = check(r#"{"outcome":"pending","stage":null}"#).unwrap_err();
        assert!(pending.contains("does not serve it after 5s: it has not seen it"), "{pending}");
    }

    /// A gateway whose answers to waits are pending until the `n`th.
    async fn reluctant(answers: usize) -> (Gateway, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = tokio::spawn(async move {
            let mut lines = Vec::new();
            for n in 1..=answers {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                let mut rest = String::new();
                while rest != "\r\n" {
                    rest.clear();
                    stream.read_line(&mut rest).await.unwrap();
                }
                lines.push(line);
                let body = if n == answers { r#"{"outcome":"ready"}"# } else { r#"{"outcome":"pending","stage":null}"# };
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            lines
        });
        (gateways(&[address.to_string()]).unwrap().remove(0), asked)
    }

    #[tokio::test]
    async fn a_gateway_that_ends_a_wait_early_is_asked_again() {
        let (gateway, asked) = reluctant(3).await;
        let waited = ask(&gateway, "models/m/versions/2/wait", "d", Duration::from_mins(30)).await.unwrap();
        assert!(matches!(waited, Waited::Ready { .. }));
        let lines = asked.await.unwrap();
        assert!(lines.iter().all(|line| line.contains("timeout=300000ms")), "{lines:?}");
    }
}
