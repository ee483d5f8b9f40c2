//! What each path of the admin port does.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bascule_registry::parse_version;
use bascule_serving::{MAX_PAGE_ENTRIES, ModelJournal, Readiness, Status};
use chrono::Utc;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::refusal::Refusal;
use super::rollout::{Decision, RolloutView, model as known_model};
use super::routes::Port;
use super::wait;
use crate::metrics::{CONTENT_TYPE, families};

/// Entries of a journal that are given where nobody says how many.
const PAGE_ENTRIES: usize = 100;

type Shared = State<Arc<Port>>;
type Named = Result<Path<String>, PathRejection>;
type Asked = Result<Query<HashMap<String, String>>, QueryRejection>;

pub(crate) async fn live() -> &'static str {
    "live\n"
}

pub(crate) async fn ready(State(port): Shared) -> Response {
    let (status, reason) = match port.sources.serving.readiness() {
        _ if port.stopping.is_cancelled() => (StatusCode::SERVICE_UNAVAILABLE, Some("stopping".to_owned())),
        Readiness::Ready => (StatusCode::OK, None),
        Readiness::NotYet { reason } => (StatusCode::SERVICE_UNAVAILABLE, Some(reason)),
        Readiness::Stopping => (StatusCode::SERVICE_UNAVAILABLE, Some("stopping".to_owned())),
    };
    (status, Json(json!({ "ready": reason.is_none(), "reason": reason }))).into_response()
}

pub(crate) async fn metrics(State(port): Shared) -> Result<Response, Refusal> {
    // With a thousand models the text is long enough to hold up whoever shares the thread.
    let text = aside(&port, |port| {
        let computed = families(&port.sources.serving.live_status(), Utc::now());
        port.sources.metrics.render(&computed)
    });
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text.await?).into_response())
}

/// Does what may take its time on a thread for such work.
async fn aside<T: Send + 'static>(port: &Arc<Port>, work: impl FnOnce(&Port) -> T + Send + 'static) -> Result<T, Refusal> {
    let port = Arc::clone(port);
    tokio::task::spawn_blocking(move || work(&port)).await.map_err(|_| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the state of the gateway can't be read", "report this as a fault")
    })
}

/// The status with its live counters. Aside, because the driver of GPUs is asked.
async fn live_status(port: &Arc<Port>) -> Result<Status, Refusal> {
    aside(port, |port| port.sources.serving.live_status()).await
}

pub(crate) async fn status(State(port): Shared) -> Result<Json<Status>, Refusal> {
    Ok(Json(live_status(&port).await?))
}

pub(crate) async fn config(State(port): Shared) -> Json<Value> {
    Json(Value::clone(&port.sources.config.borrow()))
}

pub(crate) async fn kick(State(port): Shared) -> (StatusCode, Json<Value>) {
    port.sources.serving.kick();
    (StatusCode::ACCEPTED, Json(json!({ "kicked": true })))
}

pub(crate) async fn model(State(port): Shared, name: Named) -> Result<Response, Refusal> {
    let name = named(name)?;
    let status = live_status(&port).await?;
    Ok(Json(known_model(&status, &name)?).into_response())
}

pub(crate) async fn load(State(port): Shared, name: Named) -> Result<Response, Refusal> {
    let name = named(name)?;
    let _waiting = port.waiting()?;
    port.sources.serving.load(&name).await?;
    let status = live_status(&port).await?;
    Ok(Json(known_model(&status, &name)?).into_response())
}

pub(crate) async fn unload(State(port): Shared, name: Named, query: Asked) -> Result<Json<Value>, Refusal> {
    let name = named(name)?;
    let wait = flag(&asked(query)?, "wait")?;
    let _waiting = if wait { Some(port.waiting()?) } else { None };
    let receipts = port.sources.serving.unload(&name, wait).await?;
    Ok(Json(json!({ "model": name, "receipts": receipts })))
}

pub(crate) async fn rollout(State(port): Shared, name: Named) -> Result<Response, Refusal> {
    let name = named(name)?;
    let status = port.sources.serving.status();
    Ok(Json(RolloutView::of(known_model(&status, &name)?)).into_response())
}

