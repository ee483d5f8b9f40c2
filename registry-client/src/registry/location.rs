//! Where a registry is, as a user writes it.

mod environment;
mod stores;

use std::borrow::Cow;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;

use super::access::{Reached, ReachedUploads};
use super::{RegistryError, contained::ContainedDirectory};

pub use environment::StoreEnvironment;

/// A store, where in it the registry lies, and its name for people.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The same, where uploads in parts can be continued.
    pub(super) multipart: Option<Arc<dyn MultipartStore>>,
    pub(super) prefix: Path,
    pub(super) description: String,
    pub(super) listing: Listing,
}

/// How it is found out what a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listing {
    /// It lists all that lies below a prefix.
    Recursive,
    /// It may be able to list, or have to be read through the registry's change log alone.
    Unknown,
}

impl Opened {
    fn new(store: Arc<dyn ObjectStore>, description: String) -> Self {
        Self { store, multipart: None, prefix: Path::default(), description, listing: Listing::Recursive }
    }
}

/// The directory that `file://…` or a path without a scheme names; `None` for another scheme.
pub(crate) fn local_path(location: &str) -> Result<Option<PathBuf>, RegistryError> {
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

pub(crate) fn open(location: &str, environment: &StoreEnvironment) -> Result<Opened, RegistryError> {
    if let Some(path) = local_path(location)? {
        return open_dir(&path);
    }
    let (scheme, rest) = location.split_once("://").unwrap_or((location, ""));
    let scheme = scheme.to_ascii_lowercase();
    let wrong = |problem: Cow<'static, str>| RegistryError::Location { location: shown(location), problem };
    if scheme == "memory" {
        if !rest.trim_matches('/').is_empty() {
            return Err(wrong("names something in memory: write memory://".into()));
        }
        return Ok(Opened::new(Arc::new(InMemory::new()), "memory".into()));
    }
    let (noun, schemes) = SCHEMES.into_iter().find(|(_, schemes)| schemes.contains(&scheme.as_str())).ok_or_else(|| {
        RegistryError::NotSupported { scheme: scheme.chars().filter(|char| !char.is_control()).take(32).collect() }
    })?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if rest.contains(['?', '#']) {
        return Err(wrong("has a query or a fragment: settings and credentials come from the environment".into()));
    }
    if authority.is_empty() {
        return Err(wrong(format!("names no {noun}: write {scheme}://{noun}/prefix").into()));
    }
    let place = format!("{scheme}://{}", rest.trim_end_matches('/'));
    let is_http = schemes.contains(&"http");
    let prefix = if is_http { Path::from_url_path(path) } else { Path::parse(path.trim_matches('/')) };
    let prefix = prefix.map_err(|error| wrong(format!("has a path that no object can have: {error}").into()))?;
    let opened = if is_http {
        let url = reqwest::Url::parse(location).map_err(|error| wrong(format!("is not a URL: {error}").into()))?;
        if authority.contains('@') {
            return Err(wrong("holds a name or a password, which would be shown in logs".into()));
        }
        stores::http(&url.origin().ascii_serialization(), place)
    } else {
        check_bucket(noun, authority, noun == "container").map_err(|problem| wrong(problem.into()))?;
        match noun {
            "container" => stores::azure(&scheme, authority, place, environment),
            _ if scheme == "gs" => stores::gcs(authority, place, environment),
            _ => stores::s3(authority, place, environment),
        }
    };
    let stores::Store { objects, levels, multipart, access } = opened.map_err(|problem| wrong(problem.into()))?;
    let access = Arc::new(access);
    let multipart = multipart.map(|uploads| Arc::new(ReachedUploads::new(uploads, Arc::clone(&access))) as _);
    let reached = Reached::new(objects, levels, access);
    let description = reached.to_string();
    Ok(Opened {
        store: Arc::new(reached),
        multipart,
        prefix,
        description,
        listing: if is_http { Listing::Unknown } else { Listing::Recursive },
    })
}

/// The schemes of stores on other machines, by what the first part of their places is.
const SCHEMES: [(&str, &[&str]); 4] = [
    ("bucket", &["s3", "s3a"]),
    ("bucket", &["gs"]),
    ("container", &["az", "azure", "abfs", "abfss"]),
    ("host", &["http", "https"]),
];

/// A place as it may be shown, quoted: without what stands for a password in it.
pub(crate) fn shown(location: &str) -> String {
    crate::name::quoted(&without_secrets(location))
}

/// A place as it may be shown: without what stands for a password in it. A path may have an `@` of its own, which stays.
pub fn without_secrets(location: &str) -> String {
    let shown = match location.split_once("://") {
        Some((scheme, rest)) if has_credentials(scheme, rest) => match rest.rsplit_once('@') {
            // A container's name stands before its account's.
            Some((container, _)) if is_azure(scheme) && !container.contains(':') => location.to_owned(),
            Some((credentials, _)) => format!("{scheme}://…{}", &rest[credentials.len()..]),
            None => location.to_owned(),
        },
        _ => location.to_owned(),
    };
    let end = shown.find(['?', '#']).map_or(shown.len(), |end| end + 1);
    let hidden = if end < shown.len() { "…" } else { "" };
    format!("{}{hidden}", &shown[..end])
}

/// Whether what follows the scheme begins with credentials. A password may have slashes in it, and then looks like a port that is none.
fn has_credentials(scheme: &str, rest: &str) -> bool {
    let host = rest.split('/').next().unwrap_or_default();
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let odd_port = !host.starts_with('[') && host.split_once(':').is_some_and(|(_, port)| !is_port(port));
    !scheme.eq_ignore_ascii_case("file") && (host.contains('@') || odd_port)
}

fn is_azure(scheme: &str) -> bool {
    let scheme = scheme.to_ascii_lowercase();
    SCHEMES.iter().any(|(noun, schemes)| *noun == "container" && schemes.contains(&scheme.as_str()))
}

/// Buckets and containers have names that fit into a host's; an account may follow that of a container.
fn check_bucket(noun: &str, name: &str, with_account: bool) -> Result<(), String> {
    let (name, account) = name.split_once('@').filter(|_| with_account).map_or((name, None), |(name, host)| (name, Some(host)));
    let fits = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-$".contains(&byte));
    if name.is_empty() || name.len() > 222 || !fits(name) || account.is_some_and(|host| host.is_empty() || !fits(host)) {
        return Err(format!("names no {noun}: it has letters, digits, `.`, `_` and `-`"));
    }
    Ok(())
}

pub(super) fn open_dir(path: &FsPath) -> Result<Opened, RegistryError> {
    let description = format!("directory {}", path.display());
    match ContainedDirectory::open(path) {
        Ok(store) => Ok(Opened::new(Arc::new(store), description)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(RegistryError::Missing { dir: path.to_owned() }),
        Err(error) => Err(RegistryError::unavailable(description, error)),
    }
}

fn decode_percent(path: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = percent_decoded(path)?;
    (!bytes.contains(&0)).then(|| PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// A part of a URL without its percent signs; `None` where one is not followed by two hexadecimal digits.
pub(crate) fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let mut byte = [0];
            hex::decode_to_slice(tail.get(..2)?, &mut byte).ok()?;
            bytes.push(byte[0]);
            rest = tail.get(2..)?;
        } else {
            bytes.push(*first);
        }
    }
    Some(bytes)
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

    fn opened(location: &str) -> Result<Opened, String> {
        let environment = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AZURE_STORAGE_ACCOUNT_NAME", "me")];
        open(location, &environment.into_iter().collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn places_of_stores() {
        let check = |location: &str, description: &str, prefix: &str| {
            let opened = opened(location).unwrap_or_else(|error| panic!("{location}: {error}"));
            assert_eq!((opened.description.as_str(), opened.prefix.as_ref()), (description, prefix), "{location}");
        };
        check("memory://", "memory", "");
        check("s3://models", "s3://models", "");
        check("S3://models/prod/eu/", "s3://models/prod/eu", "prod/eu");
        check("s3a://models/a b", "s3a://models/a b", "a b");
        check("gs://models/x", "gs://models/x", "x");
        check("az://models/x", "az://models/x", "x");
        check("abfss://models@you.dfs.core.windows.net/x", "abfss://models@you.dfs.core.windows.net/x", "x");
        check("https://host:8443/a%20b/c/", "https://host:8443/a%20b/c", "a b/c");
        check("http://127.0.0.1:80", "http://127.0.0.1:80", "");
    }

    #[test]
    fn places_that_are_written_wrong_say_what_is_wrong() {
        let check = |location: &str, parts: &[&str]| {
            let error = opened(location).err().unwrap_or_else(|| panic!("{location} should be refused"));
            assert!(parts.iter().all(|part| error.contains(part)), "{location}: {error}");
            assert!(!error.contains("hidden"), "{error}");
        };
        check("s3://", &["names no bucket", "s3://bucket/prefix"]);
        check("s3:///models", &["names no bucket"]);
        check("gs:///x", &["names no bucket"]);
        check("az://", &["names no container"]);
        check("http:///x", &["names no host"]);
        check("s3://a bucket/x", &["names no bucket", "letters"]);
        check("s3://key:hidden@bucket/x", &["names no bucket"]);
        check("s3://models/x?region=eu", &["query", "environment"]);
        check("s3://models/x?token=hidden", &["query"]);
        check("s3://models/a//b", &["path that no object can have"]);
        check("https://me:hidden@host/x", &["password"]);
        check("https://hidden@host/x", &["password", "https://…@host/x"]);
        check("s3://hidden@bucket/x", &["names no bucket", "s3://…@bucket/x"]);
        check("gs://hidden@a@bucket/x", &["names no bucket"]);
        check("s3://key:hid/hidden@bucket/x", &["s3://…@bucket/x"]);
        check("az://key:hidden@account/x", &["names no container"]);
        check("ABFSS://models@you/x?hidden", &["ABFSS://models@you/x", "query"]);
        check("ftp://host/x", &["ftp", "not supported"]);
        check("memory://x", &["memory://"]);
        let gone = open("/no/such/directory/anywhere", &StoreEnvironment::default()).err().unwrap();
        assert!(matches!(gone, RegistryError::Missing { .. }), "{gone}");
    }

    #[test]
    fn only_what_may_be_a_password_is_hidden() {
        let check = |place: &str, shown: &str| assert_eq!(without_secrets(place), shown);
        for place in
            ["file:///srv/models@2", "s3://prod/team@eu", "oci://[::1]:5000/m@x", "oci://host:5000/m@x", "az://box@account/x"]
        {
            check(place, place);
        }
        check("oci://me:hunter2@host/x", "oci://…@host/x");
        check("oci://me:hun/ter2@host/x", "oci://…@host/x");
        check("https://hunter2@host/x@y", "https://…@y");
        check("https://host/x?token=hunter2", "https://host/x?…");
    }
}
