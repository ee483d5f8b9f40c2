//! The registries of a configuration, opened: to be served, published to and written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bascule_registry::{
    DirectoryOptions, DirectorySource, MlflowOptions, MlflowSource, NamedSource, OciOptions, OciRegistry, PublishTarget,
    Registries, Registry, Trust, Trusted, VersionSource, WriteBack,
};

use super::told::Told;
use super::trust::trust;
use crate::config::{Config, Place, RegistrySpec};

/// Between two tries to watch a registry, at the most, unless the poll itself is slower.
const MAX_WATCH_PAUSE: Duration = Duration::from_mins(5);

/// The registries that are served, as one source of versions.
#[derive(Clone)]
pub struct Source {
    pub(super) registries: Arc<Registries>,
    /// What can be watched, beside being polled.
    directories: Vec<Arc<DirectorySource>>,
    /// Registries that other machines hold, by their places: kept open, with their connections and credentials.
    pub(super) stores: BTreeMap<Arc<str>, Arc<Registry>>,
    /// Those that can be told of decisions.
    servers: BTreeMap<Arc<str>, Arc<dyn WriteBack>>,
    /// Who has to have signed what is loaded.
    trust: Option<Arc<Trust>>,
}

impl Source {
    /// Opens the places that are served. They need not exist or be reachable yet.
    ///
    /// # Errors
    /// A kind of place that this build can't read, one that is written wrong, or credentials that the environment has by halves; and
    /// where the keys that are trusted can't be read.
    pub fn open(config: &Config) -> Result<Source> {
        let (mut members, mut directories, mut stores, mut servers) = (Vec::new(), Vec::new(), BTreeMap::new(), BTreeMap::new());
        // Whatever the place: what does not read signatures has none that anybody trusts.
        let trust = trust(config)?;
        for spec in &config.registry.all {
            let place: Arc<str> = identity(&spec.url)?.into();
            let source: Arc<dyn VersionSource> = match Kind::of(&spec.url)? {
                Kind::Directory(root) => {
                    let (settle_interval, signatures_of) = (spec.settle_interval, trust.clone());
                    let options = DirectoryOptions { settle_interval, signatures_of, ..DirectoryOptions::default() };
                    let directory = Arc::new(DirectorySource::new(root, options));
                    directories.push(Arc::clone(&directory));
                    directory
                }
                Kind::Oci => Arc::new(open_oci(config, spec)?),
                Kind::Mlflow => {
                    let server = Arc::new(MlflowSource::new(&spec.url.0, mlflow_options(config))?);
                    servers.insert(Arc::clone(&place), Arc::<MlflowSource>::clone(&server) as Arc<dyn WriteBack>);
                    server
                }
                Kind::Store => {
                    let registry = open_registry(&spec.url, false)?.with_settle_interval(spec.settle_interval);
                    let registry = Arc::new(match &trust {
                        Some(trust) => registry.reading_signatures(Arc::clone(trust)),
                        None => registry,
                    });
                    stores.insert(Arc::clone(&place), Arc::clone(&registry));
                    registry
                }
            };
            let source = match &trust {
                Some(trust) => Arc::new(Trusted::new(source, Arc::clone(trust))),
                None => source,
            };
            members.push(NamedSource { name: spec.name.clone(), place, source });
        }
        Ok(Source { registries: Arc::new(Registries::new(members)), directories, stores, servers, trust })
    }

    /// The keys that are trusted, now and after a reload; nothing where nobody has to sign.
    pub fn trust(&self) -> Option<Arc<Trust>> {
        self.trust.clone()
    }

    /// As the engine takes it.
    pub fn versions(&self) -> Arc<dyn VersionSource> {
        Arc::<Registries>::clone(&self.registries)
    }

    /// Who is told what is decided on models that have names of their own for stable and candidate where they come from.
    pub(super) fn told_of_decisions(&self) -> Option<Arc<dyn WriteBack>> {
        let (registries, servers) = (Arc::clone(&self.registries), self.servers.clone());
        (!servers.is_empty()).then(|| Arc::new(Told { registries, servers }) as _)
    }

    /// Calls `hint` whenever something may have changed, for as long as the returned future is polled. Where nothing can be watched,
    /// it tries again after `pause`, and after ever longer ones while that goes on: each try walks the whole directory.
    pub async fn watch(self, pause: Duration, hint: impl Fn()) {
        let hint = &hint;
        futures::future::join_all(self.directories.into_iter().map(|directory| watch(directory, pause, hint))).await;
    }
}

