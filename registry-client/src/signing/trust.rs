//! Which keys are believed, and a source that lists only what they have signed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;

use super::PublicKey;
use crate::listing::{Cursor, Generation, Layout, ListedModel, Listing};
use crate::manifest::Manifest;
use crate::name::{ModelName, VersionNumber, quoted};
use crate::source::{FetchError, Fetched, Progress, SourceError, VersionSource};

/// The keys that are believed. With none, nothing is. They can be replaced while they are in use: what asks next goes by the new ones.
#[derive(Debug, Default)]
pub struct Trust {
    believed: RwLock<Believed>,
}

#[derive(Debug, Clone, Default)]
struct Believed {
    keys: Arc<[PublicKey]>,
    /// Why these are not the newest, where that is so.
    trouble: Option<Arc<str>>,
    /// Rises with each change of the above.
    edition: u64,
}

/// Why a version is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// Its layout has no signatures.
    #[error("it is in the {} layout, which can't be signed", .0.as_str())]
    Layout(Layout),
    /// Nobody has signed it.
    #[error("it is not signed")]
    Unsigned,
    /// Others have signed it.
    #[error("it is signed by {0} only, which `registry.trust` does not name")]
    Strangers(String),
    /// Its signature is not on this manifest.
    #[error("its signature by the trusted key {0} does not verify: the manifest or the signature was altered")]
    Altered(String),
    /// What is to be loaded is not what was signed.
    #[error("its manifest is not the one that is signed")]
    OtherManifest,
}

impl Untrusted {
    /// How the problem of a model begins that says why this version is left out.
    pub fn lead(version: VersionNumber) -> String {
        format!("version {version} is refused: ")
    }
}

impl Trust {
    /// Believes these keys.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        let believed = Believed { keys: keys.into_iter().collect(), ..Believed::default() };
        Self { believed: RwLock::new(believed) }
    }

    /// Believes these keys from now on, and no others; the ids of those that are believed no longer, and of those that are now.
    pub fn replace(&self, keys: impl IntoIterator<Item = PublicKey>) -> (Vec<String>, Vec<String>) {
        let keys: Arc<[PublicKey]> = keys.into_iter().collect();
        let mut believed = self.believed.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut believed.keys, Arc::clone(&keys));
        let lacking = |these: &[PublicKey], those: &[PublicKey]| -> Vec<String> {
            these.iter().filter(|key| !those.contains(key)).map(PublicKey::id).collect()
        };
        let (gone, new) = (lacking(&before, &keys), lacking(&keys, &before));
        let trouble = believed.trouble.take();
        believed.edition += u64::from(trouble.is_some() || !gone.is_empty() || !new.is_empty());
        (gone, new)
    }

    /// Says in each listing why the keys are not the newest, until they are replaced.
    pub fn note_trouble(&self, why: &str) {
        let mut believed = self.believed.write().unwrap_or_else(PoisonError::into_inner);
        believed.edition += u64::from(believed.trouble.as_deref() != Some(why));
        believed.trouble = Some(why.into());
    }

    fn believed(&self) -> Believed {
        self.believed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another number after each change.
    pub(crate) fn edition(&self) -> u64 {
        self.believed().edition
    }

    /// The ids of the keys.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.believed().keys.iter().map(PublicKey::id).collect()
    }

    /// Whether a trusted key has signed the manifest that this version is loaded by: its bytes are those that were signed, and say
    /// what the version says.
    ///
    /// # Errors
    /// Why not, as a clause with `it` for the version.
    pub fn judge(&self, generation: &Generation) -> Result<(), Untrusted> {
        if !matches!(generation.layout, Layout::Registry | Layout::Oci) {
            return Err(Untrusted::Layout(generation.layout));
        }
        self.judge_signatures(generation)?;
        let stored = generation.stored.as_deref().ok_or(Untrusted::OtherManifest)?;
        match Manifest::parse(stored.as_bytes()) {
            Ok((manifest, digest))
                if digest == generation.signed_digest() && manifest == *generation.manifest && manifest.key() == generation.key =>
            {
                Ok(())
            }
            _ => Err(Untrusted::OtherManifest),
        }
    }

    fn judge_signatures(&self, generation: &Generation) -> Result<(), Untrusted> {
        let (signed, mut altered, mut strangers) = (generation.signed_digest(), None, Vec::new());
        let keys = self.believed().keys;
        for signature in &generation.signatures {
            match keys.iter().find(|key| key.to_string() == signature.key) {
                Some(key) if key.verifies(&signed, &signature.signature) => return Ok(()),
                Some(key) => altered = Some(key.to_string()),
                None => strangers.push(stranger(&signature.key)),
            }
        }
        match altered {
            Some(key) => Err(Untrusted::Altered(key)),
            None if strangers.is_empty() => Err(Untrusted::Unsigned),
            None => Err(Untrusted::Strangers(strangers.join(", "))),
        }
    }

    /// The model without the versions that are not believed, which its problems name; `None` where all are. A tombstoned version stays:
    /// it is never loaded, and has to leave where it is.
    fn admit(&self, model: &ListedModel) -> Option<ListedModel> {
        let judged = model.versions.iter().filter(|(_, generation)| !generation.tombstoned);
        let refused: BTreeMap<_, _> =
            judged.filter_map(|(version, generation)| Some((*version, self.judge(generation).err()?))).collect();
        if refused.is_empty() {
            return None;
        }
        let mut admitted = model.clone();
        admitted.versions.retain(|version, _| !refused.contains_key(version));
        admitted.problems.extend(refused.iter().map(|(version, why)| Untrusted::lead(*version) + &why.to_string()));
        Some(admitted)
    }
}

