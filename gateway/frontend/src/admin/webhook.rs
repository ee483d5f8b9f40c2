//! Webhooks: a registry says that something has changed. Whoever calls proves that it knows the secret, and all that comes of it is a
//! look at the registry, so what the body says is never read.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::Utc;
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use super::command::body_of;
use super::refusal::Refusal;
use super::routes::Port;

/// How far the sender's clock may be from ours, in seconds.
const MAX_AGE_SECONDS: u64 = 300;

const DELIVERY: &str = "x-mlflow-delivery-id";
const TIMESTAMP: &str = "x-mlflow-timestamp";
const SIGNATURE: &str = "x-mlflow-signature";

/// What those who call the webhooks sign with; a webhook without a secret is not there.
#[derive(Clone, Default)]
pub struct WebhookSecrets {
    /// Of an MLflow tracking server.
    pub mlflow: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookSecrets").field("mlflow", &self.mlflow.is_some()).finish()
    }
}

pub(crate) async fn mlflow(
    State(port): State<Arc<Port>>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let Some(secret) = port.sources.webhooks.mlflow.clone() else {
        let hint = "set mlflow.webhook_secret to the secret that the webhook was made with";
        return Err(Refusal::new(StatusCode::NOT_FOUND, "webhooks of MLflow are not taken here", hint));
    };
    let body = body_of(&port, body, "send what MLflow sends").await?;
    verify(&secret, &headers, &body, Utc::now().timestamp())?;
    port.sources.serving.kick();
    Ok((StatusCode::ACCEPTED, Json(json!({ "kicked": true }))))
}

/// Checks who signed the body, and when.
fn verify(secret: &[u8], headers: &HeaderMap, body: &[u8], now: i64) -> Result<(), Refusal> {
    let refuse =
        |error: String| Refusal::new(StatusCode::UNAUTHORIZED, error, "send it from MLflow, with the secret that is set here");
    let header = |name: &'static str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.ok_or_else(|| refuse(format!("header '{name}' is missing or not text")))
    };
    let (delivery, timestamp, signatures) = (header(DELIVERY)?, header(TIMESTAMP)?, header(SIGNATURE)?);
    let at: i64 = timestamp.parse().map_err(|_| refuse(format!("header '{TIMESTAMP}' is not a number of seconds")))?;
    if now.abs_diff(at) > MAX_AGE_SECONDS {
        return Err(refuse(format!("header '{TIMESTAMP}' is more than {MAX_AGE_SECONDS} s from the time here")));
    }
    let mut signed = signatures.split_ascii_whitespace().filter_map(|signature| BASE64.decode(signature.strip_prefix("v1,")?).ok());
    // Compared in constant time.
    let is_right = |signature: Vec<u8>| {
        let mac = Hmac::<Sha256>::new_from_slice(secret).ok();
        let mac = mac.map(|mac| mac.chain_update(format!("{delivery}.{timestamp}.")).chain_update(body));
        mac.is_some_and(|mac| mac.verify_slice(&signature).is_ok())
    };
    if signed.any(is_right) { Ok(()) } else { Err(refuse(format!("header '{SIGNATURE}' is not that of this body"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"entity":"model_version_alias","action":"created"}"#;
    const AT: i64 = 1_760_000_000;
    /// Of the secret, delivery, time and body here, by the function that MLflow 3.17 signs with.
    const RIGHT: &str = "v1,tCVoAsm8gAWF2kelB4ygzDjFlJuk7HyAKZSltZgyh8o=";

    fn headers(delivery: &str, timestamp: &str, signature: &str) -> HeaderMap {
        let pairs = [(DELIVERY, delivery), (TIMESTAMP, timestamp), (SIGNATURE, signature)];
        pairs.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn outcome(secret: &str, headers: &HeaderMap, body: &[u8], now: i64) -> Result<(), String> {
        verify(secret.as_bytes(), headers, body, now).map_err(|refusal| {
            assert_eq!(refusal.status, StatusCode::UNAUTHORIZED);
            refusal.error
        })
    }

    #[test]
    fn what_mlflow_signs_is_taken_while_it_is_fresh() {
        let right = headers("delivery-1", "1760000000", RIGHT);
        for now in [AT, AT - 300, AT + 300] {
            assert_eq!(outcome("s3cret", &right, BODY, now), Ok(()));
        }
        for now in [AT - 301, AT + 301, i64::MAX, i64::MIN] {
            assert!(outcome("s3cret", &right, BODY, now).unwrap_err().contains("300 s"));
        }
        let rotated = headers("delivery-1", "1760000000", &format!("v1,AAAA {RIGHT}"));
        assert_eq!(outcome("s3cret", &rotated, BODY, AT), Ok(()));
    }

    #[test]
    fn nothing_else_is() {
        let wrong = |headers: &HeaderMap, secret: &str, body: &[u8]| {
            let error = outcome(secret, headers, body, AT).unwrap_err();
            assert!(error.contains(SIGNATURE), "{error}");
        };
        let right = headers("delivery-1", "1760000000", RIGHT);
        wrong(&right, "secret", BODY);
        wrong(&right, "", BODY);
        wrong(&right, "s3cret", b"{}");
        wrong(&headers("delivery-2", "1760000000", RIGHT), "s3cret", BODY);
        wrong(&headers("delivery-1", "1760000001", RIGHT), "s3cret", BODY);
        for signature in ["", "v1,", "v1,AAAA", "v1,=", &RIGHT[3..], &RIGHT.replace("v1,", "v2,")] {
            wrong(&headers("delivery-1", "1760000000", signature), "s3cret", BODY);
        }
        for name in [DELIVERY, TIMESTAMP, SIGNATURE] {
            let mut lacking = right.clone();
            lacking.remove(name);
            assert!(outcome("s3cret", &lacking, BODY, AT).unwrap_err().contains(name));
        }
        assert!(outcome("s3cret", &headers("delivery-1", "now", RIGHT), BODY, AT).unwrap_err().contains("seconds"));
    }
}
