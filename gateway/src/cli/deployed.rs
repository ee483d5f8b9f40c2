//! What several gateways say at once: which version runs where.

use std::sync::Arc;

use bascule_registry::Weight;
use bascule_serving::{ModelStatus, Status, VersionStatus};
use chrono::{DateTime, Utc};
use clap::Args;
use comfy_table::Table;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::config::env::GATEWAY_VARIABLE;

use super::args::DEFAULT_GATEWAY;
use super::failure::Failure;
use super::gateway::Gateway;
use super::journals::{Decision, by, one_line};
use super::output::{note, or_dash, table};

/// Gateways that are asked.
#[derive(Debug, Clone, Args)]
pub(super) struct GatewaysArgs {
    /// The admin API of a gateway; may be repeated [default: http://127.0.0.1:8002].
    #[arg(long = "gateway", value_name = "URL", env = GATEWAY_VARIABLE, value_delimiter = ',')]
    pub(super) urls: Vec<String>,
}

/// A gateway and what it said.
pub(super) struct Answer {
    /// Its address.
    pub(super) place: String,
    /// What it said, or why it said nothing.
    pub(super) status: Result<Status, Failure>,
}

/// A version on a gateway.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Deployed {
    /// The address of the gateway.
    pub(super) gateway: String,
    pub(super) model: String,
    pub(super) version: u64,
    /// What runs it.
    pub(super) device: Option<String>,
    /// `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`.
    pub(super) state: String,
    /// `stable`, `candidate`, `held` or `resident`; absent where it does not answer.
    pub(super) stage: Option<String>,
    /// Its share of unversioned traffic, in basis points.
    pub(super) traffic_bp: u32,
    /// `immediate` or `manual`: what decides where nobody does.
    pub(super) strategy: String,
    /// Since when it has its stage by the journal; where nobody decided, since when it is loaded.
    pub(super) since: Option<DateTime<Utc>>,
    /// The journal's entry that gave it its stage.
    pub(super) decision: Option<Decision>,
    /// Somebody decided, and the journal that says who and why could not be read.
    pub(super) journal_unread: bool,
    /// When loading ended.
    pub(super) loaded_at: Option<DateTime<Utc>>,
    /// Of stable and candidate: since when, where that was decided by somebody.
    pub(super) decided_at: Option<DateTime<Utc>>,
    /// The run that made it.
    pub(super) run_id: Option<String>,
    pub(super) publisher: String,
    /// Names its content.
    pub(super) digest: String,
}

impl GatewaysArgs {
    /// Whether the user, or the environment, has named any.
    pub(super) fn are_named(&self) -> bool {
        !self.urls.is_empty()
    }

    /// Asks all of them at once; the answers are in their order.
    pub(super) async fn ask(&self) -> Result<Vec<Answer>, Failure> {
        let default = [DEFAULT_GATEWAY.to_owned()];
        let urls = if self.are_named() { self.urls.as_slice() } else { &default };
        let gateways = urls.iter().map(|url| Gateway::at(url)).collect::<Result<Vec<_>, _>>()?;
        let mut asked = JoinSet::new();
        for (at, gateway) in gateways.into_iter().enumerate() {
            asked.spawn(async move {
                let status = gateway.get("status", &[]).await;
                (at, Answer { place: gateway.place(), status })
            });
        }
        let mut answers = asked.join_all().await;
        answers.sort_unstable_by_key(|(at, _)| *at);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }
}

/// The gateways that answered; the others are named on standard error.
///
/// # Errors
/// Where none did: why the first did not.
pub(super) fn answered(answers: Vec<Answer>) -> Result<Vec<(String, Status)>, Failure> {
    let (mut answered, mut failures) = (Vec::new(), Vec::new());
    for Answer { place, status } in answers {
        match status {
            Ok(status) => answered.push((place, status)),
            Err(failure) => failures.push(failure),
        }
    }
    // Where none answered, the first failure is the error itself.
    let known = usize::from(answered.is_empty());
    for failure in failures.iter().skip(known) {
        note(format!("warning: {}", failure.summary()));
    }
    match failures.into_iter().next() {
        Some(failure) if answered.is_empty() => Err(failure),
        _ => Ok(answered),
    }
}

/// The versions that are loaded, or on their way, on these gateways.
pub(super) fn deployed(answered: &[(String, Status)]) -> Vec<Deployed> {
    let models = answered.iter().flat_map(|(place, status)| status.models.iter().map(move |model| (place, model)));
    let versions = models.flat_map(|(place, model)| model.versions.iter().map(move |version| of(place, model, version)));
    versions.filter(|version| version.state != "UNAVAILABLE").collect()
}

