//! Looking after a registry: signed versions, yanking, comparing, verifying, removing what nobody needs, and what runs where.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bascule_registry::{ModelName, Registry, VersionKey};

use crate::compose::Retrust;

use super::live::{DONE, Live, constant};
use super::*;

const REFUSED: u8 = 1;
const UNREACHABLE: u8 = 3;

fn key(model: &str, version: u64) -> VersionKey {
    VersionKey::new(ModelName::new(model).unwrap(), version)
}

/// Publishes a version and waits for nothing.
fn publish(live: &Live, value: f64, extra: &[&str]) -> ExitCode {
    let file = live.path("model.fake.json");
    std::fs::write(&file, serde_json::to_vec(&constant(value)).unwrap()).unwrap();
    let (file, registry) = (file.display().to_string(), live.registry());
    code(&[&["publish", "m", &file, "--registry", &registry], extra].concat())
}

fn keygen(live: &Live, name: &str) -> (String, String) {
    let file = live.path(name).display().to_string();
    assert_eq!(code(&["keygen", &file]), DONE);
    let public = std::fs::read_to_string(format!("{file}.pub")).unwrap();
    let public = public.lines().last().unwrap().to_owned();
    (file, public)
}

/// Waits until a problem of the model says so.
fn until_said(live: &Live, said: &str) {
    live.until(|model| model.problems.iter().any(|problem| problem.starts_with(said)));
}

#[test]
fn keys_are_made_for_their_owner_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.key").display().to_string();
    assert_eq!(code(&["keygen", &file]), DONE);
    let mode = |file: &str| std::fs::metadata(file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o600);
    let (secret, public) = (std::fs::read(&file).unwrap(), std::fs::read(format!("{file}.pub")).unwrap());
    assert_eq!(code(&["keygen", &file]), ExitCode::from(REFUSED));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(code(&["keygen", &file]), ExitCode::from(REFUSED), "the public key is there");
    assert!(!Path::new(&file).exists(), "and no other private key was made");
    std::fs::write(&file, &secret).unwrap();
    std::fs::remove_file(format!("{file}.pub")).unwrap();
    assert_eq!(code(&["keygen", &file]), ExitCode::from(REFUSED), "the private key is there");
    assert_eq!(std::fs::read(&file).unwrap(), secret);
    let text = String::from_utf8(public).unwrap();
    assert!(text.starts_with('#') && text.contains("\ned25519:"), "{text}");
}

#[test]
fn a_gateway_with_trust_serves_what_is_signed_and_names_what_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("release.key").display().to_string();
    assert_eq!(code(&["keygen", &file]), DONE);
    let trust = format!("registry.trust=file:{file}.pub");
    let live = Live::start_with(&[&trust]);
    assert_eq!(live.publish("1", &constant(1.0)), ExitCode::from(REFUSED), "whoever waits for it is told at once");
    until_said(&live, "version 1 is refused: it is not signed");
    assert_eq!(live.model().versions.len(), 0);
    assert_eq!(publish(&live, 2.0, &["--sign", &file]), DONE);
    live.until(|model| model.stable == Some(2));
    let (stranger, _) = keygen(&live, "stranger.key");
    assert_eq!(publish(&live, 3.0, &["--sign", &format!("file:{stranger}")]), DONE);
    until_said(&live, "version 3 is refused: it is signed by ed25519:");
    assert_eq!(live.model().stable, Some(2));
    let registry = live.registry();
    assert_eq!(code(&["sign", "m", "3", "--key", &file, "--registry", &registry]), DONE);
    live.until(|model| model.stable == Some(3));
    assert_eq!(code(&["sign", "m", "9", "--key", &file, "--registry", &registry]), ExitCode::from(REFUSED));
    assert_eq!(code(&["sign", "m", "1", "--key", &format!("{file}.pub"), "--registry", &registry]), ExitCode::from(REFUSED));
    assert_eq!(code(&["sign", "m", "1", "--key", "env:NOT_SET", "--registry", &registry]), ExitCode::from(REFUSED));
    // What `check` and `verify` say: version 1 would be refused.
    assert_eq!(code(&["verify", "m", "--registry", &registry]), DONE, "nothing is damaged");
    assert_eq!(code(&["verify", "m", "--registry", &registry, "--set", &trust]), ExitCode::from(REFUSED));
}

