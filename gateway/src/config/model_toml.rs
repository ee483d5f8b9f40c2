//! `model.toml`: the settings of a model, beside it, and of single versions.
//!
//! Reading and applying are apart, because a key that the file does not name keeps what `config.pbtxt` or the default says.

use std::collections::BTreeMap;
use std::time::Duration;

use bascule_registry::{VersionNumber, check_file_path, parse_version};
use bascule_runtime_api::{DataType, Signature, TensorSpec};
use bascule_serving::{Devices, Inline, ModelSettings, RolloutStrategy, VersionPolicy, WarmupInput, WarmupSample};

use super::fields::Fields;
use super::raw::{Raw, Table, parse_toml};
use super::value::{Value, words};
use super::warmup::{self, Fill};

/// The file's name.
pub(crate) const FILE: &str = "model.toml";

/// Sections that are known and have no effect yet.
const LATER: [&str; 2] = ["route", "placement"];

/// A file that was read.
#[derive(Debug, Default)]
pub(crate) struct ModelToml {
    model: Overrides,
    versions: BTreeMap<VersionNumber, Overrides>,
    /// The model keeps nothing between requests, whatever `config.pbtxt` says of sequences.
    pub(crate) stateless: bool,
    /// What is wrong, each with its line.
    pub(crate) problems: Vec<String>,
    /// What has no effect.
    pub(crate) warnings: Vec<String>,
}

/// What a section says; nothing where it is silent.
#[derive(Debug, Default)]
struct Overrides {
    max_batch_size: Option<u32>,
    max_queue_delay: Option<Duration>,
    preferred_batch_sizes: Option<Vec<u32>>,
    dynamic_batching: Option<bool>,
    instances: Option<u32>,
    priority_levels: Option<u32>,
    default_priority: Option<u32>,
    queue_capacity: Option<u32>,
    queue_timeout: Option<Option<Duration>>,
    devices: Option<Devices>,
    intra_op_threads: Option<u32>,
    inline: Option<Inline>,
    version_policy: Option<VersionPolicy>,
    rollout: Option<RolloutStrategy>,
    warmup: Option<Vec<WarmupSample>>,
    signature: Option<Signature>,
    entrypoint: Option<String>,
    labels: BTreeMap<String, String>,
    runtime: BTreeMap<String, String>,
    parameters: BTreeMap<String, String>,
}

words!(Inline, "auto" => Inline::Auto, "always" => Inline::Always, "never" => Inline::Never);
words!(RolloutStrategy, "immediate" => RolloutStrategy::Immediate, "manual" => RolloutStrategy::Manual);
words!(Fill, "zero" => Fill::Zero, "random" => Fill::Random);

/// The signature that a file declares, where it declares one.
///
/// # Errors
/// Every problem of the file.
pub fn declared_signature(text: &str) -> Result<Option<Signature>, String> {
    let mut file = parse(text);
    if !file.problems.is_empty() {
        return Err(std::mem::take(&mut file.problems).join("; "));
    }
    let mut settings = ModelSettings::default();
    file.apply(&mut settings, None, true);
    Ok(settings.declared)
}

/// Reads the text; what is wrong is in the result.
pub(crate) fn parse(text: &str) -> ModelToml {
    let mut file = ModelToml::default();
    let (mut table, errors) = parse_toml(text);
    file.problems.extend(errors.iter().map(|error| format!("{FILE}:{}: {}", error.line, error.message)));
    for name in LATER {
        if table.remove(name).is_some() {
            file.warnings.push(format!("{FILE}: [{name}] has no effect in this release"));
        }
    }
    let mut fields = Fields::new(FILE, "", table, &mut file.problems);
    let versions = fields.tables("version");
    let rollout = fields.table("rollout");
    let version_policy = fields.take_with("version_policy", version_policy);
    let stateless = fields.take("stateless").unwrap_or(false);
    let mut model = Overrides::take(&mut fields);
    fields.refuse_rest();
    file.stateless = stateless;
    if let Some(table) = rollout {
        let mut fields = Fields::new(FILE, "rollout.", table, &mut file.problems);
        model.rollout = fields.take("strategy");
        fields.refuse_rest();
    }
    file.model = Overrides { version_policy, ..model };
    for (number, line, table) in versions {
        match parse_version(&number) {
            Ok(version) => {
                let mut fields = Fields::new(FILE, &format!("version.{number}."), table, &mut file.problems);
                let overrides = Overrides::take(&mut fields);
                fields.refuse_rest();
                file.versions.insert(version, overrides);
            }
            Err(error) => file.problems.push(format!("{FILE}:{line}: [version.{number:?}]: {error}")),
        }
    }
    file
}

