//! What was decided here, told to the server: aliases and tags.

use async_trait::async_trait;
use reqwest::Method;
use serde_json::json;

use super::error::MlflowError;
use super::version::OWN_TAGS;
use super::{MlflowSource, wire};
use crate::name::{ModelName, VersionNumber};
use crate::source::SourceError;
use crate::steering::{Decided, Verdict, WriteBack};

/// The longest value of a tag that every server takes.
const MAX_TAG_CHARS: usize = 1_000;

#[async_trait]
impl WriteBack for MlflowSource {
    async fn tell(&self, model: &ModelName, decided: &Decided) -> Result<(), SourceError> {
        let told = self.tell_server(model, decided).await;
        told.map_err(|error| SourceError::unavailable(format!("{} as a place to write to", self.description), error))
    }
}

impl MlflowSource {
    async fn tell_server(&self, model: &ModelName, decided: &Decided) -> Result<(), MlflowError> {
        let (stable, candidate) = (&self.options.stable_alias, &self.options.candidate_alias);
        // The marks come first: whoever sees the alias move finds out why.
        for (key, value) in [
            ("verdict", decided.verdict.as_str()),
            ("by", &decided.by),
            ("at", &decided.at.to_rfc3339()),
            ("reason", &decided.reason),
        ] {
            match self.tag(model, decided.version, key, value).await {
                // Nobody is left to be told, and what was decided later must not wait for it.
                Err(MlflowError::NotFound { .. }) if self.is_gone(model, decided.version).await? => return Ok(()),
                told => told?,
            }
        }
        let points_at = self.aliases(model).await?;
        let stable_at = points_at(stable);
        let is_promoted = decided.verdict == Verdict::Promoted;
        if is_promoted && stable_at != Some(decided.version) && !decided.stable_from.contains(&stable_at) {
            // Somebody has moved it since: that is followed, and not undone.
            return Ok(());
        }
        if points_at(candidate) == Some(decided.version) && decided.verdict != Verdict::RolledBack {
            let what = format!("alias {candidate} of {model}");
            let body = json!({ "name": model, "alias": candidate });
            self.client.send(Method::DELETE, &what, "registered-models/alias", &body).await?;
        }
        if is_promoted && stable_at != Some(decided.version) {
            let what = format!("alias {stable} of {model}");
            let body = json!({ "name": model, "alias": stable, "version": decided.version.to_string() });
            self.client.send(Method::POST, &what, "registered-models/alias", &body).await?;
        }
        Ok(())
    }

    async fn tag(&self, model: &ModelName, version: VersionNumber, key: &str, value: &str) -> Result<(), MlflowError> {
        let value: String = value.chars().take(MAX_TAG_CHARS).collect();
        let key = format!("{OWN_TAGS}{key}");
        let what = format!("tag {key} of {model}@{version}");
        let body = json!({ "name": model, "version": version.to_string(), "key": key, "value": value });
        self.client.send(Method::POST, &what, "model-versions/set-tag", &body).await
    }

    /// Whether the server says that it has no such version: what it answers to a change alone may come from a proxy that lets none
    /// through.
    async fn is_gone(&self, model: &ModelName, version: VersionNumber) -> Result<bool, MlflowError> {
        let (what, version) = (format!("{model}@{version}"), version.to_string());
        let query = [("name", model.as_str()), ("version", &version)];
        match self.client.get::<serde_json::Value>(&what, "model-versions/get", &query).await {
            Ok(_) => Ok(false),
            Err(MlflowError::NotFound { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Where the aliases of a model point now.
    async fn aliases(&self, model: &ModelName) -> Result<impl Fn(&str) -> Option<VersionNumber>, MlflowError> {
        #[derive(serde::Deserialize)]
        struct Answer {
            registered_model: wire::RegisteredModel,
        }
        let what = format!("model {model}");
        let answer: Answer = self.client.get(&what, "registered-models/get", &[("name", model.as_str())]).await?;
        let aliases = answer.registered_model.aliases;
        Ok(move |name: &str| aliases.iter().find(|alias| alias.alias == name).and_then(|alias| alias.version.parse().ok()))
    }
}
