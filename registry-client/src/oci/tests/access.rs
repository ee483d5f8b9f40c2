//! Who asks, whom, and how often.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::fake::{Answer, Request};
use super::*;

fn with_login(place: &str, user: &str, password: &str) -> OciRegistry {
    let login = Some((Secret::Value(user.into()), Secret::Value(password.into())));
    let credentials = OciCredentials { login, docker_config: None };
    OciRegistry::open(place, OciOptions { credentials, ..OciOptions::default() }).unwrap()
}

/// Asks for a token, which a place of its own gives for user and password.
fn bearer(tokens: std::net::SocketAddr) -> impl Fn(&Request) -> Option<Answer> {
    move |request| {
        if request.header("authorization").is_some_and(|given| given.starts_with("Bearer t-")) {
            return None;
        }
        let challenge =
            format!(r#"Bearer realm="http://{tokens}/token?account=x",service="registry",scope="repository:digits:pull""#);
        Some(
            Answer::of(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}"#).with("www-authenticate", challenge),
        )
    }
}

#[tokio::test]
async fn tokens_are_fetched_with_the_credentials_and_used_again() {
    let (fake, tokens) = (Fake::start().await, Fake::start().await);
    fake.push("digits", "1", MODEL);
    fake.bend(bearer(tokens.address));
    let expected = format!("Basic {}", STANDARD.encode("me:hunter2"));
    tokens.bend(move |request| {
        let known = request.header("authorization") == Some(&expected);
        Some(if known { Answer::of(200, r#"{"token":"t-1","expires_in":60}"#) } else { Answer::of(401, "") })
    });
    let registry = with_login(&fake.place("digits"), "me", "hunter2");
    assert_eq!(list(&registry).await.models.len(), 1);
    let asked = tokens.asked();
    assert!(asked.iter().all(|request| request.target.starts_with("/token?account=x&service=registry&scope=")), "{asked:?}");
    assert_eq!(asked.len(), 2, "one for the list of repositories, one for the repository");
    assert!(fake.asked().iter().all(|request| request.header("authorization").is_none_or(|given| given == "Bearer t-1")));
    list(&registry).await;
    assert!(tokens.asked().is_empty());

    let wrong = with_login(&fake.place("digits"), "me", "wrong-secret");
    let text = whole(&wrong.list(None).await.unwrap_err());
    assert!(text.contains("with oci.username and oci.password") && text.contains("401"), "{text}");
    assert!(!text.contains("wrong-secret") && !text.contains("t-1"), "{text}");
    let (nobody, _) = open(&fake.place("digits"));
    let text = whole(&nobody.list(None).await.unwrap_err());
    assert!(text.contains("without credentials"), "{text}");
}

#[tokio::test]
async fn a_token_that_has_expired_is_fetched_anew() {
    let (fake, tokens) = (Fake::start().await, Fake::start().await);
    fake.push("digits", "1", MODEL);
    fake.bend(bearer(tokens.address));
    tokens.bend(|_| Some(Answer::of(200, r#"{"access_token":"t-old"}"#)));
    let (registry, _) = open(&fake.place("digits"));
    list(&registry).await;
    let challenge = bearer(tokens.address);
    fake.bend(move |request| match request.header("authorization") {
        Some("Bearer t-new") => None,
        _ => challenge(&Request { headers: Default::default(), ..request.clone() }),
    });
    tokens.bend(|_| Some(Answer::of(200, r#"{"access_token":"t-new"}"#)));
    assert!(list(&registry).await.complete);
}

#[tokio::test]
async fn basic_credentials_are_sent_where_they_are_asked_for() {
    let fake = Fake::start().await;
    fake.push("digits", "1", MODEL);
    let expected = format!("Basic {}", STANDARD.encode("me:hunter2"));
    fake.bend(move |request| {
        let known = request.header("authorization") == Some(&expected);
        (!known).then(|| Answer::of(401, "").with("www-authenticate", r#"Basic realm="ours""#))
    });
    let registry = with_login(&fake.place("digits"), "me", "hunter2");
    assert_eq!(list(&registry).await.models.len(), 1);
    let text = whole(&with_login(&fake.place("digits"), "me", "wrong-secret").list(None).await.unwrap_err());
    assert!(text.contains("401") && text.contains("oci.username") && !text.contains("wrong-secret"), "{text}");
}

#[tokio::test]
async fn a_registry_that_asks_to_wait_is_left_alone() {
    let fake = Fake::start().await;
    fake.push("digits", "1", MODEL);
    let (registry, clock) = open(&fake.place("digits"));
    let before = list(&registry).await;
    fake.bend(|_| Some(Answer::of(429, "").with("retry-after", "90")));
    let text = whole(&registry.list(None).await.unwrap_err());
    assert!(text.contains("429") && text.contains("wait for 90 s"), "{text}");
    fake.straighten();
    fake.asked();
    clock.advance(Duration::from_secs(89));
    let error: SourceError = registry.list(None).await.unwrap_err();
    assert!(whole(&error).contains("asked to wait"), "{}", whole(&error));
    assert!(fake.asked().is_empty(), "nothing was sent");
    clock.advance(Duration::from_secs(2));
    assert_eq!(list(&registry).await.models, before.models);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let (fake, store) = (Fake::start().await, Fake::start().await);
    fake.push("digits", "1", MODEL);
    store.bend(|request| (request.target == "/signed?signature=hunter2").then(|| Answer::of(200, "the model")));
    let (expected, address) = (format!("Basic {}", STANDARD.encode("me:pass")), store.address);
    fake.bend(move |request| {
        if request.header("authorization") != Some(&expected) {
            return Some(Answer::of(401, "").with("www-authenticate", "Basic"));
        }
        let target = format!("http://{address}/signed?signature=hunter2");
        request.path().contains("/blobs/").then(|| Answer::of(307, "").with("location", target))
    });
    let registry = with_login(&fake.place("digits"), "me", "pass");
    let listing = list(&registry).await;
    let version = &listing.models[&name("digits")].versions[&1];
    let dest = tempfile::tempdir().unwrap();
    registry.fetch(version, dest.path(), &crate::source::NoProgress).await.unwrap();
    let asked = store.asked();
    assert!(!asked.is_empty() && asked.iter().all(|request| request.header("authorization").is_none()), "{asked:?}");
    assert!(asked.iter().all(|request| request.header("range") == Some("bytes=0-8")), "the range goes along");

    store.bend(|_| Some(Answer::of(403, "signature=hunter2 has expired")));
    let dest = tempfile::tempdir().unwrap();
    let error = registry.fetch(version, dest.path(), &crate::source::NoProgress).await.unwrap_err();
    assert!(whole(&error).contains("403") && !whole(&error).contains("hunter2"), "{}", whole(&error));
    fake.bend(|_| Some(Answer::of(307, "").with("location", "/v2/")));
    let text = whole(&registry.list(None).await.unwrap_err());
    assert!(text.contains("redirects more than"), "{text}");
}
