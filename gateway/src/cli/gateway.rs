//! Asks a gateway's admin API.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bascule_registry::ModelName;
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::failure::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take to what a gateway answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// What the way there and back may take beside a wait that the gateway was asked for.
const WAY: Duration = Duration::from_secs(10);

/// A gateway, by the address of its admin API.
pub(super) struct Gateway {
    base: Url,
    client: Client,
    /// For a whole answer, so that nobody waits for ever for one that has stopped to speak.
    timeout: Duration,
}

/// What the admin API says when it refuses.
#[derive(Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    hint: Option<String>,
}

/// A client without proxies: gateways are asked directly, most of them on this very machine. What it sends has no time limit of its
/// own: each request has to bring one.
pub(super) fn client() -> Result<Client, Failure> {
    Ok(Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).build().context("can't make an HTTP client")?)
}

/// Reads the URL of a gateway or port; the scheme may be left out.
pub(super) fn base_url(text: &str) -> Result<Url, Failure> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    match Url::parse(&with_scheme) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(url),
        _ => Err(Failure::usage(format!("expected a URL such as http://127.0.0.1:8002, got {text:?}"))),
    }
}

impl Gateway {
    /// The gateway at this URL; nothing is sent yet.
    pub(super) fn at(url: &str) -> Result<Gateway, Failure> {
        Ok(Gateway { base: base_url(url)?, client: client()?, timeout: ANSWER_TIMEOUT })
    }

    /// The same, for something that the gateway may work on for so long.
    pub(super) fn patient(self, limit: Duration) -> Gateway {
        Gateway { timeout: limit.saturating_add(WAY), ..self }
    }

    /// Where it is, for people.
    pub(super) fn place(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// The host of its URL.
    pub(super) fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default()
    }

    /// A GET of a path below `/admin/v1/`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, Failure> {
        self.send(self.client.get(self.url(path)).query(query)).await
    }

    /// A POST to a path below `/admin/v1/`.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let request = self.client.post(self.url(path)).query(query);
        self.send(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await
    }

    fn url(&self, path: &str) -> String {
        format!("{}/admin/v1/{path}", self.place())
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let stranger = || {
            Failure::unreachable(anyhow!("what listens at {} is no gateway's admin API", self.place()))
                .hint("--gateway takes the admin address, which `bascule serve` prints when it starts")
        };
        let answer = request.timeout(self.timeout).send().await.map_err(|error| self.unreachable(error))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| self.unreachable(error))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| stranger());
        }
        let refusal: Refusal = serde_json::from_slice(&body).map_err(|_| stranger())?;
        Err(Failure::new(refusal.error).maybe_hint(refusal.hint))
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        if error.is_timeout() && !error.is_connect() {
            let waited = humantime::format_duration(self.timeout);
            return Failure::unreachable(anyhow!("the gateway at {} has not answered within {waited}", self.place()));
        }
        Failure::unreachable(anyhow::Error::new(error.without_url()).context(format!("no gateway answers at {}", self.place())))
            .hint("start one with `bascule serve`, or name another with --gateway or BASCULE_GATEWAY")
    }
}

/// A model's name as a part of a path: its characters need no escapes.
pub(super) fn model_path(name: &str) -> Result<String, Failure> {
    let name = ModelName::new(name).map_err(|error| Failure::usage(error.to_string()))?;
    Ok(format!("models/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gateway_that_says_nothing_is_given_up() {
        // Takes the connection and never answers.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Gateway::at(&silent.local_addr().unwrap().to_string()).unwrap();
        let gateway = Gateway { timeout: Duration::from_millis(20), ..gateway };
        let failure = gateway.get::<Value>("status", &[]).await.unwrap_err();
        assert_eq!(failure.code(), 3);
        assert!(failure.text().contains("has not answered within 20ms"), "{}", failure.text());
    }
}
