//! One repository as a model: which tags are versions, which are aliases, and what is wrong with others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;

use super::artifact::Artifact;
use super::error::OciError;
use super::http::Client;
use crate::digest::Digest;
use crate::journal::Rollout;
use crate::listing::{Generation, Layout, ListedModel};
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::name::{ModelName, VersionKey, VersionNumber, parse_version, quoted};
use crate::registry::versions::with_causes;

/// How many tags of a repository are read at a time.
const READS: usize = 8;
/// With more aliases than this they are looked at as rarely as versions are, since each takes a request.
const MAX_EAGER_ALIASES: usize = 64;
/// How many aliases without a version are named.
const MAX_NAMED: usize = 8;

/// What the last look found in a repository.
#[derive(Debug, Clone, Default)]
pub(super) struct Tags {
    versions: BTreeMap<VersionNumber, Tagged>,
    aliases: BTreeMap<String, Digest>,
    /// Something could not be read: what is known of it is from before.
    pub(super) stale: Vec<String>,
}

/// A tag that is a version.
#[derive(Debug, Clone)]
struct Tagged {
    /// Of the manifest.
    digest: Digest,
    /// The version, or what is wrong with it.
    found: Result<Arc<Generation>, String>,
}

impl Tags {
    /// Looks at the tags of a repository; `None` where it has none. With `all` every tag is looked at, else only those that are
    /// new, and aliases.
    ///
    /// # Errors
    /// The repository can't be read: it stays as it was.
    pub(super) async fn look(
        client: &Client,
        repository: &str,
        model: &ModelName,
        before: Option<&Tags>,
        all: bool,
    ) -> Result<Option<Tags>, OciError> {
        let names = client.tags(repository).await?;
        if names.is_empty() {
            return Ok(None);
        }
        let before = before.cloned().unwrap_or_default();
        let (mut numbers, mut aliases) = (Vec::new(), BTreeSet::new());
        for name in names {
            match parse_version(&name) {
                Ok(number) => numbers.push(number),
                Err(_) => drop(aliases.insert(name)),
            }
        }
        let mut tags = Tags::default();
        tags.look_at_versions(client, repository, model, numbers, &before, all).await?;
        tags.look_at_aliases(client, repository, aliases, &before, all).await?;
        tags.stale.sort_unstable();
        Ok(Some(tags))
    }

    async fn look_at_versions(
        &mut self,
        client: &Client,
        repository: &str,
        model: &ModelName,
        numbers: Vec<VersionNumber>,
        before: &Tags,
        all: bool,
    ) -> Result<(), OciError> {
        let look = |number: VersionNumber| async move {
            let known = before.versions.get(&number);
            let key = VersionKey::new(model.clone(), number);
            (number, look_at_version(client, repository, &key, known, all).await)
        };
        let mut looks = futures::stream::iter(numbers).map(look).buffer_unordered(READS);
        while let Some((number, look)) = looks.next().await {
            match look {
                Ok(found) => self.versions.extend(found.map(|tagged| (number, tagged))),
                Err(error) if error.is_passing() => return Err(error),
                Err(error) => {
                    self.stale.push(format!("version {number}: {}", with_causes(&error)));
                    self.versions.extend(before.versions.get(&number).map(|tagged| (number, tagged.clone())));
                }
            }
        }
        Ok(())
    }

    async fn look_at_aliases(
        &mut self,
        client: &Client,
        repository: &str,
        names: BTreeSet<String>,
        before: &Tags,
        all: bool,
    ) -> Result<(), OciError> {
        let eager = all || names.len() <= MAX_EAGER_ALIASES;
        let look = |name: String| async move {
            let known = before.aliases.get(&name).filter(|_| !eager);
            let digest = match known {
                Some(digest) => Ok(Some(*digest)),
                None => client.manifest_digest(repository, &name, false).await,
            };
            (name, digest)
        };
        let mut looks = futures::stream::iter(names).map(look).buffer_unordered(READS);
        while let Some((name, digest)) = looks.next().await {
            match digest {
                Ok(digest) => self.aliases.extend(digest.map(|digest| (name, digest))),
                Err(error) if error.is_passing() => return Err(error),
                Err(error) => {
                    self.stale.push(format!("alias {}: {}", quoted(&name), with_causes(&error)));
                    self.aliases.extend(before.aliases.get(&name).map(|digest| (name, *digest)));
                }
            }
        }
        Ok(())
    }