#[test]
fn a_reload_adds_and_withdraws_keys_without_a_restart() {
    let mut live = Live::start();
    let ((old, old_public), (new, new_public)) = (keygen(&live, "old.key"), keygen(&live, "new.key"));
    let trusted = live.path("trusted.pub");
    let trust = format!("registry.trust=file:{}", trusted.display());
    std::fs::write(&trusted, &old_public).unwrap();
    live.restart(|_| {}, &[&trust]);
    assert_eq!(publish(&live, 1.0, &["--sign", &old]), DONE);
    live.until(|model| model.stable == Some(1));
    assert_eq!(publish(&live, 2.0, &["--sign", &new]), DONE);
    until_said(&live, "version 2 is refused: it is signed by ed25519:");

    std::fs::write(&trusted, format!("{old_public}\n{new_public}\n")).unwrap();
    let Retrust::Replaced { gone, new: added } = live.retrust(&[&trust]) else { panic!("the keys can be read") };
    assert_eq!((gone.len(), added.len()), (0, 1));
    live.until(|model| model.stable == Some(2) && model.problems.is_empty());

    std::fs::write(&trusted, &old_public).unwrap();
    assert_eq!(live.retrust(&[&trust]), Retrust::Replaced { gone: added, new: Vec::new() });
    until_said(&live, "version 2 is refused: it is signed by ed25519:");
    assert_eq!(live.model().stable, Some(2), "what serves is not taken away");

    // A file that can't be read changes nothing, and is named until one can be.
    std::fs::write(&trusted, "nonsense").unwrap();
    let Retrust::Kept(why) = live.retrust(&[&trust]) else { panic!("nobody is trusted for that") };
    assert!(why.contains("trusted.pub") && why.contains("not a public key"), "{why}");
    let told = |live: &Live| live.server().serving.status().registry.problems.concat();
    live.until(|_| told(&live).contains("trusted.pub"));
    assert!(told(&live).contains("the keys that were trusted before still count"), "{}", told(&live));
    std::fs::write(&trusted, &old_public).unwrap();
    assert_eq!(live.retrust(&[&trust]), Retrust::Replaced { gone: Vec::new(), new: Vec::new() });
    live.until(|_| told(&live).is_empty());
    assert_eq!(live.retrust(&[]), Retrust::NeedsRestart, "whether anybody has to sign is no matter of a reload");

    // What is loaded anew is judged anew.
    assert_eq!(live.run(&["unload", "m", "--wait"]), DONE);
    assert_eq!(live.run(&["load", "m"]), DONE);
    live.until(|model| model.stable == Some(1));
    assert!(live.model().version(2).is_none_or(|version| version.stage == "unloaded"));
    assert_eq!(publish(&live, 3.0, &["--sign", &old]), DONE);
    live.until(|model| model.stable == Some(3));
}

/// Whether anybody has to sign is decided at the start, which these keys would hinder: whoever reloads hears of it now.
#[test]
fn first_keys_that_can_not_be_read_are_told_at_a_reload() {
    let live = Live::start();
    let trusted = live.path("trusted.pub");
    let trust = format!("registry.trust=file:{}", trusted.display());
    let Retrust::Kept(why) = live.retrust(&[&trust]) else { panic!("there is no such file") };
    assert!(why.contains("trusted.pub") && why.contains("registry.trust"), "{why}");
    std::fs::write(&trusted, "nonsense").unwrap();
    let Retrust::Kept(why) = live.retrust(&[&trust]) else { panic!("nobody is trusted for that") };
    assert!(why.contains("trusted.pub") && why.contains("not a public key"), "{why}");
    let (_, public) = keygen(&live, "a.key");
    std::fs::write(&trusted, public).unwrap();
    assert_eq!(live.retrust(&[&trust]), Retrust::NeedsRestart);
}

#[test]
fn a_key_may_come_from_a_variable() {
    let live = Live::start();
    let (file, _) = keygen(&live, "a.key");
    let model = live.path("model.fake.json");
    std::fs::write(&model, serde_json::to_vec(&constant(1.0)).unwrap()).unwrap();
    let arguments =
        ["bascule", "publish", "m", &model.display().to_string(), "--registry", &live.registry(), "--sign", "env:SECRET"];
    let environment = Environment::of(&[("SECRET", &std::fs::read_to_string(file).unwrap())]);
    assert_eq!(run(arguments.map(OsString::from), environment), DONE);
    let registry = Registry::open(&live.registry()).unwrap().reading_signatures(std::sync::Arc::default());
    let version = live.runtime.block_on(registry.version(&key("m", 1))).unwrap();
    assert!(version.signatures[0].signer(&version.digest).is_some());
}

