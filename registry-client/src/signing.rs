//! Signatures on manifests: who vouches for a version.

use serde::{Deserialize, Serialize};

/// A signature on a manifest, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestSignature {
    /// The public key that it is to be checked with: `ed25519:` and base64.
    pub key: String,
    /// The signature, base64.
    pub signature: String,
}
