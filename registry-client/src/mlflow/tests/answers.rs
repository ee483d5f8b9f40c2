//! Looks at servers whose answers are wrong, late, endless or hostile.

use std::time::Duration;

use serde_json::{Value, json};

use super::fake::{Answer, Asked, Fake};
use super::*;
use crate::clock::ManualClock;

const SEARCH: &str = "/api/2.0/mlflow/registered-models/search";
const VERSIONS: &str = "/api/2.0/mlflow/model-versions/search";
const DOWNLOAD: &str = "/api/2.0/mlflow/model-versions/get-download-uri";
const ARTIFACTS: &str = "/api/2.0/mlflow-artifacts/artifacts";

pub(super) const MLMODEL: &str = "flavors:\n  onnx:\n    data: model.onnx\n";

fn error_text(error: &SourceError) -> String {
    crate::registry::versions::with_causes(error)
}

/// A server with models that have each one version of one file.
fn healthy(asked: &Asked, models: &[(&str, &str)]) -> Answer {
    match asked.path.as_str() {
        SEARCH => {
            let one = |(name, alias): &(&str, &str)| json!({ "name": name, "last_updated_timestamp": "7", "aliases": [{ "alias": alias, "version": "1" }] });
            Answer::json(&json!({ "registered_models": models.iter().map(one).collect::<Vec<_>>() }))
        }
        VERSIONS => {
            let version = json!({ "version": "1", "creation_timestamp": 5, "source": "mlflow-artifacts:/m", "status": "READY" });
            Answer::json(&json!({ "model_versions": [version] }))
        }
        DOWNLOAD => Answer::json(&json!({ "artifact_uri": "mlflow-artifacts:/m" })),
        ARTIFACTS => Answer::json(&json!({ "files": files(5) })),
        path if path.ends_with("/MLmodel") => Answer::with(200, "", MLMODEL.as_bytes()),
        _ => Answer::with(404, "", b"{}"),
    }
}

pub(super) fn files(bytes: u64) -> Value {
    json!([{ "path": "MLmodel", "file_size": MLMODEL.len().to_string() }, { "path": "model.onnx", "file_size": bytes }])
}

