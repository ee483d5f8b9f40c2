//! `bascule check`: is the configuration right, and can what the repository holds be read?

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bascule_registry::{Generation, ListedModel, Listing, NoProgress, VersionSource};
use bascule_runtime_api::Runtime;
use bascule_serving::{ModelSettings, SettingsReader, TrialJob, try_load};
use clap::Args;
use serde::Serialize;

use crate::compose::{self, Libraries, Source};
use crate::config::env::Environment;
use crate::config::{Config, Effective, Entry, TrialMode, help_of, schema, variable_of};
use crate::trial;

use super::args::ConfigArgs;
use super::failure::Failure;
use super::output::{note, print, print_json, rows, table};
use super::trial::limits;
use super::{Outcome, in_background, listing, threads};

/// Check the configuration and the repository, and print every setting, its value and where it comes from.
///
/// Every version is fetched and tried, one after the other, as `bascule trial` does it, so this takes as long as that does.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule check --config bascule.toml --registry ./models")]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the JSON schema of the configuration file, for editors, and check nothing.
    #[arg(long)]
    schema: bool,
    /// Describe each setting and name its variable.
    #[arg(long)]
    describe: bool,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Found {
    settings: Vec<Entry>,
    models: Vec<CheckedModel>,
    /// What keeps something from being served.
    pub(super) problems: Vec<String>,
    /// What has no effect, or may be a slip.
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct CheckedModel {
    name: String,
    versions: Vec<u64>,
}

impl Check {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        if self.schema {
            return print_json(&schema());
        }
        let effective = match self.config.read([], environment) {
            Ok(effective) => effective,
            Err(error) => {
                let found = Found { settings: error.entries.clone(), ..Found::default() };
                if self.json {
                    print_json(&found)?
                } else {
                    self.print(&found)?
                }
                return Err(error.into());
            }
        };
        let runtimes = compose::runtimes(&effective.config);
        in_background(async {
            let found = look(&effective, &runtimes).await;
            if self.json {
                print_json(&found)?;
            } else {
                self.print(&found)?;
            }
            if found.problems.is_empty() {
                return Ok(());
            }
            Err(Failure::several(found.problems))
        })
    }

    fn print(&self, found: &Found) -> Outcome {
        if self.describe {
            let mut settings = table(["SETTING", "VALUE", "FROM", "VARIABLE", "MEANING"]);
            for entry in &found.settings {
                let row = [
                    entry.name,
                    shown(entry),
                    &entry.origin.to_string(),
                    &variable_of(entry.name),
                    help_of(entry.name).unwrap_or(""),
                ];
                settings.add_row(row);
            }
            print(&rows(&settings))?;
        } else {
            let mut settings = table(["SETTING", "VALUE", "FROM"]);
            for entry in &found.settings {
                settings.add_row([entry.name, shown(entry), &entry.origin.to_string()]);
            }
            print(&rows(&settings))?;
        }
        for model in &found.models {
            let versions: Vec<String> = model.versions.iter().map(ToString::to_string).collect();
            print(&format!(
                "model {}: version {}",
                model.name,
                if versions.is_empty() { "none".to_owned() } else { versions.join(", ") }
            ))?;
        }
        for warning in &found.warnings {
            note(format!("warning: {warning}"));
        }
        Ok(())
    }
}

fn shown(entry: &Entry) -> &str {
    if entry.value.is_empty() { "(unset)" } else { &entry.value }
}

pub(super) async fn look(effective: &Effective, runtimes: &[Arc<dyn Runtime>]) -> Found {
    let reader = compose::settings_reader(&effective.config, runtimes);
    let mut found = Found { settings: effective.entries.clone(), warnings: effective.warnings.clone(), ..Found::default() };
    found.problems.extend(check_journal(&effective.config).await.err());
    match listing::list(&effective.config).await {
        Ok(listing) => {
            found.take(&listing, &reader);
            let is_used = |format: &str| exists(&listing, format);
            found.warnings.extend(compose::idle_budget(&effective.config, compose::gpus().as_ref()));
            found.warnings.extend(threads::too_many(&effective.config, is_used, threads::processors()));
            found.try_versions(effective, &listing, &reader, runtimes).await;
        }
        Err(failure) => found.problems.push(failure.summary()),
    }
    found
}

