use std::fs;
use std::path::Path;

use super::*;

/// Reads a file, variables and `--set`s, and shows the named setting with its origin, or all problems.
fn check(file: &str, variables: &[(&str, &str)], sets: &[&str], key: &str) -> Result<String, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(DEFAULT_FILE);
    fs::write(&path, file).unwrap();
    let given = Given { file: Some(path), sets: sets.iter().map(|set| (*set).to_owned()).collect(), ..Given::default() };
    let without_folder = |text: String| text.replace(&format!("{}/", folder.path().display()), "");
    match load(&given, &Environment::of(variables)) {
        Ok(effective) => {
            let entry = effective.entries.iter().find(|entry| entry.name == key).unwrap();
            Ok(without_folder(format!("{} ({})", entry.value, entry.origin)))
        }
        Err(error) => Err(error.problems.iter().map(|problem| without_folder(problem.to_string())).collect()),
    }
}

#[test]
fn the_strongest_layer_wins() {
    let file = "[registry]\nurl = \"models\"\npoll_interval = \"5s\"\n";
    let variables = [("BASCULE_REGISTRY_POLL_INTERVAL", "6s")];
    assert_eq!(check("", &[], &[], "registry.poll_interval"), Ok("2s (default)".into()));
    assert_eq!(check(file, &[], &[], "registry.poll_interval"), Ok("5s (bascule.toml:3)".into()));
    assert_eq!(check(file, &variables, &[], "registry.poll_interval"), Ok("6s (BASCULE_REGISTRY_POLL_INTERVAL)".into()));
    assert_eq!(check(file, &variables, &["registry.poll_interval=7s"], "registry.poll_interval"), Ok("7s (--set)".into()));
    assert_eq!(check(file, &[], &[], "registry.url"), Ok("models (bascule.toml:2)".into()));
    let twice = ["registry.poll_interval=7s", "registry.poll_interval=8s"];
    assert_eq!(check("", &[], &twice, "registry.poll_interval"), Ok("8s (--set)".into()), "the last of several");
}

#[test]
fn one_number_of_threads_counts_for_all_runtimes_that_have_none_of_their_own() {
    let found = |key: &str, sets: &[&str]| check("[runtime]\nthreads = 3\n", &[], sets, key);
    assert_eq!(check("", &[], &[], "onnxruntime.threads"), Ok("0 (default)".into()));
    assert_eq!(check("", &[], &[], "torch.threads"), Ok("1 (default)".into()));
    assert_eq!(found("onnxruntime.threads", &[]), Ok("3 (bascule.toml:2)".into()));
    assert_eq!(found("torch.threads", &[]), Ok("3 (bascule.toml:2)".into()));
    assert_eq!(found("torch.threads", &["torch.threads=2"]), Ok("2 (--set)".into()));
    let refused = check("", &[], &["runtime.threads=0"], "torch.threads");
    assert_eq!(refused, Err(vec!["--set: `runtime.threads`: expected 1 to 1024, got \"0\"".into()]));
}

#[test]
fn a_flag_of_its_own_is_stronger_than_set() {
    let given = Given {
        flags: vec![("server.http", "--http", "127.0.0.1:1".into())],
        sets: vec!["server.http=127.0.0.1:2".into()],
        ..Given::default()
    };
    let effective = load(&given, &Environment::default()).unwrap();
    assert_eq!(effective.config.server.http.port(), 1);
}

