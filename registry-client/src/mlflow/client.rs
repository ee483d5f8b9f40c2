//! Requests to the tracking server: with credentials, with time-outs, and with answers that are bounded before they are read.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue, RANGE};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::error::MlflowError;
use super::{MlflowCredentials, MlflowPlaceError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a byte.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// For a whole answer of the API; files may take longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Of one answer of the API.
const MAX_ANSWER_BYTES: usize = 32 << 20;
/// Of an answer that is an error.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Requests to the API at a time.
const REQUESTS: usize = 8;
/// More is taken for a server that goes round in circles.
const MAX_PAGES: usize = 1_000;

/// A tracking server.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    authorization: Option<HeaderValue>,
    /// What is sent to be let in, for people.
    tried: &'static str,
    permits: Semaphore,
}

/// Answers that come in pages.
pub(super) trait Page: DeserializeOwned {
    type Item;
    /// What it holds, and what to ask with for the next one.
    fn open(self) -> (Vec<Self::Item>, Option<String>);
}

impl Client {
    pub(super) fn new(base: Url, credentials: &MlflowCredentials) -> Result<Self, MlflowPlaceError> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // Nobody else is shown the credentials.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("bascule/", env!("CARGO_PKG_VERSION")));
        let http = http.build().map_err(|error| MlflowPlaceError::Client(error.without_url().to_string()))?;
        let authorization = credentials.header().map_err(|()| MlflowPlaceError::Credentials)?;
        Ok(Self { http, base, authorization, tried: credentials.tried(), permits: Semaphore::new(REQUESTS) })
    }

    /// Whether a URL belongs to this server, so that it may see the credentials.
    pub(super) fn is_home_of(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Whether a URL of artifacts names this server, or none.
    pub(super) fn is_named_by(&self, url: &Url) -> bool {
        let is_port = |port| Some(port) == self.base.port_or_known_default();
        url.host_str().is_none_or(|host| Some(host) == self.base.host_str() && url.port().is_none_or(is_port))
    }

    /// The URL below the base with these segments, each encoded.
    pub(super) fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        below(&self.base, segments)
    }

    /// One answer of the API.
    pub(super) async fn get<T: DeserializeOwned>(&self, what: &str, path: &str, query: &[(&str, &str)]) -> Result<T, MlflowError> {
        let url = self.api(path);
        self.get_at(what, url, query).await
    }

    /// The same at any URL of the server's.
    pub(super) async fn get_at<T: DeserializeOwned>(&self, what: &str, url: Url, query: &[(&str, &str)]) -> Result<T, MlflowError> {
        let request = self.request(Method::GET, url).query(query).timeout(ANSWER_TIMEOUT);
        let body = self.answer(what, request).await?;
        serde_json::from_slice(&body).map_err(|error| MlflowError::malformed(what, format!("is not what was expected: {error}")))
    }

    /// All pages of a search.
    pub(super) async fn pages<P: Page>(&self, what: &str, path: &str, query: &[(&str, &str)]) -> Result<Vec<P::Item>, MlflowError> {
        let mut items = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut asked = query.to_vec();
            asked.extend(token.as_deref().map(|token| ("page_token", token)));
            let page: P = self.get(what, path, &asked).await?;
            let (found, next) = page.open();
            let is_empty = found.is_empty();
            items.extend(found);
            match next.filter(|next| !next.is_empty()) {
                None => return Ok(items),
                Some(next) if is_empty || Some(&next) == token.as_ref() => {
                    let problem = "names a next page that is the one before or has nothing in it";
                    return Err(MlflowError::malformed(what, problem));
                }
                next => token = next,
            }
        }
        Err(MlflowError::malformed(what, format!("has more than {MAX_PAGES} pages")))
    }

    /// Changes something; what comes back is not looked at.
    pub(super) async fn send(&self, method: Method, what: &str, path: &str, body: &impl Serialize) -> Result<(), MlflowError> {
        let request = self.request(method, self.api(path)).json(body).timeout(ANSWER_TIMEOUT);
        self.answer(what, request).await.map(drop)
    }

    /// A file's answer, its status among those that a file can have: 200, 206 or 416. `range` as in the header.
    pub(super) async fn file(&self, what: &str, url: Url, range: Option<&str>) -> Result<Response, MlflowError> {
        let mut request = self.request(Method::GET, url);
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let response = request.send().await.map_err(|error| MlflowError::unreachable(what, error))?;
        match response.status().as_u16() {
            200 | 206 | 416 => Ok(response),
            _ => Err(self.refused(what, response).await),
        }
    }

    fn api(&self, path: &str) -> Url {
        self.url(["api", "2.0", "mlflow"].into_iter().chain(path.split('/')))
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        }
    }

    async fn answer(&self, what: &str, request: RequestBuilder) -> Result<Vec<u8>, MlflowError> {
        // Never closed: an error can't be.
        let _permit = self.permits.acquire().await.ok();
        let response = request.send().await.map_err(|error| MlflowError::unreachable(what, error))?;
        if !response.status().is_success() {
            return Err(self.refused(what, response).await);
        }
        bounded(what, response, MAX_ANSWER_BYTES).await
    }

    async fn refused(&self, what: &str, response: Response) -> MlflowError {
        let status = response.status().as_u16();
        // An error's text is not worth another error.
        let body = bounded(what, response, MAX_ERROR_BYTES).await.unwrap_or_default();
        MlflowError::status(what, status, self.tried, &body)
    }
}

/// The URL below another with these segments, each encoded.
pub(super) fn below<'a>(base: &Url, segments: impl IntoIterator<Item = &'a str>) -> Url {
    let mut url = base.clone();
    // Only a URL that has no path at all, such as `data:`, has no segments: a place is never one.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// A body of so many bytes at the most.
pub(super) async fn bounded(what: &str, mut response: Response, limit: usize) -> Result<Vec<u8>, MlflowError> {
    let too_large = || MlflowError::malformed(what, format!("has more than {limit} bytes"));
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| MlflowError::unreachable(what, error))? {
        if body.len() + piece.len() > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}