/// The registry is away: what is served again comes from local disk, and is judged there.
#[test]
fn a_restart_without_the_registry_judges_what_lies_on_local_disk() {
    let mut live = Live::start();
    let (file, public) = keygen(&live, "mine.key");
    let (_, other) = keygen(&live, "other.key");
    let (mine, others) = (format!("registry.trust={public}"), format!("registry.trust={other}"));
    live.restart(|_| {}, &[&mine]);
    assert_eq!(publish(&live, 1.0, &["--sign", &file]), DONE);
    live.until(|model| model.stable == Some(1));
    let away = |live: &Live| std::fs::rename(live.path("registry"), live.path("away")).unwrap();
    live.restart(away, &[&mine]);
    live.until(|model| model.stable == Some(1));
    live.restart(|_| {}, &[&others]);
    until_said(&live, "version 1 is refused: it is signed by ed25519:");
    assert!(live.model().versions.is_empty(), "{:?}", live.model().versions);
    live.restart(|_| {}, &[&mine]);
    live.until(|model| model.stable == Some(1));
}

#[test]
fn what_was_altered_on_local_disk_is_not_served() {
    let mut live = Live::start();
    let (file, public) = keygen(&live, "mine.key");
    let mine = format!("registry.trust={public}");
    live.restart(|_| {}, &[&mine]);
    assert_eq!(publish(&live, 1.0, &["--sign", &file]), DONE);
    live.until(|model| model.stable == Some(1));
    let alter = |live: &Live| {
        std::fs::rename(live.path("registry"), live.path("away")).unwrap();
        let kept = live.path("state").read_dir().unwrap().map(|entry| entry.unwrap().path().join("served/m.json"));
        let kept: Vec<_> = kept.filter(|kept| kept.is_file()).collect();
        assert_eq!(kept.len(), 1);
        let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&kept[0]).unwrap()).unwrap();
        let file = &mut record["record"]["versions"][0]["manifest"]["files"][0];
        assert!(file["sha256"].is_string());
        file["sha256"] = "0".repeat(64).into();
        std::fs::write(&kept[0], record.to_string()).unwrap();
    };
    live.restart(alter, &[&mine]);
    until_said(&live, "version 1 is refused: its manifest is not the one that is signed");
    assert!(live.model().versions.is_empty());
}

#[test]
fn a_version_that_serves_is_not_yanked_unless_forced() {
    let live = Live::start();
    for version in ["1", "2", "3"] {
        assert_eq!(live.publish(version, &constant(1.0)), DONE);
    }
    live.until(|model| model.stable == Some(3));
    let registry = live.registry();
    let yank = |version: &str, extra: &[&str]| live.run(&[&["yank", "m", version, "--registry", &registry], extra].concat());
    assert_eq!(yank("3", &[]), ExitCode::from(REFUSED), "it is stable on the gateway");
    assert_eq!(yank("1", &["--reason", "old"]), DONE);
    assert_eq!(yank("1", &["--json"]), DONE, "a second time changes nothing");
    assert_eq!(yank("9", &[]), ExitCode::from(REFUSED));
    assert_eq!(live.run(&["rollout", "pin", "m", "2"]), DONE);
    live.until(|model| model.stable == Some(2));
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().to_string();
    let alone = |version: &str, extra: &[&str]| code(&[&["yank", "m", version, "--registry", &registry], extra].concat());
    assert_eq!(alone("3", &["--gateway", &free]), ExitCode::from(UNREACHABLE), "it may serve there");
    assert_eq!(alone("2", &["--gateway", &free]), ExitCode::from(UNREACHABLE));
    assert_eq!(yank("2", &[]), ExitCode::from(REFUSED), "it is pinned");
    assert_eq!(yank("2", &["--force"]), DONE);
    live.until(|model| model.stable == Some(3));
    assert_eq!(alone("3", &["--gateway", &free, "--force"]), DONE);
    let versions = live.runtime.block_on(Registry::open(&registry).unwrap().versions(&ModelName::new("m").unwrap())).unwrap();
    assert!(versions.values().all(|version| version.tombstoned));
}

#[test]
fn where_no_gateway_answers_what_serves_by_default_is_not_yanked() {
    let folder = tempfile::tempdir().unwrap();
    let registry = folder.path().join("registry").display().to_string();
    let file = folder.path().join("model.fake.json");
    for value in [1.0, 2.0, 3.0] {
        std::fs::write(&file, serde_json::to_vec(&constant(value)).unwrap()).unwrap();
        assert_eq!(code(&["publish", "m", &file.display().to_string(), "--registry", &registry]), DONE);
    }
    // None is named, so that one that does not answer is no obstacle by itself; one that does has no such model.
    let yank = |version: &str, extra: &[&str]| code(&[&["yank", "m", version, "--registry", &registry], extra].concat());
    assert_eq!(yank("3", &[]), ExitCode::from(REFUSED));
    assert_eq!(yank("2", &[]), DONE);
    assert_eq!(yank("3", &["--force"]), DONE);
    assert_eq!(yank("1", &[]), ExitCode::from(REFUSED), "now it is this one");
    let live = Live::start();
    assert_eq!(live.run(&["yank", "m", "1", "--registry", &registry]), ExitCode::from(REFUSED), "a gateway of another registry");
    assert_eq!(live.run(&["yank", "m", "1", "--registry", &registry, "--force"]), DONE);
}

