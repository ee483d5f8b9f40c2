//! `bascule record-golden`: keeps what a model answers, so that wherever it is served it has to answer the same.

mod requests;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_serving::{RecordPlan, Recording, TrialFailure};
use clap::Args;
use serde_json::json;

use super::Outcome;
use super::args::ConfigArgs;
use super::failure::Failure;
use super::output::{bytes, print, print_json, rows, table};
use super::publish::files::{Chosen, GOLDEN, choose};
use super::trial::{Subject, failed, prepare};
use crate::compose::Libraries;
use crate::config::env::Environment;
use crate::trial;

/// Run requests through a model, and keep its answers as the golden samples of a version.
///
/// A gateway runs them before the version takes traffic, and `bascule trial` at any time: one that answers otherwise fails. Here each of
/// them runs twice, in a process of its own; an output that differs between the two is refused.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  bascule record-golden model.onnx --from request.json\n  \
                        bascule record-golden ./net --from requests.jsonl --only scores --tolerance 0.001\n  \
                        bascule record-golden model.onnx --from image.npy --tolerance boxes=0.5 --output samples.json")]
pub(super) struct RecordGolden {
    /// A model file, or a folder whose files belong to one version.
    path: PathBuf,
    /// Requests as JSON: one, an array, or one after the other; or a .npy file, for a model with one input. May be repeated.
    #[arg(long, value_name = "FILE", required = true)]
    from: Vec<PathBuf>,
    /// The largest difference that is allowed: of every floating-point output, or of one; may be repeated.
    #[arg(long = "tolerance", value_name = "[NAME=]NUMBER", value_parser = tolerance)]
    tolerances: Vec<(Option<String>, f64)>,
    /// An output to record, instead of all; may be repeated.
    #[arg(long, value_name = "OUTPUT")]
    only: Vec<String>,
    /// The file to write [default: golden.json in the folder, or beside the model file].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
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
    /// Print what was recorded as JSON.
    #[arg(long)]
    json: bool,
}

/// Reads `number` or `name=number`.
fn tolerance(text: &str) -> Result<(Option<String>, f64), String> {
    let (name, number) = match text.rsplit_once('=') {
        Some((name, number)) if !name.is_empty() => (Some(name.to_owned()), number),
        _ => (None, text),
    };
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok((name, number)),
        _ => Err(format!("expected a number of 0 or more, got {number:?}")),
    }
}

impl RecordGolden {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let effective = self.config.load([], environment)?;
        let target = self.target();
        if !self.force && target.symlink_metadata().is_ok() {
            return Err(exists(&target));
        }
        // Samples that are there already are not looked at: they are what is made anew.
        let chosen = choose(&self.path, self.entrypoint.as_deref(), self.format.as_deref(), None)?;
        let chosen = Chosen { golden: None, ..chosen };
        if is_model(&target, &chosen) {
            return Err(Failure::usage(format!("--output: {} is the model itself", target.display())));
        }
        let plan = self.plan()?;
        let subject = Subject::at(&self.path, self.settings.as_deref());
        let prepared = prepare(&effective.config, &self.path, &chosen, &subject)?;
        let recorded = trial::record_once(&prepared.job, plan, &Libraries::of(&effective.config), prepared.limits);
        let recorded = recorded.map_err(|failure| self.refused(failure))?;
        write(&target, &recorded.text, self.force)?;
        if self.json { print_json(&summary(&recorded, &target)) } else { print(&self.text(&recorded, &target)) }
    }

    fn target(&self) -> PathBuf {
        let beside = || if self.path.is_dir() { self.path.join(GOLDEN) } else { self.path.with_file_name(GOLDEN) };
        self.output.clone().unwrap_or_else(beside)
    }

    fn plan(&self) -> Result<RecordPlan, Failure> {
        let of_all = self.tolerances.iter().rev().find(|(name, _)| name.is_none()).map(|(_, number)| *number);
        let named = self.tolerances.iter().filter_map(|(name, number)| Some((name.clone()?, *number)));
        Ok(RecordPlan {
            samples: requests::read(&self.from)?,
            only: self.only.clone(),
            tolerance: of_all,
            tolerances: named.collect::<BTreeMap<_, _>>(),
        })
    }

    fn refused(&self, failure: TrialFailure) -> Failure {
        let nothing = |failure: &TrialFailure| Failure::new(format!("nothing was recorded: {}", failure.cause));
        match failure.step.as_str() {
            TrialFailure::RECORDING => nothing(&failure),
            TrialFailure::REPEATING => nothing(&failure)
                .hint("--only OUTPUT records other outputs alone; --tolerance OUTPUT=NUMBER allows a larger difference"),
            _ => failed(&self.path, &failure),
        }
    }

    fn text(&self, recorded: &Recording, target: &Path) -> String {
        let mut facts = table(["RECORDED", &target.display().to_string()]);
        facts.add_row(["samples", &recorded.samples.to_string()]);
        facts.add_row(["size", &bytes(recorded.text.len() as u64)]);
        for spec in &recorded.inputs {
            facts.add_row(["input", &format!("{} {} {:?}", spec.name, spec.datatype, spec.shape)]);
        }
        for output in &recorded.outputs {
            let (spec, tolerance) = (&output.spec, output.tolerance);
            let tolerance = match tolerance {
                Some(number) => format!("tolerance {number}"),
                None if spec.datatype.is_float() => "the usual tolerance".to_owned(),
                None => "exactly".to_owned(),
            };
            facts.add_row(["output", &format!("{} {} {:?}, {tolerance}", spec.name, spec.datatype, spec.shape)]);
        }
        for warning in &recorded.warnings {
            facts.add_row(["warning", warning]);
        }
        format!("{}\n\nnext: {}", rows(&facts), self.next(target))
    }

    /// The command that publishes the model with its samples.
    fn next(&self, target: &Path) -> String {
        let publish = format!("bascule publish NAME {}", quoted(&self.path));
        if !self.path.is_dir() {
            return format!("{publish} --golden {}", quoted(target));
        }
        match target.strip_prefix(&self.path) {
            Ok(inside) if inside == Path::new(GOLDEN) => publish,
            Ok(inside) => format!("{publish} --golden {}", quoted(inside)),
            Err(_) => format!("cp {} {} && {publish}", quoted(target), quoted(&self.path.join(GOLDEN))),
        }
    }
}

