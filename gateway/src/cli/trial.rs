//! `bascule trial`: whether a version would be served, before anybody else has it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bascule_registry::{Digest, Generation, Layout, Lineage, ListedModel, Manifest, ManifestFile, ModelName, VersionKey};
use bascule_runtime_api::{Runtime, Signature};
use bascule_serving::{ModelSettings, TrialFailure, TrialJob, TrialReport};
use clap::Args;

use super::Outcome;
use super::args::ConfigArgs;
use super::failure::Failure;
use super::output::{bytes, micros, print, print_json, rows, table};
use super::publish::files::{Chosen, Staged, choose};
use crate::compose::{self, Libraries};
use crate::config::env::Environment;
use crate::config::{ByteCount, Config};
use crate::trial::{self, Limits};

/// How long measuring the latency of one batch size may take.
const MEASURE: Duration = Duration::from_millis(300);

/// The largest file beside a model's settings that they can name.
const MAX_SMALL_BYTES: u64 = 1 << 20;

/// Settings that lie beside a model.
const SETTINGS: [&str; 2] = ["model.toml", "config.pbtxt"];

/// Load a version in a process of its own, within limits, and say what it does there.
///
/// It is loaded, warmed up, compared with its golden samples and measured, as a gateway does before it takes traffic. Whatever it does
/// there, a crash included, ends with that process.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bascule trial model.onnx --golden golden.json\n  bascule trial ./repository/net/3 --json\n  bascule trial model.pt --settings model.toml"
)]
pub(super) struct TryVersion {
    /// A model file, or a folder whose files belong to one version.
    #[arg(required_unless_present_any = ["inside", "isolation"])]
    path: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    /// The format [default: by the file's name].
    #[arg(long)]
    format: Option<String>,
    /// The file of a folder that the runtime opens [default: model.onnx, or the only one that can be].
    #[arg(long, value_name = "FILE")]
    entrypoint: Option<String>,
    /// The settings: a model.toml or config.pbtxt [default: those in the folder, or beside it].
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Golden samples: a file of the folder [default: golden.json, where it is there], or any file for a single model file.
    #[arg(long, value_name = "FILE")]
    golden: Option<String>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Be the process that tries what standard input says.
    #[arg(long, hide = true)]
    inside: bool,
    /// Print what such a process is not kept from here.
    #[arg(long, hide = true)]
    isolation: bool,
}

impl TryVersion {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        if self.inside {
            return Ok(trial::run_inside()?);
        }
        if self.isolation {
            return print_json(&trial::exposed());
        }
        let effective = self.config.load([], environment)?;
        let path = self.path.clone().unwrap_or_default();
        let chosen = choose(&path, self.entrypoint.as_deref(), self.format.as_deref(), self.golden.as_deref())?;
        let subject = Subject::at(&path, self.settings.as_deref());
        let tried = try_files(&effective.config, &path, &chosen, &subject);
        match tried {
            Ok(report) if self.json => print_json(&report),
            Ok(report) => print(&text(&report)),
            Err(failure) => {
                if self.json {
                    print_json(&serde_json::json!({ "failed": failure.summary() }))?;
                }
                Err(failure)
            }
        }
    }
}

/// What is known of files beside themselves.
pub(super) struct Subject<'a> {
    /// The model's name, which a config.pbtxt may tell too.
    pub(super) name: ModelName,
    /// A model.toml or config.pbtxt; what lies beside it belongs to it.
    pub(super) settings: Option<PathBuf>,
    /// Whether that file was named: then no other settings count.
    pub(super) named: bool,
    /// What the model takes and gives.
    pub(super) declared: Option<&'a Signature>,
}

impl Subject<'_> {
    /// What the place of the files tells, and the settings that were named.
    pub(super) fn at(path: &Path, settings: Option<&Path>) -> Subject<'static> {
        let found = settings.map(Path::to_owned).or_else(|| settings_of(path));
        Subject { name: name_of(path), settings: found, named: settings.is_some(), declared: None }
    }
}

/// A version whose files are in place for another process to load.
pub(super) struct Prepared {
    pub(super) job: TrialJob,
    pub(super) limits: Limits,
    _staged: Staged,
}

