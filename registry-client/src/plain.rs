//! The plain layout, wherever it lies: what a numbered folder of files is as a version, and when it counts.
//!
//! How the files are found, stamped and brought is each source's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::digest::Digest;
use crate::journal::Rollout;
use crate::listing::{Generation, Layout, ListedModel};
use crate::manifest::{Lineage, MANIFEST_SCHEMA, Manifest, ManifestFile, guess_format};
use crate::name::{ModelName, VersionKey, VersionNumber};
use crate::settle::Settled;

/// A settings file that nobody has touched for so long is not being written. Longer than the clocks of a file server and of this
/// machine are apart.
pub(crate) const QUIET: Duration = Duration::from_secs(60);

/// Settling is never waited for in shorter steps.
const SHORTEST_RECHECK: Duration = Duration::from_millis(10);

/// Small files beside the versions of a model, by name.
pub(crate) type Settings = BTreeMap<String, Arc<[u8]>>;

/// When to look again because something has not settled.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Recheck(pub(crate) Option<Duration>);

impl Recheck {
    /// Not later than after this time.
    pub(crate) fn after(&mut self, time: Duration) {
        let time = time.max(SHORTEST_RECHECK);
        self.0 = Some(self.0.map_or(time, |other| other.min(time)));
    }
}

/// The version that these files are. `digest` names them, `created` is when the newest was written.
pub(crate) fn generation(key: &VersionKey, digest: Digest, files: Vec<ManifestFile>, created: DateTime<Utc>) -> Generation {
    let (format, entrypoint) = guess_format(files.iter().map(|file| file.path.as_str()));
    let entrypoint = entrypoint.to_owned();
    let manifest = Manifest {
        schema: MANIFEST_SCHEMA,
        model: key.model.clone(),
        version: key.version,
        format: format.to_owned(),
        entrypoint,
        files,
        signature: None,
        golden: None,
        lineage: Lineage::default(),
        metrics: BTreeMap::new(),
        tags: BTreeMap::new(),
        created,
        publisher: String::new(),
        hold: false,
        extra: BTreeMap::new(),
    };
    let bytes = manifest.bytes();
    let manifest = Arc::new(manifest);
    let (tombstoned, signatures, stored) = (false, Vec::new(), None);
    Generation { key: key.clone(), digest, bytes, layout: Layout::Plain, manifest, tombstoned, signatures, stored }
}

/// A plain model without versions.
pub(crate) fn model(name: &ModelName, problems: Vec<String>) -> ListedModel {
    ListedModel {
        name: name.clone(),
        layout: Layout::Plain,
        registry: None,
        steering: None,
        versions: BTreeMap::new(),
        unsettled: BTreeSet::new(),
        settings: Settings::new(),
        rollout: Rollout::default(),
        aliases: BTreeMap::new(),
        problems,
    }
}

/// Adds a version as far as it has settled.
pub(crate) fn add_version(model: &mut ListedModel, version: VersionNumber, settled: Settled<Generation>, recheck: &mut Recheck) {
    let counts = match settled {
        Settled::Now(generation) => Some(generation),
        Settled::Not { before, again_after } => {
            model.unsettled.insert(version);
            model.problems.push(format!("version {version} waits until its files have settled"));
            recheck.after(again_after);
            before
        }
    };
    model.versions.extend(counts.map(|generation| (version, generation)));
}

/// The model with its settings. While these have not settled it is as it was listed, but for tombstones and what was decided: a new
/// version could be loaded by the wrong ones.
pub(crate) fn with_settings(
    mut model: ListedModel,
    settings: Settled<Settings>,
    listed: Option<&ListedModel>,
    recheck: &mut Recheck,
) -> ListedModel {
    match settings {
        Settled::Now(settings) => model.settings = Settings::clone(&settings),
        Settled::Not { before, again_after } => {
            recheck.after(again_after);
            model.problems.push("new settings wait until they have settled".to_owned());
            model.settings = before.map(|before| Settings::clone(&before)).unwrap_or_default();
            model.unsettled.extend(model.versions.keys());
            for (version, generation) in std::mem::take(&mut model.versions) {
                let before = listed.and_then(|listed| listed.versions.get(&version));
                if before.is_some_and(|before| before.digest == generation.digest) {
                    model.versions.insert(version, generation);
                } else {
                    model.versions.extend(before.map(|before| (version, Arc::clone(before))));
                }
            }
        }
    }
    model
}
