//! `bascule yank`: takes a version out of service, everywhere and for good.

use bascule_registry::{Generation, ListedModel, ModelName, VersionKey, VersionNumber, Weight};
use clap::Args;
use serde_json::json;

use crate::config::env::Environment;

use super::args::ConfigArgs;
use super::deployed::{Answer, GatewaysArgs, deployed};
use super::failure::Failure;
use super::output::{note, print, print_json};
use super::{Outcome, in_background, versions_of};

/// Yank a version: every gateway unloads it at its next look and none loads it again. Its files stay.
///
/// Refused while it serves: while the journal has it as stable, candidate or pin, or it takes traffic on a gateway. Where no gateway that
/// serves this model answers, what serves by default counts, too. A gateway that is named and does not answer may be serving it. --force
/// yanks it all the same.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule yank digits 3 --reason 'trained on the wrong data' --registry ./models")]
pub(super) struct Yank {
    /// The model.
    model: ModelName,
    /// The version.
    #[arg(value_parser = versions_of::number)]
    version: VersionNumber,
    /// Yank it although it serves.
    #[arg(long)]
    force: bool,
    /// Why, for whoever finds it gone.
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    gateways: GatewaysArgs,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Yank {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let config = self.config.load([], environment)?.config;
        let registry = versions_of::open(&config)?;
        in_background(async {
            let key = VersionKey::new(self.model.clone(), self.version);
            let version = versions_of::version(&registry, &key).await?;
            let model = versions_of::model(&registry, &self.model).await?;
            let instead = instead(&model, self.version);
            let uses = if version.tombstoned { Vec::new() } else { self.uses(&model, &version).await? };
            if !self.force && !uses.is_empty() {
                return Err(refused(&key, &uses, instead));
            }
            registry.tombstone(&key, &environment.user(), &self.reason).await.map_err(anyhow::Error::new)?;
            if self.json {
                return print_json(&json!({
                    "model": key.model, "version": key.version, "digest": version.digest.to_string(),
                    "was_yanked": version.tombstoned, "served": uses, "instead": instead,
                }));
            }
            for used in &uses {
                note(format!("warning: {key} {used}"));
            }
            let already = if version.tombstoned { " already" } else { "" };
            print(&format!("{key} is{already} yanked: gateways unload it at their next look; {}", said(instead)))
        })
    }

    /// Why it counts as serving.
    async fn uses(&self, model: &ListedModel, version: &Generation) -> Result<Vec<String>, Failure> {
        let mut uses = by_journal(model, self.version);
        let mut is_known = false;
        for Answer { place, status } in self.gateways.ask().await? {
            match status {
                Ok(status) => {
                    is_known |= serves_this(&status, model);
                    uses.extend(on_gateway(place, status, version));
                }
                Err(failure) if self.gateways.are_named() => {
                    // Whether it serves there can't be known.
                    if !self.force {
                        return Err(failure.hint("it may serve there: --force yanks it without asking"));
                    }
                    note(format!("warning: {}", failure.summary()));
                }
                Err(_) => note(format!("note: no gateway answers at {place}; only the journal was asked whether it serves")),
            }
        }
        if !is_known && uses.is_empty() && by_default(model, |_| true) == Some(self.version) {
            uses.push("serves by default, and no gateway has said that it does not".to_owned());
        }
        Ok(uses)
    }
}

/// Whether a gateway has this model from this registry.
fn serves_this(status: &bascule_serving::Status, model: &ListedModel) -> bool {
    let there = status.models.iter().filter(|one| one.name == model.name.as_str());
    let is_ours = |one: &bascule_serving::VersionStatus| {
        model.versions.get(&one.version).is_some_and(|version| version.digest.to_string() == one.digest)
    };
    there.flat_map(|one| &one.versions).any(is_ours)
}

