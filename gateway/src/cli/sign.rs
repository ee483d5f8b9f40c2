//! `bascule sign`: adds a signature to a version that exists.

use bascule_registry::{ModelName, VersionKey, VersionNumber};
use clap::Args;
use serde_json::json;

use crate::compose;
use crate::config::env::Environment;

use super::args::ConfigArgs;
use super::failure::Failure;
use super::output::{print, print_json};
use super::{Outcome, in_background, signing_key, versions_of};

/// Add a signature to a version that is published already; `bascule publish --sign` signs one that is not.
///
/// What is signed is the version's manifest, which names the sha256 of each file. Gateways with `registry.trust` follow at their next
/// look.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule sign digits 3 --key release.key --registry ./models")]
pub(super) struct Sign {
    /// The model.
    model: ModelName,
    /// The version.
    #[arg(value_parser = versions_of::number)]
    version: VersionNumber,
    /// The private key: a file, file:PATH, or env:NAME for a variable that holds it.
    #[arg(long, value_name = "KEY")]
    key: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Sign {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let config = self.config.load([], environment)?.config;
        let secret = signing_key::read(&self.key, environment)?;
        let place = &config.registry.only().map_err(Failure::new)?.url;
        if !compose::holds_journals(place)? {
            let failure = Failure::new(format!("a registry at {}:// takes no signatures on versions that exist", place.scheme()));
            return Err(failure.hint("`bascule publish --sign` signs a version of an OCI registry as it is published"));
        }
        let registry = versions_of::open(&config)?;
        in_background(async {
            let key = VersionKey::new(self.model, self.version);
            versions_of::version(&registry, &key).await?;
            let digest = registry.sign(&key, &secret).await.map_err(anyhow::Error::new)?;
            let public = secret.public();
            if self.json {
                return print_json(&json!({
                    "model": key.model, "version": key.version, "digest": digest.to_string(),
                    "public_key": public.to_string(), "key_id": public.id(),
                }));
            }
            print(&format!("signed {key} with key {}, sha256 {digest}", public.id()))
        })
    }
}