    /// The model that this is, where there is anything to say about it.
    pub(super) fn model(&self, name: &ModelName) -> Option<ListedModel> {
        let mut problems = self.stale.clone();
        let (mut versions, mut by_digest) = (BTreeMap::new(), BTreeMap::new());
        for (number, tagged) in &self.versions {
            match &tagged.found {
                Ok(generation) => drop(versions.insert(*number, Arc::clone(generation))),
                Err(problem) => problems.push(format!("version {number} is left out: {problem}")),
            }
            // Of several numbers with one content an alias means the highest.
            by_digest.insert(tagged.digest, *number);
        }
        let mut aliases = BTreeMap::new();
        let mut lost = Vec::new();
        for (alias, digest) in &self.aliases {
            match by_digest.get(digest) {
                Some(number) if versions.contains_key(number) => drop(aliases.insert(alias.clone(), *number)),
                _ => lost.push((alias, digest)),
            }
        }
        problems.extend(lost.iter().take(MAX_NAMED).map(|(alias, digest)| {
            format!("alias {} is left out: it names sha256:{}…, which no numbered tag has", quoted(alias), digest.short())
        }));
        if lost.len() > MAX_NAMED {
            problems.push(format!("{} more aliases are left out: no numbered tag has what they name", lost.len() - MAX_NAMED));
        }
        let anything = !versions.is_empty() || !problems.is_empty();
        anything.then(|| ListedModel {
            name: name.clone(),
            layout: Layout::Oci,
            registry: None,
            steering: None,
            versions,
            unsettled: BTreeSet::new(),
            settings: BTreeMap::new(),
            rollout: Rollout::default(),
            aliases,
            problems,
        })
    }
}

/// `None` where the tag is gone meanwhile.
async fn look_at_version(
    client: &Client,
    repository: &str,
    key: &VersionKey,
    known: Option<&Tagged>,
    all: bool,
) -> Result<Option<Tagged>, OciError> {
    let tag = key.version.to_string();
    if let Some(known) = known {
        if !all {
            return Ok(Some(known.clone()));
        }
        match client.manifest_digest(repository, &tag, false).await? {
            Some(digest) if digest == known.digest => return Ok(Some(known.clone())),
            Some(_) => {}
            None => return Ok(None),
        }
    }
    let Some(content) = client.manifest(repository, &tag).await? else { return Ok(None) };
    let digest = Digest::of(&content);
    let found = read_version(client, repository, key, &content, digest).await?;
    Ok(Some(Tagged { digest, found: found.map(Arc::new) }))
}

/// The version that a manifest is, or what is wrong with it.
async fn read_version(
    client: &Client,
    repository: &str,
    key: &VersionKey,
    content: &[u8],
    digest: Digest,
) -> Result<Result<Generation, String>, OciError> {
    let artifact = match Artifact::parse(content) {
        Ok(artifact) => artifact,
        Err(problem) => return Ok(Err(problem)),
    };
    let config = match artifact.config {
        None => None,
        Some((config, bytes)) => match client.small_blob(repository, &config, bytes.min(MAX_MANIFEST_BYTES)).await {
            Ok(config) => Some(config),
            Err(error) if error.is_absent() => return Ok(Err("its config is not in the repository".into())),
            Err(error) => return Err(error),
        },
    };
    let signatures = artifact.signatures.clone();
    // Only what is signed has to be shown to whoever trusts keys.
    let stored = config.as_deref().filter(|_| !signatures.is_empty()).and_then(|config| std::str::from_utf8(config).ok());
    let stored = stored.map(Arc::from);
    let generation = artifact.manifest(key, config.as_deref()).map(|manifest| Generation {
        key: key.clone(),
        digest,
        bytes: manifest.bytes(),
        layout: Layout::Oci,
        manifest: Arc::new(manifest),
        tombstoned: false,
        signatures,
        stored,
    });
    Ok(generation)
}