/// Puts the files at `path` in place, and reads the settings that belong to them.
pub(super) fn prepare(config: &Config, path: &Path, chosen: &Chosen, subject: &Subject<'_>) -> Result<Prepared, Failure> {
    let Prepared { job, limits, _staged } = bare(config, path, chosen, subject)?;
    let settings = read_settings(config, &job.generation, subject)?;
    Ok(Prepared { job: TrialJob { settings: Arc::new(settings), ..job }, limits, _staged })
}

/// The same without settings.
pub(super) fn bare(config: &Config, path: &Path, chosen: &Chosen, subject: &Subject<'_>) -> Result<Prepared, Failure> {
    let staged = chosen.staged(path).with_context(|| format!("can't put {} aside", path.display()))?;
    let job = TrialJob::new(Arc::new(generation(chosen, subject)?), Arc::default(), staged.dir());
    let limits = limits(config, &compose::runtimes(config), &job);
    Ok(Prepared { job, limits, _staged: staged })
}

/// How far a process may go in which a command loads a version: as far as that of a gateway.
pub(super) fn limits(config: &Config, runtimes: &[Arc<dyn Runtime>], job: &TrialJob) -> Limits {
    let memory_limit = config.trial.memory_limit.map(|ByteCount(bytes)| bytes);
    let estimate = if memory_limit.is_some() { 0 } else { trial::estimate(runtimes, job) };
    Limits::new(config.trial.timeout, memory_limit, estimate)
}

/// Tries the files at `path`.
///
/// # Errors
/// The step at which they fail, and why.
pub(super) fn try_files(config: &Config, path: &Path, chosen: &Chosen, subject: &Subject<'_>) -> Result<TrialReport, Failure> {
    let Prepared { job, limits, _staged } = prepare(config, path, chosen, subject)?;
    let job = TrialJob { measure: MEASURE, ..job };
    trial::try_once(&job, &Libraries::of(config), limits).map_err(|failure| failed(path, &failure))
}

/// A version that can't be served.
pub(super) fn failed(path: &Path, failure: &TrialFailure) -> Failure {
    Failure::new(format!("{} fails its trial at {}: {}", path.display(), failure.step, failure.cause))
}

/// The folders that may hold a model's settings: a version's own, and the one around it.
fn around(path: &Path) -> impl Iterator<Item = PathBuf> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let own = path.is_dir().then(|| path.clone());
    own.into_iter().chain(path.parent().map(Path::to_owned))
}

/// The settings that lie in a version's folder, in that of its model, or beside its file.
pub(super) fn settings_of(path: &Path) -> Option<PathBuf> {
    around(path).find_map(|folder| SETTINGS.map(|name| folder.join(name)).into_iter().find(|file| file.is_file()))
}

/// The model's name as a repository has it: that of the folder around the numbered one.
fn name_of(path: &Path) -> ModelName {
    let names = around(path).chain(around(path).filter_map(|folder| folder.parent().map(Path::to_owned)));
    let names = names.filter_map(|folder| Some(folder.file_name()?.to_str()?.to_owned()));
    let named = names.filter(|name| name.parse::<u64>().is_err()).find_map(|name| name.parse().ok());
    named.or_else(|| "trial".parse().ok()).unwrap_or_else(|| unreachable!("a plain word is a name"))
}