#[test]
fn what_runs_where_is_asked_of_every_gateway() {
    let live = Live::start();
    assert_eq!(live.publish("1", &constant(1.0)), DONE);
    live.until(|model| model.stable == Some(1));
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().to_string();
    let registry = live.registry();
    for shown in [&["what"][..], &["what", "--json"], &["where", "m"], &["where", "m@1", "--json", "--registry", &registry]] {
        assert_eq!(live.run(shown), DONE, "{shown:?}");
        assert_eq!(live.run(&[shown, &["--gateway", &free]].concat()), DONE, "one of two answers: {shown:?}");
        assert_eq!(code(&[shown, &["--gateway", &free]].concat()), ExitCode::from(UNREACHABLE), "none answers: {shown:?}");
    }
    let named = live.path("named.toml");
    std::fs::write(&named, format!("[[registry]]\nname = \"lab\"\nurl = {registry:?}\n")).unwrap();
    let environment = Environment::of(&[("BASCULE_CONFIG", &named.display().to_string())]);
    let gateway = format!("http://{}", live.server().addresses.admin);
    let asked = ["bascule", "where", "m", "--gateway", &gateway, "--registry", "lab"];
    assert_eq!(run(asked.map(OsString::from), environment), DONE, "a registry by its name");
    assert_eq!(live.run(&["where", "m@2"]), ExitCode::from(REFUSED));
    assert_eq!(live.run(&["where", "nobody"]), ExitCode::from(REFUSED));
    assert_eq!(live.run(&["where", "m@none"]), ExitCode::from(2));
    let version = live.model().version(1).cloned().unwrap();
    assert!(version.loaded_at.is_some() && !version.publisher.is_empty());
}

#[test]
fn a_registry_is_read_compared_verified_and_cleaned() {
    let live = Live::start();
    let registry = live.registry();
    assert_eq!(publish(&live, 1.0, &["--metric", "accuracy=0.5", "--run-id", "r1"]), DONE);
    assert_eq!(publish(&live, 2.0, &["--metric", "accuracy=0.75", "--run-id", "r2"]), DONE);
    let at = |arguments: &[&str]| code(&[arguments, &["--registry", &registry]].concat());
    for shown in [&["versions", "m"][..], &["diff", "m", "1", "2"], &["verify"], &["verify", "m"], &["gc"]] {
        assert_eq!(at(shown), DONE, "{shown:?}");
        assert_eq!(at(&[shown, &["--json"]].concat()), DONE, "{shown:?}");
    }
    for wrong in [&["versions", "n"][..], &["diff", "m", "1", "3"], &["verify", "n"]] {
        assert_eq!(at(wrong), ExitCode::from(REFUSED), "{wrong:?}");
    }
    let stray = live.path("registry/m/blobs").join("0".repeat(64));
    std::fs::write(&stray, "stray").unwrap();
    assert_eq!(at(&["gc", "--delete"]), DONE);
    assert!(stray.exists(), "it may belong to a publish");
    assert_eq!(at(&["gc", "--grace", "0s"]), DONE);
    assert!(stray.exists(), "nothing goes unless it is asked for");
    assert_eq!(at(&["gc", "--grace", "0s", "--delete"]), DONE);
    assert!(!stray.exists());
    assert_eq!(at(&["verify"]), DONE);
    let blob = live.path("registry/m/blobs").read_dir().unwrap().next().unwrap().unwrap().path();
    std::fs::write(&blob, vec![b'x'; std::fs::metadata(&blob).unwrap().len() as usize]).unwrap();
    assert_eq!(at(&["verify"]), ExitCode::from(REFUSED));
    std::fs::write(live.path("registry/m/versions/2/manifest.json"), "{}").unwrap();
    std::fs::write(&stray, "stray").unwrap();
    assert_eq!(at(&["gc", "--grace", "0s", "--delete"]), ExitCode::from(REFUSED));
    assert!(stray.exists(), "an unreadable manifest may name it");
}
