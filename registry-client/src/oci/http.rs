//! One HTTP conversation with a registry: credentials, redirects, waiting when asked to, and bounded answers.
//!
//! Credentials go to the registry itself and to the place that it names for tokens, never to where it redirects to. Texts of
//! errors name what was asked, and no URL that the registry gave: those may be signed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::credentials::{Found, Login, OciCredentials};
use super::error::{OciError, said};
use super::place::OciPlace;
use crate::clock::Clock;
use crate::name::quoted;

/// How long a registry may take for the head of an answer, and for each piece of a body.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a piece of an upload may take.
pub(super) const UPLOAD_LIMIT: Duration = Duration::from_secs(600);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 5;
/// The largest error or token that is read.
const MAX_SMALL_BYTES: u64 = 1 << 20;
/// Where a registry that is busy does not say how long to wait; and the longest that it is believed.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);
const MAX_WAIT: Duration = Duration::from_secs(300);
/// How long a patient request waits where the registry has failed; twice as long each time.
const FAULT_WAIT: Duration = Duration::from_millis(100);
/// How often a patient request is sent again to a registry that is busy or has failed, and the longest that it waits each time.
const BUSY_TRIES: u32 = 5;
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What a token has to allow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    Catalog,
    Pull(String),
    Push(String),
}

impl Scope {
    /// As token services spell it.
    fn text(&self) -> String {
        match self {
            Self::Catalog => "registry:catalog:*".into(),
            Self::Pull(repository) => format!("repository:{repository}:pull"),
            Self::Push(repository) => format!("repository:{repository}:pull,push"),
        }
    }
}

/// A request.
#[derive(Clone)]
pub(super) struct Ask {
    /// For people: `tags of team/model`.
    pub(super) what: String,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) scope: Scope,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Waits and tries again where the registry is busy, and where it fails to read; else that is an error at once.
    pub(super) patient: bool,
    pub(super) limit: Duration,
}

impl Ask {
    fn only_reads(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }
}

/// A registry, and what it is asked with.
pub(super) struct Client {
    http: reqwest::Client,
    place: OciPlace,
    credentials: OciCredentials,
    clock: Arc<dyn Clock>,
    /// What requests with a scope are sent with: found out when the registry first refuses one without.
    authorizations: Mutex<HashMap<Scope, HeaderValue>>,
    /// The registry asked not to be asked before this time of the clock.
    hold_until: Mutex<Duration>,
}

impl Client {
    pub(super) fn new(place: OciPlace, credentials: OciCredentials, clock: Arc<dyn Clock>) -> Result<Self, OciError> {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .user_agent(concat!("bascule/", env!("CARGO_PKG_VERSION")))
            .build();
        let http = http.map_err(|error| OciError::transport("the HTTP client", error))?;
        let (authorizations, hold_until) = (Mutex::default(), Mutex::default());
        Ok(Self { http, place, credentials, clock, authorizations, hold_until })
    }

