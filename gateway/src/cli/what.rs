//! `bascule what`: everything that runs, on one or several gateways.

use std::collections::BTreeSet;
use std::sync::Arc;

use bascule_registry::Weight;
use bascule_serving::ModelStatus;
use chrono::{DateTime, Utc};
use clap::Args;
use comfy_table::Table;
use serde::Serialize;
use serde_json::json;

use crate::config::env::Environment;

use super::Outcome;
use super::deployed::{Deployed, GatewaysArgs, answered, deployed, moment, text_or_dash};
use super::journals::{Decision, Journals};
use super::output::{print, print_json, rows, table};
use super::where_is::registry;

/// Show which versions of all models run on these gateways: stage, share of the traffic, since when, who decided so, and which run made them.
///
/// A line is a version with the gateways on which it runs alike. What was decided comes from the journals of the models: every gateway is
/// asked for them, and with --registry that, too, where it holds them. Where they differ, the difference is shown. SINCE is when the decision
/// was made; where nobody decided, DECISION is the rollout strategy and SINCE when the version was first loaded. A gateway that does not
/// answer is named; exit code 3 only where none does.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule what --gateway http://127.0.0.1:8002 --gateway http://127.0.0.1:8012")]
pub(super) struct What {
    #[command(flatten)]
    gateways: GatewaysArgs,
    /// Also read the journals in this registry itself: its place, or its name in bascule.toml.
    #[arg(long, value_name = "PATH|URL|NAME")]
    registry: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A version, and where it runs alike.
#[derive(Debug, Serialize)]
struct Running<'a> {
    model: &'a str,
    version: u64,
    digest: &'a str,
    state: &'a str,
    stage: Option<&'a str>,
    traffic_bp: u32,
    strategy: &'a str,
    since: Option<DateTime<Utc>>,
    decision: Option<&'a Decision>,
    run_id: Option<&'a str>,
    publisher: &'a str,
    replicas: Vec<Replica<'a>>,
    /// On the first of them.
    #[serde(skip)]
    first: &'a Deployed,
}

/// One of the gateways that run a version.
#[derive(Debug, Serialize)]
struct Replica<'a> {
    gateway: &'a str,
    device: Option<&'a str>,
    loaded_at: Option<DateTime<Utc>>,
}

impl What {
    pub(super) async fn run(self, environment: &Environment) -> Outcome {
        let registry = registry(self.registry.as_deref(), environment).await?;
        let answered = answered(self.gateways.ask().await?)?;
        let mut deployed = deployed(&answered);
        // What is empty everywhere decides nothing; with a thousand models most are. Where there is a registry to compare with, all are read.
        let models = answered.iter().flat_map(|(_, status)| &status.models);
        let with_journal = |model: &&Arc<ModelStatus>| {
            model.journal_seq > 0
                || (registry.is_some() && model.layout.is_some_and(|layout| layout.holds_journal() || layout.brings_journal()))
        };
        let with_journal: BTreeSet<&str> = models.filter(with_journal).map(|model| model.name.as_str()).collect();
        let is_wanted = |model: &ModelStatus| with_journal.contains(model.name.as_str());
        let journals = Journals::read(&answered, registry.as_ref(), is_wanted, None).await?;
        journals.explain(&mut deployed);
        deployed.sort_by(|a, b| (&a.model, a.version).cmp(&(&b.model, b.version)));
        let (running, differences) = (alike(&deployed), journals.differences());
        if self.json {
            return print_json(&json!({ "versions": running, "journals": journals.shown(), "differences": differences }));
        }
        if running.is_empty() {
            print("nothing runs")?
        } else {
            print(&rows(&shown(&running)))?
        }
        differences.iter().try_for_each(|difference| print(&format!("difference: {difference}")))
    }
}

/// What of a version has to be the same for gateways to share its line.
fn is_alike(a: &Deployed, b: &Deployed) -> bool {
    let entry = |one: &Deployed| one.decision.as_ref().map(|decision| (decision.part, decision.entry.id));
    let of = |one: &Deployed| (one.version, one.traffic_bp, entry(one), one.journal_unread);
    let texts = |one: &Deployed| [&one.model, &one.digest, &one.state, &one.strategy].map(String::clone);
    of(a) == of(b) && a.stage == b.stage && texts(a) == texts(b)
}

