//! Registered models of an MLflow tracking server as a [`VersionSource`].
//!
//! A version counts once its state is READY and its `MLmodel` names a flavor that has a runtime here. What is read of one is kept in
//! memory, so that a look is the search for models, whose answer changes with whatever happens to them, and a search for the versions
//! of each model that did change. Artifacts are taken for immutable, as MLflow takes them: a version's digest stands for its source and
//! for the paths and sizes of its files; their own digests are known once they are fetched.
//!
//! Deliberately absent: stages, which MLflow has given up for aliases; models of the experiments that nobody registered; what
//! follows from an alias that moves, which is the engine's.

mod artifacts;
mod client;
mod error;
mod look;
mod mlmodel;
mod store;
mod tensors;
mod version;
mod wire;
mod write_back;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path as FsPath;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::clock::{Clock, SystemClock};
use crate::journal::Weight;
use crate::listing::{Cursor, Generation, Listing};
use crate::manifest::ManifestFile;
use crate::name::{VersionKey, quoted};
use crate::registry::{REPAIR_INTERVAL, StoreEnvironment};
use crate::source::{FetchError, Fetched, Progress, SourceError, VersionSource};
use crate::transfer::{Content, OpenFile, Transfers, bring_all};
use artifacts::{Artifacts, Files};
use client::Client;
use error::MlflowError;
use store::Stores;

/// The beginning of a place, before `http://` or `https://`.
const SCHEME: &str = "mlflow+";

/// What lets us in.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum MlflowCredentials {
    /// Nothing.
    #[default]
    None,
    /// A bearer token.
    Token(String),
    /// User and password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
}

impl fmt::Debug for MlflowCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tried())
    }
}

impl MlflowCredentials {
    /// For people, without any secret.
    fn tried(&self) -> &'static str {
        match self {
            Self::None => "no credentials, since neither mlflow.token nor mlflow.username and mlflow.password are set",
            Self::Token(_) => "the token of mlflow.token",
            Self::Basic { .. } => "mlflow.username and mlflow.password",
        }
    }

    /// The header, marked as a secret; an error where no header can hold it.
    fn header(&self) -> Result<Option<HeaderValue>, ()> {
        let text = match self {
            Self::None => return Ok(None),
            Self::Token(token) => format!("Bearer {token}"),
            Self::Basic { username, password } => format!("Basic {}", BASE64.encode(format!("{username}:{password}"))),
        };
        let mut header = HeaderValue::try_from(text).map_err(|_| ())?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

/// How a tracking server is used.
#[derive(Clone)]
pub struct MlflowOptions {
    /// What lets us in.
    pub credentials: MlflowCredentials,
    /// The alias of the version that should be stable.
    pub stable_alias: String,
    /// The alias of the version under test.
    pub candidate_alias: String,
    /// The share that the version under test gets.
    pub candidate_weight: Weight,
    /// Where the credentials of stores behind the server are, which it may name in place of itself.
    pub stores: StoreEnvironment,
    /// Tells when everything is to be read again.
    pub clock: Arc<dyn Clock>,
    /// After this time the versions of every model are looked for again, whatever the search for models says.
    pub repair_interval: Duration,
}

impl Default for MlflowOptions {
    /// `champion`, `challenger` and 10%; stores by the environment of this process.
    fn default() -> Self {
        Self {
            credentials: MlflowCredentials::None,
            stable_alias: "champion".into(),
            candidate_alias: "challenger".into(),
            candidate_weight: Weight(1_000),
            stores: StoreEnvironment::of_process(),
            clock: Arc::new(SystemClock::default()),
            repair_interval: REPAIR_INTERVAL,
        }
    }
}

/// Why a place can't be a tracking server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MlflowPlaceError {
    /// It is not written as it should be.
    #[error("MLflow server {place} {problem}: write mlflow+http://host:port or mlflow+https://host/prefix")]
    Place {
        /// What was given, quoted.
        place: String,
        /// What is wrong, as the end of a sentence.
        problem: &'static str,
    },
    /// No header can hold them.
    #[error("the credentials for the MLflow server have a character that can't be sent")]
    Credentials,
    /// No connections can be made at all.
    #[error("can't prepare connections: {0}")]
    Client(String),
}

/// A tracking server.
pub struct MlflowSource {
    client: Arc<Client>,
    description: String,
    options: MlflowOptions,
    seen: tokio::sync::Mutex<look::Seen>,
    /// What the files of versions were when they were read: some stores tell more of them than their size.
    stamps: Mutex<BTreeMap<VersionKey, Arc<Files>>>,
    /// Versions that a fetch has found otherwise than they were read: the next look reads them anew.
    doubted: Mutex<BTreeSet<VersionKey>>,
    /// Those behind the server.
    stores: Stores,
}

