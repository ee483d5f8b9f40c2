//! Where the files of a version lie: behind the server's artifact proxy, or in a store that we read ourselves.

mod reading;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use reqwest::Url;

use super::client::{Client, below, bounded};
use super::error::MlflowError;
use super::store::Stores;
use super::wire;
use crate::manifest::MAX_FILES;
use crate::name::{check_file_path, quoted};
use crate::registry::location::percent_decoded;
use crate::transfer::Ranges;
use reading::{ProxyFile, StoreFile};

/// Folders of one version. More is most likely a mistake of the server's.
const MAX_FOLDERS: usize = 1_000;
/// What follows the server's own path where the proxy is meant.
const PROXY: &str = "/mlflow-artifacts/artifacts";

/// The files of one version.
pub(super) enum Artifacts {
    /// The server brings them from wherever they lie.
    Proxied(Proxied),
    /// They lie in a store.
    Stored(Stored),
}

/// A folder behind the proxy.
pub(super) struct Proxied {
    client: Arc<Client>,
    /// Of the proxy.
    base: Url,
    folder: String,
}

/// A folder of a store.
pub(super) struct Stored {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) folder: Path,
}

/// Files by path.
pub(super) type Files = BTreeMap<String, Stamp>;

/// What tells that a file was replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) bytes: u64,
    /// What the store calls this content; the proxy does not tell.
    pub(super) e_tag: Option<String>,
}

/// Why a place or its files can't be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// Whoever asks again. For people, as the end of a sentence that begins with the version.
    Refused(String),
    /// It may be another time.
    Failed(MlflowError),
}

impl From<MlflowError> for Unusable {
    fn from(error: MlflowError) -> Self {
        Self::Failed(error)
    }
}

impl Artifacts {
    /// What `uri` names.
    pub(super) fn open(client: &Arc<Client>, stores: &Stores, uri: &str) -> Result<Self, Unusable> {
        let url =
            Url::parse(uri).map_err(|error| Unusable::Refused(format!("has its files at a place that is no URL: {error}")))?;
        let refused = |why: &str| Err(Unusable::Refused(format!("has its files at {}://, {why}", url.scheme())));
        match url.scheme() {
            "mlflow-artifacts" if !client.is_named_by(&url) => refused("at another artifact server than this tracking server"),
            "mlflow-artifacts" => {
                let base = client.url(["api", "2.0"].into_iter().chain(PROXY.trim_start_matches('/').split('/')));
                Proxied::open(client, base, url.path()).map(Self::Proxied)
            }
            "http" | "https" if client.is_home_of(&url) && url.path().contains(PROXY) => {
                let (before, folder) = url.path().split_once(PROXY).unwrap_or((url.path(), ""));
                let mut base = url.clone();
                base.set_path(&format!("{before}{PROXY}"));
                base.set_query(None);
                Proxied::open(client, base, folder).map(Self::Proxied)
            }
            "s3" | "s3a" | "gs" | "az" | "wasb" | "wasbs" | "abfs" | "abfss" | "http" | "https" => {
                let opened = stores.open(&url);
                let (store, folder) = opened.map_err(|why| Unusable::Refused(format!("has its files at a place that {why}")))?;
                Ok(Self::Stored(Stored { store, folder }))
            }
            "file" => refused("which only the server's own machine can read: start the server with --serve-artifacts"),
            _ => refused("which can't be read from here: start the server with --serve-artifacts"),
        }
    }

    /// All files below the folder.
    pub(super) async fn list(&self, what: &str) -> Result<Files, Unusable> {
        match self {
            Self::Proxied(proxied) => proxied.list(what).await,
            Self::Stored(stored) => stored.list(what).await,
        }
    }

    /// A small file as a whole, whose size is known to be within the limit and not 0.
    pub(super) async fn read_small(&self, what: &str, path: &str, limit: usize) -> Result<Vec<u8>, MlflowError> {
        match self {
            Self::Proxied(proxied) => {
                let response = proxied.client.file(what, proxied.url(path), None).await?;
                bounded(what, response, limit).await
            }
            Self::Stored(Stored { store, folder }) => {
                let options = GetOptions { range: Some(GetRange::Bounded(0..limit as u64)), ..GetOptions::default() };
                let failed = |error| MlflowError::store(what, error);
                let found = store.get_opts(&joined(folder, path), options).await.map_err(failed)?;
                Ok(found.bytes().await.map_err(failed)?.to_vec())
            }
        }
    }