/// The versions in their order, each with the gateways on which it runs alike.
fn alike(deployed: &[Deployed]) -> Vec<Running<'_>> {
    let mut running: Vec<Running<'_>> = Vec::new();
    for one in deployed {
        let replica = Replica { gateway: &one.gateway, device: one.device.as_deref(), loaded_at: one.loaded_at };
        // Those of one version are neighbours.
        let mut same_version = running.iter_mut().rev().take_while(|line| line.model == one.model && line.version == one.version);
        if let Some(line) = same_version.find(|line| is_alike(line.first, one)) {
            line.replicas.push(replica);
            line.since = [line.since, one.since].into_iter().flatten().min();
            continue;
        }
        running.push(Running {
            model: &one.model,
            version: one.version,
            digest: &one.digest,
            state: &one.state,
            stage: one.stage.as_deref(),
            traffic_bp: one.traffic_bp,
            strategy: &one.strategy,
            since: one.since,
            decision: one.decision.as_ref(),
            run_id: one.run_id.as_deref(),
            publisher: &one.publisher,
            replicas: vec![replica],
            first: one,
        });
    }
    running
}

/// As a table, a line for each version that runs alike.
fn shown(running: &[Running<'_>]) -> Table {
    let mut table = table([
        "MODEL",
        "VERSION",
        "STATE",
        "STAGE",
        "TRAFFIC",
        "SINCE",
        "DECISION",
        "BY",
        "REASON",
        "RUN",
        "PUBLISHER",
        "DIGEST",
        "REPLICAS",
    ]);
    for line in running {
        let [decision, by, reason] = line.first.decided();
        let replicas: Vec<&str> = line.replicas.iter().map(|replica| replica.gateway).collect();
        table.add_row([
            line.model.to_owned(),
            line.version.to_string(),
            line.state.to_owned(),
            text_or_dash(line.stage.unwrap_or_default()),
            Weight(line.traffic_bp).to_string(),
            moment(line.since),
            decision,
            by,
            reason,
            text_or_dash(line.run_id.unwrap_or_default()),
            text_or_dash(line.publisher),
            line.digest.chars().take(12).collect(),
            replicas.join(" "),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use bascule_registry::{Entry, Part};

    use super::*;

    fn deployed(gateway: &str, version: u64, traffic_bp: u32, decided: Option<u128>) -> Deployed {
        let decision = decided.map(|id| {
            let entry = json!({
                "schema": 1, "seq": 1, "id": uuid::Uuid::from_u128(id), "at": "2026-01-02T03:04:05Z", "by": "ann", "reason": "good",
                "op": "weight", "version": version, "weight_bp": traffic_bp,
            });
            let entry: Entry = serde_json::from_value(entry).unwrap();
            Decision { part: Part::Stable, entry }
        });
        Deployed {
            gateway: gateway.to_owned(),
            model: "m".to_owned(),
            version,
            device: Some("cpu".to_owned()),
            state: "READY".to_owned(),
            stage: Some("stable".to_owned()),
            traffic_bp,
            strategy: "manual".to_owned(),
            since: decision.as_ref().map(|decision| decision.entry.at),
            decision,
            loaded_at: None,
            decided_at: None,
            journal_unread: false,
            run_id: Some("run-1".to_owned()),
            publisher: "ben".to_owned(),
            digest: "0123456789abcdef".to_owned(),
        }
    }

    #[test]
    fn gateways_that_run_a_version_alike_share_its_line() {
        let all = [
            deployed("http://a", 1, 10_000, Some(1)),
            deployed("http://b", 1, 5_000, None),
            deployed("http://c", 1, 10_000, Some(1)),
            deployed("http://a", 2, 0, Some(1)),
        ];
        let text = rows(&shown(&alike(&all)));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let ["MODEL", "VERSION", .., "REPLICAS"] = lines[0].as_slice() else { panic!("{text}") };
        let first = [
            "m",
            "1",
            "READY",
            "stable",
            "100%",
            "2026-01-02",
            "03:04:05",
            "weight",
            "1",
            "100%",
            "ann",
            "good",
            "run-1",
            "ben",
            "0123456789ab",
            "http://a",
            "http://c",
        ];
        assert_eq!(lines[1], first, "{text}");
        assert_eq!(lines[2][..8], ["m", "1", "READY", "stable", "50%", "-", "manual", "-"], "{text}");
        assert_eq!((lines.len(), lines[3][1]), (4, "2"), "{text}");
        let told = serde_json::to_value(alike(&all)).unwrap();
        assert_eq!(told[0]["decision"]["entry"]["by"], "ann");
        assert_eq!(told[0]["replicas"][1]["gateway"], "http://c");
        assert!(told[1]["decision"].is_null());
    }
}