impl Overrides {
    fn take(fields: &mut Fields<'_>) -> Overrides {
        Overrides {
            max_batch_size: fields.take("max_batch_size"),
            max_queue_delay: fields.take("max_queue_delay"),
            preferred_batch_sizes: fields.take("preferred_batch_sizes"),
            dynamic_batching: fields.take("dynamic_batching"),
            instances: fields.take("instances"),
            priority_levels: fields.take("priority_levels"),
            default_priority: fields.take("default_priority"),
            queue_capacity: fields.take("queue_capacity"),
            queue_timeout: fields.take("queue_timeout"),
            devices: fields.take("device"),
            intra_op_threads: fields.take("intra_op_threads"),
            inline: fields.take("inline"),
            version_policy: None,
            rollout: None,
            warmup: warmup_samples(fields),
            signature: fields.table("signature").map(|table| signature(fields, table)),
            entrypoint: fields.take_with("entrypoint", |raw| {
                let path = String::read(raw)?;
                check_file_path(&path).map_err(|error| error.to_string())?;
                Ok(path)
            }),
            labels: fields.texts("labels"),
            runtime: fields.texts("runtime"),
            parameters: fields.texts("parameters"),
        }
    }

    fn apply(self, settings: &mut ModelSettings, signature_counts: bool) {
        fn set<T>(target: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *target = value;
            }
        }
        // Whoever says how long to wait for others wants requests to be joined, whatever `config.pbtxt` leaves out.
        let joins = self.max_queue_delay.is_some_and(|delay| !delay.is_zero())
            || self.preferred_batch_sizes.as_ref().is_some_and(|sizes| !sizes.is_empty());
        settings.dynamic_batching |= joins;
        set(&mut settings.max_batch_size, self.max_batch_size.map(Some));
        set(&mut settings.max_queue_delay, self.max_queue_delay);
        set(&mut settings.preferred_batch_sizes, self.preferred_batch_sizes);
        set(&mut settings.dynamic_batching, self.dynamic_batching);
        set(&mut settings.instances, self.instances);
        set(&mut settings.priority_levels, self.priority_levels);
        set(&mut settings.default_priority, self.default_priority);
        set(&mut settings.queue_capacity, self.queue_capacity.and_then(|capacity| usize::try_from(capacity).ok()));
        set(&mut settings.queue_timeout, self.queue_timeout);
        set(&mut settings.devices, self.devices);
        set(&mut settings.intra_op_threads, self.intra_op_threads.and_then(|threads| usize::try_from(threads).ok()));
        set(&mut settings.inline, self.inline);
        set(&mut settings.version_policy, self.version_policy);
        set(&mut settings.rollout, self.rollout);
        set(&mut settings.warmup, self.warmup);
        set(&mut settings.entrypoint, self.entrypoint.map(Some));
        if self.signature.is_some() && !signature_counts {
            settings.warnings.push(format!("{FILE}: [signature] has no effect: the model file has its own"));
        } else {
            set(&mut settings.declared, self.signature.map(Some));
        }
        settings.label_filenames.extend(self.labels);
        settings.runtime_options.extend(self.runtime);
        settings.parameters.extend(self.parameters);
    }
}

impl ModelToml {
    /// Puts the file over what is known so far: its model-wide part, then that of the version. `signature_counts` says whether the
    /// version's format leaves the signature to the settings.
    pub(crate) fn apply(mut self, settings: &mut ModelSettings, version: Option<VersionNumber>, signature_counts: bool) {
        settings.warnings.append(&mut self.warnings);
        self.model.apply(settings, signature_counts);
        if let Some(overrides) = version.and_then(|version| self.versions.remove(&version)) {
            overrides.apply(settings, signature_counts);
        }
    }
}