fn by_journal(model: &ListedModel, version: VersionNumber) -> Vec<String> {
    let rollout = &model.rollout;
    let mut uses = Vec::new();
    let mut say = |is: bool, text: &str| uses.extend(is.then(|| text.to_owned()));
    say(rollout.pinned == Some(version), "is pinned by the journal");
    say(rollout.stable == Some(version), "is stable by the journal");
    say(rollout.candidate.is_some_and(|(candidate, _)| candidate == version), "is the candidate by the journal");
    uses
}

fn on_gateway(place: String, status: bascule_serving::Status, version: &Generation) -> Vec<String> {
    let there = deployed(&[(place, status)]);
    let there = there.iter().filter(|one| one.model == version.key.model.as_str() && one.version == version.key.version);
    let mut uses = Vec::new();
    for one in there {
        if one.digest != version.digest.to_string() {
            note(format!("note: what {} serves as {} is another content, from another registry", one.gateway, version.key));
        } else if matches!(one.stage.as_deref(), Some("stable" | "candidate")) {
            let (stage, share) = (one.stage.as_deref().unwrap_or_default(), Weight(one.traffic_bp));
            uses.push(format!("is {stage} on {}, with {share} of the traffic that names no version", one.gateway));
        }
    }
    uses
}

fn refused(key: &VersionKey, uses: &[String], instead: Option<VersionNumber>) -> Failure {
    let failure = Failure::several(std::iter::once(format!("{key} serves and was not yanked: it {}", uses.join("; it "))));
    failure.hint(match instead {
        Some(other) => format!(
            "`bascule rollout weight {} {other} 100%` makes version {other} stable first; --force yanks it at once",
            key.model
        ),
        None => "publish another version first: nothing would serve instead; --force yanks it at once".to_owned(),
    })
}

fn said(instead: Option<VersionNumber>) -> String {
    match instead {
        Some(version) => format!("version {version} serves instead, unless a version policy says otherwise"),
        None => "no version is left to serve instead".to_owned(),
    }
}

/// What is stable once this version is gone.
fn instead(model: &ListedModel, gone: VersionNumber) -> Option<VersionNumber> {
    by_default(model, |version| version != gone)
}

