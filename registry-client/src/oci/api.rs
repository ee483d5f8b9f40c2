//! The requests of the distribution specification that are needed: lists, manifests, and the heads of blobs.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, LINK};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::time::Instant;

use super::error::OciError;
use super::http::{Ask, Client, Scope, read_bounded, unwanted};
use super::place::is_repository;
use crate::digest::Digest;

/// The largest manifest that registries have to take, and the largest that is read.
pub(super) const MAX_IMAGE_MANIFEST_BYTES: u64 = 4 << 20;
/// A page of a list asks for so many names.
const PAGE: &str = "1000";
const MAX_PAGE_BYTES: u64 = 4 << 20;
/// What a list is read to: more tags or repositories than this are an error, and no endless list is followed. Registries choose the
/// size of their pages themselves, a single name included.
const MAX_NAMES: usize = 100_000;
const MAX_PAGES: usize = 20_000;
/// How long all pages of a list may take together.
const LIST_LIMIT: Duration = Duration::from_secs(600);
/// The longest tag.
const MAX_TAG_BYTES: usize = 128;
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The media type of the manifest of one artifact.
pub(super) const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                        application/vnd.docker.distribution.manifest.v2+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json";

/// The names of a list, and how many requests they took.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) names: BTreeSet<String>,
    pub(super) pages: usize,
    /// What is no name by the grammar of the distribution specification, which bounds their length, too. They are not kept: a page may be
    /// one of them.
    left_out: usize,
}

impl Names {
    /// Takes the names of a page; whether the list goes on after it. What nobody may see can leave a page without names. One that
    /// repeats what came before ends the list, whatever it links to.
    fn take(&mut self, page: Vec<String>, is_name: fn(&str) -> bool) -> bool {
        let (before, listed) = (self.names.len(), page.len());
        let names: Vec<_> = page.into_iter().filter(|name| is_name(name)).collect();
        let is_empty = names.is_empty();
        self.pages += 1;
        self.left_out += listed - names.len();
        self.names.extend(names);
        is_empty || self.names.len() > before
    }
}

#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

impl Client {
    /// The tags of a repository; none where there is no such repository.
    pub(super) async fn tags(&self, repository: &str) -> Result<BTreeSet<String>, OciError> {
        let what = format!("the list of tags of {repository}");
        let path = format!("{repository}/tags/list");
        let read = |body: &[u8]| serde_json::from_slice(body).map(|Tags { tags }| tags.unwrap_or_default());
        match self.list(&what, &path, Scope::Pull(repository.to_owned()), is_tag, read).await {
            Ok(list) => Ok(list.names),
            Err(error) if error.is_absent() => Ok(BTreeSet::new()),
            Err(error) => Err(error),
        }
    }

    /// All repositories, where the registry lists them.
    pub(super) async fn catalog(&self) -> Result<Names, OciError> {
        let read = |body: &[u8]| serde_json::from_slice(body).map(|Catalog { repositories }| repositories.unwrap_or_default());
        self.list("the list of repositories", "_catalog", Scope::Catalog, is_repository, read).await
    }

    /// All pages of a list, as far as they hold names of its kind.
    async fn list(
        &self,
        what: &str,
        path: &str,
        scope: Scope,
        is_name: fn(&str) -> bool,
        read: impl Fn(&[u8]) -> Result<Vec<String>, serde_json::Error>,
    ) -> Result<Names, OciError> {
        let mut url = self.url(path);
        url.set_query(Some(&format!("n={PAGE}")));
        let mut list = Names::default();
        let (began, mut asked) = (Instant::now(), BTreeSet::new());
        loop {
            asked.insert(Digest::of(url.as_str().as_bytes()));
            let response = self.send(&self.get(what, url.clone(), scope.clone())).await?;
            if response.status() != StatusCode::OK {
                return Err(unwanted(what, response).await);
            }
            let next = next_page(response.headers()).map(|next| self.resolve(what, &url, &next)).transpose()?;
            let body = read_bounded(what, response, MAX_PAGE_BYTES).await?;
            let page = read(&body).map_err(|error| OciError::protocol(what, format!("a page is not valid: {error}")))?;
            let goes_on = list.take(page, is_name);
            if let Some(problem) = excess(list.names.len(), list.pages, began.elapsed()) {
                return Err(OciError::TooLong { what: what.to_owned(), problem });
            }
            if let Some(next) = next.filter(|next| goes_on && !asked.contains(&Digest::of(next.as_str().as_bytes()))) {
                url = next;
                continue;
            }
            if list.left_out > 0 {
                tracing::debug!(list = what, left_out = list.left_out, "a registry lists names that are none");
            }
            return Ok(list);
        }
    }

    /// The digest of a tag's manifest; `None` where there is none.
    pub(super) async fn manifest_digest(&self, repository: &str, tag: &str, patient: bool) -> Result<Option<Digest>, OciError> {
        let ask = Ask { method: Method::HEAD, patient, ..self.manifest_ask(repository, tag) };
        let response = self.send(&ask).await?;
        match response.status() {
            StatusCode::OK => match content_digest(&response) {
                Some(digest) => Ok(Some(digest)),
                // Registries should tell it; where one does not, the manifest itself does.
                None => Ok(self.manifest(repository, tag).await?.map(|content| Digest::of(&content))),
            },
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(unwanted(&ask.what, response).await),
        }
    }

