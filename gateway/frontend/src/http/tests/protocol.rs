//! Paths, methods, statuses, headers.

use serde_json::json;

use super::*;

async fn two_versions() -> Port {
    let models = vec![model("m", 1, identity(DataType::Int32, &[-1, 2])), model("m", 3, identity(DataType::Int32, &[-1, 2]))];
    Port::start(HttpSettings::default(), models).await
}

#[tokio::test]
async fn what_is_asked_with_get_is_told() {
    let port = two_versions().await;
    for (path, expected) in [
        ("/v2/health/live", json!({ "live": true })),
        ("/v2/health/live/", json!({ "live": true })),
        ("/v2/health/ready?x=1", json!({ "ready": true })),
        ("/v2/models/m/ready", json!({ "name": "m", "ready": true })),
        ("/v2/models/%6d/versions/1/ready", json!({ "name": "m", "ready": true })),
    ] {
        let reply = port.get(path).await;
        assert_eq!((reply.status, reply.json()), (StatusCode::OK, expected), "{path}");
        assert_eq!(reply.header("content-type"), Some("application/json"), "{path}");
    }
    for path in ["/v2", "/v2/"] {
        let reply = port.get(path).await;
        assert_eq!(reply.json()["name"], "bascule", "{path}");
    }
    let metadata = port.get("/v2/models/m").await.json();
    assert_eq!((&metadata["name"], &metadata["versions"]), (&json!("m"), &json!(["1", "3"])));
    assert_eq!(metadata["inputs"], json!([{ "name": "x", "datatype": "INT32", "shape": [-1, 2] }]));
    assert_eq!(port.get("/v2/models/m/versions/1").await.json()["versions"], json!(["1"]));
    assert_eq!(port.get("/v2/models/m/config").await.json()["name"], "m");
    assert_eq!(port.get("/v2/models/m/versions/3/stats").await.json()["model_stats"][0]["version"], "3");
    assert_eq!(port.get("/v2/models/stats").await.json()["model_stats"].as_array().unwrap().len(), 2);
    port.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_refused() {
    let port = two_versions().await;
    for path in ["/v2/models/nope", "/v2/models/nope/ready", "/v2/models/nope/stats", "/v2/models/nope/config", "/v2/models/..%2fm"]
    {
        let reply = port.get(path).await;
        let name = if path.contains("..") { "../m" } else { "nope" };
        assert_eq!(reply.error(), (404, format!("model '{name}' is not known")), "{path}");
    }
    for path in ["/v2/models/m/versions/99", "/v2/models/m/versions/99/ready", "/v2/models/m/versions/99/config"] {
        let (status, error) = port.get(path).await.error();
        assert_eq!((status, error.as_str()), (404, "model 'm' has no version 99 that is served; served: 1, 3"), "{path}");
    }
    assert_eq!(port.get("/v2/models/m/versions/0").await.status, StatusCode::NOT_FOUND);
    for path in ["/", "/v1/models/m", "/v2/models/m/foo", "/v2/models/m/versions/1abc", "/v2/models/m/versions"] {
        assert_eq!(port.get(path).await.error(), (404, "there is nothing at this path".to_owned()), "{path}");
    }
    port.stop().await;
}

#[tokio::test]
async fn methods_are_held_to() {
    let port = two_versions().await;
    for (method, path, allowed) in [
        (Method::POST, "/v2", "GET, HEAD"),
        (Method::OPTIONS, "/v2", "GET, HEAD"),
        (Method::POST, "/v2/health/live", "GET, HEAD"),
        (Method::POST, "/v2/models/m/config", "GET, HEAD"),
        (Method::GET, "/v2/models/m/infer", "POST"),
        (Method::PUT, "/v2/models/m/infer", "POST"),
        (Method::GET, "/v2/repository/index", "POST"),
    ] {
        let reply = port.send(request(method.clone(), path, &[], "")).await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(reply.header("allow"), Some(allowed), "{method} {path}");
        assert!(reply.json()["error"].as_str().unwrap().starts_with("expected the method"), "{method} {path}");
    }
    port.stop().await;
}

#[tokio::test]
async fn head_has_the_head_of_get() {
    let port = two_versions().await;
    let get = port.get("/v2/models/m").await;
    let head = port.send(request(Method::HEAD, "/v2/models/m", &[], "")).await;
    assert_eq!((head.status, head.header("content-length")), (StatusCode::OK, get.header("content-length")));
    assert!(head.body.is_empty());
    let mut sender = port.http2().await;
    let response = sender.send_request(request(Method::HEAD, "http://localhost/v2/models/m", &[], "")).await.unwrap();
    let head = Reply::read(response).await;
    assert_eq!((head.header("content-length"), head.body.len()), (get.header("content-length"), 0));
    drop(sender);
    port.stop().await;
}

#[tokio::test]
async fn what_is_not_served_says_so() {
    let port = two_versions().await;
    for (method, path, what) in [
        (Method::POST, "/v2/models/m/generate", "generate"),
        (Method::POST, "/v2/models/m/versions/1/generate_stream", "generate_stream"),
        (Method::GET, "/v2/systemsharedmemory/status", "shared memory"),
        (Method::POST, "/v2/cudasharedmemory/region/r/register", "shared memory"),
        (Method::GET, "/v2/trace/setting", "trace settings"),
        (Method::GET, "/v2/models/m/trace/setting", "trace settings"),
        (Method::POST, "/v2/logging", "log settings"),
        (Method::POST, "/v2/repository/nope/index", "naming a repository"),
        (Method::POST, "/v2/repository/models/models/m/load", "naming a repository"),
    ] {
        let reply = port.send(request(method, path, &[], "{}")).await;
        assert_eq!(reply.error(), (501, format!("{what} is not supported")), "{path}");
    }
    port.stop().await;
}

#[tokio::test]
async fn every_answer_names_its_request() {
    let port = two_versions().await;
    let own = [("x-request-id", "my-id")];
    assert_eq!(port.send(request(Method::GET, "/v2/health/live", &own, "")).await.header("x-request-id"), Some("my-id"));
    assert_eq!(port.send(request(Method::GET, "/nowhere", &own, "")).await.header("x-request-id"), Some("my-id"));
    let given = port.get("/v2").await.header("x-request-id").unwrap().to_owned();
    assert_eq!(given.len(), 32);
    assert_ne!(port.get("/v2").await.header("x-request-id"), Some(given.as_str()));
    port.stop().await;
}

#[tokio::test]
async fn repository_commands_are_checked() {
    let port = two_versions().await;
    let load = "/v2/repository/models/m/load";
    for (body, expected) in [
        ("{\"par", (400, "request: expected JSON: EOF while parsing a string at line 1 column 5")),
        ("[]", (400, "request: expected an object")),
        (r#"{"parameters":[1]}"#, (400, "'parameters': expected an object")),
        (r#"{"parameters":{"config":{}}}"#, (400, "parameter 'config': expected a string, a number, true or false")),
    ] {
        let (status, error) = port.post(load, &[], body).await.error();
        assert_eq!((status, error.as_str()), expected, "{body}");
    }
    for parameters in [r#"{"config":"{}"}"#, r#"{"file:1/model.onnx":"AA=="}"#] {
        let reply = port.post(load, &[], format!("{{\"parameters\":{parameters}}}")).await;
        assert_eq!(reply.status, StatusCode::NOT_IMPLEMENTED, "{parameters}");
    }
    for path in [load, "/v2/repository/models/m/unload"] {
        let reply = port.post(path, &[("origin", "http://evil.example")], "").await;
        assert_eq!(reply.error(), (403, "load and unload are obeyed from a loopback address only".to_owned()));
    }
    assert_eq!(
        port.post("/v2/repository/index", &[], r#"{"ready":1}"#).await.error(),
        (400, "'ready': expected true or false".to_owned())
    );
    for body in ["", "{}", r#"{"ready":true}"#, r#"{"foo":1}"#] {
        let reply = port.post("/v2/repository/index", &[], body).await;
        assert_eq!(reply.status, StatusCode::OK, "{body}");
        assert!(reply.json().is_array(), "{body}");
    }
    port.stop().await;
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_on_one_port() {
    let port = two_versions().await;
    let mut sender = port.http2().await;
    let body = r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"INT32","data":[5,6]}]}"#;
    for _ in 0..3 {
        let response = sender.send_request(request(Method::POST, "http://localhost/v2/models/m/infer", &[], body)).await.unwrap();
        assert_eq!(response.version(), hyper::Version::HTTP_2);
        let two = Reply::read(response).await;
        let one = port.post("/v2/models/m/infer", &[], body).await;
        assert_eq!((two.status, two.text()), (StatusCode::OK, one.text()));
    }
    drop(sender);
    port.stop().await;
}