/// Whether writing to `target` would destroy the model.
fn is_model(target: &Path, chosen: &Chosen) -> bool {
    let model = chosen.files.iter().find(|(name, _)| *name == chosen.entrypoint).and_then(|(_, file)| file.canonicalize().ok());
    model.is_some() && target.canonicalize().ok() == model
}

/// What scripts read.
fn summary(recorded: &Recording, target: &Path) -> serde_json::Value {
    let outputs = recorded.outputs.iter().map(|output| {
        let (spec, nan) = (&output.spec, output.nan_samples);
        json!({
            "name": spec.name, "datatype": spec.datatype, "shape": spec.shape, "tolerance": output.tolerance, "nan_samples": nan,
        })
    });
    json!({
        "file": target, "bytes": recorded.text.len(), "samples": recorded.samples, "inputs": recorded.inputs,
        "outputs": outputs.collect::<Vec<_>>(), "warnings": recorded.warnings,
    })
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn exists(target: &Path) -> Failure {
    Failure::new(format!("{} is there already, and nothing was recorded", target.display()))
        .hint("--force replaces it, --output writes another file")
}

/// Writes the file under another name first: whoever reads it sees all of it or none.
fn write(target: &Path, text: &str, replace: bool) -> Outcome {
    let unwritable = || format!("can't write {}", target.display());
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As any new file would have them; what is for temporary files alone is for nobody else.
    let permissions = Permissions::from_mode(0o666);
    let temporary = tempfile::Builder::new().prefix(".golden-").permissions(permissions).tempfile_in(folder);
    let mut temporary = temporary.with_context(unwritable)?;
    temporary.write_all(text.as_bytes()).and_then(|()| temporary.as_file().sync_all()).with_context(unwritable)?;
    match if replace { temporary.persist(target) } else { temporary.persist_noclobber(target) } {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists(target)),
        Err(error) => Err(anyhow::Error::new(error.error).context(unwritable()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerances_are_for_all_outputs_or_for_one() {
        assert_eq!(tolerance("0.5"), Ok((None, 0.5)));
        assert_eq!(tolerance("a/b:0=1e-3"), Ok((Some("a/b:0".to_owned()), 1e-3)));
        for wrong in ["", "y=", "=1", "y", "y=-1", "-0.5", "inf", "y=nan"] {
            assert!(tolerance(wrong).unwrap_err().starts_with("expected a number of 0 or more, got "), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_is_there_stays_unless_it_is_to_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("golden.json");
        write(&target, "one", false).unwrap();
        let text = || std::fs::read_to_string(&target).unwrap();
        assert!(write(&target, "two", false).unwrap_err().text().contains("hint: --force"));
        assert_eq!(text(), "one");
        write(&target, "three", true).unwrap();
        assert_eq!(text(), "three");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
        assert!(write(&folder.path().join("none/golden.json"), "", true).unwrap_err().text().starts_with("error: can't write "));
    }

    #[test]
    fn the_model_itself_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("model.onnx"), "").unwrap();
        std::fs::write(at("golden.json"), "").unwrap();
        let chosen = choose(folder.path(), None, None, None).unwrap();
        assert!(is_model(&at("../").join(folder.path()).join("model.onnx"), &chosen));
        assert!(!is_model(&at("golden.json"), &chosen) && !is_model(&at("new.json"), &chosen));
    }

    #[test]
    fn paths_are_quoted_where_a_shell_would_read_them_otherwise() {
        let check = |path: &str| quoted(Path::new(path));
        assert_eq!(check("./net/model-1.onnx"), "./net/model-1.onnx");
        assert_eq!(check("it's a model.onnx"), r"'it'\''s a model.onnx'");
    }
}
