//! What a model is, has done, and whether it would answer.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::json;

use super::answer::{Answer, json};
use super::dispatch::Context;
use super::failure::Failure;
use crate::describe;

pub(crate) async fn metadata(context: &Arc<Context>, name: &str, version: Option<u64>) -> Result<Answer, Failure> {
    json(StatusCode::OK, &describe::metadata(&context.serving, name, version, None).await?)
}

pub(crate) async fn config(context: &Arc<Context>, name: &str, version: Option<u64>) -> Result<Answer, Failure> {
    let route = describe::described(&context.serving, name, None).await?;
    json(StatusCode::OK, &describe::model_config_json(describe::chosen(&route, version)?)?)
}

pub(crate) fn ready(context: &Arc<Context>, name: &str, version: Option<u64>) -> Result<Answer, Failure> {
    describe::ready(&context.serving, name, version)?;
    json(StatusCode::OK, &json!({ "name": name, "ready": true }))
}

pub(crate) fn statistics(context: &Arc<Context>, name: Option<&str>, version: Option<u64>) -> Result<Answer, Failure> {
    json(StatusCode::OK, &describe::statistics(&context.serving.router().table(), name, version)?)
}
