//! What `bascule check` finds in a registry, with models that need no library.

use std::path::Path;
use std::sync::Arc;

use bascule_registry::{ModelName, NoProgress, PublishRequest, Registry};
use bascule_runtime_api::{DataType, Runtime, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};
use serde_json::{Value, json};

use super::super::check::look;
use crate::config::env::Environment;
use crate::config::{Given, load};

async fn publish(registry: &Registry, dir: &Path, format: &str, signature: Option<Value>) {
    let specs = |name: &str| vec![TensorSpec::new(name, DataType::Fp32, [-1, 2])];
    let model = FakeModel { batch_axis: Some(0), ..FakeModel::new(FakeOp::Identity, specs("x"), specs("y")) };
    let file = dir.join("model.fake.json");
    std::fs::write(&file, serde_json::to_vec(&model).unwrap()).unwrap();
    // Differs from version to version, so that each has a blob of its own.
    let mark = dir.join("mark");
    std::fs::write(&mark, format!("{format} {signature:?}")).unwrap();
    let files = vec![("model.fake.json".to_owned(), file), ("mark".to_owned(), mark)];
    let request = PublishRequest::new(ModelName::new("m").unwrap(), format, "model.fake.json", files);
    registry.publish(PublishRequest { signature, ..request }, &NoProgress).await.unwrap();
}

#[tokio::test]
async fn what_can_not_be_served_is_found() {
    let (root, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let registry = Registry::open_dir(root.path()).unwrap();
    publish(&registry, files.path(), "fake", None).await;
    publish(&registry, files.path(), "savedmodel", None).await;
    let other = json!({ "inputs": [{ "name": "z", "datatype": "FP32", "shape": [-1, 2] }], "outputs": [] });
    publish(&registry, files.path(), "fake", Some(other)).await;
    publish(&registry, files.path(), "fake", Some(json!({ "inputs": 4 }))).await;
    let url = ("registry.url", "--registry", root.path().display().to_string());
    // Another process would know the program's runtimes only, and would be this test.
    let given = Given { flags: vec![url], sets: vec!["trial.mode=off".to_owned()], ..Given::default() };
    let effective = load(&given, &Environment::default()).unwrap();
    let runtimes: [Arc<dyn Runtime>; 1] = [Arc::new(FakeRuntime::new())];
    let problems = look(&effective, &runtimes).await.problems;
    assert_eq!(problems.len(), 3, "{problems:?}");
    for (problem, start) in problems.iter().zip([
        "m@2: verifying: no runtime loads the format 'savedmodel'",
        "m@3: loading: the declared signature contradicts model.fake.json",
        "m@4: verifying: manifest field `signature`",
    ]) {
        assert!(problem.starts_with(start), "{problem} should start with {start}");
    }
    let mark = &registry.versions(&ModelName::new("m").unwrap()).await.unwrap()[&1].manifest.files[1];
    std::fs::write(root.path().join(format!("m/blobs/{}", mark.sha256.unwrap())), "cut").unwrap();
    let problems = look(&effective, &runtimes).await.problems;
    assert!(problems[0].starts_with("m@1: file `mark` is corrupt"), "{problems:?}");
}
