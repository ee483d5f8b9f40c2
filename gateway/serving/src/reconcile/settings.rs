//! A model's settings, read once for each content of its files. Settings that can't be read change nothing: the last good ones stay.

use std::collections::BTreeMap;
use std::sync::Arc;

use bascule_registry::{ListedModel, VersionNumber};

use crate::ModelSettings;
use crate::engine::SettingsReader;

/// Small files by name.
type Files = BTreeMap<String, Arc<[u8]>>;

/// Settings of a model and of its versions.
#[derive(Debug, Default)]
pub(super) struct SettingsCache {
    read: Option<Files>,
    /// The last files of which everything could be read.
    good: Files,
    /// Of the model as a whole; the defaults before the first good ones.
    model: Arc<ModelSettings>,
    error: Option<String>,
    versions: BTreeMap<VersionNumber, Entry>,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    /// The last that could be read.
    good: Option<Arc<ModelSettings>>,
    /// Why those that lie there now can't be.
    error: Option<String>,
    /// Read from the files as they are now.
    fresh: bool,
}

impl SettingsCache {
    /// Reads the settings again where the files have changed, and those of these versions where they are not read yet.
    pub(super) fn refresh<'a>(
        &mut self,
        listed: &ListedModel,
        versions: impl IntoIterator<Item = &'a VersionNumber>,
        read: &SettingsReader,
    ) {
        if self.read.as_ref() != Some(&listed.settings) {
            self.read = Some(listed.settings.clone());
            match read(listed, None) {
                Ok(settings) => (self.model, self.error) = (Arc::new(settings), None),
                Err(error) => {
                    tracing::warn!(model = %listed.name, %error, "settings can't be read, the last good ones stay");
                    self.error = Some(error.message);
                }
            }
            self.versions.values_mut().for_each(|entry| entry.fresh = false);
        }
        for version in versions {
            let entry = self.versions.entry(*version).or_default();
            if entry.fresh {
                continue;
            }
            entry.fresh = true;
            match read(listed, Some(*version)) {
                // A version keeps its settings' identity while they say the same.
                Ok(settings) if entry.good.as_deref() == Some(&settings) => entry.error = None,
                Ok(settings) => (entry.good, entry.error) = (Some(Arc::new(settings)), None),
                Err(error) => entry.error = Some(error.message),
            }
        }
        self.versions.retain(|version, _| listed.versions.contains_key(version));
        if self.error.is_none() && self.versions.values().all(|entry| entry.error.is_none()) {
            self.good.clone_from(&listed.settings);
        }
    }

    /// The last files of which everything could be read: what a restart should find.
    pub(super) fn good_files(&self) -> &BTreeMap<String, Arc<[u8]>> {
        &self.good
    }

    /// Of the model as a whole: version policy and rollout strategy.
    pub(super) fn model(&self) -> &ModelSettings {
        &self.model
    }

    /// Of a version; `None` where they could never be read.
    pub(super) fn version(&self, version: VersionNumber) -> Option<&Arc<ModelSettings>> {
        self.versions.get(&version)?.good.as_ref()
    }

    /// Why a version has no settings.
    pub(super) fn error(&self, version: VersionNumber) -> Option<&str> {
        let own = self.versions.get(&version).and_then(|entry| entry.error.as_deref());
        own.or(self.error.as_deref())
    }

    /// What can't be read, for people.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> + '_ {
        let versions = self.versions.iter().filter_map(|(version, entry)| Some((version, entry.error.as_deref()?)));
        // A model's error is that of each of its versions, too.
        let own = versions.filter(|(_, error)| Some(*error) != self.error.as_deref());
        let own = own.map(|(version, error)| format!("settings of version {version}: {error}"));
        self.error.iter().map(|error| format!("settings: {error}")).chain(own)
    }
}
