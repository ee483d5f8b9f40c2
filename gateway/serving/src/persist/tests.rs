use std::collections::BTreeSet;
use std::fs;

use tempfile::TempDir;

use super::*;
use crate::testing::{generation, minute, name};

fn served(model: &str) -> Served {
    let model = name(model);
    let settings =
        [("model.toml".to_owned(), Content::of(b"instances = 2\n")), ("labels.txt".to_owned(), Content::of(b"\xff\x00a"))];
    Served {
        layout: Layout::Plain,
        registry: Some("./models".into()),
        stable: Some(2),
        versions: vec![Arc::new(generation(&model, 1, "one")), Arc::new(generation(&model, 2, "two"))],
        settings: settings.into(),
        rollout: Rollout { candidate: Some((2, 500)), rejected: BTreeSet::from([7]), ..Rollout::default() },
        aliases: BTreeMap::from([("blue".to_owned(), 1)]),
        refused: Vec::new(),
        steering: None,
        model,
    }
}

fn off() -> Operator {
    Operator::Off { since: minute(3), known: BTreeMap::from([(1, Digest::of(b"one"))]) }
}

fn flush(dir: &TempDir, writes: impl IntoIterator<Item = Write>) -> Written {
    let writer = Writer::new(dir.path().to_owned());
    for (number, write) in writes.into_iter().enumerate() {
        writer.write(number as u64 + 1, write);
    }
    writer.flush()
}

#[test]
fn what_is_written_is_read() {
    let dir = TempDir::new().unwrap();
    assert_eq!(Persisted::read(dir.path()).unwrap(), Persisted::default());
    let written = flush(
        &dir,
        [
            Write::Operator(name("a"), Some(Operator::On)),
            Write::Operator(name("b"), Some(off())),
            Write::Operator(name("c"), Some(off())),
            Write::Served(name("a"), Some(Arc::new(served("a")))),
            Write::Operator(name("c"), None),
        ],
    );
    assert_eq!(written, Written { upto: 5, error: None });
    let persisted = Persisted::read(dir.path()).unwrap();
    assert_eq!(persisted.operator, BTreeMap::from([(name("a"), Operator::On), (name("b"), off())]));
    assert_eq!(persisted.served, BTreeMap::from([(name("a"), served("a"))]));
    flush(&dir, [Write::Served(name("a"), None), Write::Operator(name("b"), None), Write::Served(name("never"), None)]);
    let persisted = Persisted::read(dir.path()).unwrap();
    assert_eq!((persisted.operator.len(), persisted.served.len()), (1, 0));
}

#[test]
fn what_is_read_looks_like_what_was_listed() {
    let listed = served("m").as_listed();
    assert_eq!(listed.settings["labels.txt"].as_ref(), b"\xff\x00a");
    assert_eq!(listed.settings["model.toml"].as_ref(), b"instances = 2\n");
    assert_eq!(listed.versions.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert_eq!((listed.rollout.candidate, listed.aliases["blue"]), (Some((2, 500)), 1));
}

#[test]
fn what_is_torn_or_strange_is_ignored_and_the_rest_counts() {
    let dir = TempDir::new().unwrap();
    Persisted::read(dir.path()).unwrap();
    let whole = [("a", "a"), ("torn", "torn"), ("stolen", "other"), ("newer", "newer")];
    flush(&dir, whole.map(|(file, model)| Write::Served(name(file), Some(Arc::new(served(model))))));
    let path = |file: &str| dir.path().join(SERVED).join(file);
    let text = fs::read(path("torn.json")).unwrap();
    fs::write(path("torn.json"), &text[..text.len() / 2]).unwrap();
    let newer = fs::read_to_string(path("newer.json")).unwrap().replacen("\"schema\": 1", "\"schema\": 2", 1);
    fs::write(path("newer.json"), newer).unwrap();
    fs::write(path("empty.json"), "").unwrap();
    fs::write(path(".a.json.1234.tmp"), "left by a crash").unwrap();
    fs::write(path("no name.json"), "{}").unwrap();
    fs::create_dir(path("folder.json")).unwrap();
    let persisted = Persisted::read(dir.path()).unwrap();
    assert_eq!(persisted.served.keys().map(ModelName::as_str).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_write_that_fails_is_told_and_tried_again() {
    let dir = TempDir::new().unwrap();
    Persisted::read(dir.path()).unwrap();
    let blocker = dir.path().join(OPERATOR).join("m.json");
    fs::create_dir_all(blocker.join("in the way")).unwrap();
    let writer = Writer::new(dir.path().to_owned());
    writer.write(7, Write::Operator(name("m"), Some(Operator::On)));
    let written = writer.flush();
    assert_eq!(written.upto, 7);
    assert!(written.error.unwrap().starts_with("operator/m.json: "));
    assert!(!writer.is_empty());
    fs::remove_dir_all(&blocker).unwrap();
    assert_eq!(writer.flush(), Written { upto: 7, error: None });
    assert!(writer.is_empty());
    assert_eq!(Persisted::read(dir.path()).unwrap().operator[&name("m")], Operator::On);
}

#[test]
fn the_last_change_of_a_file_wins() {
    let dir = TempDir::new().unwrap();
    Persisted::read(dir.path()).unwrap();
    let changes = [Some(Operator::On), None, Some(off())].map(|operator| Write::Operator(name("m"), operator));
    flush(&dir, changes);
    assert_eq!(Persisted::read(dir.path()).unwrap().operator[&name("m")], off());
}

#[test]
fn a_state_directory_that_is_a_file_is_an_error() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("state");
    fs::write(&file, "").unwrap();
    assert!(Persisted::read(&file).is_err());
}

#[tokio::test]
async fn what_is_queued_is_written_before_the_keeper_ends() {
    let dir = TempDir::new().unwrap();
    Persisted::read(dir.path()).unwrap();
    let writer = Writer::new(dir.path().to_owned());
    let (progress, mut written) = watch::channel(Written::default());
    let keeper = tokio::spawn(keep(Arc::clone(&writer), progress));
    writer.write(1, Write::Operator(name("a"), Some(Operator::On)));
    written.wait_for(|written| written.upto == 1).await.unwrap();
    writer.write(2, Write::Operator(name("b"), Some(Operator::On)));
    drop(written);
    keeper.await.unwrap();
    assert_eq!(Persisted::read(dir.path()).unwrap().operator.len(), 2);
}

#[test]
fn what_may_not_be_served_again_is_taken_out_and_named() {
    let dir = TempDir::new().unwrap();
    Persisted::read(dir.path()).unwrap();
    flush(&dir, [Write::Served(name("m"), Some(Arc::new(served("m"))))]);
    let mut persisted = Persisted::read(dir.path()).unwrap();
    persisted.admit(&|generation| if generation.key.version == 2 { Err("it is not signed".to_owned()) } else { Ok(()) });
    let kept = &persisted.served[&name("m")];
    assert_eq!(kept.stable, None, "its stable version is not there any more");
    let listed = kept.as_listed();
    assert_eq!(listed.versions.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(listed.problems, ["version 2 is refused: it is not signed"]);
}
