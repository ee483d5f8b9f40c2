//! `bascule check`: is the configuration right, and can what the repository holds be read?

use bascule_registry::{ListedModel, Listing};
use bascule_serving::SettingsReader;
use clap::Args;
use serde::Serialize;

use crate::compose;
use crate::config::env::Environment;
use crate::config::{Effective, Entry, help_of, schema, variable_of};

use super::args::ConfigArgs;
use super::failure::Failure;
use super::output::{note, print, print_json, rows, table};
use super::{Outcome, in_background, listing};

/// Check the configuration and the repository, and print every setting, its value and where it comes from.
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
#[derive(Debug, Serialize)]
struct Found {
    settings: Vec<Entry>,
    models: Vec<CheckedModel>,
    /// What keeps something from being served.
    problems: Vec<String>,
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
        let effective = self.config.load([], environment)?;
        let reader = compose::settings_reader(&effective.config, &compose::runtimes(&effective.config));
        in_background(async {
            let found = look(&effective, &reader).await;
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

async fn look(effective: &Effective, reader: &SettingsReader) -> Found {
    let mut found = Found {
        settings: effective.entries.clone(),
        models: Vec::new(),
        problems: Vec::new(),
        warnings: effective.warnings.clone(),
    };
    match listing::list(&effective.config).await {
        Ok(listing) => found.take(&listing, reader),
        Err(failure) => found.problems.push(failure.summary()),
    }
    found
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