fn generation(chosen: &Chosen, subject: &Subject<'_>) -> Result<Generation, Failure> {
    let mut files = Vec::new();
    for (name, path) in &chosen.files {
        let bytes = path.metadata().with_context(|| format!("can't read {}", path.display()))?.len();
        files.push(ManifestFile { path: name.clone(), sha256: None, bytes });
    }
    let bytes = files.iter().map(|file| file.bytes).sum();
    let model = subject.name.clone();
    let manifest = Manifest {
        schema: bascule_registry::MANIFEST_SCHEMA,
        model: model.clone(),
        version: 1,
        format: chosen.format.clone(),
        entrypoint: chosen.entrypoint.clone(),
        files,
        signature: subject.declared.map(serde_json::to_value).transpose().context("can't write the signature")?,
        golden: chosen.golden.clone(),
        lineage: Lineage::default(),
        metrics: BTreeMap::new(),
        tags: BTreeMap::new(),
        created: chrono::Utc::now(),
        publisher: String::new(),
        hold: false,
        extra: BTreeMap::new(),
    };
    let key = VersionKey { model, version: 1 };
    // Nothing is kept by it: each trial of files that lie about is a new one.
    let digest = Digest::of(b"trial");
    Ok(Generation {
        key,
        digest,
        bytes,
        layout: Layout::Plain,
        manifest: Arc::new(manifest),
        tombstoned: false,
        signatures: Vec::new(),
        stored: None,
    })
}

/// Small files beside the settings, by the names that settings call them: labels, and inputs for warm-up runs.
fn small_files(folder: &Path) -> BTreeMap<String, Arc<[u8]>> {
    let in_folder = |folder: PathBuf, prefix: &'static str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            let is_small = entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_SMALL_BYTES);
            let name = entry.file_name().to_str().map(|name| format!("{prefix}{name}")).filter(|_| is_small)?;
            Some((name, Arc::from(std::fs::read(entry.path()).ok()?)))
        })
    };
    in_folder(folder.to_owned(), "").chain(in_folder(folder.join("warmup"), "warmup/")).collect()
}

fn read_settings(config: &Config, generation: &Arc<Generation>, subject: &Subject<'_>) -> Result<ModelSettings, Failure> {
    let mut settings = BTreeMap::new();
    if let Some(file) = &subject.settings {
        settings = small_files(file.parent().unwrap_or(Path::new(".")));
        settings.retain(|name, _| !subject.named || !SETTINGS.contains(&name.as_str()));
        let content = std::fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
        let is_pbtxt = file.extension().is_some_and(|extension| extension == "pbtxt");
        settings.insert(SETTINGS[usize::from(is_pbtxt)].to_owned(), Arc::from(content));
    }
    let listed = ListedModel {
        name: generation.key.model.clone(),
        layout: Layout::Plain,
        registry: None,
        versions: [(1, Arc::clone(generation))].into(),
        unsettled: BTreeSet::new(),
        settings,
        rollout: bascule_registry::Rollout::default(),
        aliases: BTreeMap::new(),
        problems: Vec::new(),
        steering: None,
    };
    let reader = compose::settings_reader(config, &compose::runtimes(config));
    reader(&listed, Some(1)).map_err(|error| Failure::new(error.to_string()))
}

fn text(report: &TrialReport) -> String {
    let mut facts = table(["PASSED", ""]);
    let memory = match (report.memory_bytes, report.peak_bytes) {
        (Some(memory), Some(peak)) => format!("{}, {} at the most while loading", bytes(memory), bytes(peak)),
        _ => "not told by the system".to_owned(),
    };
    let golden = if report.golden { "all answered as they should be" } else { "none" };
    for (what, found) in [
        ("runtime", report.runtime.clone()),
        ("device", report.device.clone()),
        ("load", format!("{:.1} ms", report.load_ms)),
        ("memory", memory),
        ("golden samples", golden.to_owned()),
    ] {
        facts.add_row([what, &found]);
    }
    for (side, specs) in [("input", &report.signature.inputs), ("output", &report.signature.outputs)] {
        for spec in specs {
            facts.add_row([side, &format!("{} {} {:?}", spec.name, spec.datatype, spec.shape)]);
        }
    }
    for warning in &report.warnings {
        facts.add_row(["warning", warning]);
    }
    for exposed in &report.exposed {
        facts.add_row(["isolation", exposed]);
    }
    let mut text = rows(&facts);
    if !report.latency.is_empty() {
        let mut latency = table(["ROWS", "P50", "LONGEST"]);
        for measured in &report.latency {
            let shown = |us: f64| micros(us.round() as u64);
            latency.add_row([measured.rows.to_string(), shown(measured.p50_us), shown(measured.max_us)]);
        }
        text = format!("{text}\n\n{}", rows(&latency));
    }
    text
}
