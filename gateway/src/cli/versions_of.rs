//! What commands that read a registry share: opening it with its signatures, and finding a model or version in it.

use std::sync::Arc;

use anyhow::Context as _;
use bascule_registry::{
    Generation, Layout, ListedModel, ModelName, Registry, RegistryError, VersionKey, VersionNumber, parse_version,
};

use crate::compose;
use crate::config::Config;

use super::failure::Failure;
use super::listing;
use super::output::note;

/// A version's number, as an argument.
pub(super) fn number(text: &str) -> Result<VersionNumber, String> {
    parse_version(text).map_err(|error| error.to_string())
}

/// Opens the configured registry; signatures are read, those of trusted keys first. Blocks.
pub(super) fn open(config: &Config) -> Result<Registry, Failure> {
    let registry = compose::open_registry(&config.registry.only().map_err(Failure::new)?.url, false)?;
    Ok(registry.reading_signatures(compose::trust(config)?.unwrap_or_default()))
}

/// All that is known of a model, whatever holds it: manifests where there are some, else what a gateway would find there.
pub(super) async fn listed(config: &Config, name: &ModelName) -> Result<Arc<ListedModel>, Failure> {
    let place = &config.registry.only().map_err(Failure::new)?.url;
    if compose::holds_journals(place)? {
        let model = read(&open(config)?, name).await?;
        if matches!(model.layout, Layout::Registry | Layout::Web) {
            return Ok(Arc::new(model));
        }
    }
    let listing = listing::list(config).await?;
    for problem in &listing.problems {
        note(format!("warning: {problem}"));
    }
    listing.models.get(name).cloned().ok_or_else(|| is_not_in(name, &place.0))
}

/// One of the versions of a model.
pub(super) fn pick(model: &ListedModel, number: VersionNumber) -> Result<&Arc<Generation>, Failure> {
    let missing = || Failure::new(format!("{}@{number} does not exist", model.name));
    model.versions.get(&number).ok_or_else(|| missing().hint(format!("`bascule versions {}` lists what is there", model.name)))
}

async fn read(registry: &Registry, name: &ModelName) -> Result<ListedModel, Failure> {
    let read = registry.model(name).await.with_context(|| format!("can't read model {name}"))?;
    read.ok_or_else(|| is_not_in(name, registry.describe()))
}

/// What is said of a model that a registry does not have.
pub(super) fn is_not_in(name: &ModelName, registry: &str) -> Failure {
    Failure::new(format!("model '{name}' is not in {registry}")).hint("`bascule models --registry …` lists what is there")
}

/// All of a model that has manifests.
pub(super) async fn model(registry: &Registry, name: &ModelName) -> Result<ListedModel, Failure> {
    let model = read(registry, name).await?;
    if matches!(model.layout, Layout::Registry | Layout::Web) {
        return Ok(model);
    }
    let failure =
        Failure::new(format!("model '{name}' is in the {} layout, which keeps nothing about its versions", model.layout.as_str()));
    Err(failure.hint("`bascule publish` under another name makes versions with manifests"))
}

/// One version.
pub(super) async fn version(registry: &Registry, key: &VersionKey) -> Result<Arc<Generation>, Failure> {
    match registry.version(key).await {
        Ok(version) => Ok(Arc::new(version)),
        Err(error @ RegistryError::NotFound { .. }) => {
            let failure = Failure::from(anyhow::Error::new(error));
            Err(failure.hint(format!("`bascule versions {}` lists what is there", key.model)))
        }
        Err(error) => Err(anyhow::Error::new(error).into()),
    }
}

/// Who has signed a version, by key id; an altered signature has a question mark.
pub(super) fn signers(generation: &Generation) -> Vec<String> {
    let signer = |signature: &bascule_registry::ManifestSignature| match signature.signer(&generation.signed_digest()) {
        Some(key) => key.id(),
        None => {
            signature.key.parse::<bascule_registry::PublicKey>().map_or_else(|_| "?".to_owned(), |key| format!("{}?", key.id()))
        }
    };
    generation.signatures.iter().map(signer).collect()
}
