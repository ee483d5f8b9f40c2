//! Key pairs, and how they are written.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::{ManifestSignature, message};
use crate::digest::Digest;
use crate::name::quoted;

const PUBLIC: &str = "ed25519:";
const SECRET: &str = "ed25519-secret:";

/// Why a key can't be used. Nothing of a private key is ever shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a public key.
    #[error("{given} is not a public key: expected {PUBLIC} and the base64 of 32 bytes")]
    Public {
        /// What was given, quoted.
        given: String,
    },
    /// A public key that signs nothing in particular.
    #[error("{given} is a weak public key: what it signs can be made up")]
    Weak {
        /// What was given, quoted.
        given: String,
    },
    /// A private key where a public one is expected.
    #[error("this is a private key where a public one is expected")]
    IsSecret,
    /// Not a private key.
    #[error("this is not a private key: expected a line with {SECRET} and the base64 of 32 bytes")]
    Secret,
    /// A public key where a private one is expected.
    #[error("this is a public key where a private one is expected")]
    IsPublic,
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    Random,
}

/// A public key. Written `ed25519:` and base64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// The first 16 hexadecimal digits of the sha256 of its bytes: names files, and keys to people.
    pub fn id(&self) -> String {
        Digest::of(self.0.as_bytes()).to_string().chars().take(16).collect()
    }

    /// Whether this is its signature on the manifest with this digest.
    pub(crate) fn verifies(&self, manifest: &Digest, signature: &str) -> bool {
        let Some(bytes) = decode::<64>(signature) else { return false };
        self.0.verify_strict(&message(manifest), &Signature::from_bytes(&bytes)).is_ok()
    }

    /// The lines of a file with this key.
    pub fn to_file(&self) -> String {
        format!("# Public key of a bascule signing key, id {}: for `registry.trust`.\n{self}\n", self.id())
    }

    /// The public keys in a file: one a line, with empty lines and such that start with `#` between.
    ///
    /// # Errors
    /// A line that is none of these, or no key at all.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, KeyError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(str::parse).collect::<Result<Vec<Self>, _>>()?;
        if keys.is_empty() { Err(KeyError::Public { given: "a file without a key".into() }) } else { Ok(keys) }
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.starts_with(SECRET) {
            return Err(KeyError::IsSecret);
        }
        let wrong = || KeyError::Public { given: quoted(text) };
        let bytes = text.strip_prefix(PUBLIC).and_then(decode::<32>).ok_or_else(wrong)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| wrong())?;
        if key.is_weak() { Err(KeyError::Weak { given: quoted(text) }) } else { Ok(Self(key)) }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{PUBLIC}{}", STANDARD.encode(self.0.as_bytes())))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A private key. Wiped from memory when it is dropped; shown nowhere but by [`SecretKey::to_file`].
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// A new one.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| KeyError::Random)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// The key that belongs to it.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The lines of a file with this key.
    pub fn to_file(&self) -> Zeroizing<String> {
        let id = self.public().id();
        let secret = Zeroizing::new(STANDARD.encode(self.0.as_bytes()));
        Zeroizing::new(format!("# Private bascule signing key, id {id}: whoever reads it can sign.\n{SECRET}{}\n", secret.as_str()))
    }

    /// Reads such a file, or the line with the key alone.
    ///
    /// # Errors
    /// [`KeyError::Secret`], [`KeyError::IsPublic`]; none shows what was read.
    pub fn parse_file(text: &str) -> Result<Self, KeyError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (line, rest) = (lines.next().ok_or(KeyError::Secret)?, lines.next());
        if line.starts_with(PUBLIC) {
            return Err(KeyError::IsPublic);
        }
        let seed = line.strip_prefix(SECRET).filter(|_| rest.is_none()).and_then(decode::<32>).map(Zeroizing::new);
        Ok(Self(SigningKey::from_bytes(&*seed.ok_or(KeyError::Secret)?)))
    }

    /// Signs the manifest with this digest. The same key and digest give the same signature.
    pub fn sign(&self, manifest: &Digest) -> ManifestSignature {
        let signature = self.0.sign(&message(manifest));
        ManifestSignature { key: self.public().to_string(), signature: STANDARD.encode(signature.to_bytes()) }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(id {})", self.public().id())
    }
}

/// Base64 in its one spelling.
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Long texts from outside are not decoded to learn that they are too long.
    let bytes = Zeroizing::new(STANDARD.decode(text.get(..N * 2).unwrap_or(text)).ok()?);
    let bytes = <[u8; N]>::try_from(bytes.as_slice()).ok()?;
    (text.len() == N.div_ceil(3) * 4).then_some(bytes)
}