    /// A URL of the registry's API; the path is below `/v2/`.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.place.base.clone();
        url.set_path(&format!("/v2/{path}"));
        url
    }

    pub(super) fn get(&self, what: impl Into<String>, url: Url, scope: Scope) -> Ask {
        Ask {
            what: what.into(),
            method: Method::GET,
            url,
            scope,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            patient: false,
            limit: ANSWER_LIMIT,
        }
    }

    /// Whether a URL that the registry gave is its own.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.place.base.origin()
    }

    /// The answer, whatever its status but 401, 403 and those that ask to wait.
    pub(super) async fn send(&self, ask: &Ask) -> Result<Response, OciError> {
        let mut tries = 0;
        loop {
            let outcome = self.send_once(ask).await;
            let wait = match &outcome {
                Err(OciError::Busy { wait, .. }) => *wait,
                // There are registries that fail to read a tag while somebody writes it.
                Ok(response) if ask.only_reads() && response.status().is_server_error() => FAULT_WAIT * (1 << tries),
                _ => return outcome,
            };
            tries += 1;
            if !ask.patient || tries == BUSY_TRIES || wait > MAX_PAUSE {
                return outcome;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// How long the registry still wants to be left alone.
    pub(super) fn hold(&self) -> Option<Duration> {
        let until = *self.hold_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.checked_sub(self.clock.elapsed()).filter(|left| !left.is_zero())
    }

    async fn send_once(&self, ask: &Ask) -> Result<Response, OciError> {
        let known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).get(&ask.scope).cloned();
        let response = self.follow(ask, known.as_ref()).await?;
        let status = response.status();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            return Err(self.busy(ask, &response));
        }
        if status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN {
            return Ok(response);
        }
        let Some(challenge) = challenge::of(response.headers()).filter(|_| status == StatusCode::UNAUTHORIZED) else {
            let tried = if known.is_some() { "with credentials" } else { "without credentials: none were asked for" };
            return Err(refused(ask, response, tried.to_owned()).await);
        };
        let (authorization, tried) = self.authorize(ask, &challenge).await?;
        let Some(authorization) = authorization else { return Err(refused(ask, response, tried).await) };
        let response = self.follow(ask, Some(&authorization)).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(refused(ask, response, tried).await),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Err(self.busy(ask, &response)),
            _ => {
                let mut known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(ask.scope.clone(), authorization);
                Ok(response)
            }
        }
    }

    /// Notes for how long the registry wants to be left alone.
    fn busy(&self, ask: &Ask, response: &Response) -> OciError {
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let wait = seconds.map_or(DEFAULT_WAIT, Duration::from_secs).min(MAX_WAIT);
        *self.hold_until.lock().unwrap_or_else(PoisonError::into_inner) = self.clock.elapsed().saturating_add(wait);
        OciError::Busy { what: ask.what.clone(), status: response.status(), wait }
    }

    /// Sends it, and follows redirects of what only reads.
    async fn follow(&self, ask: &Ask, authorization: Option<&HeaderValue>) -> Result<Response, OciError> {
        let mut url = ask.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.http.request(ask.method.clone(), url.clone()).headers(ask.headers.clone());
            if let Some(authorization) = authorization.filter(|_| self.is_own(&url)) {
                request = request.header(AUTHORIZATION, authorization);
            }
            if !ask.only_reads() {
                request = request.body(ask.body.clone());
            }
            let response = self.answer(&ask.what, request, ask.limit).await?;
            if !(ask.only_reads() && response.status().is_redirection() && response.status() != StatusCode::NOT_MODIFIED) {
                return Ok(response);
            }
            let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
            let target = target.and_then(|target| url.join(target).ok());
            url = target.ok_or_else(|| OciError::protocol(&ask.what, "it redirects to nowhere"))?;
            self.check_target(&ask.what, &url)?;
        }
        Err(OciError::protocol(&ask.what, format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// Whether a URL that the registry gave may be asked.
    fn check_target(&self, what: &str, url: &Url) -> Result<(), OciError> {
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.place.base.scheme() == "http" => Ok(()),
            scheme => Err(OciError::protocol(what, format!("it leads from https to {}", quoted(scheme)))),
        }
    }

    /// A URL that the registry gave for the next request, which may be relative.
    pub(super) fn resolve(&self, what: &str, from: &Url, target: &str) -> Result<Url, OciError> {
        let url = from.join(target).map_err(|_| OciError::protocol(what, "it names a place that is no URL"))?;
        self.check_target(what, &url)?;
        Ok(url)
    }

    async fn answer(&self, what: &str, request: reqwest::RequestBuilder, limit: Duration) -> Result<Response, OciError> {
        match tokio::time::timeout(limit, request.send()).await {
            Ok(answer) => answer.map_err(|error| OciError::transport(what, error)),
            Err(_) => Err(OciError::Late { what: what.to_owned(), limit }),
        }
    }

    /// What to send to meet a challenge, where there is something, and in words what that is.
    async fn authorize(&self, ask: &Ask, challenge: &Challenge) -> Result<(Option<HeaderValue>, String), OciError> {
        let (credentials, host) = (self.credentials.clone(), self.place.host.clone());
        let found = tokio::task::spawn_blocking(move || credentials.find(&host)).await;
        let found = found.map_err(|_| OciError::Credentials("the look for them ended early".into()))??;
        let header = match (challenge, &found.login) {
            (Challenge::Basic, Some(Login::Basic { user, password })) => Some(basic(user, password)?),
            (Challenge::Basic, _) => None,
            (Challenge::Bearer { realm, service, scope }, login) => {
                let scope = scope.clone().unwrap_or_else(|| ask.scope.text());
                Some(self.token(realm, service.as_deref(), &scope, login.as_ref(), &found).await?)
            }
        };
        Ok((header, found.tried))
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        login: Option<&Login>,
        found: &Found,
    ) -> Result<HeaderValue, OciError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let what = format!("a token for {}", quoted(scope));
        let realm = Url::parse(realm).map_err(|_| OciError::protocol(&what, "its realm is no URL"))?;
        self.check_target(&what, &realm)?;
        let mut fields: Vec<(&str, &str)> = Vec::new();
        fields.extend(service.map(|service| ("service", service)));
        fields.extend([("scope", scope), ("client_id", "bascule")]);
        let request = match login {
            Some(Login::Identity(token)) => {
                fields.extend([("grant_type", "refresh_token"), ("refresh_token", token.as_str())]);
                // A form is written as a query is.
                let mut form = realm.clone();
                form.set_query(None);
                form.query_pairs_mut().extend_pairs(&fields);
                let body = form.query().unwrap_or_default().to_owned();
                let form = HeaderValue::from_static("application/x-www-form-urlencoded");
                self.http.post(realm).header(reqwest::header::CONTENT_TYPE, form).body(body)
            }
            Some(Login::Basic { user, password }) => {
                self.http.get(realm).query(&fields).header(AUTHORIZATION, basic(user, password)?)
            }
            None => self.http.get(realm).query(&fields),
        };
        let response = self.answer(&what, request, ANSWER_LIMIT).await?;
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(OciError::Busy { what, status, wait: DEFAULT_WAIT });
        }
        if !status.is_success() {
            let said = said(&read_bounded(&what, response, MAX_SMALL_BYTES).await.unwrap_or_default());
            return Err(match status.is_client_error() {
                true => OciError::Refused { what, status, said, tried: found.tried.clone() },
                false => OciError::Status { what, status, said },
            });
        }
        let body = read_bounded(&what, response, MAX_SMALL_BYTES).await?;
        let token: Token = serde_json::from_slice(&body).map_err(|_| OciError::protocol(&what, "it is no token"))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| OciError::protocol(&what, "it holds no token"))?;
        sensitive(&format!("Bearer {token}")).ok_or_else(|| OciError::protocol(&what, "it can't be sent in a header"))
    }
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, OciError> {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {encoded}")).ok_or_else(|| OciError::Credentials("they can't be sent in a header".into()))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

async fn refused(ask: &Ask, response: Response, tried: String) -> OciError {
    let status = response.status();
    let said = said(&read_bounded(&ask.what, response, MAX_SMALL_BYTES).await.unwrap_or_default());
    OciError::Refused { what: ask.what.clone(), status, said, tried }
}

/// The error that an unwanted status is.
pub(super) async fn unwanted(what: &str, response: Response) -> OciError {
    let status = response.status();
    let said = said(&read_bounded(what, response, MAX_SMALL_BYTES).await.unwrap_or_default());
    OciError::Status { what: what.to_owned(), status, said }
}

/// A body of at most `limit` bytes.
pub(super) async fn read_bounded(what: &str, mut response: Response, limit: u64) -> Result<Vec<u8>, OciError> {
    let too_large = || OciError::TooLarge { what: what.to_owned(), limit };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    loop {
        let piece = tokio::time::timeout(ANSWER_LIMIT, response.chunk()).await;
        let piece = piece.map_err(|_| OciError::Late { what: what.to_owned(), limit: ANSWER_LIMIT })?;
        let Some(piece) = piece.map_err(|error| OciError::transport(what, error))? else { return Ok(body) };
        if (body.len() + piece.len()) as u64 > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&piece);
    }
}