async fn watch(directory: Arc<DirectorySource>, pause: Duration, hint: &impl Fn()) {
    let mut next = pause;
    loop {
        match directory.watch().await {
            Ok(mut watch) => {
                next = pause;
                // What changed before the watch began.
                hint();
                while watch.changed().await.is_some() {
                    hint();
                }
            }
            Err(error) => tracing::debug!(%error, "the registry can't be watched, only polled"),
        }
        tokio::time::sleep(next).await;
        next = next.saturating_mul(2).min(MAX_WATCH_PAUSE.max(pause));
    }
}

fn mlflow_options(config: &Config) -> MlflowOptions {
    let mlflow = &config.mlflow;
    MlflowOptions {
        credentials: mlflow.credentials.clone(),
        stable_alias: mlflow.stable_alias.clone(),
        candidate_alias: mlflow.candidate_alias.clone(),
        candidate_weight: mlflow.candidate_weight,
        ..MlflowOptions::default()
    }
}

/// What kind of place a registry is at.
enum Kind {
    /// A path, or `file://`.
    Directory(PathBuf),
    /// `oci://`, `oci+http://` or `oci+https://`.
    Oci,
    /// `mlflow+http://` or `mlflow+https://`.
    Mlflow,
    /// An object store, or what whoever opens it has to judge.
    Store,
}

impl Kind {
    fn of(place: &Place) -> Result<Kind> {
        if !place.is_url() {
            return Ok(Kind::Directory(PathBuf::from(&place.0)));
        }
        // What other schemes have in their places is for those who open them to judge.
        match place.scheme().as_str() {
            "file" => {}
            "oci" | "oci+http" | "oci+https" => return Ok(Kind::Oci),
            _ if MlflowSource::is_at(&place.0) => return Ok(Kind::Mlflow),
            _ => return Ok(Kind::Store),
        }
        let url = reqwest::Url::parse(&place.0).with_context(|| format!("registry {} is not a URL", place.shown()))?;
        let path = url.to_file_path();
        path.map(Kind::Directory).map_err(|()| anyhow::anyhow!("registry {} names no path on this machine", place.shown()))
    }
}

/// The directory that a place names.
///
/// # Errors
/// A place that is not a directory of this machine.
pub fn local_path(place: &Place) -> Result<PathBuf> {
    match Kind::of(place)? {
        Kind::Directory(path) => Ok(path),
        Kind::Oci | Kind::Mlflow | Kind::Store => bail!("a directory is expected, not a place at {}://", place.scheme()),
    }
}

/// What makes a registry the same one after a restart: its place as it is named, since a link that leads elsewhere tomorrow is still
/// this registry.
pub(super) fn identity(place: &Place) -> Result<String> {
    let Kind::Directory(path) = Kind::of(place)? else { return Ok(place.0.trim_end_matches('/').to_owned()) };
    let path = std::path::absolute(&path).with_context(|| format!("registry {} names no place", place.0))?;
    Ok(path.display().to_string())
}

/// Whether registries of this kind hold manifests, and the journals of their models, so that they can be written without a gateway.
///
/// # Errors
/// A place that is written wrong.
pub fn holds_journals(place: &Place) -> Result<bool> {
    Ok(matches!(Kind::of(place)?, Kind::Directory(_) | Kind::Store))
}

/// Opens a registry to publish to or to write a journal in; `create` makes a directory where it is not there. Blocks.
///
/// # Errors
/// A directory that is not there, a place that is written wrong, or credentials that the environment has by halves.
pub fn open_registry(place: &Place, create: bool) -> Result<Registry> {
    let open = if create { Registry::open_or_create } else { Registry::open };
    match Kind::of(place)? {
        Kind::Directory(_) => open(&place.0).with_context(|| format!("can't open registry {}", place.0)),
        // What is wrong with a place names it, without the passwords that it may hold.
        Kind::Store => open(&place.0).context("can't open the registry"),
        Kind::Oci | Kind::Mlflow => bail!("a registry at {}:// holds no manifests and journals of Bascule's own", place.scheme()),
    }
}

/// Opens a registry of a configuration to publish to; a directory that is not there is made. Blocks.
///
/// # Errors
/// Where it is of a kind that this build can't write.
pub fn open_publish_target(config: &Config, spec: &RegistrySpec) -> Result<Arc<dyn PublishTarget>> {
    match Kind::of(&spec.url)? {
        Kind::Oci => Ok(Arc::new(open_oci(config, spec)?)),
        Kind::Mlflow => bail!("an MLflow server takes new versions from MLflow's own clients: register the model there"),
        Kind::Directory(_) | Kind::Store => Ok(Arc::new(open_registry(&spec.url, true)?)),
    }
}

fn open_oci(config: &Config, spec: &RegistrySpec) -> Result<OciRegistry> {
    let options = OciOptions { credentials: config.oci.credentials.clone(), ..OciOptions::default() };
    Ok(OciRegistry::open(&spec.url.0, options)?)
}
