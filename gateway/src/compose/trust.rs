//! Which keys are trusted.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bascule_registry::{PublicKey, Trust};

use crate::config::{Config, TrustedKey};

/// The largest file of keys.
const MAX_BYTES: u64 = 64 << 10;

/// The keys that versions have to be signed by; `None` where nobody has to.
///
/// # Errors
/// A file of keys that can't be read: without it what would be trusted is not known.
pub fn trust(config: &Config) -> Result<Option<Arc<Trust>>> {
    let mut keys = Vec::new();
    for trusted in &config.registry.trust {
        match trusted {
            TrustedKey::Key(key) => keys.push(*key),
            TrustedKey::File(path) => keys.extend(read(path).with_context(|| format!("registry.trust: {}", path.display()))?),
        }
    }
    Ok((!keys.is_empty()).then(|| Arc::new(Trust::new(keys))))
}

fn read(path: &Path) -> Result<Vec<PublicKey>> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= MAX_BYTES, "it has more than {MAX_BYTES} bytes");
    Ok(PublicKey::parse_file(&text)?)
}
