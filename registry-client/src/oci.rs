//! Models in an OCI registry: a repository is a model, a tag that is a positive integer is a version, other tags are aliases.
//!
//! A version is an image manifest with one layer per file, titled with its path; the digest of the manifest's bytes names its
//! content, and the layers' digests are what fetches are checked against. Registries have no put-if-absent for tags: see
//! [`OciRegistry::publish`] for what two publishers of one number can rely on.
//!
//! Deliberately absent: the rollout journal and tombstones, which a registry of tags can't hold, and the unpacking of archives.

mod api;
mod artifact;
mod blobs;
mod challenge;
mod credentials;
mod error;
mod http;
mod place;
mod publish;
mod reading;
mod repository;
mod upload;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use credentials::{OciCredentials, Secret};

use crate::clock::{Clock, SystemClock};
use crate::name::ModelName;
use crate::registry::{REPAIR_INTERVAL, RegistryError};
use http::Client;
use place::OciPlace;

/// How an OCI registry is read and written.
#[derive(Clone)]
pub struct OciOptions {
    /// Who asks.
    pub credentials: OciCredentials,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// How often tags that are versions are looked at again. Aliases, and which tags there are, are looked at each time.
    pub repair_interval: Duration,
}

impl Default for OciOptions {
    fn default() -> Self {
        let clock = Arc::new(SystemClock::default());
        Self { credentials: OciCredentials::default(), clock, repair_interval: REPAIR_INTERVAL }
    }
}

/// A repository of an OCI registry, and those below it.
pub struct OciRegistry {
    place: OciPlace,
    client: Arc<Client>,
    clock: Arc<dyn Clock>,
    repair_interval: Duration,
    seen: tokio::sync::Mutex<Option<reading::Seen>>,
    /// Where each model was found by the last look.
    repositories: Mutex<BTreeMap<ModelName, String>>,
}

impl OciRegistry {
    /// The registry at `oci://host[:port]/repository`, which is asked over TLS unless the host is loopback; or at
    /// `oci+http://host[:port]/repository` and `oci+https://…`, which say so themselves. Nothing is sent yet.
    ///
    /// # Errors
    /// [`RegistryError::Location`] where the place is not written so.
    pub fn open(location: &str, options: OciOptions) -> Result<Self, RegistryError> {
        let OciOptions { credentials, clock, repair_interval } = options;
        let place = OciPlace::parse(location)?;
        let client = Client::new(place.clone(), credentials, Arc::clone(&clock));
        let client = client.map_err(|error| RegistryError::unavailable(place.to_string(), error))?;
        let (seen, repositories) = (tokio::sync::Mutex::default(), Mutex::default());
        Ok(Self { place, client: Arc::new(client), clock, repair_interval, seen, repositories })
    }

    /// For people: `oci://host/repository`.
    pub fn describe(&self) -> String {
        self.place.to_string()
    }

    /// Where a model lies: where the last look found it, else where it would be published to.
    fn repository_of(&self, model: &ModelName) -> String {
        let known = self.repositories.lock().unwrap_or_else(PoisonError::into_inner).get(model).cloned();
        known.unwrap_or_else(|| self.place.repository_of(model))
    }
}

#[cfg(test)]
mod tests;
