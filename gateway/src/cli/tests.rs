mod check;
mod live;
mod upkeep;

use clap::CommandFactory as _;

use super::*;

fn commands(command: &clap::Command, path: &str) -> Vec<(String, clap::Command)> {
    let mut found = Vec::new();
    for inner in command.get_subcommands() {
        let path = format!("{path} {}", inner.get_name());
        found.push((path.clone(), inner.clone()));
        found.extend(commands(inner, &path));
    }
    found
}

#[test]
fn the_command_line_makes_sense() {
    Cli::command().debug_assert();
}

#[test]
fn every_help_has_an_example_that_is_a_command_line() {
    let all = commands(&Cli::command(), "bascule");
    assert_eq!(all.iter().filter(|(path, _)| path.split(' ').count() == 2).count(), 22);
    for (path, command) in all {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  ")).collect();
        assert!(help.starts_with("Example") && !examples.is_empty(), "{path}: {help}");
        for example in examples {
            assert!(example.starts_with(&path), "{path}: {example}");
            // Quotes are the shell's.
            let words: Vec<String> = example
                .split('\'')
                .enumerate()
                .flat_map(|(at, part)| match at % 2 {
                    1 => vec![part.to_owned()],
                    _ => part.split_whitespace().map(str::to_owned).collect(),
                })
                .collect();
            Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }
}

#[test]
fn whatever_prints_data_can_print_json() {
    let text = ["serve", "rollout", "weight", "pin", "unpin", "clear"];
    for (path, command) in commands(&Cli::command(), "bascule") {
        let name = command.get_name();
        if !text.contains(&name) && path.split(' ').count() == 2 {
            assert!(command.get_arguments().any(|argument| argument.get_id() == "json"), "{path} has no --json");
        }
    }
}

fn code(arguments: &[&str]) -> ExitCode {
    let arguments = std::iter::once("bascule").chain(arguments.iter().copied()).map(OsString::from);
    run(arguments, Environment::default())
}

#[test]
fn exit_codes_tell_usage_refusal_and_silence_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("bad.toml"), "[server]\nhtpp = \"x\"\n").unwrap();
    assert_eq!(code(&["no-such-command"]), ExitCode::from(2));
    assert_eq!(code(&["status", "--gateway", "ftp://x"]), ExitCode::from(2));
    assert_eq!(code(&["rollout", "weight", "m", "1", "110%"]), ExitCode::from(2));
    assert_eq!(code(&["check", "--config", &path("bad.toml")]), ExitCode::from(1));
    assert_eq!(code(&["check", "--registry", &path("nowhere")]), ExitCode::from(1));
    assert_eq!(code(&["publish", "m", &path("nothing.onnx"), "--registry", &path("registry")]), ExitCode::from(1));
    // A port that was just given back: nobody listens there.
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    assert_eq!(code(&["status", "--gateway", &format!("http://{free}")]), ExitCode::from(3));
    assert_eq!(code(&["infer", "m", "--input", "x=[1]", "--url", &format!("http://{free}")]), ExitCode::from(3));
    assert_eq!(code(&["check", "--schema"]), ExitCode::SUCCESS);
}
