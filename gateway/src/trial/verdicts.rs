//! Verdicts that are kept, so that a restart need not try again what served before.

use std::path::PathBuf;

use bascule_registry::Digest;
use bascule_runtime_api::Device;
use bascule_serving::{Devices, Gpu, ModelSettings, TrialJob, TrialReport};
use serde_json::Value;

use super::relevant;
use crate::compose::Libraries;

/// Verdicts beyond this are forgotten, the oldest first.
const KEPT: usize = 4096;

/// One file for each version that passed.
pub(super) struct Verdicts {
    dir: PathBuf,
}

/// What a trial is. To be changed whenever one finds what an earlier release did not: then all verdicts are void.
const TRIAL: u32 = 1;

/// What a verdict is about: the files, the library that ran them and what is set for it, the model's settings that make a difference, its
/// device among them, and the kind of machine. Nothing else: whatever is in it has every version tried again when it changes.
pub(super) fn subject(job: &TrialJob, runtime: &str, libraries: &Libraries, gpus: &[Gpu]) -> String {
    let name = runtime.split_once(' ').map_or(runtime, |(name, _)| name);
    let machine = [machine(), graphics(&job.settings, gpus)].concat();
    let (trial, digest) = (TRIAL.to_string(), job.generation.digest.to_string());
    let about = [&trial, &digest, runtime, &libraries.of_runtime(name), &settings(&job.settings), &machine];
    Digest::of(about.map(String::from).join("\n").as_bytes()).to_string()
}

/// What is set and makes a difference. What is as it is by default is left out, so that a setting which a release adds changes nothing.
fn settings(settings: &ModelSettings) -> String {
    let json = |settings: &ModelSettings| serde_json::to_value(settings).ok();
    let relevant = relevant(settings);
    let (Some(Value::Object(mut set)), Some(Value::Object(own))) = (json(&relevant), json(&ModelSettings::default())) else {
        return format!("{relevant:?}");
    };
    set.retain(|key, value| own.get(key) != Some(value));
    Value::Object(set).to_string()
}

/// The GPUs that the trial runs on, by name.
fn graphics(settings: &ModelSettings, gpus: &[Gpu]) -> String {
    let Devices::These(devices) = &settings.devices else { return String::new() };
    let is_used = |gpu: &&Gpu| devices.contains(&Device::Cuda(gpu.ordinal));
    gpus.iter().filter(is_used).map(|gpu| format!(" {}", gpu.name)).collect()
}

/// Processors of one name run alike.
fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find(|line| line.starts_with("model name") || line.starts_with("CPU part")).unwrap_or_default();
    format!("{} {model}", std::env::consts::ARCH)
}

impl Verdicts {
    pub(super) fn in_dir(dir: PathBuf) -> Verdicts {
        Verdicts { dir }
    }

    /// What was found of it. One that can't be read is tried again.
    pub(super) fn find(&self, subject: &str) -> Option<TrialReport> {
        serde_json::from_slice(&std::fs::read(self.file(subject)).ok()?).ok()
    }

    /// Keeps it. Where that can't be done, the version is tried again after a restart.
    pub(super) fn keep(&self, subject: &str, report: &TrialReport) {
        let written = serde_json::to_vec(report).map_err(std::io::Error::other).and_then(|text| {
            std::fs::create_dir_all(&self.dir)?;
            let partial = self.dir.join(format!(".{subject}.partial"));
            std::fs::write(&partial, text)?;
            std::fs::rename(&partial, self.file(subject))?;
            self.forget_oldest()
        });
        if let Err(error) = written {
            tracing::warn!(%error, dir = %self.dir.display(), "a trial's verdict can't be kept");
        }
    }

    fn file(&self, subject: &str) -> PathBuf {
        self.dir.join(format!("{subject}.json"))
    }

    fn forget_oldest(&self) -> std::io::Result<()> {
        let entries = std::fs::read_dir(&self.dir)?.flatten();
        let mut verdicts: Vec<_> =
            entries.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
        let excess = verdicts.len().saturating_sub(KEPT);
        verdicts.sort_unstable();
        verdicts.into_iter().take(excess).try_for_each(|(_, path)| std::fs::remove_file(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::env::Environment;
    use crate::config::{Given, load};

    fn job(settings: ModelSettings) -> TrialJob {
        let generation = crate::supervise::tests::generation("m", 1);
        TrialJob::new(generation.into(), settings.into(), std::path::Path::new("somewhere"))
    }

    fn libraries(sets: &[&str]) -> Libraries {
        let given = Given { sets: sets.iter().map(|set| (*set).to_owned()).collect(), ..Given::default() };
        Libraries::of(&load(&given, &Environment::default()).unwrap().config)
    }

    #[test]
    fn a_verdict_holds_until_something_of_its_own_changes() {
        let gpu = |name: &str| Gpu { ordinal: 0, name: name.to_owned(), total_bytes: 2, free_bytes: 1 };
        let subject = |settings: &ModelSettings, runtime: &str, sets: &[&str], gpus: &[Gpu]| {
            subject(&job(settings.clone()), runtime, &libraries(sets), gpus)
        };
        let own = ModelSettings::default();
        let first = subject(&own, "onnxruntime 1.23", &[], &[gpu("small")]);
        let same = |settings: &ModelSettings, runtime: &str, sets: &[&str], name: &str| {
            subject(settings, runtime, sets, &[gpu(name)]) == first
        };
        let onnx = "onnxruntime 1.23";
        assert!(same(&own, onnx, &["torch.threads=4"], "small"), "another runtime's");
        assert!(same(&own, onnx, &["load.formats=onnx"], "small"), "what else is served");
        assert!(same(&own, onnx, &[], "large"), "a gpu that it does not run on");
        assert!(same(&ModelSettings { instances: 4, ..own.clone() }, onnx, &[], "small"), "what makes no difference");
        assert!(!same(&own, "onnxruntime 1.24", &[], "small"));
        assert!(!same(&own, onnx, &["onnxruntime.threads=4"], "small"));
        assert!(!same(&ModelSettings { intra_op_threads: 7, ..own.clone() }, onnx, &[], "small"));
        let on_gpu = ModelSettings { devices: Devices::These(vec![Device::Cuda(0)]), ..own };
        assert!(!same(&on_gpu, onnx, &[], "small"));
        assert_ne!(subject(&on_gpu, onnx, &[], &[gpu("small")]), subject(&on_gpu, onnx, &[], &[gpu("large")]));
    }

    #[test]
    fn what_is_set_by_default_is_not_in_it() {
        assert_eq!(settings(&ModelSettings::default()), "{}");
        let set = ModelSettings { intra_op_threads: 7, ..ModelSettings::default() };
        assert_eq!(settings(&set), "{\"intra_op_threads\":7}");
    }
}