    /// A file of which parts can be read; `what` names it for people.
    pub(super) fn ranged(&self, what: String, path: &str, stamp: &Stamp) -> Arc<dyn Ranges> {
        match self {
            Self::Proxied(proxied) => {
                let (client, url) = (Arc::clone(&proxied.client), proxied.url(path));
                Arc::new(ProxyFile { client, url, what, bytes: stamp.bytes })
            }
            Self::Stored(Stored { store, folder }) => {
                let (store, e_tag) = (Arc::clone(store), stamp.e_tag.clone());
                Arc::new(StoreFile { store, path: joined(folder, path), what, e_tag, bytes: stamp.bytes })
            }
        }
    }
}

impl Proxied {
    /// `path` is what a URL says of the folder.
    fn open(client: &Arc<Client>, base: Url, path: &str) -> Result<Self, Unusable> {
        let parts: Option<Vec<String>> = path.split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let folder = parts.map(|parts| parts.join("/")).filter(|folder| check_file_path(folder).is_ok());
        let folder = folder.ok_or_else(|| Unusable::Refused(format!("has its files at {}, which is no path", quoted(path))))?;
        Ok(Self { client: Arc::clone(client), base, folder })
    }

    fn url(&self, path: &str) -> Url {
        below(&self.base, self.folder.split('/').chain(path.split('/')))
    }

    async fn list(&self, what: &str) -> Result<Files, Unusable> {
        let mut files = Files::new();
        let mut folders = vec![String::new()];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            seen += 1;
            if seen > MAX_FOLDERS {
                return Err(Unusable::Refused(format!("has more than {MAX_FOLDERS} folders")));
            }
            let path = format!("{}/{folder}", self.folder);
            let query = [("path", path.trim_end_matches('/'))];
            let listed: wire::ArtifactFiles = self.client.get_at(what, self.base.clone(), &query).await?;
            for file in listed.files {
                let path = format!("{folder}{}", file.path);
                if file.is_dir {
                    check_file_path(&path)
                        .map_err(|error| Unusable::Refused(format!("has a folder that can't be used: {error}")))?;
                    folders.push(format!("{path}/"));
                } else {
                    let bytes = u64::try_from(file.file_size)
                        .map_err(|_| MlflowError::malformed(what, format!("gives {} a size below 0", quoted(&path))))?;
                    insert(&mut files, path, Stamp { bytes, e_tag: None })?;
                }
            }
        }
        Ok(files)
    }
}

impl Stored {
    async fn list(&self, what: &str) -> Result<Files, Unusable> {
        let mut files = Files::new();
        let mut objects = self.store.list(Some(&self.folder));
        while let Some(object) = objects.try_next().await.map_err(|error| MlflowError::store(what, error))? {
            let parts = object.location.prefix_match(&self.folder);
            let path = parts.map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"));
            // What stands for a folder itself in some stores.
            let Some(path) = path.filter(|path| !path.is_empty()) else { continue };
            insert(&mut files, path, Stamp { bytes: object.size, e_tag: object.e_tag })?;
        }
        Ok(files)
    }
}

fn insert(files: &mut Files, path: String, stamp: Stamp) -> Result<(), Unusable> {
    check_file_path(&path).map_err(|error| Unusable::Refused(format!("has a file that can't be used: {error}")))?;
    files.insert(path, stamp);
    if files.len() > MAX_FILES {
        return Err(Unusable::Refused(format!("has more than {MAX_FILES} files")));
    }
    Ok(())
}

fn joined(folder: &Path, path: &str) -> Path {
    path.split('/').fold(folder.clone(), |folder, part| folder.join(part))
}

/// A part of a URL's path without its percent signs.
fn decoded(part: &str) -> Option<String> {
    String::from_utf8(percent_decoded(part)?).ok()
}
