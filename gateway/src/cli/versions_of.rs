//! What commands that read a registry share: opening it with its signatures, and finding a model or version in it.

use std::sync::Arc;

use anyhow::Context as _;
use bascule_registry::{
    Generation, Layout, ListedModel, ModelName, Registry, RegistryError, VersionKey, VersionNumber, parse_version,
};

use crate::compose;
use crate::config::Config;

use super::failure::Failure;

/// A version's number, as an argument.
pub(super) fn number(text: &str) -> Result<VersionNumber, String> {
    parse_version(text).map_err(|error| error.to_string())
}

/// Opens the configured registry; signatures are read, those of trusted keys first. Blocks.
pub(super) fn open(config: &Config) -> Result<Registry, Failure> {
    let registry = compose::open_registry(&config.registry.only().map_err(Failure::new)?.url, false)?;
    Ok(registry.reading_signatures(compose::trust(config)?.unwrap_or_default()))
}

/// All of a model.
pub(super) async fn model(registry: &Registry, name: &ModelName) -> Result<ListedModel, Failure> {
    let read = registry.model(name).await.with_context(|| format!("can't read model {name}"))?;
    let Some(model) = read else {
        let failure = Failure::new(format!("model '{name}' is not in {}", registry.describe()));
        return Err(failure.hint("`bascule models --registry …` lists what is there"));
    };
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
    let signer = |signature: &bascule_registry::ManifestSignature| match signature.signer(&generation.digest) {
        Some(key) => key.id(),
        None => {
            signature.key.parse::<bascule_registry::PublicKey>().map_or_else(|_| "?".to_owned(), |key| format!("{}?", key.id()))
        }
    };
    generation.signatures.iter().map(signer).collect()
}
