//! The demo's stage: a copy of the sample repository without its highest version, and that version's files beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use bascule_registry::{Manifest, check_version};
use serde::Deserialize;

/// What the demo plays on.
pub(super) struct Stage {
    pub(super) registry: PathBuf,
    pub(super) state: PathBuf,
    pub(super) config: PathBuf,
    /// The version that is served first.
    pub(super) first: Manifest,
    /// The version that is published in the middle.
    pub(super) second: Manifest,
    /// Its files, as a training job leaves them.
    pub(super) second_files: PathBuf,
    pub(super) tests: Arc<TestSet>,
}

/// Pictures that no version was trained on.
#[derive(Debug, Deserialize)]
pub(super) struct TestSet {
    pub(super) model: String,
    pub(super) samples: Vec<Sample>,
}

/// One picture and what it shows.
#[derive(Debug, Deserialize)]
pub(super) struct Sample {
    pub(super) digit: i64,
    pub(super) image: Vec<f32>,
}

impl Stage {
    /// Copies what is needed of `models` to `scratch`.
    pub(super) fn set(models: &Path, scratch: &Path) -> Result<Stage> {
        let tests = read(&models.join("testset/digits.json"))
            .with_context(|| format!("{} is not the sample repository", models.display()))?;
        let tests: TestSet = serde_json::from_slice(&tests).context("the test set can't be read")?;
        if tests.samples.is_empty() {
            bail!("the test set is empty");
        }
        let from = models.join(&tests.model);
        let mut versions = versions(&from)?;
        let (second, first) = (versions.pop(), versions.pop());
        let (first, second) = first.zip(second).ok_or_else(|| anyhow!("{} needs two versions", from.display()))?;
        let stage = Stage {
            registry: scratch.join("registry"),
            state: scratch.join("state"),
            config: scratch.join("bascule.toml"),
            second_files: scratch.join("next"),
            first,
            second,
            tests: Arc::new(tests),
        };
        stage.fill(&from)?;
        Ok(stage)
    }

    /// Version 1 as it is in the repository; version 2 as files with names.
    fn fill(&self, from: &Path) -> Result<()> {
        let to = self.registry.join(self.first.model.as_str());
        let manifest = PathBuf::from("versions").join(self.first.version.to_string()).join("manifest.json");
        copy(&from.join(&manifest), &to.join(&manifest))?;
        if from.join("model.toml").is_file() {
            copy(&from.join("model.toml"), &to.join("model.toml"))?;
        }
        for (blob, _) in blobs(&self.first)? {
            copy(&from.join(&blob), &to.join(&blob))?;
        }
        for (blob, path) in blobs(&self.second)? {
            copy(&from.join(&blob), &self.second_files.join(path))?;
        }
        Ok(())
    }
}

/// Every manifest, by version.
fn versions(model: &Path) -> Result<Vec<Manifest>> {
    let folder = model.join("versions");
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))? {
        let path = entry?.path().join("manifest.json");
        let (manifest, _) = Manifest::parse(&read(&path)?).with_context(|| format!("{} can't be used", path.display()))?;
        check_version(manifest.version)?;
        found.push(manifest);
    }
    found.sort_by_key(|manifest| manifest.version);
    Ok(found)
}

/// Blob and path of each file of a version. A parsed manifest has only paths that stay inside, and digests of all.
fn blobs(manifest: &Manifest) -> Result<Vec<(PathBuf, &str)>> {
    let blob = |file: &'_ bascule_registry::ManifestFile| {
        let digest = file.sha256.as_ref().ok_or_else(|| anyhow!("{} has no digest", file.path))?;
        anyhow::Ok(PathBuf::from("blobs").join(digest.to_string()))
    };
    manifest.files.iter().map(|file| Ok((blob(file)?, file.path.as_str()))).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("can't read {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
    fs::copy(from, to).with_context(|| format!("can't copy {}", from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_repository_is_staged_without_its_highest_version() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
        let scratch = tempfile::tempdir().unwrap();
        let stage = Stage::set(&models, scratch.path()).unwrap();
        assert_eq!((stage.first.version, stage.second.version), (1, 2));
        assert!(!stage.registry.join("digits/versions/2").exists());
        assert!(stage.second_files.join(&stage.second.entrypoint).is_file());
        assert!(stage.tests.samples.iter().all(|sample| sample.image.len() == 64));
        assert!(Stage::set(scratch.path(), scratch.path()).is_err());
    }
}