fn of(place: &str, model: &Arc<ModelStatus>, version: &VersionStatus) -> Deployed {
    let role = version.role.as_deref();
    let stage = match role {
        Some("other") if version.held => Some("held"),
        Some("other") => Some("resident"),
        role => role,
    };
    Deployed {
        gateway: place.to_owned(),
        model: model.name.clone(),
        version: version.version,
        device: version.device.clone(),
        state: version.state.clone(),
        stage: stage.map(str::to_owned),
        traffic_bp: version.traffic_bp,
        strategy: model.strategy.clone(),
        since: version.loaded_at,
        decision: None,
        journal_unread: false,
        loaded_at: version.loaded_at,
        decided_at: model.decided_at.filter(|_| matches!(role, Some("stable" | "candidate"))),
        run_id: version.run_id.clone(),
        publisher: version.publisher.clone(),
        digest: version.digest.clone(),
    }
}

/// As a table, a line for each version on each gateway.
pub(super) fn shown(deployed: &[Deployed]) -> Table {
    let mut table = table([
        "MODEL",
        "VERSION",
        "REPLICA",
        "DEVICE",
        "STATE",
        "STAGE",
        "TRAFFIC",
        "SINCE",
        "DECISION",
        "BY",
        "REASON",
        "LOADED",
        "RUN",
        "PUBLISHER",
        "DIGEST",
    ]);
    for one in deployed {
        let [decision, by, reason] = one.decided();
        table.add_row([
            one.model.clone(),
            one.version.to_string(),
            one.gateway.clone(),
            text_or_dash(one.device.as_deref().unwrap_or_default()),
            one.state.clone(),
            text_or_dash(one.stage.as_deref().unwrap_or_default()),
            Weight(one.traffic_bp).to_string(),
            moment(one.since),
            decision,
            by,
            reason,
            moment(one.loaded_at),
            text_or_dash(one.run_id.as_deref().unwrap_or_default()),
            text_or_dash(&one.publisher),
            one.digest.chars().take(12).collect(),
        ]);
    }
    table
}

impl Deployed {
    /// What was decided, by whom and why; the strategy, where it decided alone.
    pub(super) fn decided(&self) -> [String; 3] {
        match &self.decision {
            Some(Decision { entry, .. }) => [one_line(&super::rollout::said(&entry.op)), by(entry), text_or_dash(&entry.reason)],
            None if self.journal_unread => ["(journal unread)", "-", "-"].map(str::to_owned),
            None if matches!(self.stage.as_deref(), Some("stable" | "candidate")) => {
                [text_or_dash(&self.strategy), "-".to_owned(), "-".to_owned()]
            }
            None => ["-", "-", "-"].map(str::to_owned),
        }
    }
}

/// A time, for people.
pub(super) fn moment(at: Option<DateTime<Utc>>) -> String {
    or_dash(at, |at| at.format("%Y-%m-%d %H:%M:%S").to_string())
}

/// Text from elsewhere, in one line.
pub(super) fn text_or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { one_line(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(role: Option<&str>, held: bool) -> (String, Status) {
        let mut version = VersionStatus::default();
        let state = if role.is_some() { "READY" } else { "UNAVAILABLE" };
        (version.version, version.state, version.role, version.held) = (2, state.to_owned(), role.map(str::to_owned), held);
        version.traffic_bp = if role == Some("stable") { 10_000 } else { 0 };
        (version.publisher, version.digest) = ("ann".to_owned(), "0123456789abcdef".to_owned());
        let decided_at = Some(DateTime::UNIX_EPOCH);
        let (name, strategy) = ("m".to_owned(), "immediate".to_owned());
        let model = ModelStatus { name, strategy, versions: vec![version], decided_at, ..ModelStatus::default() };
        ("http://g".to_owned(), Status { models: vec![Arc::new(model)], ..Status::default() })
    }

    #[test]
    fn each_version_has_a_stage() {
        let stage = |role, held| deployed(&[status(role, held)]).pop().map(|one| (one.stage, one.decided_at.is_some()));
        assert_eq!(stage(Some("stable"), false), Some((Some("stable".to_owned()), true)));
        assert_eq!(stage(Some("candidate"), true), Some((Some("candidate".to_owned()), true)));
        assert_eq!(stage(Some("other"), true), Some((Some("held".to_owned()), false)));
        assert_eq!(stage(Some("other"), false), Some((Some("resident".to_owned()), false)));
        assert_eq!(stage(None, false), None, "what is not loaded runs nowhere");
        let text = super::super::output::rows(&shown(&deployed(&[status(Some("stable"), false)])));
        let line: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
        let expected =
            ["m", "2", "http://g", "-", "READY", "stable", "100%", "-", "immediate", "-", "-", "-", "-", "ann", "0123456789ab"];
        assert_eq!(line, expected);
    }

    #[test]
    fn a_decision_whose_journal_was_not_read_is_no_strategy() {
        let mut found = deployed(&[status(Some("stable"), false)]);
        super::super::journals::Journals::default().explain(&mut found);
        assert_eq!(found[0].decided()[0], "(journal unread)");
        assert_eq!(found[0].since, Some(DateTime::UNIX_EPOCH));
        found[0].decided_at = None;
        super::super::journals::Journals::default().explain(&mut found);
        assert_eq!(found[0].decided()[0], "immediate");
    }
}
