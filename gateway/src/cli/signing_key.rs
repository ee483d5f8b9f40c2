//! Private keys, as commands are given them: a file, or a reference that keeps them out of the command line.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context as _;
use bascule_registry::SecretKey;

use crate::config::env::Environment;

use super::failure::Failure;
use super::output::note;

/// The largest file of a key.
const MAX_BYTES: u64 = 64 << 10;
/// How the text of a private key begins.
const KEY_TEXT: &str = "ed25519-secret:";
/// Who but its owner may read a file.
const OTHERS: u32 = 0o077;

/// The key that `env:NAME`, `file:PATH` or a path names. Nothing of it is shown, whatever is wrong with it.
pub(super) fn read(reference: &str, environment: &Environment) -> Result<SecretKey, Failure> {
    if reference.contains(KEY_TEXT) {
        let failure = Failure::new("a private key was given itself, and command lines are seen by others: take it for lost");
        return Err(failure.hint("`bascule keygen` makes another one: name its file, or a variable that holds it as env:NAME"));
    }
    let text = match reference.strip_prefix("env:") {
        Some(name) => {
            let unset = || Failure::new(format!("variable {name} is not set")).hint("it should hold what `bascule keygen` writes");
            environment.secret(name).map(str::to_owned).ok_or_else(unset)?
        }
        None => read_file(Path::new(reference.strip_prefix("file:").unwrap_or(reference)))?,
    };
    let key = SecretKey::parse_file(&text).with_context(|| format!("{reference} can't be used to sign"));
    key.map_err(|error| Failure::from(error).hint("`bascule keygen` makes a key pair: the file without .pub signs"))
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let file = std::fs::File::open(path).with_context(|| format!("can't read the signing key {shown}"))?;
    if file.metadata().is_ok_and(|meta| meta.mode() & OTHERS != 0) {
        note(format!("warning: others than its owner may read {shown}: chmod 600 {shown}"));
    }
    let mut text = String::new();
    let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
    read.with_context(|| format!("can't read the signing key {shown}"))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(Failure::new(format!("{shown} has more than {MAX_BYTES} bytes and is no signing key")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_itself_is_refused_and_not_repeated() {
        let text = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
        for reference in
            [format!("ed25519-secret:{text}"), format!("env:ed25519-secret:{text}"), format!(" ed25519-secret:{text}\n")]
        {
            let said = read(&reference, &Environment::of(&[])).unwrap_err().text();
            assert!(said.contains("a private key was given itself") && said.contains("env:NAME"), "{said}");
            assert!(!said.contains(&text[..8]), "{said}");
        }
        let key = format!("ed25519-secret:{text}");
        assert!(read("env:KEY", &Environment::of(&[("KEY", &key)])).is_ok());
    }
}
