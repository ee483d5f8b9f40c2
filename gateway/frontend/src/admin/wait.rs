//! Waiting for a version: what `publish --wait` asks for.

use std::time::Duration;

use bascule_registry::{ListedModel, Untrusted};
use bascule_serving::{ModelStatus, Serving, VersionStatus};
use serde::Serialize;

use super::refusal::Refusal;

/// What became of a version while it was waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It answers.
    Ready {
        /// Its share of the traffic that names no version, in basis points.
        traffic_bp: u32,
        /// Why it has none, where it has none.
        no_traffic: Option<String>,
    },
    /// It is there and loads with the first request for its model.
    OnDemand,
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
        /// What to do about it.
        hint: Option<String>,
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
    // Made before the status is read, so that no change falls between.
    let mut changes = serving.changes();
    let decided = async {
        loop {
            if let Some(outcome) = decision(serving, model, version, digest) {
                return outcome;
            }
            if !changes.next().await {
                return pending(serving, model, version, digest);
            }
        }
    };
    match tokio::time::timeout(limit, decided).await {
        Ok(outcome) => outcome,
        Err(_) => pending(serving, model, version, digest),
    }
}

fn decision(serving: &Serving, model: &str, version: u64, digest: Option<&str>) -> Option<Outcome> {
    // Read before the status: what is listed is then accounted for in it.
    let listed = serving.listed(model);
    let status = serving.status();
    let model = status.model(model)?;
    match of(model, version, digest).map(|version| (version.stage.as_str(), version)) {
        Some(("ready", life)) => Some(ready(model, life, listed.as_deref())),
        Some(("failed", life)) => Some(Outcome::Failed { stage: life.failed_step.clone(), cause: life.cause.clone() }),
        _ => match &model.held {
            Some(reason) => Some(Outcome::Held { reason: reason.clone(), hint: Some(format!("bascule load {}", model.name)) }),
            None => not_aspired(model, listed.as_deref()?, version, digest),
        },
    }
}

/// Why a version that a look has found is not going to be loaded.
fn not_aspired(model: &ModelStatus, listed: &ListedModel, version: u64, digest: Option<&str>) -> Option<Outcome> {
    let Some(found) = listed.versions.get(&version) else { return refused(listed, version) };
    let settles = listed.unsettled.contains(&version);
    if settles || digest.is_some_and(|digest| found.digest.to_string() != digest) || model.aspired.contains(&version) {
        return None;
    }
    let held = |reason: String, hint: Option<String>| Some(Outcome::Held { reason, hint });
    let name = &model.name;
    if found.tombstoned {
        return held("the version is tombstoned".to_owned(), Some("publish it again, as another version".to_owned()));
    }
    if listed.rollout.rejected.contains(&version) {
        return held("the version was rejected".to_owned(), Some(format!("bascule rollout clear {name} {version}")));
    }
    match model.load_mode.as_str() {
        "on_demand" if model.aspired.is_empty() => Some(Outcome::OnDemand),
        "explicit" => held(
            "`load.mode` is explicit: the model takes new versions when it is loaded again".to_owned(),
            Some(format!("bascule load {name}, or set load.explicit_follow")),
        ),
        _ => held(
            format!("the model's version policy is {}, which leaves it out", model.policy),
            Some("`version_policy` in model.toml says which versions are loaded".to_owned()),
        ),
    }
}

/// Why a version is left out that nobody vouches for.
fn refused(listed: &ListedModel, version: u64) -> Option<Outcome> {
    let lead = Untrusted::lead(version);
    let reason = listed.problems.iter().find_map(|problem| problem.strip_prefix(&lead))?.to_owned();
    let hint = format!("`bascule sign {} {version} --key FILE` with a key that `registry.trust` names", listed.name);
    Some(Outcome::Held { reason, hint: Some(hint) })
}

fn ready(model: &ModelStatus, life: &VersionStatus, listed: Option<&ListedModel>) -> Outcome {
    let traffic_bp = life.traffic_bp;
    let held = listed.is_some_and(|listed| {
        let by_manifest = listed.versions.get(&life.version).is_some_and(|generation| generation.manifest.hold);
        listed.rollout.holds(life.version, by_manifest)
    });
    let because = || match (model.pinned, model.stable) {
        (Some(pinned), _) if pinned != life.version => format!("version {pinned} is pinned"),
        _ if held => "it is held".to_owned(),
        _ if model.strategy == "manual" => "the rollout strategy is manual".to_owned(),
        (_, Some(stable)) => format!("version {stable} is stable"),
        (_, None) => "no version is stable".to_owned(),
    };
    Outcome::Ready { traffic_bp, no_traffic: (traffic_bp == 0).then(because) }
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
