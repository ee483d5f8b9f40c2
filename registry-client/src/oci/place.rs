//! Where an OCI registry is, as a user writes it: `oci://host[:port]/repository`.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use crate::name::{ModelName, quoted};
use crate::registry::RegistryError;

/// The longest repository that registries take.
const MAX_REPOSITORY_BYTES: usize = 255;
/// The name of the public registry, and where its API is.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OciPlace {
    /// Host and port, as credentials are filed under.
    pub(super) host: String,
    /// Where the API is: `https://host/`.
    pub(super) base: Url,
    /// The repository, without a slash at either end.
    pub(super) repository: String,
}

impl fmt::Display for OciPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci://{}/{}", self.host, self.repository)
    }
}

impl OciPlace {
    /// Reads `oci://host/repository`, for which a loopback host is asked without TLS and any other with it, or
    /// `oci+http://host/repository` and `oci+https://host/repository`, which say so themselves.
    pub(super) fn parse(location: &str) -> Result<Self, RegistryError> {
        // What is written here may hold a password: it is shown only where it is known not to.
        let wrong = |problem: &'static str| RegistryError::Location { location: shown(location), problem: problem.into() };
        let (scheme, rest) = location.split_once("://").ok_or_else(|| wrong("is not a URL"))?;
        let asked_with = match scheme.to_ascii_lowercase().as_str() {
            "oci" => None,
            "oci+http" => Some("http"),
            "oci+https" => Some("https"),
            _ => return Err(wrong("does not begin with oci://, oci+http:// or oci+https://")),
        };
        if rest.contains('@') && rest.find('@') < rest.find('/').or(Some(usize::MAX)) {
            return Err(wrong("holds credentials: set oci.username and oci.password instead"));
        }
        if rest.contains(['?', '#', '@']) {
            return Err(wrong("has more than a host and a repository"));
        }
        let (host, repository) = rest.split_once('/').unwrap_or((rest, ""));
        let host = host.to_ascii_lowercase();
        let repository = repository.trim_end_matches('/');
        if repository.is_empty() {
            return Err(wrong("names no repository: write oci://host/repository"));
        }
        if !is_repository(repository) {
            return Err(wrong(
                "names no repository: its parts are lower-case letters and digits, with single `.`, `_`, `__` or dashes between them",
            ));
        }
        let api = if host == DOCKER_HUB.0 { DOCKER_HUB.1 } else { &host };
        let scheme = asked_with.unwrap_or(if is_loopback(api) { "http" } else { "https" });
        let base = Url::parse(&format!("{scheme}://{api}/")).ok().filter(|url| url.has_host() && url.path() == "/");
        let base = base.ok_or_else(|| wrong("names no host"))?;
        Ok(Self { host, base, repository: repository.to_owned() })
    }

    /// The model that the repository itself is.
    pub(super) fn own_model(&self) -> Result<ModelName, crate::name::NameError> {
        model_of(&self.repository)
    }

    /// The repository that a model is published to.
    pub(super) fn repository_of(&self, model: &ModelName) -> String {
        match self.own_model() {
            Ok(own) if own == *model => self.repository.clone(),
            _ => format!("{}/{model}", self.repository),
        }
    }

    /// Whether a repository lies below this one.
    pub(super) fn holds(&self, repository: &str) -> bool {
        repository.strip_prefix(self.repository.as_str()).is_some_and(|below| below.starts_with('/'))
    }
}

/// The model that a repository is: its last part.
pub(super) fn model_of(repository: &str) -> Result<ModelName, crate::name::NameError> {
    ModelName::new(repository.rsplit('/').next().unwrap_or(repository))
}

/// The location without what may be a secret.
fn shown(location: &str) -> String {
    let end = location.find(['?', '#']).unwrap_or(location.len());
    let location = &location[..end];
    match (location.split_once("://"), location.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => quoted(&format!("{scheme}://…@{place}")),
        (None, Some((_, place))) => quoted(&format!("…@{place}")),
        _ => quoted(location),
    }
}

fn is_loopback(host: &str) -> bool {
    let name = host
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .map_or_else(|| host.rsplit_once(':').map_or(host, |(name, _)| name), |(address, _)| address);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether this is a repository by the grammar of the distribution specification: parts between slashes, each made of runs of
/// lower-case letters and digits with one `.`, one or two `_` or any number of `-` between them.
pub(super) fn is_repository(text: &str) -> bool {
    text.len() <= MAX_REPOSITORY_BYTES && text.split('/').all(is_part)
}

fn is_part(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut between = String::new();
    let mut runs = false;
    for byte in part.bytes() {
        if alphanumeric(byte) {
            let allowed = matches!(between.as_str(), "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
            if !allowed || (!runs && !between.is_empty()) {
                return false;
            }
            between.clear();
            runs = true;
        } else {
            between.push(char::from(byte));
        }
    }
    runs && between.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let check = |location: &str, expected: Result<(&str, &str), &str>| match (OciPlace::parse(location), expected) {
            (Ok(place), Ok((base, repository))) => {
                assert_eq!((place.base.as_str(), place.repository.as_str()), (base, repository), "{location}");
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{location}: {error}"),
            (outcome, _) => panic!("{location}: {outcome:?}"),
        };
        check("oci://ghcr.io/team/models", Ok(("https://ghcr.io/", "team/models")));
        check("OCI://Registry.Example:5000/models/", Ok(("https://registry.example:5000/", "models")));
        check("oci://localhost:5000/m", Ok(("http://localhost:5000/", "m")));
        check("oci://127.0.0.1:5000/m", Ok(("http://127.0.0.1:5000/", "m")));
        check("oci://[::1]:5000/m", Ok(("http://[::1]:5000/", "m")));
        check("oci+http://registry.lan/m", Ok(("http://registry.lan/", "m")));
        check("oci+https://localhost:5000/m", Ok(("https://localhost:5000/", "m")));
        check("oci://docker.io/team/m", Ok(("https://registry-1.docker.io/", "team/m")));
        check("oci://a/b-c/d__e.f_g--h", Ok(("https://a/", "b-c/d__e.f_g--h")));
        check("oci://host", Err("names no repository"));
        check("oci://host/", Err("names no repository"));
        check("oci:///m", Err("names no host"));
        for repository in ["Models", "a//b", "a/../b", "a___b", "a..b", "-a", "a-", "a b", "ä", "a%2f"] {
            check(&format!("oci://host/{repository}"), Err("lower-case"));
        }
        check("oci://host/m:1", Err("lower-case"));
        check("oci://host/m@sha256:00", Err("more than"));
        check("oci://host/m?x=1", Err("more than"));
        check("s3://host/m", Err("does not begin with"));
    }

    #[test]
    fn a_password_in_a_place_is_refused_and_not_shown() {
        for location in ["oci://me:hunter2@host/m", "oci://host/m?token=hunter2", "oci://me:hun/hunter2@host/m"] {
            let error = OciPlace::parse(location).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn models_and_repositories() {
        let place = OciPlace::parse("oci://host/team/digits").unwrap();
        let model = |name: &str| ModelName::new(name).unwrap();
        assert_eq!(place.own_model(), Ok(model("digits")));
        assert_eq!(place.repository_of(&model("digits")), "team/digits");
        assert_eq!(place.repository_of(&model("other")), "team/digits/other");
        assert!(place.holds("team/digits/x") && !place.holds("team/digits") && !place.holds("team/digits2"));
    }
}
