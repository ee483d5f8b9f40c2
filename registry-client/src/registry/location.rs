//! Where a registry is, as a user writes it.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::{RegistryError, contained::ContainedDirectory};

/// A store and its name for people.
pub(super) struct Opened {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) description: String,
}

/// The directory that `file://…` or a path without a scheme names; `None` for another scheme.
pub(super) fn local_path(location: &str) -> Result<Option<PathBuf>, RegistryError> {
    let Some((scheme, rest)) = location.split_once("://") else {
        if location.is_empty() {
            return Err(RegistryError::Location { location: String::new(), problem: "is empty".into() });
        }
        return Ok(Some(PathBuf::from(location)));
    };
    if !scheme.eq_ignore_ascii_case("file") {
        return Ok(None);
    }
    let wrong =
        |problem: &'static str| RegistryError::Location { location: crate::name::quoted(location), problem: problem.into() };
    let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(wrong("names a host: write file:///path"));
    }
    if path.contains(['?', '#']) {
        return Err(wrong("has a query or a fragment"));
    }
    let path = decode_percent(path).ok_or_else(|| wrong("has a percent sign that is not followed by two hexadecimal digits"))?;
    Ok(Some(path))
}

pub(super) fn open(location: &str) -> Result<Opened, RegistryError> {
    if let Some(path) = local_path(location)? {
        return open_dir(&path);
    }
    match location.split_once("://") {
        Some(("memory", "" | "/")) => Ok(Opened { store: Arc::new(InMemory::new()), description: "memory".into() }),
        Some((scheme, _)) => Err(RegistryError::NotSupported { scheme: scheme.to_owned() }),
        None => Err(RegistryError::Location { location: crate::name::quoted(location), problem: "is not a path".into() }),
    }
}

pub(super) fn open_dir(path: &FsPath) -> Result<Opened, RegistryError> {
    let description = format!("directory {}", path.display());
    match ContainedDirectory::open(path) {
        Ok(store) => Ok(Opened { store: Arc::new(store), description }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(RegistryError::Missing { dir: path.to_owned() }),
        Err(error) => Err(RegistryError::unavailable(description, error)),
    }
}

fn decode_percent(path: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let mut byte = [0];
            hex::decode_to_slice(tail.get(..2)?, &mut byte).ok()?;
            bytes.push(byte[0]);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    (!bytes.contains(&0)).then(|| PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let check = |location: &str, expected: Result<&str, &str>| match (local_path(location), expected) {
            (Ok(Some(path)), Ok(expected)) => assert_eq!(path, FsPath::new(expected), "{location}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{location}: {error}"),
            (outcome, _) => panic!("{location}: {outcome:?}"),
        };
        check("models", Ok("models"));
        check("./a/b", Ok("./a/b"));
        check("/srv/models", Ok("/srv/models"));
        check("file:///srv/models", Ok("/srv/models"));
        check("FILE:///srv/models", Ok("/srv/models"));
        check("file://localhost/srv", Ok("/srv"));
        check("file:///my%20models/%C3%A9", Ok("/my models/é"));
        check("", Err("is empty"));
        check("file://server/share", Err("names a host"));
        check("file://relative", Err("names a host"));
        check("file:///a?b", Err("query"));
        check("file:///a%zz", Err("percent sign"));
        check("file:///a%4", Err("percent sign"));
        check("file:///a%00b", Err("percent sign"));
    }

    #[test]
    fn other_stores_are_refused_by_name() {
        for (location, scheme) in [("s3://bucket/models", "s3"), ("gs://bucket", "gs"), ("https://x/y", "https")] {
            let error = open(location).err().unwrap().to_string();
            assert!(error.contains(scheme) && error.contains("not supported in this build yet"), "{error}");
        }
        assert!(open("memory://").is_ok());
        let gone = open("/no/such/directory/anywhere").err().unwrap();
        assert!(matches!(gone, RegistryError::Missing { .. }), "{gone}");
    }
}
