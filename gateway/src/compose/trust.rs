//! Which keys are trusted.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bascule_registry::{PublicKey, Trust};

use crate::config::{Config, TrustedKey};

/// The largest file of keys.
const MAX_BYTES: u64 = 64 << 10;

/// What became of the trusted keys when the configuration was read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retrust {
    /// They count: the ids of those that are trusted no longer, and of those that are now.
    Replaced {
        /// Trusted no longer.
        gone: Vec<String>,
        /// Trusted now.
        new: Vec<String>,
    },
    /// They can't be read, for this reason: it stays as it was.
    Kept(String),
    /// From none to some or from some to none: whether anybody has to sign is decided at the start.
    NeedsRestart,
}

/// The keys that versions have to be signed by; `None` where nobody has to.
///
/// # Errors
/// A file of keys that can't be read: without it what would be trusted is not known.
pub fn trust(config: &Config) -> Result<Option<Arc<Trust>>> {
    let keys = keys(config)?;
    Ok((!keys.is_empty()).then(|| Arc::new(Trust::new(keys))))
}

/// Reads the trusted keys again, those in files too, and goes by them from now on. Blocks.
pub fn retrust(trust: Option<&Trust>, config: &Config) -> Retrust {
    match (trust, keys(config)) {
        (Some(trust), Ok(keys)) if !keys.is_empty() => {
            let (gone, new) = trust.replace(keys);
            Retrust::Replaced { gone, new }
        }
        (Some(trust), Err(error)) => {
            let why = format!("{error:#}");
            trust.note_trouble(&format!("the keys that were trusted before still count, since they can't be read again: {why}"));
            Retrust::Kept(why)
        }
        // What a restart would end with.
        (None, Err(error)) => Retrust::Kept(format!("{error:#}")),
        (None, Ok(keys)) if keys.is_empty() => Retrust::Replaced { gone: Vec::new(), new: Vec::new() },
        _ => Retrust::NeedsRestart,
    }
}

fn keys(config: &Config) -> Result<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for trusted in &config.registry.trust {
        match trusted {
            TrustedKey::Key(key) => keys.push(*key),
            TrustedKey::File(path) => keys.extend(read(path).with_context(|| format!("registry.trust: {}", path.display()))?),
        }
    }
    Ok(keys)
}

fn read(path: &Path) -> Result<Vec<PublicKey>> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= MAX_BYTES, "it has more than {MAX_BYTES} bytes");
    Ok(PublicKey::parse_file(&text)?)
}