/// `"all"`, `"latest"`, `{ latest = 2 }` or `{ specific = [1, 3] }`.
fn version_policy(raw: &Raw) -> Result<VersionPolicy, String> {
    let wrong = || format!("expected \"all\", \"latest\", {{ latest = 2 }} or {{ specific = [1, 3] }}, got {raw}");
    match raw {
        Raw::Text(text) if text == "all" => Ok(VersionPolicy::All),
        Raw::Text(text) if text == "latest" => Ok(VersionPolicy::Latest(1)),
        Raw::Table(table) if table.len() == 1 => match table.iter().next().map(|(name, value)| (name.as_str(), &value.raw)) {
            Some(("latest", raw)) => match u32::read(raw)? {
                0 => Err("expected 1 version or more for `latest`, got 0".to_owned()),
                number => Ok(VersionPolicy::Latest(number)),
            },
            Some(("specific", Raw::List(items))) if !items.is_empty() => {
                let number = |raw: &Raw| match raw {
                    Raw::Integer(number) => {
                        warmup::version(*number).ok_or_else(|| format!("expected a version from 1, got {number}"))
                    }
                    other => Err(format!("expected a version from 1, got {other}")),
                };
                items.iter().map(|item| number(&item.raw)).collect::<Result<_, _>>().map(VersionPolicy::Specific)
            }
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

fn warmup_samples(fields: &mut Fields<'_>) -> Option<Vec<WarmupSample>> {
    let samples = fields.list_of_tables("warmup")?;
    let mut made = Vec::new();
    for (at, table) in samples.into_iter().enumerate() {
        let mut sample = fields.inner(&format!("warmup[{at}]"), table);
        let name = sample.take("name").unwrap_or_else(|| format!("warmup {}", at + 1));
        let count = sample.take("count").unwrap_or(1);
        let inputs = sample.tables("inputs");
        let inputs = inputs
            .into_iter()
            .filter_map(|(name, line, table)| warmup_input(&name, &mut sample.inner(&format!("inputs.{name}"), table), line));
        let inputs = inputs.collect();
        sample.refuse_rest();
        made.push(WarmupSample { name, inputs, count });
    }
    Some(made)
}

fn warmup_input(name: &str, fields: &mut Fields<'_>, line: usize) -> Option<WarmupInput> {
    let (datatype, shape) = datatype_and_shape(fields, line)?;
    let content = fields.take("fill").unwrap_or(Fill::Zero);
    fields.refuse_rest();
    match warmup::input(name, datatype, shape, content.into()) {
        Ok(input) => Some(input),
        Err(problem) => {
            fields.refuse("shape", line, problem);
            None
        }
    }
}

fn datatype_and_shape(fields: &mut Fields<'_>, line: usize) -> Option<(DataType, Vec<i64>)> {
    let datatype = fields.need("datatype", line);
    let shape = fields.need("shape", line);
    Some((datatype?, shape?))
}

fn signature(fields: &mut Fields<'_>, table: Table) -> Signature {
    let mut fields = fields.inner("signature", table);
    let mut side = |name: &str| -> Vec<TensorSpec> {
        let tables = fields.list_of_tables(name).unwrap_or_default();
        let specs = tables.into_iter().enumerate().filter_map(|(at, table)| {
            let line = table.values().map(|value| value.line).min().unwrap_or(1);
            let mut spec = fields.inner(&format!("{name}[{at}]"), table);
            let name: Option<String> = spec.need("name", line);
            let rest = datatype_and_shape(&mut spec, line);
            spec.refuse_rest();
            let (datatype, shape) = rest?;
            Some(TensorSpec::new(name?, datatype, shape))
        });
        specs.collect()
    };
    let (inputs, outputs) = (side("inputs"), side("outputs"));
    let batch_axis = fields.take_with("batch_axis", |raw| match raw {
        Raw::Integer(0) => Ok(0),
        other => Err(format!("expected 0, the only axis along which requests are joined, got {other}")),
    });
    fields.refuse_rest();
    Signature { inputs, outputs, batch_axis }
}

#[cfg(test)]
mod tests;
