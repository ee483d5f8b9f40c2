//! `bascule trial`: whether a version would be served, before anybody else has it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bascule_registry::{Digest, Generation, Layout, Lineage, ListedModel, Manifest, ManifestFile, ModelName, VersionKey};
use bascule_runtime_api::Signature;
use bascule_serving::{ModelSettings, TrialJob, TrialReport};
use clap::Args;

use super::Outcome;
use super::args::ConfigArgs;
use super::failure::Failure;
use super::output::{bytes, micros, print, print_json, rows, table};
use super::publish::files::{Chosen, choose};
use crate::compose::{self, Libraries};
use crate::config::env::Environment;
use crate::config::{ByteCount, Config};
use crate::trial::{self, Limits};

/// How long measuring the latency of one batch size may take.
const MEASURE: Duration = Duration::from_millis(300);

/// Main memory for a trial where nothing says how much.
const DEFAULT_MEMORY_BYTES: u64 = 16 << 30;

/// Settings that lie beside a model.
const SETTINGS: [&str; 2] = ["model.toml", "config.pbtxt"];

/// Load a version in a process of its own, within limits, and say what it does there.
///
/// It is loaded, warmed up, compared with its golden samples and measured, as a gateway does before it takes traffic. Whatever it does
/// there, a crash included, ends with that process.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bascule trial model.onnx\n  bascule trial ./repository/net/3 --json\n  bascule trial model.pt --settings model.toml"
)]
pub(super) struct TryVersion {
    /// A model file, or a folder whose files belong to one version.
    #[arg(required_unless_present = "inside")]
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
    /// The file of golden samples in a folder [default: golden.json, where it is there].
    #[arg(long, value_name = "FILE")]
    golden: Option<String>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Be the process that tries what standard input says.
    #[arg(long, hide = true)]
    inside: bool,
}

impl TryVersion {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        if self.inside {
            return Ok(trial::run_inside()?);
        }
        let effective = self.config.load([], environment)?;
        let path = self.path.clone().unwrap_or_default();
        let chosen = choose(&path, self.entrypoint.as_deref(), self.format.as_deref())?;
        let beside = match &self.settings {
            Some(file) => vec![file.clone()],
            None => settings_of(&path),
        };
        let report = try_files(&effective.config, &path, &chosen, &beside, self.golden.as_deref(), None)?;
        if self.json { print_json(&report) } else { print(&text(&report)) }
    }
}

/// Tries the files at `path`.
///
/// # Errors
/// The step at which they fail, and why.
pub(super) fn try_files(
    config: &Config,
    path: &Path,
    chosen: &Chosen,
    settings: &[PathBuf],
    golden: Option<&str>,
    declared: Option<&Signature>,
) -> Result<TrialReport, Failure> {
    let staged = chosen.staged(path).with_context(|| format!("can't put {} aside", path.display()))?;
    let generation = Arc::new(generation(chosen, golden, declared)?);
    let settings = read_settings(config, &generation, settings)?;
    let job = TrialJob { measure: MEASURE, ..TrialJob::new(generation, Arc::new(settings), staged.dir()) };
    let memory_bytes = config.trial.memory_limit.map_or(DEFAULT_MEMORY_BYTES, |ByteCount(bytes)| bytes);
    let limits = Limits { timeout: config.trial.timeout, memory_bytes };
    trial::try_once(&job, &Libraries::of(config), limits)
        .map_err(|failure| Failure::new(format!("{} fails its trial at {}: {}", path.display(), failure.step, failure.cause)))
}

/// The settings that lie in a version's folder, in that of its model, or beside its file.
pub(super) fn settings_of(path: &Path) -> Vec<PathBuf> {
    let folders = [path.is_dir().then(|| path.to_owned()), path.parent().map(Path::to_owned)];
    let found =
        |folder: &PathBuf| SETTINGS.map(|name| folder.join(name)).into_iter().filter(|file| file.is_file()).collect::<Vec<_>>();
    folders.iter().flatten().map(found).find(|files| !files.is_empty()).unwrap_or_default()
}

fn generation(chosen: &Chosen, golden: Option<&str>, declared: Option<&Signature>) -> Result<Generation, Failure> {
    let model: ModelName = "trial".parse().context("the name of a trial")?;
    let mut files = Vec::new();
    for (name, path) in &chosen.files {
        let bytes = path.metadata().with_context(|| format!("can't read {}", path.display()))?.len();
        files.push(ManifestFile { path: name.clone(), sha256: None, bytes });
    }
    let golden =
        golden.map(str::to_owned).or_else(|| files.iter().any(|file| file.path == "golden.json").then(|| "golden.json".to_owned()));
    let bytes = files.iter().map(|file| file.bytes).sum();
    let manifest = Manifest {
        schema: bascule_registry::MANIFEST_SCHEMA,
        model: model.clone(),
        version: 1,
        format: chosen.format.clone(),
        entrypoint: chosen.entrypoint.clone(),
        files,
        signature: declared.map(serde_json::to_value).transpose().context("can't write the signature")?,
        golden,
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
    Ok(Generation { key, digest, bytes, layout: Layout::Plain, manifest: Arc::new(manifest), tombstoned: false })
}

fn read_settings(config: &Config, generation: &Arc<Generation>, files: &[PathBuf]) -> Result<ModelSettings, Failure> {
    let mut settings = BTreeMap::new();
    for file in files {
        let content = std::fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
        let name = if file.extension().is_some_and(|extension| extension == "pbtxt") { "config.pbtxt" } else { "model.toml" };
        settings.insert(name.to_owned(), Arc::from(content));
    }
    let listed = ListedModel {
        name: generation.key.model.clone(),
        layout: Layout::Plain,
        versions: [(1, Arc::clone(generation))].into(),
        unsettled: BTreeSet::new(),
        settings,
        rollout: bascule_registry::Rollout::default(),
        aliases: BTreeMap::new(),
        problems: Vec::new(),
    };
    let reader = compose::settings_reader(config, &compose::runtimes(config));
    reader(&listed, Some(1)).map_err(|error| Failure::new(error.to_string()))
}

fn text(report: &TrialReport) -> String {
    let mut facts = table(["PASSED", ""]);
    let golden = if report.golden { "all answered as they should be" } else { "none" };
    for (what, found) in [
        ("runtime", report.runtime.clone()),
        ("device", report.device.clone()),
        ("load", format!("{:.1} ms", report.load_ms)),
        ("memory", format!("{}, {} at the most while loading", bytes(report.memory_bytes), bytes(report.peak_bytes))),
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
