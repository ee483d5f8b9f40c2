//! `bascule keygen`: makes a key pair to sign versions with.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_registry::SecretKey;
use clap::Args;
use serde_json::json;

use super::Outcome;
use super::failure::Failure;
use super::output::{print, print_json};

const OWNER_ONLY: u32 = 0o600;
const ALL_MAY_READ: u32 = 0o644;

/// Make a key pair to sign versions with.
///
/// The private key goes to the file, which only its owner can read, the public one beside it with .pub at its end. Neither is ever
/// overwritten. `registry.trust` takes the public key, or file:FILE.pub.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule keygen release.key")]
pub(super) struct Keygen {
    /// Where the private key goes.
    #[arg(default_value = "bascule.key")]
    file: PathBuf,
    /// Print the public key and its id as JSON.
    #[arg(long)]
    json: bool,
}

impl Keygen {
    pub(super) fn run(self) -> Outcome {
        let mut public_file = self.file.clone().into_os_string();
        public_file.push(".pub");
        let public_file = PathBuf::from(public_file);
        if public_file.symlink_metadata().is_ok() {
            return Err(taken(&public_file));
        }
        let secret = SecretKey::generate().context("no key pair was made")?;
        let public = secret.public();
        write_new(&self.file, OWNER_ONLY, &secret.to_file())?;
        if let Err(failure) = write_new(&public_file, ALL_MAY_READ, &public.to_file()) {
            // A private key whose public one nobody knows is of no use; it was made a moment ago.
            drop(std::fs::remove_file(&self.file));
            return Err(failure);
        }
        if self.json {
            return print_json(&json!({
                "public_key": public.to_string(), "key_id": public.id(),
                "file": self.file.display().to_string(), "public_file": public_file.display().to_string(),
            }));
        }
        print(&format!(
            "private key  {}\npublic key   {}\n             {public}\nkey id       {}",
            self.file.display(),
            public_file.display(),
            public.id()
        ))
    }
}

fn taken(file: &Path) -> Failure {
    Failure::new(format!("{} exists already, and keys are never overwritten", file.display())).hint("name another file")
}

fn write_new(file: &Path, mode: u32, text: &str) -> Outcome {
    let failed = || format!("can't write {}", file.display());
    let mut written = match OpenOptions::new().write(true).create_new(true).mode(mode).open(file) {
        Ok(written) => written,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(taken(file)),
        Err(error) => return Err(anyhow::Error::new(error).context(failed()).into()),
    };
    let whole = written.write_all(text.as_bytes()).and_then(|()| written.sync_all());
    if whole.is_err() {
        // Half a key helps nobody.
        drop(std::fs::remove_file(file));
    }
    Ok(whole.with_context(failed)?)
}