impl MlflowSource {
    /// A server at `mlflow+http://host:port[/prefix]` or `mlflow+https://…`. It need not be there yet.
    ///
    /// # Errors
    /// Another kind of place, credentials in it, or ones that can't be sent.
    pub fn new(place: &str, options: MlflowOptions) -> Result<Self, MlflowPlaceError> {
        let base = parse(place)?;
        let description = format!("MLflow server {base}");
        let client = Arc::new(Client::new(base, &options.credentials)?);
        let stores = Stores::new(options.stores.clone());
        let (seen, stamps, doubted) = Default::default();
        Ok(Self { client, description, options, seen, stamps, doubted, stores })
    }

    /// Whether a place is one of this kind.
    pub fn is_at(place: &str) -> bool {
        place.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
    }

    fn stamps(&self) -> std::sync::MutexGuard<'_, BTreeMap<VersionKey, Arc<Files>>> {
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doubted(&self) -> std::sync::MutexGuard<'_, BTreeSet<VersionKey>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the files of a version lie, by the server's word of today.
    async fn artifacts(&self, key: &VersionKey) -> Result<Artifacts, artifacts::Unusable> {
        let version = key.version.to_string();
        let query = [("name", key.model.as_str()), ("version", &version)];
        let found: wire::DownloadUri = self.client.get(&key.to_string(), "model-versions/get-download-uri", &query).await?;
        Artifacts::open(&self.client, &self.stores, &found.artifact_uri)
    }

    async fn found_as_listed(&self, generation: &Generation) -> Result<(Artifacts, Files), FetchError> {
        let key = &generation.key;
        let unusable = |problem| match problem {
            artifacts::Unusable::Failed(error) => MlflowError::into_fetch(error),
            artifacts::Unusable::Refused(_) => FetchError::Changed { what: key.to_string() },
        };
        let artifacts = self.artifacts(key).await.map_err(unusable)?;
        let files = artifacts.list(&format!("the files of {key}")).await.map_err(unusable)?;
        let wanted = generation.manifest.files.iter().map(|file| (file.path.as_str(), file.bytes));
        let same_sizes = version::served(&files).map(|(path, stamp)| (path, stamp.bytes)).eq(wanted);
        let same_stamps = self.stamps().get(key).is_none_or(|before| **before == files);
        if same_sizes && same_stamps { Ok((artifacts, files)) } else { Err(FetchError::Changed { what: key.to_string() }) }
    }
}

#[async_trait]
impl VersionSource for MlflowSource {
    fn describe(&self) -> String {
        self.description.clone()
    }

    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        let listing = self.look().await.map_err(|error| SourceError::unavailable(self.description.clone(), error))?;
        Ok(Some(listing).filter(|listing| since.is_none_or(|since| since.state != listing.cursor.state)))
    }

    async fn fetch(&self, generation: &Generation, dest: &FsPath, progress: &dyn Progress) -> Result<Fetched, FetchError> {
        let fetched = self.fetch_as_listed(generation, dest, progress).await;
        if matches!(fetched, Err(FetchError::Changed { .. } | FetchError::NotFound { .. })) {
            self.doubted().insert(generation.key.clone());
        }
        fetched
    }
}

impl MlflowSource {
    async fn fetch_as_listed(
        &self,
        generation: &Generation,
        dest: &FsPath,
        progress: &dyn Progress,
    ) -> Result<Fetched, FetchError> {
        let (artifacts, stamps) = self.found_as_listed(generation).await?;
        let found = Found { artifacts, stamps, key: &generation.key };
        let brought = bring_all(Transfers::of_process(), &found, &generation.manifest.files, dest, progress).await;
        let files = brought.map_err(|error| match error {
            // What has another size than a moment ago is being replaced.
            FetchError::Size { .. } => FetchError::Changed { what: generation.key.to_string() },
            error => error,
        })?;
        Ok(Fetched { files })
    }
}

/// The files of a version, as the server has them now.
struct Found<'a> {
    artifacts: Artifacts,
    stamps: Files,
    key: &'a VersionKey,
}

#[async_trait]
impl OpenFile for Found<'_> {
    async fn open(&self, file: &ManifestFile) -> Result<Content, FetchError> {
        let what = format!("file `{}` of {}", file.path, self.key);
        let stamp = self.stamps.get(&file.path).cloned().unwrap_or_default();
        Ok(Content::Ranged(self.artifacts.ranged(what, &file.path, &stamp)))
    }
}

fn parse(place: &str) -> Result<Url, MlflowPlaceError> {
    // What may be a password is not shown.
    let shown = place.rsplit_once('@').map_or(place, |(_, rest)| rest);
    let wrong = |problem| MlflowPlaceError::Place { place: quoted(shown.split(['?', '#']).next().unwrap_or_default()), problem };
    let rest = Some(place).filter(|place| MlflowSource::is_at(place)).and_then(|place| place.get(SCHEME.len()..));
    let url = rest.and_then(|rest| Url::parse(rest).ok()).ok_or_else(|| wrong("is no URL of one"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong("is at no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("has credentials in it, which belong into mlflow.username and mlflow.password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("has a query or a fragment"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests;
