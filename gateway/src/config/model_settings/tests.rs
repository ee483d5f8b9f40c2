use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bascule_registry::{Layout, ModelName, Rollout};

use super::*;

fn listed(files: &[(&str, &str)]) -> ListedModel {
    ListedModel {
        name: ModelName::new("m").unwrap(),
        layout: Layout::Plain,
        registry: None,
        versions: BTreeMap::new(),
        unsettled: BTreeSet::new(),
        settings: files.iter().map(|(name, content)| ((*name).to_owned(), Arc::from(content.as_bytes()))).collect(),
        rollout: Rollout::default(),
        aliases: BTreeMap::new(),
        problems: Vec::new(),
        steering: None,
    }
}

fn check(files: &[(&str, &str)]) -> Result<ModelSettings, String> {
    read(&listed(files), None, &["onnxruntime"], &defaults(false)).map_err(|error| error.to_string())
}

#[test]
fn model_toml_wins_key_by_key_and_says_so() {
    let pbtxt = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 5 } instance_group [ { count: 2 } ]";
    let settings = check(&[("config.pbtxt", pbtxt), ("model.toml", "max_queue_delay = \"1ms\"\n")]).unwrap();
    assert_eq!((settings.max_batch_size, settings.max_queue_delay, settings.instances), (Some(8), Duration::from_millis(1), 2));
    assert_eq!(settings.warnings, ["model.toml and config.pbtxt are both there: what model.toml says wins"]);
    assert_eq!(check(&[]).unwrap(), ModelSettings::default());
}

#[test]
fn shared_threads_are_for_models_that_ask_for_none_of_their_own() {
    let threads =
        |files: &[(&str, &str)], shared| read(&listed(files), None, &["onnxruntime"], &defaults(shared)).unwrap().intra_op_threads;
    assert_eq!((threads(&[], false), threads(&[], true)), (1, 0));
    assert_eq!(threads(&[("config.pbtxt", "max_batch_size: 1")], true), 0);
    assert_eq!(threads(&[("model.toml", "intra_op_threads = 3")], true), 3);
}

#[test]
fn a_wait_for_others_is_never_dropped_in_silence() {
    let unbatched = ("config.pbtxt", "max_batch_size: 8");
    let check_wait = |toml: &str| check(&[unbatched, ("model.toml", toml)]).unwrap();
    let delayed = check_wait("max_queue_delay = \"1ms\"");
    assert!(delayed.dynamic_batching && delayed.warnings.len() == 1, "{:?}", delayed.warnings);
    assert!(check_wait("preferred_batch_sizes = [4]").dynamic_batching);
    assert!(!check_wait("instances = 2").dynamic_batching);
    let off = check_wait("max_queue_delay = \"1ms\"\ndynamic_batching = false");
    assert!(!off.dynamic_batching && off.warnings.contains(&"max_queue_delay has no effect: requests are not joined".to_owned()));
    let fixed = check(&[("model.toml", "max_batch_size = 0\nmax_queue_delay = \"1ms\"")]).unwrap();
    assert_eq!(fixed.warnings, ["max_queue_delay has no effect: max_batch_size is 0"]);
}

#[test]
fn the_model_file_lies_inside_the_version() {
    for path in ["/srv/x.onnx", "../2/model.onnx", "a/../../x.onnx"] {
        for files in
            [("model.toml", format!("entrypoint = {path:?}")), ("config.pbtxt", format!("default_model_filename: {path:?}"))]
        {
            let problem = check(&[(files.0, &files.1)]).unwrap_err();
            assert!(problem.contains("file path"), "{problem}");
        }
    }
    assert_eq!(check(&[("model.toml", "entrypoint = \"a/net.onnx\"")]).unwrap().entrypoint.as_deref(), Some("a/net.onnx"));
}

