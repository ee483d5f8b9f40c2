//! The repository extension: what is there, load and unload.
//!
//! Commands are obeyed from loopback addresses only, and never where a browser says that a page sent them: no page has a reason to.
//! Deliberately absent: configurations and files that come through the data port.

use std::sync::Arc;

use bascule_serving::InferError;
use hyper::header::ORIGIN;
use hyper::{Request, StatusCode};
use serde_json::{Map, Value};

use super::answer::{Answer, done, json};
use super::body::{Upload, collect};
use super::dispatch::{Call, Context};
use super::failure::Failure;
use crate::describe;

/// Commands are short.
const MAX_COMMAND_BYTES: usize = 1 << 20;

pub(crate) async fn index(context: &Arc<Context>, head: &Request<()>, body: &mut Upload) -> Result<Answer, Failure> {
    let request = object(context, head, body).await?;
    let ready_only = match request.get("ready") {
        None => false,
        Some(Value::Bool(ready)) => *ready,
        Some(_) => return Err(Failure::invalid("'ready': expected true or false")),
    };
    json(StatusCode::OK, &describe::index(&context.serving.status(), ready_only))
}

pub(crate) async fn load(
    context: &Arc<Context>,
    call: &Call,
    name: &str,
    head: &Request<()>,
    body: &mut Upload,
) -> Result<Answer, Failure> {
    admit(context, call, head)?;
    let parameters = parameters(object(context, head, body).await?)?;
    describe::check_load_parameters(parameters.keys().map(String::as_str))?;
    context.serving.load(name).await.map_err(|error| describe::refusal(name, error))?;
    Ok(done())
}

pub(crate) async fn unload(
    context: &Arc<Context>,
    call: &Call,
    name: &str,
    head: &Request<()>,
    body: &mut Upload,
) -> Result<Answer, Failure> {
    admit(context, call, head)?;
    // Triton's one parameter is about ensembles, which are not there: no model depends on another.
    let parameters = parameters(object(context, head, body).await?)?;
    if parameters.get(describe::UNLOAD_DEPENDENTS).is_some_and(|value| !value.is_boolean()) {
        return Err(Failure::invalid(format!("parameter '{}': expected true or false", describe::UNLOAD_DEPENDENTS)));
    }
    let wait = head.uri().query().is_some_and(|query| query.split('&').any(|part| part == "wait=true"));
    context.serving.unload(name, wait).await.map_err(|error| describe::refusal(name, error))?;
    Ok(done())
}

fn admit(context: &Context, call: &Call, head: &Request<()>) -> Result<(), Failure> {
    let local = call.peer.ip().to_canonical().is_loopback();
    let allowed = context.settings.remote_repository_commands || local && !head.headers().contains_key(ORIGIN);
    if allowed { Ok(()) } else { Err(Failure::Remote) }
}

/// The object that a command brings; an empty body is an empty one.
async fn object(context: &Arc<Context>, head: &Request<()>, body: &mut Upload) -> Result<Map<String, Value>, Failure> {
    if let Some(coding) = super::compression::of_request(head.headers())? {
        let encoding = coding.name().to_str().unwrap_or_default().to_owned();
        return Err(Failure::Encoding { encoding });
    }
    let room = context.budget.room(MAX_COMMAND_BYTES.min(context.settings.max_body_bytes));
    let text = collect(body, 0, &room, &context.settings).await?;
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Failure::invalid("request: expected an object")),
        Err(error) => Err(Failure::invalid(format!("request: expected JSON: {error}"))),
    }
}

fn parameters(mut request: Map<String, Value>) -> Result<Map<String, Value>, Failure> {
    let parameters = match request.remove("parameters") {
        None => Map::new(),
        Some(Value::Object(parameters)) => parameters,
        Some(_) => return Err(Failure::invalid("'parameters': expected an object")),
    };
    match parameters.iter().find(|(_, value)| matches!(value, Value::Null | Value::Array(_) | Value::Object(_))) {
        None => Ok(parameters),
        Some((name, _)) => {
            let name: String = name.chars().take(64).collect();
            Err(InferError::invalid(format!("parameter '{name}': expected a string, a number, true or false")).into())
        }
    }
}
