//! Signatures on manifests: who vouches for a version.
//!
//! What is signed is the digest of the manifest as it is stored, after a line that keeps the signature from meaning anything
//! elsewhere. The manifest names model, version and the digest of each file, so one signature covers all that is loaded; settings
//! beside the model are not covered. Deliberately absent: certificates, expiry, and keys that vouch for keys.

mod keys;
mod trust;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub use keys::{KeyError, PublicKey, SecretKey};
pub use trust::{Trust, Trusted, Untrusted};

/// The schema of a stored signature that this build writes, and the highest that it reads.
pub(crate) const SIGNATURE_SCHEMA: u32 = 1;
/// The largest stored signature that is read.
pub(crate) const MAX_SIGNATURE_BYTES: u64 = 4 << 10;
/// The most signatures of one version that are read.
pub(crate) const MAX_SIGNATURES: usize = 64;

/// Comes before what is signed: a signature on a manifest is good for nothing else.
const DOMAIN: &str = "bascule manifest v1\n";

/// A signature on a manifest, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestSignature {
    /// The public key that it is to be checked with: `ed25519:` and base64.
    pub key: String,
    /// The signature, base64.
    pub signature: String,
}

impl ManifestSignature {
    /// The key whose signature on the manifest with this digest it really is.
    pub fn signer(&self, manifest: &Digest) -> Option<PublicKey> {
        self.key.parse::<PublicKey>().ok().filter(|key| key.verifies(manifest, &self.signature))
    }
}

/// `<model>/signatures/<sha256 of the manifest>/<key id>.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredSignature {
    pub(crate) schema: u32,
    #[serde(flatten)]
    pub(crate) signature: ManifestSignature,
}

impl StoredSignature {
    pub(crate) fn new(signature: ManifestSignature) -> Self {
        Self { schema: SIGNATURE_SCHEMA, signature }
    }

    /// Reads a stored signature, or says in a few words what is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<ManifestSignature, String> {
        let stored: Self = serde_json::from_slice(bytes).map_err(|error| format!("is not valid: {error}"))?;
        if stored.schema != SIGNATURE_SCHEMA {
            return Err(format!("has schema {}, this build reads up to {SIGNATURE_SCHEMA}", stored.schema));
        }
        Ok(stored.signature)
    }
}

/// What is signed for a manifest with this digest.
fn message(manifest: &Digest) -> Vec<u8> {
    format!("{DOMAIN}{manifest}").into_bytes()
}

#[cfg(test)]
mod tests;