#[test]
fn labels_are_read_from_beside_the_model() {
    let pbtxt = "input [ { name: \"x\" data_type: TYPE_FP32 dims: [ 1 ] } ] \
                 output [ { name: \"y\" data_type: TYPE_FP32 dims: [ 2 ] label_filename: \"labels.txt\" } ]";
    let settings = check(&[("config.pbtxt", pbtxt), ("labels.txt", "cat\r\ndog\n")]).unwrap();
    assert_eq!(settings.labels["y"], ["cat", "dog"]);
    let below = pbtxt.replace("labels.txt", "sub/labels.txt");
    assert_eq!(check(&[("config.pbtxt", &below), ("sub/labels.txt", "cat")]).unwrap().labels["y"], ["cat"]);
    let missing = check(&[("config.pbtxt", pbtxt)]).unwrap();
    assert_eq!(missing.warnings, ["label file \"labels.txt\" of output 'y' is not beside the model, or too large"]);
    let mut latin = listed(&[("config.pbtxt", pbtxt)]);
    latin.settings.insert("labels.txt".into(), Arc::from(&b"caf\xe9"[..]));
    let read = read(&latin, None, &["onnxruntime"], &defaults(false)).unwrap();
    assert!(read.labels.is_empty() && read.warnings[0].contains("is not UTF-8"), "{:?}", read.warnings);
}

#[test]
fn a_model_with_sequences_is_served_only_by_who_knows_that_it_keeps_nothing() {
    let pbtxt = ("config.pbtxt", "sequence_batching { max_sequence_idle_microseconds: 5 }");
    assert!(check(&[pbtxt]).unwrap_err().contains("`stateless = true` in model.toml"));
    let served = check(&[pbtxt, ("model.toml", "stateless = true")]).unwrap();
    assert!(served.warnings.iter().any(|warning| warning.contains("sequence_batching")), "{:?}", served.warnings);
    assert!(check(&[pbtxt, ("model.toml", "stateless = false")]).is_err());
}

#[test]
fn warm_up_data_lies_in_a_folder_of_its_own() {
    let input = "inputs { key: \"x\" value: { data_type: TYPE_UINT8 dims: [ 3 ] input_data_file: \"raw\" } }";
    let pbtxt = format!("model_warmup [ {{ name: \"w\" {input} }} ]");
    let read = check(&[("config.pbtxt", &pbtxt), ("warmup/raw", "abc")]).unwrap();
    assert_eq!(read.warmup[0].inputs[0].content, bascule_serving::WarmupContent::Raw(Arc::from(&b"abc"[..])));
    assert!(check(&[("config.pbtxt", &pbtxt), ("warmup/raw", "ab")]).unwrap_err().contains("a file of 3 bytes"));
    let missing = check(&[("config.pbtxt", &pbtxt)]).unwrap();
    assert!(missing.warmup.is_empty() && missing.warnings[0].contains("does not run"), "{:?}", missing.warnings);
}

#[test]
fn contradictions_and_limits_hold_whichever_file_they_come_from() {
    let cases = [
        ("instances = 0", "instances: expected 1 to 1024, got 0"),
        ("priority_levels = 4000000000", "priority_levels: expected at most 64, got 4000000000"),
        ("default_priority = 2", "default_priority: expected 1 to 1, got 2"),
        ("queue_capacity = 0", "queue_capacity: expected 1 to 1048576, got 0"),
        ("max_batch_size = 4\npreferred_batch_sizes = [8]", "preferred_batch_sizes: expected 1 to max_batch_size, got 8"),
    ];
    for (text, expected) in cases {
        assert_eq!(check(&[("model.toml", text)]).unwrap_err(), expected);
    }
    assert_eq!(
        check(&[("config.pbtxt", "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 8 ] }")]).unwrap_err(),
        "preferred_batch_sizes: expected 1 to max_batch_size, got 8"
    );
}

#[test]
fn problems_of_both_files_are_reported_together() {
    let problems = check(&[("config.pbtxt", "name: \"n\""), ("model.toml", "instances = -1\n")]).unwrap_err();
    assert_eq!(
        problems,
        "config.pbtxt: `name`: expected \"m\", the name of the directory, got \"n\"; \
         model.toml:1: `instances`: expected a whole number from 0 to 4294967295, got -1"
    );
}