/// A key for people: as it is written where it is a key, else quoted.
fn stranger(key: &str) -> String {
    key.parse::<PublicKey>().map_or_else(|_| format!("{} (no key)", quoted(key)), |key| key.to_string())
}

/// A source that lists, and brings, only what trusted keys have signed.
pub struct Trusted {
    source: Arc<dyn VersionSource>,
    trust: Arc<Trust>,
    judged: Mutex<Judged>,
}

/// The models as they were last listed: what has not changed is not judged again, unless other keys are trusted.
#[derive(Default)]
struct Judged {
    edition: u64,
    models: BTreeMap<ModelName, JudgedModel>,
}

/// A model with all of its versions, and with those that are believed.
struct JudgedModel {
    listed: Arc<ListedModel>,
    admitted: Arc<ListedModel>,
}

impl Trusted {
    /// Puts trust between a source and whoever asks it. The source has to read signatures, or all of it is refused.
    pub fn new(source: Arc<dyn VersionSource>, trust: Arc<Trust>) -> Self {
        let judged = Judged { edition: trust.edition(), ..Judged::default() };
        Self { source, trust, judged: Mutex::new(judged) }
    }

    fn judged(&self) -> MutexGuard<'_, Judged> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, listing: &mut Listing) {
        // The keys may be replaced meanwhile: then this is of the edition before, and judged again by the next look.
        let (edition, trouble) = (self.trust.edition(), self.trust.believed().trouble);
        let mut judged = self.judged();
        let mut before = std::mem::take(&mut judged.models);
        if judged.edition != edition {
            before.clear();
        }
        judged.edition = edition;
        for (name, model) in &mut listing.models {
            let known = before.get(name).filter(|known| Arc::ptr_eq(&known.listed, model) || known.listed == *model);
            let admitted = match known {
                Some(known) => Arc::clone(&known.admitted),
                None => self.trust.admit(model).map_or_else(|| Arc::clone(model), Arc::new),
            };
            judged.models.insert(name.clone(), JudgedModel { listed: Arc::clone(model), admitted: Arc::clone(&admitted) });
            *model = admitted;
        }
        listing.problems.extend(trouble.as_deref().map(str::to_owned));
    }
}

#[async_trait]
impl VersionSource for Trusted {
    fn describe(&self) -> String {
        self.source.describe()
    }

    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        // By other keys the same listing says something else.
        let since = since.filter(|_| self.judged().edition == self.trust.edition());
        let mut listing = self.source.list(since).await?;
        if let Some(listing) = &mut listing {
            self.admit(listing);
        }
        Ok(listing)
    }

    async fn fetch(&self, generation: &Generation, dest: &Path, progress: &dyn Progress) -> Result<Fetched, FetchError> {
        if let Err(why) = self.trust.judge(generation) {
            return Err(FetchError::Refused { what: generation.key.to_string(), source: Arc::new(why) });
        }
        self.source.fetch(generation, dest, progress).await
    }
}
