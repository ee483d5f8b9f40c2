//! Verifying what has no manifests of Bascule's own: each version is fetched to a folder that goes away, as a gateway would.

use anyhow::Context as _;
use bascule_registry::{Finding, Generation, ModelName, Progress, Verification, bad_signatures};

use crate::cli::failure::Failure;
use crate::cli::publish::progress::Bar;
use crate::cli::{listing, versions_of};
use crate::compose::Source;
use crate::config::Config;

pub(super) async fn verify(config: &Config, model: Option<&ModelName>) -> Result<Verification, Failure> {
    let source = Source::open(config)?.versions();
    let mut listing = listing::of(source.as_ref()).await?;
    if let Some(model) = model {
        let wanted = listing.models.remove(model).ok_or_else(|| versions_of::is_not_in(model, &source.describe()))?;
        listing.models = [(model.clone(), wanted)].into();
    }
    let mut read = Verification { problems: listing.problems, ..Verification::default() };
    if !listing.complete && read.problems.is_empty() {
        read.problems.push("not all of the registry could be read".into());
    }
    let listing: Vec<_> = listing.models.into_values().collect();
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
    for generation in verified {
        let of_version = |problem| Finding { model: generation.key.model.clone(), version: Some(generation.key.version), problem };
        read.findings.extend(bad_signatures(generation).into_iter().map(of_version));
        let folder = tempfile::tempdir().context("can't make a folder to fetch to")?;
        let of = Of { generation, bar: &bar };
        match source.fetch(generation, folder.path(), &of).await {
            Ok(fetched) => {
                read.files += fetched.files.len();
                read.bytes += fetched.files.iter().map(|file| file.bytes).sum::<u64>();
            }
            Err(error) => {
                read.findings.push(of_version(format!("{:#}", anyhow::Error::new(error))));
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
