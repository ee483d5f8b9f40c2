//! Verdicts that are kept, so that a restart need not try again what served before.

use std::path::PathBuf;

use bascule_registry::Digest;
use bascule_serving::{TrialJob, TrialReport};

use super::relevant;
use crate::compose::Libraries;

/// Verdicts beyond this are forgotten, the oldest first.
const KEPT: usize = 4096;

/// One file for each version that passed.
pub(super) struct Verdicts {
    dir: PathBuf,
}

/// What a verdict is about: the files, the libraries that ran them, all settings that make a difference, and the kind of machine.
pub(super) fn subject(job: &TrialJob, runtime: &str, libraries: &Libraries) -> String {
    // As Rust shows them: that can't fail, whatever paths are in them.
    let settings = format!("{:?} {libraries:?}", relevant(&job.settings));
    let about = [env!("CARGO_PKG_VERSION"), &job.generation.digest.to_string(), runtime, &machine()].join("\n");
    Digest::of([about, settings].concat().as_bytes()).to_string()
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