async fn failing(answer: impl Fn(&Asked) -> Answer + Send + 'static) -> String {
    let fake = Fake::start(answer).await;
    let credentials = MlflowCredentials::Token("hunter2".into());
    let source = fake.source(MlflowOptions { credentials, ..MlflowOptions::default() });
    let error = error_text(&source.list(None).await.unwrap_err());
    assert!(error.starts_with(&format!("MLflow server {}/ can't be read: the search for models", fake.url())), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    assert!(fake.asked().iter().all(|asked| asked.headers["authorization"] == "Bearer hunter2"));
    error
}

#[tokio::test]
async fn a_search_that_fails_says_how() {
    let check = async |answer: Answer, expected: &str| {
        let error = failing(move |_| answer.clone()).await;
        assert!(error.contains(expected), "{error} should say {expected}");
    };
    check(
        Answer::with(500, "", br#"{"error_code": "X", "message": "out of \u001b[31mluck"}"#),
        r#"status 500: "out of \u{1b}[31mluck""#,
    )
    .await;
    check(Answer::with(503, "", b"<html>busy</html>"), "status 503").await;
    check(Answer::with(401, "", b"{}"), "status 401: tried the token of mlflow.token").await;
    check(Answer::with(403, "", b"{}"), "status 403: tried the token of mlflow.token").await;
    check(Answer::with(302, "location: https://login.example/\r\n", b""), "a page for signing in").await;
    check(Answer::with(200, "", b"<html>welcome</html>"), "is not what was expected").await;
    check(Answer::with(200, "", br#"{"registered_models": [{"name": "dig"#), "is not what was expected").await;
    check(Answer::with(200, "", br#"{"registered_models": [{"name": 7}]}"#), "is not what was expected").await;
    check(Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"regis"), "can't be reached").await;
    check(Answer::raw("nonsense\r\n\r\n"), "can't be reached").await;
    check(Answer::raw(""), "can't be reached").await;
}

#[tokio::test]
async fn an_answer_is_bounded_before_it_is_read() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
    let error = failing(move |_| Answer::Endless(head.into(), vec![b' '; 1 << 16])).await;
    assert!(error.contains("has more than 33554432 bytes"), "{error}");
    let piece = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let error = failing(move |_| Answer::Endless(head.into(), piece.clone())).await;
    assert!(error.contains("has more than 33554432 bytes"), "{error}");
    // An error's text is not read to its end either.
    let head = "HTTP/1.1 500 No\r\ncontent-length: 99999999999\r\n\r\n";
    let error = failing(move |_| Answer::Endless(head.into(), vec![b' '; 1 << 16])).await;
    assert!(error.contains("status 500"), "{error}");
}

#[tokio::test]
async fn pages_that_go_round_in_circles_end() {
    let check = async |answer: fn(&Asked) -> Value| {
        let error = failing(move |asked| Answer::json(&answer(asked))).await;
        assert!(error.contains("next page"), "{error}");
    };
    check(|_| json!({ "registered_models": [{ "name": "a" }], "next_page_token": "same" })).await;
    check(|_| json!({ "next_page_token": "nothing" })).await;
    let fake = Fake::start(|asked| {
        let page: usize = asked.query.get("page_token").map_or(0, |token| token.parse().unwrap());
        let next = (page < 3).then(|| (page + 1).to_string());
        if asked.path != SEARCH {
            return healthy(asked, &[]);
        }
        Answer::json(&json!({ "registered_models": [{ "name": format!("m{page}") }], "next_page_token": next }))
    })
    .await;
    let listing = fake.source(MlflowOptions::default()).list(None).await.unwrap().unwrap();
    assert_eq!(listing.models.len(), 4);
}

#[tokio::test]
async fn an_unchanged_look_is_one_request() {
    const MANY: [(&str, &str); 3] = [("a", "x"), ("b", "x"), ("c", "x")];
    let fake = Fake::start(|asked| healthy(asked, &MANY)).await;
    let clock = Arc::new(ManualClock::default());
    let source = fake.source(MlflowOptions { clock: Arc::<ManualClock>::clone(&clock), ..MlflowOptions::default() });
    let first = source.list(None).await.unwrap().unwrap();
    assert!(first.complete && first.models.values().all(|model| model.versions.len() == 1), "{first:?}");
    // The search, and for each model: its versions, where the files are, which there are, and MLmodel.
    assert_eq!(fake.asked().len(), 1 + 3 * 4);
    assert!(source.list(Some(&first.cursor)).await.unwrap().is_none());
    assert_eq!(fake.asked().len(), 1);
    // An alias that moves is a look at that model's versions, and at none of their files.
    fake.change(|asked| healthy(asked, &[("a", "x"), ("b", "y"), ("c", "x")]));
    let moved = source.list(Some(&first.cursor)).await.unwrap().expect("an alias has moved");
    assert_eq!(model_of(&moved, "b").aliases, [("y".to_owned(), 1)].into());
    let asked: Vec<String> = fake.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(asked, [SEARCH, VERSIONS]);
    clock.advance(REPAIR_INTERVAL + Duration::from_secs(1));
    assert!(source.list(Some(&moved.cursor)).await.unwrap().is_none());
    assert_eq!(fake.asked().len(), 1 + 3, "now and then all is looked for again");
}

#[tokio::test]
async fn one_model_that_fails_stays_as_it_was() {
    let fake = Fake::start(|asked| healthy(asked, &[("a", "x"), ("b", "x")])).await;
    let source = fake.source(MlflowOptions::default());
    let before = source.list(None).await.unwrap().unwrap();
    fake.change(|asked| match asked.path.as_str() {
        VERSIONS if asked.query["filter"] == "name='a'" => Answer::with(500, "", b""),
        _ => healthy(asked, &[("a", "y"), ("b", "y")]),
    });
    let after = source.list(Some(&before.cursor)).await.unwrap().unwrap();
    assert!(!after.complete && after.problems[0].contains("model a: the versions of a was answered with status 500"), "{after:?}");
    assert_eq!(model_of(&after, "a"), model_of(&before, "a"));
    assert_eq!(model_of(&after, "b").aliases, [("y".to_owned(), 1)].into());
    fake.change(|asked| healthy(asked, &[("a", "y"), ("b", "y")]));
    let mended = source.list(Some(&after.cursor)).await.unwrap().unwrap();
    assert!(mended.complete && mended.problems.is_empty());
    assert_eq!(model_of(&mended, "a").aliases, [("y".to_owned(), 1)].into());
}

/// What is said of the one version of a model whose answers are healthy but for one.
async fn problem(path: &'static str, answer: Answer) -> (bool, String) {
    let fake =
        Fake::start(move |asked| if asked.path.ends_with(path) { answer.clone() } else { healthy(asked, &[("a", "champion")]) })
            .await;
    let listing = fake.source(MlflowOptions::default()).list(None).await.unwrap().unwrap();
    let model = model_of(&listing, "a");
    assert!(model.versions.is_empty(), "{model:?}");
    assert_eq!(model.steering.as_ref().unwrap().stable.version, Some(1));
    (listing.complete, model.problems.join("; "))
}

#[tokio::test]
async fn versions_that_cannot_be_used_are_named() {
    let check = async |path: &'static str, answer: Answer, is_complete: bool, expected: &str| {
        let (complete, problem) = problem(path, answer).await;
        assert!(problem.contains(expected), "{problem} should say {expected}");
        assert_eq!(complete, is_complete, "{problem}");
    };
    let uri = |uri: &str| Answer::json(&json!({ "artifact_uri": uri }));
    check(DOWNLOAD, Answer::with(500, "", b""), false, "version 1 can't be read: a@1 was answered with status 500").await;
    check(DOWNLOAD, uri("file:///srv/mlflow"), true, "start the server with --serve-artifacts").await;
    check(DOWNLOAD, uri("dbfs:/x"), true, "start the server with --serve-artifacts").await;
    check(DOWNLOAD, uri("mlflow-artifacts://elsewhere:1/x"), true, "another artifact server").await;
    check(DOWNLOAD, uri("mlflow-artifacts:/a%2f..%2fb"), true, "which is no path").await;
    check(DOWNLOAD, uri("nowhere"), true, "no URL").await;
    let listed = |files: Value| Answer::json(&json!({ "files": files }));
    check(ARTIFACTS, listed(json!([])), true, "version 1 has no file MLmodel").await;
    check(ARTIFACTS, listed(json!([{ "path": "../../etc/passwd", "file_size": 1 }])), true, "has `.` or `..` as a part").await;
    check(ARTIFACTS, listed(json!([{ "path": "/etc/passwd", "file_size": 1 }])), true, "is absolute").await;
    check(ARTIFACTS, listed(json!([{ "path": "again", "is_dir": true }])), true, "longer than 1024 bytes").await;
    check(ARTIFACTS, listed(json!([{ "path": "MLmodel", "file_size": -1 }])), false, "a size below 0").await;
    check(ARTIFACTS, listed(json!([{ "path": "MLmodel", "file_size": 5 << 20 }])), true, "expected 1 to 1048576").await;
    check(ARTIFACTS, listed(json!([{ "path": "MLmodel", "file_size": 9 }])), true, "lacks the file \"model.onnx\"").await;
    let many: Vec<Value> = (0..10_001).map(|at| json!({ "path": at.to_string(), "file_size": 1 })).collect();
    check(ARTIFACTS, listed(json!(many)), true, "more than 10000 files").await;
    check("/MLmodel", Answer::with(200, "", b"flavors: [\n"), true, "MLmodel that can't be read").await;
    check("/MLmodel", Answer::with(200, "", &[0xff]), true, "not UTF-8").await;
    check("/MLmodel", Answer::with(200, "", &vec![b' '; 2 << 20]), false, "has more than 1048576 bytes").await;
    check("/MLmodel", Answer::with(200, "", b"flavors:\n  onnx:\n    data: ../x\n"), true, "flavors.onnx.data").await;
    let version = |status: &str| json!({ "model_versions": [{ "version": "1", "status": status, "status_message": "no\nspace" }] });
    check(VERSIONS, Answer::json(&version("FAILED_REGISTRATION")), true, r#"the server says "no\nspace""#).await;
    check(VERSIONS, Answer::json(&json!({ "model_versions": [{ "version": "-1" }] })), true, "a version is ignored").await;
}