#[test]
fn every_problem_is_reported_at_once_with_its_line() {
    let file = "
[server]
http = \"localhost:8000\"
htpp = \"127.0.0.1:9\"
max_connections = 0
[registri]
url = \"x\"
[registry]
poll_interval = 5
absent = \"kep\"
[load]
models = [\"../up\"]
memory_budget = \"much\"
ready = { strict = true }
[log]
level = \"a=b=c\"
";
    let problems = check(file, &[("BASCULE_LOG_FORMAT", "xml")], &["load.mode", "load.mood=watch"], "").unwrap_err();
    let expected = [
        "--set: expected key=value, got \"load.mode\"",
        "--set: `load.mood` is not a setting, did you mean `load.mode`?",
        "BASCULE_LOG_FORMAT: `log.format`: expected one of text, json, got \"xml\"",
        "bascule.toml:3: `server.http`: expected an IP address and port such as \"127.0.0.1:8000\", got \"localhost:8000\"",
        "bascule.toml:4: `server.htpp` is not a setting, did you mean `server.http`?",
        "bascule.toml:5: `server.max_connections`: expected 1 or more, got 0",
        "bascule.toml:6: `registri` is not a section, did you mean `registry`?",
        "bascule.toml:9: `registry.poll_interval`: expected a duration such as \"250ms\", got 5",
        "bascule.toml:10: `registry.absent`: expected one of keep, unload, got \"kep\", did you mean `keep`?",
        "bascule.toml:12: `load.models`: model name \"../up\" starts with `.` or `_`",
        "bascule.toml:13: `load.memory_budget`: expected a size such as \"2GiB\", got \"much\"",
        "bascule.toml:14: `load.ready` is not a section, did you mean `ready`?",
        "bascule.toml:16: `log.level`: expected a level such as \"info\", or directives such as \"info,bascule_serving=debug\", got \"a=b=c\"",
    ];
    for (problem, expected) in problems.iter().zip(expected) {
        assert_eq!(problem, expected);
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn a_hidden_value_is_checked_too() {
    let problems = check("[server]\nhttp = 8000\n", &[], &["server.http=127.0.0.1:1"], "server.http").unwrap_err();
    assert_eq!(problems, ["bascule.toml:2: `server.http`: expected an IP address and port such as \"127.0.0.1:8000\", got 8000"]);
}

#[test]
fn lines_that_are_no_toml_do_not_hide_other_problems() {
    let problems = check("[server]\nhttp = \n[log]\nformat = \"xml\"\n", &[], &[], "server.http").unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("bascule.toml:2: "), "{problems:?}");
    assert!(problems[1].starts_with("bascule.toml:4: `log.format`"), "{problems:?}");
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let remote = "[server]\nadmin = \"0.0.0.0:8002\"\n";
    let problems = check(remote, &[], &[], "").unwrap_err();
    assert!(problems[0].starts_with("bascule.toml:2: `server.admin`: 0.0.0.0:8002 is not a loopback address"), "{problems:?}");
    assert!(check(&format!("{remote}[admin]\nallow_remote = true\n"), &[], &[], "server.admin").is_ok());
    assert_eq!(
        check("[server]\ngrpc = \"127.0.0.1:8000\"\n", &[], &[], "").unwrap_err(),
        ["bascule.toml:2: `server.grpc`: 127.0.0.1:8000 is that of `server.http` too"]
    );
    assert!(check("[server]\nhttp = \"127.0.0.1:0\"\ngrpc = \"127.0.0.1:0\"\n", &[], &[], "server.grpc").is_ok());
    let problems = check("[load]\nmodels = [\"a\"]\n", &[], &[], "").unwrap_err();
    assert!(problems[0].contains("only with `load.mode = \"explicit\"`"), "{problems:?}");
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let given = Given { file: Some("does/not/exist.toml".into()), ..Given::default() };
    let error = load(&given, &Environment::default()).unwrap_err();
    assert!(error.problems[0].to_string().starts_with("does/not/exist.toml can't be read: "), "{error:?}");
    let by_variable = load(&Given::default(), &Environment::of(&[("BASCULE_CONFIG", "nor/this.toml")])).unwrap_err();
    assert!(by_variable.problems[0].to_string().starts_with("nor/this.toml can't be read: "), "{by_variable:?}");
}

#[test]
fn paths_in_a_file_are_relative_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any.toml");
    fs::write(&path, "[state]\ndir = \"state\"\n[registry]\nurl = \"http://127.0.0.1:1/models\"\n").unwrap();
    let effective = load(&Given { file: Some(path), ..Given::default() }, &Environment::default()).unwrap();
    assert_eq!(effective.config.state_dir, folder.path().join("state"));
    assert_eq!(effective.config.registry.only().unwrap().url, Place("http://127.0.0.1:1/models".into()));
    assert!(!Path::new("state").exists());
}

#[test]
fn variables_of_others_are_left_alone_and_slips_are_warned_of() {
    let variables = [("BASCULE_SERVICE_HOST", "10.0.0.1"), ("BASCULE_LOG_LEVLE", "debug"), ("BASCULE_DEPS", "/x")];
    let effective = load(&Given::default(), &Environment::of(&variables)).unwrap();
    assert_eq!(effective.warnings, ["BASCULE_LOG_LEVLE is not a setting; did you mean BASCULE_LOG_LEVEL?"]);
}

#[test]
fn a_reload_tells_what_applies_from_what_does_not() {
    let entries = |sets: &[&str]| {
        let given = Given { sets: sets.iter().map(|set| (*set).to_owned()).collect(), ..Given::default() };
        load(&given, &Environment::default()).unwrap().entries
    };
    let mut changes = changes(&entries(&[]), &entries(&["log.level=debug", "server.http=127.0.0.1:1"]));
    let change = |name, old: &str, new: &str| Change { name, old: old.into(), new: new.into() };
    assert_eq!(changes.live, [change("log.level", "info,ort=warn", "debug")]);
    assert_eq!(changes.refused, [change("server.http", "127.0.0.1:8000", "127.0.0.1:1")]);
    changes.refuse("log.level");
    assert_eq!((changes.live.len(), changes.refused.len(), changes.refused[1].name), (0, 2, "log.level"));
}

#[test]
fn every_setting_is_taken_described_and_valid_by_default() {
    let effective = load(&Given::default(), &Environment::default()).unwrap();
    let mut names: Vec<_> = KEYS.iter().map(|key| key.name()).collect();
    names.sort_unstable();
    assert_eq!(effective.entries.iter().map(|entry| entry.name).collect::<Vec<_>>(), names);
    let schema = schema();
    for key in KEYS {
        let (section, name) = key.name().split_once('.').unwrap();
        let table = &schema["properties"][section];
        // A list of registries has the same settings.
        let table = table.get("oneOf").map_or(table, |forms| &forms[0]);
        let described = &table["properties"][name]["description"];
        assert!(described.as_str().is_some_and(|text| text.starts_with(key.help())), "{}", key.name());
    }
    // What is printed for a default can be given back.
    let sets =
        effective.entries.iter().filter(|entry| !entry.value.is_empty()).map(|entry| format!("{}={}", entry.name, entry.value));
    let again = load(&Given { sets: sets.collect(), ..Given::default() }, &Environment::default()).unwrap();
    assert_eq!(again.config, effective.config);
}
