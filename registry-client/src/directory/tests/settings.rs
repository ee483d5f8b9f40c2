use std::os::unix::fs::symlink;

use super::layouts::publish;
use super::*;

const ALL: &[u8] = b"version_policy = \"all\"";

/// The text of a model's settings; `-` where there are none.
fn model_toml(listing: &Listing, name: &str) -> String {
    let content = listing.models[name].settings.get("model.toml");
    content.map_or("-".to_owned(), |content| String::from_utf8(content.to_vec()).unwrap())
}

fn all() -> String {
    String::from_utf8(ALL.to_vec()).unwrap()
}

#[tokio::test]
async fn settings_that_are_being_rewritten_are_never_listed() {
    let sandbox = Sandbox::new();
    publish(&sandbox, "ours").await;
    sandbox.write("plain/1/model.onnx", b"plain");
    for name in ["ours", "plain"] {
        sandbox.write(&format!("{name}/model.toml"), ALL);
    }
    let before = sandbox.settled().await;
    for name in ["ours", "plain"] {
        let file = format!("{name}/model.toml");
        assert_eq!(model_toml(&before, name), all());
        // Truncated, and half written at the next look; then whole again.
        for torn in [&b""[..], b"version_pol"] {
            sandbox.write(&file, torn);
            let listing = sandbox.look().await;
            assert_eq!(model_toml(&listing, name), all(), "while it is {torn:?}");
            assert_eq!((versions(&listing), listing.complete), (versions(&before), true));
            assert_eq!(listing.recheck_after, Some(SETTLE_INTERVAL));
            assert!(problems(&listing).contains("settled") && listing.models[name].unsettled.contains(&1));
            sandbox.clock.advance(SETTLE_INTERVAL);
        }
        sandbox.write(&file, b"max_batch_size = 4");
        assert_eq!(model_toml(&sandbox.look().await, name), all());
        sandbox.clock.advance(SETTLE_INTERVAL);
        let after = sandbox.look().await;
        assert_eq!((model_toml(&after, name).as_str(), after.recheck_after), ("max_batch_size = 4", None));
        assert_eq!(problems(&after), "");
    }
}

#[tokio::test]
async fn settings_that_are_gone_for_one_look_still_count() {
    let sandbox = Sandbox::new();
    publish(&sandbox, "m").await;
    sandbox.write("m/model.toml", ALL);
    sandbox.settled().await;
    // As editors do that rename: away for a moment.
    std::fs::rename(sandbox.root.join("m/model.toml"), sandbox.root.join("m/model.toml~")).unwrap();
    assert_eq!(model_toml(&sandbox.look().await, "m"), all());
    std::fs::rename(sandbox.root.join("m/model.toml~"), sandbox.root.join("m/model.toml")).unwrap();
    assert_eq!(model_toml(&sandbox.settled().await, "m"), all());
    std::fs::remove_file(sandbox.root.join("m/model.toml")).unwrap();
    assert_eq!(model_toml(&sandbox.look().await, "m"), all());
    sandbox.clock.advance(SETTLE_INTERVAL);
    assert_eq!(model_toml(&sandbox.look().await, "m"), "-");
}

#[tokio::test]
async fn the_first_look_lists_no_version_by_settings_that_may_be_half_written() {
    let sandbox = Sandbox::new();
    publish(&sandbox, "m").await;
    sandbox.write("m/model.toml", b"");
    let first = sandbox.look().await;
    assert!(versions(&first).is_empty() && first.models["m"].unsettled.contains(&1), "{first:?}");
    sandbox.write("m/model.toml", ALL);
    let settled = sandbox.settled().await;
    assert_eq!((versions(&settled), model_toml(&settled, "m")), (vec!["m@1".to_owned()], all()));
}

#[tokio::test]
async fn settings_that_nobody_has_touched_for_long_count_at_the_first_look() {
    let sandbox = Sandbox::new();
    publish(&sandbox, "m").await;
    sandbox.write("m/model.toml", ALL);
    let check = async |age: u64, expected: &[&str]| {
        let now = chrono::Utc::now() + chrono::Duration::seconds(i64::try_from(age).unwrap());
        let options = DirectoryOptions { clock: Arc::new(ManualClock::new(now)), ..DirectoryOptions::default() };
        let listing = DirectorySource::new(&sandbox.root, options).list(None).await.unwrap().unwrap();
        assert_eq!(versions(&listing), expected, "after {age} s");
    };
    check(3_600, &["m@1"]).await;
    check(10, &[]).await;
}

#[tokio::test]
async fn a_version_that_comes_with_new_settings_waits_for_them() {
    let sandbox = Sandbox::new();
    publish(&sandbox, "m").await;
    sandbox.write("m/model.toml", ALL);
    sandbox.settled().await;
    sandbox.write("m/model.toml", b"");
    publish(&sandbox, "m").await;
    let between = sandbox.look().await;
    assert_eq!((versions(&between), model_toml(&between, "m")), (vec!["m@1".to_owned()], all()));
    assert!(between.models["m"].unsettled.contains(&2));
    sandbox.clock.advance(SETTLE_INTERVAL);
    let after = sandbox.look().await;
    assert_eq!((versions(&after).len(), model_toml(&after, "m").as_str()), (2, ""));
}

#[tokio::test]
async fn only_settings_and_what_they_name_are_read() {
    let sandbox = Sandbox::new();
    sandbox.write("m/1/model.onnx", b"x");
    // More than may be read, and most of them before the settings in any order.
    for n in 0..100 {
        sandbox.write(&format!("m/a{n:03}.txt"), b"note");
    }
    sandbox.write("m/model.toml", b"labels.y = \"labels.txt\"\nlabels.z = 'sub/labels.txt' # don't");
    sandbox.write("m/config.pbtxt", b"model_warmup { inputs { value { input_data_file: \"raw\" } } }");
    sandbox.write("m/labels.txt", b"zero");
    sandbox.write("m/sub/labels.txt", b"one");
    sandbox.write("m/sub/raw", b"not here");
    sandbox.write("m/warmup/raw", b"data");
    sandbox.write("m/warmup/other", b"data");
    let listing = sandbox.settled().await;
    let names: Vec<_> = listing.models["m"].settings.keys().map(String::as_str).collect();
    assert_eq!(names, ["config.pbtxt", "labels.txt", "model.toml", "sub/labels.txt", "warmup/raw"]);
    assert_eq!(problems(&listing), "");
}

#[tokio::test]
async fn a_file_that_settings_name_and_that_can_not_be_read_is_a_problem_of_its_own() {
    let sandbox = Sandbox::new();
    sandbox.write("m/1/model.onnx", b"x");
    sandbox.write("m/model.toml", b"labels = { a = \"huge.txt\", b = \"out.txt\", c = \"folder/\" }");
    sandbox.write("m/huge.txt", &vec![b'x'; (1 << 20) + 1]);
    symlink("/etc/hostname", sandbox.root.join("m/out.txt")).unwrap();
    let listing = sandbox.settled().await;
    assert_eq!((versions(&listing), listing.complete), (vec!["m@1".to_owned()], true));
    let problems = problems(&listing);
    assert!(problems.contains("huge.txt") && problems.contains("out.txt"), "{problems}");
}
