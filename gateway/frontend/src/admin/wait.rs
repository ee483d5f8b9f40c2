//! Waiting for a version: what `publish --wait` asks for.

use std::time::Duration;

use bascule_serving::{ModelStatus, Serving, VersionStatus};
use futures::FutureExt as _;
use serde::Serialize;

use super::refusal::Refusal;

/// What became of a version while it was waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It answers.
    Ready,
    /// It can't be loaded. It is tried again, but nobody should wait for that.
    Failed {
        /// The step that failed.
        stage: Option<String>,
        /// Why.
        cause: Option<String>,
    },
    /// It will not be loaded as things stand.
    Held {
        /// Why.
        reason: String,
    },
    /// Neither, when time was up.
    Pending {
        /// How far it came; absent where it was not seen at all.
        stage: Option<String>,
    },
}

/// Waits until a version, with this digest where one is given, is ready or has failed; at most for `limit`. Begins with a look at the
/// registry.
pub(crate) async fn outcome(serving: &Serving, model: &str, version: u64, digest: Option<&str>, limit: Duration) -> Outcome {
    serving.kick();
    let decided = async {
        loop {
            // Looked for before the status is read, so that no change falls between.
            let mut changed = Box::pin(serving.changed());
            let ended = changed.as_mut().now_or_never().is_some();
            if let Some(outcome) = decision(serving, model, version, digest) {
                return outcome;
            }
            if ended {
                return pending(serving, model, version, digest);
            }
            changed.await;
        }
    };
    match tokio::time::timeout(limit, decided).await {
        Ok(outcome) => outcome,
        Err(_) => pending(serving, model, version, digest),
    }
}

fn decision(serving: &Serving, model: &str, version: u64, digest: Option<&str>) -> Option<Outcome> {
    let status = serving.status();
    let model = status.model(model)?;
    match of(model, version, digest).map(|version| (version.stage.as_str(), version)) {
        Some(("ready", _)) => Some(Outcome::Ready),
        Some(("failed", version)) => Some(Outcome::Failed { stage: version.failed_step.clone(), cause: version.cause.clone() }),
        _ => model.held.clone().map(|reason| Outcome::Held { reason }),
    }
}

fn of<'a>(model: &'a ModelStatus, version: u64, digest: Option<&str>) -> Option<&'a VersionStatus> {
    let lives = model.versions.iter().rev().filter(|life| life.version == version);
    lives.into_iter().find(|life| digest.is_none_or(|digest| life.digest == digest))
}

fn pending(serving: &Serving, model: &str, version: u64, digest: Option<&str>) -> Outcome {
    let status = serving.status();
    let stage = status.model(model).and_then(|model| of(model, version, digest)).map(|version| version.stage.clone());
    Outcome::Pending { stage }
}

/// A time as the query writes it: `30s`, `500ms`, or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, Refusal> {
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.or_else(|| humantime::parse_duration(text).ok()).ok_or_else(|| {
        let shown: String = text.chars().take(32).collect();
        Refusal::bad_request(format!("query 'timeout': '{shown}' is not a duration"), "write 30s, 500ms or a number of seconds")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_both_ways() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        for wrong in ["", "-1", "soon", "NaN", "1e300"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
