//! `serve --supervise`: a process that starts the gateway again where a crash of native code has ended it, and what the next gateway makes
//! of that.
//!
//! The process that supervises does nothing else: it serves nothing, loads nothing and has one thread, so that it outlives whatever happens
//! to the gateway. Sessions mark on a board that they run ([`board`]); after a crash those that are marked have to pass a trial anew, and
//! after the second within a day they are kept out ([`suspects`]). Everything else serves at once.
//!
//! Only crashes count. A gateway that was killed, by an operator or by the system where memory ran out, is started again and nobody is
//! suspected.

mod board;
mod process;
mod suspects;

use anyhow::{Context as _, Result};
use bascule_serving::{Marks, Trial};
use clap::ValueEnum;
use std::sync::Arc;

use crate::state_dir::StateDir;
use crate::trial::Trials;
pub(crate) use process::run;

/// What a gateway knows of whoever supervises it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Supervised {
    /// Nobody does.
    #[default]
    No,
    /// It was started, for the first time or after an end that was no crash.
    Started,
    /// The one before it crashed.
    AfterCrash,
}

/// What a gateway is given.
#[derive(Default)]
pub(crate) struct Guard {
    pub(crate) trial: Option<Arc<dyn Trial>>,
    pub(crate) marks: Option<Arc<dyn Marks>>,
}

/// Opens the board, and puts a gate before the trials that knows who ran in crashes. Nothing of that without supervision. Blocks.
///
/// # Errors
/// The board's file can't be used.
pub(crate) fn guard(supervised: Supervised, state: &StateDir, trials: Option<Trials>) -> Result<Guard> {
    if supervised == Supervised::No {
        let trial = trials.map(|trials| Arc::new(trials) as Arc<dyn Trial>);
        return Ok(Guard { trial, marks: None });
    }
    let path = state.path().join("marks");
    let (board, left) = board::Board::open(&path).with_context(|| format!("can't use {}", path.display()))?;
    let now = chrono::Utc::now();
    let suspects = suspects::Suspects::read(state.path().join("suspects.json"), now);
    if supervised == Supervised::AfterCrash {
        suspects.note(left, now);
    }
    Ok(Guard { trial: Some(Arc::new(suspects::Gate { suspects, trials })), marks: Some(Arc::new(board)) })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use bascule_registry::{Digest, Generation, Layout, Lineage, Manifest, VersionKey};

    /// A version of a model.
    pub(crate) fn generation(model: &str, version: u64) -> Generation {
        let key = VersionKey { model: model.parse().unwrap(), version };
        let manifest = Manifest {
            schema: bascule_registry::MANIFEST_SCHEMA,
            model: key.model.clone(),
            version,
            format: "fake".to_owned(),
            entrypoint: "model.fake.json".to_owned(),
            files: Vec::new(),
            signature: None,
            golden: None,
            lineage: Lineage::default(),
            metrics: BTreeMap::new(),
            tags: BTreeMap::new(),
            created: chrono::DateTime::UNIX_EPOCH,
            publisher: String::new(),
            hold: false,
            extra: BTreeMap::new(),
        };
        let digest = Digest::of(format!("{model}@{version}").as_bytes());
        Generation {
            key,
            digest,
            bytes: 0,
            layout: Layout::Plain,
            manifest: manifest.into(),
            tombstoned: false,
            signatures: Vec::new(),
            stored: None,
        }
    }
}