    /// The bytes of a manifest, by tag or digest, checked against what the registry says of them; `None` where there is none.
    pub(super) async fn manifest(&self, repository: &str, reference: &str) -> Result<Option<Vec<u8>>, OciError> {
        let ask = self.manifest_ask(repository, reference);
        let response = self.send(&ask).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(unwanted(&ask.what, response).await),
        }
        let expected = content_digest(&response);
        let content = read_bounded(&ask.what, response, MAX_IMAGE_MANIFEST_BYTES).await?;
        let actual = Digest::of(&content);
        match expected {
            Some(expected) if expected != actual => Err(OciError::Digest { what: ask.what, expected, actual }),
            _ => Ok(Some(content)),
        }
    }

    fn manifest_ask(&self, repository: &str, reference: &str) -> Ask {
        let what = format!("the manifest of {repository}:{reference}");
        let url = self.url(&format!("{repository}/manifests/{reference}"));
        let mut ask = self.get(what, url, Scope::Pull(repository.to_owned()));
        ask.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        ask
    }

    /// A small blob, checked against its digest.
    pub(super) async fn small_blob(&self, repository: &str, digest: &Digest, limit: u64) -> Result<Vec<u8>, OciError> {
        let what = format!("blob {} of {repository}", digest.short());
        let ask = self.get(&what, self.blob_url(repository, digest), Scope::Pull(repository.to_owned()));
        let response = self.send(&ask).await?;
        if response.status() != StatusCode::OK {
            return Err(unwanted(&what, response).await);
        }
        let content = read_bounded(&what, response, limit).await?;
        let actual = Digest::of(&content);
        if actual != *digest {
            return Err(OciError::Digest { what, expected: *digest, actual });
        }
        Ok(content)
    }

    pub(super) fn blob_url(&self, repository: &str, digest: &Digest) -> Url {
        self.url(&format!("{repository}/blobs/sha256:{digest}"))
    }
}

/// Why a list is not followed any further, where that is so.
fn excess(names: usize, pages: usize, took: Duration) -> Option<String> {
    if names > MAX_NAMES {
        return Some(format!("it has more than {MAX_NAMES} names"));
    }
    if pages > MAX_PAGES {
        return Some(format!("it has more than {MAX_PAGES} pages: {names} names came so far"));
    }
    let limit = LIST_LIMIT.as_secs();
    (took > LIST_LIMIT).then(|| format!("its pages take longer than {limit} s: {pages} of them with {names} names came so far"))
}

/// The digest that an answer names; others than sha256 tell nothing here.
pub(super) fn content_digest(response: &Response) -> Option<Digest> {
    response.headers().get(CONTENT_DIGEST)?.to_str().ok()?.strip_prefix("sha256:")?.parse().ok()
}

/// `Link: <…>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(LINK).iter().filter_map(|link| link.to_str().ok()).flat_map(|link| link.split(','));
    let next =
        links.filter(|link| link.split(';').skip(1).any(|part| part.trim().replace('"', "").eq_ignore_ascii_case("rel=next")));
    let mut targets = next.filter_map(|link| Some(link.split_once('<')?.1.split_once('>')?.0.to_owned()));
    targets.next()
}

/// Whether this is a tag by the grammar of the distribution specification. What is not is ignored: it would become part of a URL.
fn is_tag(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG_BYTES
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_next_pages() {
        let check = |header: &str, expected: Option<&str>| {
            let headers = HeaderMap::from_iter([(LINK, header.parse().unwrap())]);
            assert_eq!(next_page(&headers).as_deref(), expected, "{header}");
        };
        check(r#"</v2/a/tags/list?last=x&n=2>; rel="next""#, Some("/v2/a/tags/list?last=x&n=2"));
        check("<https://a/b>; rel=next", Some("https://a/b"));
        check(r#"<a>; rel="prev", <b>; title="t"; rel="next""#, Some("b"));
        check(r#"<a>; rel="prev""#, None);
        check("nonsense; rel=next", None);
    }

    #[test]
    fn lists_that_are_too_long_say_what_is_too_much() {
        assert_eq!(excess(MAX_NAMES, MAX_PAGES, LIST_LIMIT), None);
        let check = |names, pages, took, part: &str| {
            let problem = excess(names, pages, took).unwrap();
            assert!(problem.contains(part), "{problem}");
        };
        check(MAX_NAMES + 1, 2, Duration::ZERO, "more than 100000 names");
        check(7, MAX_PAGES + 1, Duration::ZERO, "more than 20000 pages: 7 names came so far");
        check(7, 3, LIST_LIMIT + Duration::from_secs(1), "longer than 600 s: 3 of them with 7 names");
    }

    #[test]
    fn what_is_no_name_is_counted_and_not_kept() {
        let mut list = Names::default();
        let page = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let long = "a".repeat(4 << 20);
        assert!(list.take(page(&[&long, "1", "../x"]), is_tag));
        assert!(list.take(page(&[&long]), is_tag), "as a page without names");
        assert!(list.take(page(&[]), is_tag));
        assert!(!list.take(page(&["1", &long]), is_tag), "nothing new");
        assert_eq!((list.names, list.left_out, list.pages), (BTreeSet::from(["1".to_owned()]), 4, 4));

        let mut list = Names::default();
        list.take(page(&["team/m", &"a".repeat(255), &"a".repeat(256), "Upper"]), is_repository);
        assert_eq!((list.names.len(), list.left_out), (2, 2));
    }

    #[test]
    fn tags() {
        for tag in ["1", "latest", "v1.0-rc.2", "_x"] {
            assert!(is_tag(tag), "{tag}");
        }
        for tag in ["", "../x", "a/b", "a?b", ".a", "-a", "ä", &"a".repeat(129)] {
            assert!(!is_tag(tag), "{tag}");
        }
    }
}
