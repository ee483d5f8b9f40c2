//! Which path means what, and which methods it takes.
//!
//! One trailing slash is forgiven. Names are percent-decoded; what they decode to is only ever looked up, never joined to a path.
//! Deliberately absent: any effect.

use std::borrow::Cow;

use hyper::Method;
use smallvec::SmallVec;

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint<'a> {
    ServerMetadata,
    Live,
    Ready,
    /// The statistics of every model.
    Statistics,
    /// Something about a model, or one version of it.
    Model {
        name: Cow<'a, str>,
        version: Option<u64>,
        what: ModelEndpoint,
    },
    Index,
    Load {
        name: Cow<'a, str>,
    },
    Unload {
        name: Cow<'a, str>,
    },
    /// A part of the protocol that is not served, by its name for people.
    Unsupported(&'static str),
}

/// What about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelEndpoint {
    Metadata,
    Ready,
    Config,
    Statistics,
    Infer,
}

impl Endpoint<'_> {
    /// The methods that it takes, as the header `Allow` lists them; `None` where the method makes no difference.
    pub(crate) fn allowed(&self) -> Option<&'static str> {
        match self {
            Endpoint::Model { what: ModelEndpoint::Infer, .. }
            | Endpoint::Index
            | Endpoint::Load { .. }
            | Endpoint::Unload { .. } => Some("POST"),
            Endpoint::Unsupported(_) => None,
            _ => Some("GET, HEAD"),
        }
    }

    /// Whether it takes this method.
    pub(crate) fn takes(&self, method: &Method) -> bool {
        match self.allowed() {
            None => true,
            Some("POST") => *method == Method::POST,
            Some(_) => *method == Method::GET || *method == Method::HEAD,
        }
    }
}

const SHARED_MEMORY: &str = "shared memory";
const TRACE: &str = "trace settings";

/// The meaning of a path; `None` where it has none.
pub(crate) fn endpoint(path: &str) -> Option<Endpoint<'_>> {
    let path = path.strip_prefix("/v2")?;
    let path = path.strip_suffix('/').unwrap_or(path);
    // What nearly all requests ask for, before the pieces are put side by side.
    if let Some(name) = path.strip_prefix("/models/").and_then(|rest| rest.strip_suffix("/infer"))
        && !name.contains('/')
    {
        return Some(Endpoint::Model { name: decoded(name)?, version: None, what: ModelEndpoint::Infer });
    }
    let mut segments = path.split('/');
    if !segments.next()?.is_empty() {
        return None;
    }
    let segments: SmallVec<[&str; 8]> = segments.take(8).collect();
    Some(match segments.as_slice() {
        [] => Endpoint::ServerMetadata,
        ["health", "live"] => Endpoint::Live,
        ["health", "ready"] => Endpoint::Ready,
        ["models", "stats"] => Endpoint::Statistics,
        ["models", name, rest @ ..] => model(name, rest)?,
        ["repository", "index"] => Endpoint::Index,
        ["repository", "models", name, "load"] => Endpoint::Load { name: decoded(name)? },
        ["repository", "models", name, "unload"] => Endpoint::Unload { name: decoded(name)? },
        ["repository", _, "index"] | ["repository", _, "models", _, "load" | "unload"] => {
            Endpoint::Unsupported("naming a repository")
        }
        ["systemsharedmemory" | "cudasharedmemory", "status" | "register" | "unregister"]
        | ["systemsharedmemory" | "cudasharedmemory", "region", _, "status" | "register" | "unregister"] => {
            Endpoint::Unsupported(SHARED_MEMORY)
        }
        ["trace", "setting"] => Endpoint::Unsupported(TRACE),
        ["logging"] => Endpoint::Unsupported("log settings"),
        _ => return None,
    })
}

