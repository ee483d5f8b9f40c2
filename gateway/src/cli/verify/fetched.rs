//! Verifying what has no manifests of Bascule's own: each version is fetched to a folder that goes away, as a gateway would.

use anyhow::Context as _;
use bascule_registry::{Finding, Generation, ModelName, Progress, Verification};

use crate::cli::failure::Failure;
use crate::cli::publish::progress::Bar;
use crate::cli::{listing, versions_of};
use crate::compose::Source;
use crate::config::Config;

pub(super) async fn verify(config: &Config, model: Option<&ModelName>) -> Result<Verification, Failure> {
    let listing = match model {
        Some(model) => vec![versions_of::listed(config, model).await?],
        None => listing::list(config).await?.models.into_values().collect(),
    };
    let mut read = Verification::default();
    for model in &listing {
        let finding = |problem: &String| Finding { model: model.name.clone(), version: None, problem: problem.clone() };
        read.findings.extend(model.problems.iter().map(finding));
    }
    let versions = listing.iter().flat_map(|model| model.versions.values());
    let known = |generation: &Generation| generation.manifest.files.iter().all(|file| file.sha256.is_some());
    let (verified, others): (Vec<_>, Vec<_>) = versions.partition(|generation| known(generation));
    read.without_digests = others.iter().map(|generation| generation.key.model.clone()).collect();
    read.without_digests.dedup();
    let bar = Bar::new(verified.iter().map(|generation| generation.bytes).sum());
    let source = Source::open(config)?.versions();
    for generation in verified {
        let folder = tempfile::tempdir().context("can't make a folder to fetch to")?;
        let of = Of { generation, bar: &bar };
        match source.fetch(generation, folder.path(), &of).await {
            Ok(fetched) => {
                read.files += fetched.files.len();
                read.bytes += fetched.files.iter().map(|file| file.bytes).sum::<u64>();
            }
            Err(error) => {
                let problem = format!("{:#}", anyhow::Error::new(error));
                read.findings.push(Finding { model: generation.key.model.clone(), version: Some(generation.key.version), problem });
            }
        }
        read.versions += 1;
    }
    bar.finish();
    Ok(read)
}

/// A version's files, told apart from those of others by its name.
struct Of<'a> {
    generation: &'a Generation,
    bar: &'a Bar,
}

impl Progress for Of<'_> {
    fn advance(&self, file: &str, done: u64, total: u64) {
        self.bar.advance(&format!("{} {file}", self.generation.key), done, total);
    }
}
