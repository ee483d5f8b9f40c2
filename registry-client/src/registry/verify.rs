//! Reading a registry again, every byte of it: is each version what its manifest says?

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{Error as StoreError, GetResultPayload, ObjectStoreExt as _};

use super::versions::with_causes;
use super::{Registry, RegistryError};
use crate::digest::{Digest, DigestBuilder};
use crate::listing::{Generation, Layout};
use crate::manifest::ManifestFile;
use crate::name::{ModelName, VersionNumber, quoted};
use crate::signing::{PublicKey, Trust};
use crate::source::Progress;

/// How many files are read at a time.
const READS: usize = 4;

/// What is to be read: the versions that exist, and what is wrong with others.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    versions: Vec<Arc<Generation>>,
    without_digests: Vec<ModelName>,
    findings: Vec<Finding>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The model.
    pub model: ModelName,
    /// The version, where it is one version's.
    pub version: Option<VersionNumber>,
    /// What is wrong, for people.
    pub problem: String,
}

/// What a verification read and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Versions that were looked at, tombstoned ones among them.
    pub versions: usize,
    /// Files that were read; one that several versions of a model share is read once.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Models in the plain layout: there is nothing that they could be compared with.
    pub without_digests: Vec<ModelName>,
    /// What could not be read, and is no single model's.
    pub problems: Vec<String>,
    /// What is wrong, by model and version.
    pub findings: Vec<Finding>,
}

impl Survey {
    /// The files to read, one for each content of a model.
    fn files(&self) -> BTreeMap<(ModelName, Digest), (&Generation, &ManifestFile)> {
        let files =
            self.versions.iter().flat_map(|generation| generation.manifest.files.iter().map(move |file| (generation, file)));
        let keyed = files
            .filter_map(|(generation, file)| Some(((generation.key.model.clone(), file.sha256?), (generation.as_ref(), file))));
        keyed.collect()
    }

    /// What is to be read.
    pub fn bytes(&self) -> u64 {
        self.files().values().fold(0, |sum, (_, file)| sum.saturating_add(file.bytes))
    }
}

impl Registry {
    /// The versions of a model, or of all: what [`Registry::verify`] reads.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`].
    pub async fn survey(&self, model: Option<&ModelName>) -> Result<Survey, RegistryError> {
        let models = match model {
            Some(model) => vec![model.clone()],
            None => self.models().await?,
        };
        let mut survey = Survey::default();
        for model in models {
            let Some(listed) = self.model(&model).await? else { continue };
            if listed.layout == Layout::Plain {
                survey.without_digests.push(model);
                continue;
            }
            let finding = |problem: &String| Finding { model: model.clone(), version: None, problem: problem.clone() };
            survey.findings.extend(listed.problems.iter().map(finding));
            survey.versions.extend(listed.versions.into_values());
        }
        Ok(survey)
    }

    /// Reads every file again and compares it with its manifest, and checks every signature that was read with the versions; with
    /// `trust`, also that each version that may be loaded is signed by a key of it. What can't be read is a finding.
    pub async fn verify(&self, survey: &Survey, trust: Option<&Trust>, progress: &dyn Progress) -> Verification {
        let mut findings = survey.findings.clone();
        for generation in &survey.versions {
            let problems = bad_signatures(generation).into_iter().chain(untrusted(generation, trust));
            findings.extend(problems.map(|problem| of(generation, problem)));
        }
        let files = survey.files();
        let reads = futures::stream::iter(files.values().copied()).map(|(generation, file)| async move {
            let problem = self.check_file(generation, file, progress).await?;
            let versions = survey.versions.iter().filter(|other| other.key.model == generation.key.model);
            let shared = versions.filter(|other| other.manifest.files.iter().any(|one| one.sha256 == file.sha256));
            Some(shared.map(|other| of(other, problem.clone())).collect::<Vec<_>>())
        });
        let damaged: Vec<_> = reads.buffer_unordered(READS).filter_map(std::future::ready).collect().await;
        findings.extend(damaged.into_iter().flatten());
        findings.sort_unstable();
        findings.dedup();
        let without_digests = survey.without_digests.clone();
        Verification {
            versions: survey.versions.len(),
            files: files.len(),
            bytes: survey.bytes(),
            without_digests,
            problems: Vec::new(),
            findings,
        }
    }

    /// What is wrong with a file, if anything.
    async fn check_file(&self, generation: &Generation, file: &ManifestFile, progress: &dyn Progress) -> Option<String> {
        let name = quoted(&file.path);
        let expected = file.sha256?;
        let shown = format!("{} {}", generation.key, file.path);
        let blob = self.blob_path(&generation.key.model, &expected);
        let hashed = match self.store.get(&blob).await {
            Ok(result) if result.meta.size != file.bytes => {
                return Some(format!("file {name} has {} bytes, its manifest says {}", result.meta.size, file.bytes));
            }
            Ok(result) => hash(result.payload, &shown, file.bytes, progress).await,
            Err(StoreError::NotFound { .. }) => return Some(format!("file {name} is missing ({blob})")),
            Err(error) => Err(error),
        };
        progress.advance(&shown, file.bytes, file.bytes);
        match hashed {
            Ok(actual) if actual == expected => None,
            Ok(actual) => Some(format!("file {name} is corrupt: its sha256 is {actual}, its manifest says {expected}")),
            Err(error) => Some(format!("file {name} can't be read: {}", with_causes(&error))),
        }
    }
}

async fn hash(payload: GetResultPayload, shown: &str, total: u64, progress: &dyn Progress) -> Result<Digest, StoreError> {
    let mut pieces = match payload {
        GetResultPayload::File(file, _) => {
            let hashed = tokio::task::spawn_blocking(move || crate::transfer::hash(file)).await?;
            return hashed
                .map(|(digest, _)| digest)
                .map_err(|error| StoreError::Generic { store: "directory", source: error.into() });
        }
        GetResultPayload::Stream(pieces) => pieces,
    };
    let (mut digest, mut done) = (DigestBuilder::default(), 0);
    while let Some(piece) = pieces.try_next().await? {
        digest.bytes(&piece);
        done += piece.len() as u64;
        progress.advance(shown, done.min(total), total);
    }
    Ok(digest.finish())
}

fn of(generation: &Generation, problem: String) -> Finding {
    Finding { model: generation.key.model.clone(), version: Some(generation.key.version), problem }
}

/// What is wrong with the signatures on a version, whoever made them.
pub fn bad_signatures(generation: &Generation) -> Vec<String> {
    let signed = generation.signed_digest();
    let judge = |signature: &crate::signing::ManifestSignature| match signature.key.parse::<PublicKey>() {
        Ok(key) if key.verifies(&signed, &signature.signature) => None,
        Ok(key) => Some(format!("its signature by {key} does not verify")),
        Err(_) => Some(format!("signature {} can't be read", quoted(&signature.key))),
    };
    generation.signatures.iter().filter_map(judge).collect()
}

fn untrusted(generation: &Generation, trust: Option<&Trust>) -> Option<String> {
    let why = trust.filter(|_| !generation.tombstoned)?.judge(generation).err()?;
    Some(format!("a gateway refuses it: {why}"))
}
