//! The settings of a model out of the files beside it: `config.pbtxt`, and over it, key by key, `model.toml`.

use std::sync::Arc;

use bascule_registry::{ListedModel, VersionNumber};
use bascule_serving::{ModelSettings, SettingsError, SettingsReader};

use super::{model_toml, triton};

/// The most sessions of one version: more than any machine has use for, so it is a slip.
const MAX_INSTANCES: u32 = 1024;
/// The most priorities: each has a queue.
const MAX_PRIORITY_LEVELS: u32 = 64;
/// The most requests that may wait for one version.
const MAX_QUEUE_CAPACITY: usize = 1 << 20;

/// Threads of an operator, where the runtime's shared ones are meant.
const SHARED_THREADS: usize = 0;

/// Formats whose files hold no signature.
const WITHOUT_SIGNATURE: [&str; 1] = ["torchscript"];

/// What the engine reads settings with. `backends` are the names that a `config.pbtxt` may give in `backend`.
/// `shared_threads` says whether there are threads that sessions share: a model that says nothing of its own threads runs on them.
pub fn reader(backends: Vec<&'static str>, shared_threads: bool) -> SettingsReader {
    let defaults = defaults(shared_threads);
    Arc::new(move |listed, version| read(listed, version, &backends, &defaults))
}

fn defaults(shared_threads: bool) -> ModelSettings {
    let own = ModelSettings::default();
    ModelSettings { intra_op_threads: if shared_threads { SHARED_THREADS } else { own.intra_op_threads }, ..own }
}

/// Reads the settings of a model, or of one version of it.
///
/// # Errors
/// Every problem of both files.
fn read(
    listed: &ListedModel,
    version: Option<VersionNumber>,
    backends: &[&str],
    defaults: &ModelSettings,
) -> Result<ModelSettings, SettingsError> {
    let mut problems = Vec::new();
    let pbtxt = text(listed, triton::FILE, &mut problems);
    let toml = text(listed, model_toml::FILE, &mut problems);
    let mut settings = defaults.clone();
    let toml = toml.map(model_toml::parse);
    if let Some(text) = pbtxt {
        let given = triton::Circumstances {
            name: listed.name.as_str(),
            backends,
            files: &listed.settings,
            stateless: toml.as_ref().is_some_and(|file| file.stateless),
        };
        let reading = triton::read(text, &given, settings);
        settings = reading.settings;
        problems.extend(reading.problems);
    }
    if let Some(mut file) = toml {
        problems.append(&mut file.problems);
        file.apply(&mut settings, version, leaves_signature_open(listed, version));
        if pbtxt.is_some() {
            let both = format!("{} and {} are both there: what {0} says wins", model_toml::FILE, triton::FILE);
            settings.warnings.push(both);
        }
    }
    read_labels(listed, &mut settings);
    check_together(&settings, &mut problems);
    warn_together(&mut settings);
    if problems.is_empty() { Ok(settings) } else { Err(SettingsError { message: problems.join("; ") }) }
}

fn text<'a>(listed: &'a ListedModel, file: &str, problems: &mut Vec<String>) -> Option<&'a str> {
    let text = std::str::from_utf8(listed.settings.get(file)?);
    text.map_err(|error| problems.push(format!("{file}: is not UTF-8: {error}"))).ok()
}

/// Whether the version's format (that of any version, where none is asked for) holds no signature of its own.
fn leaves_signature_open(listed: &ListedModel, version: Option<VersionNumber>) -> bool {
    let generation = match version {
        Some(version) => listed.versions.get(&version),
        None => listed.versions.values().next_back(),
    };
    generation.is_some_and(|generation| WITHOUT_SIGNATURE.contains(&generation.manifest.format.as_str()))
}

/// One label a line. Labels only name what a model answers: one that can't be read is no reason not to serve it.
fn read_labels(listed: &ListedModel, settings: &mut ModelSettings) {
    let warnings = &mut settings.warnings;
    for (output, file) in &settings.label_filenames {
        match listed.settings.get(file).map(|content| std::str::from_utf8(content)) {
            Some(Ok(text)) => {
                settings.labels.insert(output.clone(), text.lines().map(|label| label.trim_end().to_owned()).collect());
            }
            Some(Err(error)) => warnings.push(format!("label file {file:?} of output '{output}' is not UTF-8: {error}")),
            None => warnings.push(format!("label file {file:?} of output '{output}' is not beside the model, or too large")),
        }
    }
}

/// Limits, and settings that don't go together, whichever file they come from.
fn check_together(settings: &ModelSettings, problems: &mut Vec<String>) {
    let mut expect = |holds: bool, problem: &dyn Fn() -> String| {
        if !holds {
            problems.push(problem());
        }
    };
    let ModelSettings { instances, priority_levels, default_priority, queue_capacity, .. } = *settings;
    expect((1..=MAX_INSTANCES).contains(&instances), &|| format!("instances: expected 1 to {MAX_INSTANCES}, got {instances}"));
    expect(priority_levels <= MAX_PRIORITY_LEVELS, &|| {
        format!("priority_levels: expected at most {MAX_PRIORITY_LEVELS}, got {priority_levels}")
    });
    expect((1..=priority_levels.max(1)).contains(&default_priority), &|| {
        format!("default_priority: expected 1 to {}, got {default_priority}", priority_levels.max(1))
    });
    expect((1..=MAX_QUEUE_CAPACITY).contains(&queue_capacity), &|| {
        format!("queue_capacity: expected 1 to {MAX_QUEUE_CAPACITY}, got {queue_capacity}")
    });
    for size in &settings.preferred_batch_sizes {
        let limit = settings.max_batch_size.unwrap_or(u32::MAX);
        expect((1..=limit).contains(size), &|| format!("preferred_batch_sizes: expected 1 to max_batch_size, got {size}"));
    }
}

/// Settings that have no effect because of others.
fn warn_together(settings: &mut ModelSettings) {
    let because = match (settings.dynamic_batching, settings.max_batch_size) {
        (_, Some(0)) => "max_batch_size is 0",
        (false, _) => "requests are not joined",
        _ => return,
    };
    let waits = [
        ("max_queue_delay", !settings.max_queue_delay.is_zero()),
        ("preferred_batch_sizes", !settings.preferred_batch_sizes.is_empty()),
    ];
    settings.warnings.extend(waits.iter().filter(|(_, set)| *set).map(|(name, _)| format!("{name} has no effect: {because}")));
}

#[cfg(test)]
mod tests;