/// What is stable among these versions, as far as the registry says: a gateway has its version policy and its rollout strategy beside.
fn by_default(model: &ListedModel, is_there: impl Fn(VersionNumber) -> bool) -> Option<VersionNumber> {
    let rollout = &model.rollout;
    let usable = |version: &VersionNumber| {
        is_there(*version) && model.versions.get(version).is_some_and(|generation| !generation.tombstoned)
    };
    let candidate = rollout.candidate.map(|(version, _)| version);
    let eligible = |version: &VersionNumber| {
        usable(version) && !rollout.rejected.contains(version) && !rollout.held.contains(version) && candidate != Some(*version)
    };
    let decided = rollout.stable.filter(usable);
    // A decision counts for the versions that were there; higher ones are followed.
    let after = decided.map_or(0, |decided| rollout.stable_highest.unwrap_or(decided));
    let follower = model.versions.keys().rev().copied().filter(|version| *version > after).find(eligible);
    let previous = rollout.previous_stable.filter(|_| decided.is_none()).filter(eligible);
    rollout.pinned.filter(usable).or(follower).or(decided).or(previous)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use bascule_registry::{Digest, Layout, Manifest, Rollout};

    use super::*;

    fn model(versions: &[u64], rollout: Rollout) -> ListedModel {
        let generation = |version: u64| {
            let manifest = json!({
                "schema": 1, "model": "m", "version": version, "format": "onnx", "entrypoint": "a", "created": "2026-01-02T03:04:05Z",
                "files": [{ "path": "a", "sha256": Digest::of(b""), "bytes": 0 }],
            });
            let (manifest, digest) = Manifest::parse(manifest.to_string().as_bytes()).unwrap();
            Generation {
                key: manifest.key(),
                digest,
                bytes: 0,
                layout: Layout::Registry,
                manifest: Arc::new(manifest),
                tombstoned: version >= 90,
                signatures: Vec::new(),
                stored: None,
            }
        };
        ListedModel {
            name: ModelName::new("m").unwrap(),
            layout: Layout::Registry,
            registry: None,
            steering: None,
            versions: versions.iter().map(|version| (*version, Arc::new(generation(*version)))).collect(),
            unsettled: BTreeSet::new(),
            settings: BTreeMap::new(),
            rollout,
            aliases: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn what_would_serve_instead() {
        let check = |versions: &[u64], rollout: Rollout, gone, expected| {
            assert_eq!(instead(&model(versions, rollout.clone()), gone), expected, "{versions:?} without {gone}: {rollout:?}");
        };
        let none = Rollout::default;
        check(&[1, 2, 3], none(), 3, Some(2));
        check(&[1, 2, 3], none(), 1, Some(3));
        check(&[1, 2, 90], none(), 2, Some(1));
        check(&[1], none(), 1, None);
        check(&[1, 2], Rollout { pinned: Some(1), ..none() }, 2, Some(1));
        check(&[1, 2], Rollout { pinned: Some(2), ..none() }, 2, Some(1));
        check(&[1, 2, 3], Rollout { held: [2].into(), rejected: [3].into(), ..none() }, 1, None);
        check(&[1, 2, 3], Rollout { stable: Some(1), stable_highest: Some(3), ..none() }, 3, Some(1));
        check(&[1, 2, 3, 4], Rollout { stable: Some(1), stable_highest: Some(3), ..none() }, 3, Some(4));
        check(&[1, 2], Rollout { candidate: Some((2, 100)), ..none() }, 1, None);
    }

    #[test]
    fn what_serves_by_default() {
        let check = |versions: &[u64], rollout: Rollout, expected| {
            assert_eq!(by_default(&model(versions, rollout.clone()), |_| true), expected, "{versions:?}: {rollout:?}");
        };
        check(&[1, 2, 90], Rollout::default(), Some(2));
        check(&[1, 2, 3, 4], Rollout { held: [3].into(), rejected: [4].into(), ..Rollout::default() }, Some(2));
        check(&[1, 2, 3], Rollout { stable: Some(1), stable_highest: Some(2), ..Rollout::default() }, Some(3));
        check(&[90], Rollout::default(), None);
    }

    #[test]
    fn a_gateway_counts_where_it_has_this_model_from_this_registry() {
        let model = model(&[1, 2], Rollout::default());
        let status = |name: &str, version: u64, digest: String| {
            let mut one = bascule_serving::VersionStatus::default();
            (one.version, one.digest) = (version, digest);
            let one = bascule_serving::ModelStatus { name: name.to_owned(), versions: vec![one], ..Default::default() };
            bascule_serving::Status { models: vec![Arc::new(one)], ..Default::default() }
        };
        let digest = |version| model.versions[&version].digest.to_string();
        assert!(serves_this(&status("m", 1, digest(1)), &model));
        assert!(!serves_this(&status("n", 1, digest(1)), &model));
        assert!(!serves_this(&status("m", 1, digest(2)), &model));
        assert!(!serves_this(&bascule_serving::Status::default(), &model));
    }

    #[test]
    fn what_the_journal_says_of_a_version_counts_as_serving() {
        let rollout = Rollout { stable: Some(1), candidate: Some((2, 100)), pinned: Some(3), ..Rollout::default() };
        let model = model(&[1, 2, 3, 4], rollout);
        let uses = |version| by_journal(&model, version).join(", ");
        assert_eq!(uses(1), "is stable by the journal");
        assert_eq!(uses(2), "is the candidate by the journal");
        assert_eq!(uses(3), "is pinned by the journal");
        assert_eq!(uses(4), "");
        let failure = refused(&VersionKey::new(model.name.clone(), 1), &by_journal(&model, 1), Some(4));
        assert!(
            failure.text().starts_with(
                "error: m@1 serves and was not yanked: it is stable by the journal\nhint: `bascule rollout weight m 4 100%`"
            ),
            "{}",
            failure.text()
        );
    }
}
