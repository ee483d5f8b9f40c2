//! How a command fails: what it says on standard error, and its exit code.

use std::io::Write as _;
use std::process::ExitCode;

use bascule_registry::{JournalError, PublishError, RegistryError, SourceError};

use crate::config::ConfigError;

/// Why a command was not carried out.
#[derive(Debug)]
pub(super) struct Failure {
    errors: Vec<anyhow::Error>,
    hint: Option<String>,
    code: u8,
}

const REFUSED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;

impl Failure {
    /// Refused, or failed.
    pub(super) fn new(error: impl Into<String>) -> Failure {
        anyhow::Error::msg(error.into()).into()
    }

    /// The command line makes no sense.
    pub(super) fn usage(error: impl Into<String>) -> Failure {
        Failure { code: USAGE, ..Failure::new(error) }
    }

    /// Nobody answers there.
    pub(super) fn unreachable(error: anyhow::Error) -> Failure {
        Failure { code: UNREACHABLE, ..error.into() }
    }

    /// Several things are wrong.
    pub(super) fn several(errors: impl IntoIterator<Item = String>) -> Failure {
        Failure { errors: errors.into_iter().map(anyhow::Error::msg).collect(), hint: None, code: REFUSED }
    }

    /// What to do about it.
    pub(super) fn hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }

    /// What to do about it, where that is known.
    pub(super) fn maybe_hint(self, hint: Option<String>) -> Failure {
        Failure { hint: hint.or(self.hint.clone()), ..self }
    }

    /// The same, with what could not be done for it before each error.
    pub(super) fn context(self, text: impl std::fmt::Display + Clone + Send + Sync + 'static) -> Failure {
        Failure { errors: self.errors.into_iter().map(|error| error.context(text.clone())).collect(), ..self }
    }

    /// What is said on standard error.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for error in &self.errors {
            text += &format!("error: {error}\n");
            // An error that repeats its cause says it once.
            let mut last = error.to_string();
            for cause in error.chain().skip(1).map(ToString::to_string) {
                if !last.contains(&cause) {
                    text += &format!("caused by: {cause}\n");
                }
                last = cause;
            }
        }
        if let Some(hint) = &self.hint {
            text += &format!("hint: {hint}\n");
        }
        text
    }

    /// The errors with their causes, in one line.
    pub(super) fn summary(&self) -> String {
        let texts: Vec<String> = self.errors.iter().map(|error| format!("{error:#}")).collect();
        texts.join("; ")
    }

    /// Says it, and gives the exit code.
    pub(super) fn report(&self) -> ExitCode {
        // Where standard error is closed, the exit code has to do.
        drop(std::io::stderr().write_all(self.text().as_bytes()));
        ExitCode::from(self.code)
    }

    #[cfg(test)]
    pub(super) fn code(&self) -> u8 {
        self.code
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        let code = if is_unreachable(&error) { UNREACHABLE } else { REFUSED };
        let hint = is_of_unknown_authority(&error)
            .then(|| "where a private authority has signed its certificate, SSL_CERT_FILE names that authority's (PEM)".to_owned());
        Failure { errors: vec![error], hint, code }
    }
}

/// Whether a registry or journal could not be reached. One that is not there is no such case: waiting does not help.
fn is_unreachable(error: &anyhow::Error) -> bool {
    let cause = error.chain().find_map(|error| {
        if let Some(PublishError::Unavailable { source, .. }) = error.downcast_ref() {
            return Some(source);
        }
        if let Some(JournalError::Unavailable { source, .. }) = error.downcast_ref() {
            return Some(source);
        }
        if let Some(RegistryError::Unavailable { source, .. }) = error.downcast_ref() {
            return Some(source);
        }
        match error.downcast_ref() {
            Some(SourceError::Unavailable { source, .. }) => Some(source),
            None => None,
        }
    });
    cause.is_some_and(|cause| !is_missing(cause.as_ref()))
}

/// Whether a server showed a certificate that nobody whom this machine trusts has signed. Only the text tells, in the TLS library's words.
fn is_of_unknown_authority(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.to_string().contains("invalid peer certificate: UnknownIssuer"))
}

/// Whether the reason for an error is that something is not there.
fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    let here = error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    here || error.source().is_some_and(is_missing)
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        let hint = "`bascule check` prints every setting, its value and where it comes from";
        Failure::several(error.problems.iter().map(ToString::to_string)).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_registry_that_can_not_be_reached_is_told_from_one_that_is_not_there() {
        use std::io::{Error, ErrorKind};
        use std::sync::Arc;

        let code = |kind: ErrorKind| {
            let (place, source) = ("m/blobs/x".to_owned(), Arc::new(Error::from(kind)));
            let failed = PublishError::Unavailable { place: place.clone(), source: source.clone() };
            let journal = JournalError::Unavailable { place: place.clone(), source: source.clone() };
            let registry = RegistryError::Unavailable { place: place.clone(), source: source.clone() };
            let listing = SourceError::Unavailable { place, source };
            let failures = [
                Failure::from(anyhow::Error::new(failed).context("nothing was published")),
                Failure::from(anyhow::Error::new(journal)),
                Failure::from(anyhow::Error::new(registry).context("can't open it")),
                Failure::from(anyhow::Error::new(listing)),
            ];
            failures.map(|failure| failure.code())
        };
        assert_eq!(code(ErrorKind::TimedOut), [3; 4]);
        assert_eq!(code(ErrorKind::PermissionDenied), [3; 4]);
        assert_eq!(code(ErrorKind::NotFound), [1; 4]);
        let missing = RegistryError::Missing { dir: "nowhere".into() };
        assert_eq!(Failure::from(anyhow::Error::new(missing)).code(), 1);
    }

    #[test]
    fn a_certificate_of_an_unknown_authority_has_a_hint() {
        let of = |why: &str| Failure::from(anyhow::anyhow!("https://store can't be reached ({why})").context("no versions")).text();
        assert!(of("invalid peer certificate: UnknownIssuer").contains("hint: where a private authority"));
        assert!(!of("invalid peer certificate: Expired").contains("hint"));
    }

    #[test]
    fn errors_causes_and_hints_have_a_line_each() {
        let cause: anyhow::Result<()> = Err(anyhow::anyhow!("disk full").context("can't write y"));
        let error = cause.context("nothing was published").unwrap_err();
        let failure = Failure::from(error).hint("make room");
        assert_eq!(
            failure.text(),
            "error: nothing was published\ncaused by: can't write y\ncaused by: disk full\nhint: make room\n"
        );
        assert_eq!(failure.code(), 1);
        assert_eq!(Failure::several(["a".into(), "b".into()]).text(), "error: a\nerror: b\n");
        assert_eq!(Failure::usage("x").code(), 2);
        assert_eq!(Failure::unreachable(anyhow::anyhow!("x")).code(), 3);
        assert_eq!(Failure::new("x").hint("a").maybe_hint(None).text(), "error: x\nhint: a\n");
    }
}