/// The registry that holds the journal may be slow, so this is one of those that wait.
pub(crate) async fn journal(State(port): Shared, name: Named, query: Asked) -> Result<Json<ModelJournal>, Refusal> {
    let (name, query) = (named(name)?, asked(query)?);
    let limit = match number(&query, "limit")? {
        None => PAGE_ENTRIES,
        Some(limit) => usize::try_from(limit).ok().filter(|limit| *limit <= MAX_PAGE_ENTRIES).ok_or_else(|| {
            let error = format!("query 'limit': expected 1 to {MAX_PAGE_ENTRIES}, got {limit}");
            Refusal::bad_request(error, "ask for older entries with before=, which each answer names")
        })?,
    };
    let before = number(&query, "before")?;
    let _waiting = port.waiting()?;
    Ok(Json(port.sources.serving.journal(&name, before, limit).await?))
}

pub(crate) async fn decide(State(port): Shared, name: Named, body: Body) -> Result<Json<Value>, Refusal> {
    let name = named(name)?;
    let decision = decision(&port, body).await?;
    let seq = port.sources.serving.apply(&name, decision.op()?, &decision.by, &decision.reason, decision.id).await?;
    let status = port.sources.serving.status();
    Ok(Json(json!({ "model": name, "seq": seq, "rollout": status.model(&name).map(RolloutView::of) })))
}

async fn decision(port: &Port, body: Body) -> Result<Decision, Refusal> {
    let hint = r#"send JSON such as {"op":"weight","version":2,"weight_bp":1000}"#;
    let bytes = body_of(port, body, hint).await?;
    serde_json::from_slice(&bytes).map_err(|error| Refusal::bad_request(format!("the body is not a decision: {error}"), hint))
}

/// A body that is small and comes in time.
pub(crate) async fn body_of(port: &Port, body: Body, hint: &str) -> Result<Bytes, Refusal> {
    let limit_bytes = port.settings.max_body_bytes;
    match timeout(port.settings.read_timeout, to_bytes(body, limit_bytes)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let error = format!("the body can't be read or is larger than {limit_bytes} bytes");
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error, hint))
        }
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body took too long", hint)),
    }
}

pub(crate) async fn wait(
    State(port): Shared,
    path: Result<Path<(String, String)>, PathRejection>,
    query: Asked,
) -> Result<Response, Refusal> {
    let Path((model, version)) = path.map_err(|rejection| broken(&rejection))?;
    let version = parse_version(&version).map_err(|error| Refusal::bad_request(error.to_string(), "give the version's number"))?;
    let query = asked(query)?;
    let limit = query.get("timeout").map_or(Ok(port.settings.max_wait), |text| wait::duration(text))?;
    let digest = query.get("digest").map(String::as_str);
    let _waiting = port.waiting()?;
    let outcome = wait::outcome(&port.sources.serving, &model, version, digest, limit.min(port.settings.max_wait));
    let outcome = tokio::select! {
        outcome = outcome => outcome,
        () = port.stopping.cancelled() => return Err(bascule_serving::CommandError::Stopping.into()),
    };
    let told = serde_json::to_value(outcome).map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer can't be written: {error}"), "report this as a fault")
    })?;
    let mut answer = json!({ "model": model, "version": version });
    if let (Value::Object(answer), Value::Object(told)) = (&mut answer, told) {
        answer.extend(told);
    }
    Ok(Json(answer).into_response())
}

fn named(name: Named) -> Result<String, Refusal> {
    name.map(|Path(name)| name).map_err(|rejection| broken(&rejection))
}

fn broken(rejection: &PathRejection) -> Refusal {
    Refusal::bad_request(rejection.body_text(), "encode the names in the path as UTF-8")
}

fn asked(query: Asked) -> Result<HashMap<String, String>, Refusal> {
    query
        .map(|Query(query)| query)
        .map_err(|rejection| Refusal::bad_request(rejection.body_text(), "write the query as name=value"))
}

fn flag(query: &HashMap<String, String>, name: &str) -> Result<bool, Refusal> {
    match query.get(name).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true" | "") => Ok(true),
        Some(other) => {
            let other: String = other.chars().take(32).collect();
            Err(Refusal::bad_request(format!("query '{name}': '{other}' is neither true nor false"), format!("write {name}=true")))
        }
    }
}

fn number(query: &HashMap<String, String>, name: &str) -> Result<Option<u64>, Refusal> {
    let Some(text) = query.get(name) else { return Ok(None) };
    match text.parse() {
        Ok(number) if number > 0 => Ok(Some(number)),
        _ => {
            let shown: String = text.chars().take(32).collect();
            let error = format!("query '{name}': '{shown}' is not a whole number above 0");
            Err(Refusal::bad_request(error, format!("write {name}=100")))
        }
    }
}