/// Whether what replicas share can hold their journals: it is asked, and written to.
async fn check_journal(config: &Config) -> Result<(), String> {
    let opened = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || compose::shared_journal(&config, None)).await
    };
    match opened.map_err(anyhow::Error::new).and_then(|opened| opened) {
        Ok(None) => Ok(()),
        Ok(Some(journal)) => journal.check().await.map_err(|error| format!("{:#}", anyhow::Error::new(error))),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Where versions are loaded to check them.
struct Loading<'a> {
    runtimes: &'a [Arc<dyn Runtime>],
    /// In processes of their own; in this one where there are no trials.
    apart: Option<&'a Config>,
}

impl Loading<'_> {
    fn try_out(&self, generation: &Arc<Generation>, settings: ModelSettings, dir: &Path) -> Result<(), String> {
        let Some(config) = self.apart else {
            return try_load(self.runtimes, generation, &settings, dir, compose::gpus().as_ref());
        };
        let job = TrialJob::new(Arc::clone(generation), Arc::new(settings), dir);
        let tried = trial::try_once(&job, &Libraries::of(config), limits(config, self.runtimes, &job));
        tried.map(drop).map_err(|failure| format!("{}: {}", failure.step, failure.cause))
    }
}

/// Whether a version has this format.
fn exists(listing: &Listing, format: &str) -> bool {
    listing.models.values().flat_map(|model| model.versions.values()).any(|one| one.manifest.format == format)
}

async fn try_version(
    source: &dyn VersionSource,
    generation: &Arc<Generation>,
    settings: ModelSettings,
    loading: Option<&Loading<'_>>,
) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| format!("a temporary folder can't be made: {error}"))?;
    source.fetch(generation, dir.path(), &NoProgress).await.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    loading.map_or(Ok(()), |loading| loading.try_out(generation, settings, dir.path()))
}

impl Found {
    fn take(&mut self, listing: &Listing, reader: &SettingsReader) {
        self.problems.extend(listing.problems.iter().cloned());
        for (name, model) in &listing.models {
            self.models.push(CheckedModel { name: name.to_string(), versions: model.versions.keys().copied().collect() });
            self.problems.extend(model.problems.iter().map(|problem| format!("{name}: {problem}")));
            self.take_settings(model, reader);
        }
        if listing.models.is_empty() {
            self.warnings.push("the registry holds no models".to_owned());
        }
    }

    /// Fetches and tries each version, as a gateway would: what is missing, damaged, or contradicts itself is found here.
    async fn try_versions(
        &mut self,
        effective: &Effective,
        listing: &Listing,
        reader: &SettingsReader,
        runtimes: &[Arc<dyn Runtime>],
    ) {
        // Without its library nothing can be said of a runtime's models; that is said once.
        let broken = |runtime: &&Arc<dyn Runtime>| runtime.version().err().map(|error| (runtime.format(), error.to_string()));
        let unavailable: BTreeMap<&str, String> = runtimes.iter().collect::<Vec<_>>().iter().filter_map(broken).collect();
        for (format, why) in unavailable.iter().filter(|(format, _)| exists(listing, format)) {
            self.warnings.push(format!("versions of the format {format} are not loaded to check them: {why}"));
        }
        let source = match Source::open(&effective.config) {
            Ok(source) => source.versions(),
            Err(error) => return self.problems.push(format!("{error:#}")),
        };
        let apart = match effective.config.trial.mode {
            TrialMode::Process => Some(&effective.config),
            TrialMode::Off => None,
        };
        let loading = Loading { runtimes, apart };
        let versions =
            listing.models.values().flat_map(|model| model.versions.iter().map(move |(number, one)| (model, *number, one)));
        for (model, number, generation) in versions.filter(|(_, _, generation)| !generation.tombstoned) {
            let Ok(settings) = reader(model, Some(number)) else { continue };
            let loadable = !unavailable.contains_key(generation.manifest.format.as_str());
            if let Err(why) = try_version(source.as_ref(), generation, settings, loadable.then_some(&loading)).await {
                self.problems.push(format!("{}: {why}", generation.key));
            }
        }
    }

    /// The model's own settings and those of each version; what several say is said once.
    fn take_settings(&mut self, model: &ListedModel, reader: &SettingsReader) {
        let versions = std::iter::once(None).chain(model.versions.keys().map(|version| Some(*version)));
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        for version in versions {
            match reader(model, version) {
                Ok(settings) => warnings.extend(settings.warnings),
                Err(error) => problems.push(error.to_string()),
            }
        }
        for (said, all) in [(problems, &mut self.problems), (warnings, &mut self.warnings)] {
            for text in said {
                let text = format!("{}: {text}", model.name);
                if !all.contains(&text) {
                    all.push(text);
                }
            }
        }
    }
}