fn model<'a>(name: &'a str, rest: &[&'a str]) -> Option<Endpoint<'a>> {
    let (version, rest) = match rest {
        ["versions", version, rest @ ..] => (Some(number(version)?), rest),
        rest => (None, rest),
    };
    let what = match rest {
        [] => ModelEndpoint::Metadata,
        ["ready"] => ModelEndpoint::Ready,
        ["config"] => ModelEndpoint::Config,
        ["stats"] => ModelEndpoint::Statistics,
        ["infer"] => ModelEndpoint::Infer,
        ["generate"] => return Some(Endpoint::Unsupported("generate")),
        ["generate_stream"] => return Some(Endpoint::Unsupported("generate_stream")),
        ["trace", "setting"] => return Some(Endpoint::Unsupported(TRACE)),
        _ => return None,
    };
    Some(Endpoint::Model { name: decoded(name)?, version, what })
}

/// A version in a path: digits only. 0, leading zeros and numbers that don't fit are versions that are not there.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Undoes percent-encoding; `None` where that is broken, empty, or not UTF-8.
fn decoded(segment: &str) -> Option<Cow<'_, str>> {
    if segment.is_empty() {
        return None;
    }
    if !segment.contains('%') {
        return Some(Cow::Borrowed(segment));
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str, version: Option<u64>, what: ModelEndpoint) -> Option<Endpoint<'_>> {
        Some(Endpoint::Model { name: name.into(), version, what })
    }

    #[test]
    fn paths_have_one_meaning() {
        use ModelEndpoint::{Config, Infer, Metadata, Ready, Statistics};
        for (path, expected) in [
            ("/v2", Some(Endpoint::ServerMetadata)),
            ("/v2/", Some(Endpoint::ServerMetadata)),
            ("/v2/health/live", Some(Endpoint::Live)),
            ("/v2/health/live/", Some(Endpoint::Live)),
            ("/v2/health/ready", Some(Endpoint::Ready)),
            ("/v2/models/stats", Some(Endpoint::Statistics)),
            ("/v2/models/m", about("m", None, Metadata)),
            ("/v2/models/m/", about("m", None, Metadata)),
            ("/v2/models/m/versions/3", about("m", Some(3), Metadata)),
            ("/v2/models/m/ready", about("m", None, Ready)),
            ("/v2/models/m/versions/3/config", about("m", Some(3), Config)),
            ("/v2/models/m/stats", about("m", None, Statistics)),
            ("/v2/models/stats/infer", about("stats", None, Infer)),
            ("/v2/models/m/versions/0/infer", about("m", Some(0), Infer)),
            ("/v2/models/m/versions/99999999999999999999999/infer", about("m", Some(u64::MAX), Infer)),
            ("/v2/models/%6dlp", about("mlp", None, Metadata)),
            ("/v2/models/a%2Fb", about("a/b", None, Metadata)),
            ("/v2/models/..%2f..", about("../..", None, Metadata)),
            ("/v2/repository/index", Some(Endpoint::Index)),
            ("/v2/repository/models/m/load", Some(Endpoint::Load { name: "m".into() })),
            ("/v2/repository/models/m/unload", Some(Endpoint::Unload { name: "m".into() })),
            ("/v2/repository/nope/index", Some(Endpoint::Unsupported("naming a repository"))),
            ("/v2/repository/models/models/m/load", Some(Endpoint::Unsupported("naming a repository"))),
            ("/v2/systemsharedmemory/status", Some(Endpoint::Unsupported(SHARED_MEMORY))),
            ("/v2/cudasharedmemory/region/r/register", Some(Endpoint::Unsupported(SHARED_MEMORY))),
            ("/v2/models/m/trace/setting", Some(Endpoint::Unsupported(TRACE))),
            ("/v2/trace/setting", Some(Endpoint::Unsupported(TRACE))),
            ("/v2/logging", Some(Endpoint::Unsupported("log settings"))),
            ("/v2/models/m/versions/1/generate_stream", Some(Endpoint::Unsupported("generate_stream"))),
        ] {
            assert_eq!(endpoint(path), expected, "{path}");
        }
        for path in [
            "",
            "/",
            "/v1/models/m",
            "/v2x",
            "/v2//",
            "/v2/models",
            "/v2/models/",
            "/v2/models//infer",
            "/v2/models/m/foo",
            "/v2/models/m/infer/x",
            "/v2/models/m/versions",
            "/v2/models/m/versions/1abc",
            "/v2/models/m/versions/-1",
            "/v2/models/%zz",
            "/v2/models/%6",
            "/v2/models/%ff",
            "/v2/health",
            "/v2/repository/models/m/versions/1/load",
            "/v2/models/a/b/c/d/e/f/g/h/i/j/k",
        ] {
            assert_eq!(endpoint(path), None, "{path}");
        }
    }

    #[test]
    fn methods_are_told() {
        let check = |path: &str, method: Method| endpoint(path).unwrap().takes(&method);
        assert!(
            check("/v2", Method::GET)
                && check("/v2", Method::HEAD)
                && !check("/v2", Method::POST)
                && !check("/v2", Method::OPTIONS)
        );
        assert!(check("/v2/models/m/infer", Method::POST) && !check("/v2/models/m/infer", Method::GET));
        assert!(check("/v2/repository/index", Method::POST) && !check("/v2/repository/index", Method::PUT));
        assert!(check("/v2/logging", Method::DELETE));
    }
}
