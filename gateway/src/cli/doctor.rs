//! `bascule doctor`: what is installed, found and reachable, and what to do about what is not.

mod machine;
mod places;

use std::process::Command;
use std::sync::Arc;

use bascule_runtime_api::{LoadError, Runtime};
use clap::Args;
use serde::Serialize;

use crate::compose;
use crate::config::env::Environment;
use crate::config::{self, Config, Effective, Given, TrialMode};
use crate::trial::program;

use super::args::ConfigArgs;
use super::failure::Failure;
use super::output::{print, print_json, rows, table};
use super::{Outcome, in_background, threads};

/// Look at everything that a gateway needs here: libraries, devices, ports, registry, limits; with a hint for each fault.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bascule doctor --registry ./models")]
pub(super) struct Doctor {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    /// As it should be.
    Ok,
    /// Something may be missed.
    Warning,
    /// A gateway would not work.
    Broken,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    what: &'static str,
    health: Health,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, health: Health::Ok, found: found.into(), hint: None }
    }

    fn warning(what: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Finding {
        Finding { what, health: Health::Warning, found: found.into(), hint: Some(hint.into()) }
    }

    fn broken(what: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Finding {
        Finding { what, health: Health::Broken, found: found.into(), hint: Some(hint.into()) }
    }
}

impl Doctor {
    pub(super) fn run(self, environment: &Environment) -> Outcome {
        let mut findings = vec![Finding::ok("program", format!("bascule {}", env!("CARGO_PKG_VERSION")))];
        let config = match self.config.load([], environment) {
            Ok(effective) => {
                findings.push(of_configuration(&effective));
                effective.config
            }
            Err(failure) => {
                findings.push(Finding::broken("configuration", failure.summary(), "mend the lines that are named"));
                defaults(environment)?
            }
        };
        let runtimes = compose::runtimes(&config);
        findings.extend(runtimes.iter().map(|runtime| of_runtime(runtime.as_ref(), &config)));
        findings.extend(machine::look());
        findings.push(of_threads(&runtimes, &config));
        findings.extend(of_trials(&config));
        let idle = compose::idle_budget(&config, compose::gpus().as_ref());
        findings.extend(idle.map(|idle| Finding::warning("gpu memory", idle, "see what is found of devices")));
        in_background(async {
            findings.extend(places::look(&config).await);
            Ok(())
        })?;
        let broken = findings.iter().filter(|finding| finding.health == Health::Broken).count();
        if self.json {
            print_json(&findings)?;
        } else {
            print(&text(&findings))?;
        }
        match broken {
            0 => Ok(()),
            1 => Err(Failure::new("one thing is broken")),
            several => Err(Failure::new(format!("{several} things are broken"))),
        }
    }
}

/// What is looked at where the configuration is broken.
fn defaults(environment: &Environment) -> Result<Config, Failure> {
    Ok(config::load(&Given::default(), &environment.without_settings()).map(|effective| effective.config)?)
}

fn of_configuration(effective: &Effective) -> Finding {
    let file = effective.file.as_ref().map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
    let set = effective.entries.iter().filter(|entry| entry.origin != config::Origin::Default).count();
    let found = format!("{file}, {set} of {} settings differ from the default", effective.entries.len());
    match effective.warnings.first() {
        Some(warning) => Finding::warning("configuration", found, warning),
        None => Finding::ok("configuration", found),
    }
}

fn of_runtime(runtime: &dyn Runtime, config: &Config) -> Finding {
    let what = runtime.name();
    match runtime.version() {
        Ok(version) if runtime.is_optional() => Finding::ok(what, version),
        Ok(version) => Finding::ok(what, format!("{version}, {}", library_place(config))),
        Err(LoadError::Unavailable { message, hint }) if runtime.is_optional() => {
            Finding { hint: Some(hint), ..Finding::ok(what, format!("{message}; only models that need it are not served")) }
        }
        Err(LoadError::Unavailable { message, hint }) => Finding::broken(what, message, hint),
        Err(error) => Finding::broken(what, error.to_string(), "run `make deps`, or set onnxruntime.library"),
    }
}

/// A runtime that is not there runs nothing.
fn of_threads(runtimes: &[Arc<dyn Runtime>], config: &Config) -> Finding {
    let named = compose::operator_threads(config).map(|(_, setting, threads)| format!("{setting} = {threads}"));
    let is_there = |format: &str| runtimes.iter().any(|runtime| runtime.format() == format && runtime.version().is_ok());
    match threads::too_many(config, is_there, threads::processors()) {
        None => Finding::ok("threads", named.join(", ")),
        Some(found) => Finding::warning("threads", found, "set runtime.threads, or those of one runtime, lower"),
    }
}

/// What a process that tries versions is kept from here.
fn of_trials(config: &Config) -> Option<Finding> {
    if config.trial.mode == TrialMode::Off {
        return None;
    }
    Some(match isolation() {
        Ok(exposed) if exposed.is_empty() => Finding::ok("trials", "in processes of their own, without a network"),
        Ok(exposed) => Finding::warning("trials", exposed.join("; "), "code in models could do the same; onnx models hold none"),
        Err(error) => Finding::broken("trials", error, "trial.mode = \"off\" goes without"),
    })
}

/// Asks another process: it would lose its own network.
fn isolation() -> Result<Vec<String>, String> {
    let output = Command::new(program()).args(["trial", "--isolation"]).output();
    let output = output.map_err(|error| format!("a process can't be started: {error}"))?;
    serde_json::from_slice(&output.stdout).map_err(|error| format!("a process that was started does not answer: {error}"))
}

fn library_place(config: &Config) -> String {
    match &config.onnxruntime_library {
        Some(path) => path.display().to_string(),
        None => {
            let folders = compose::library_folders().into_iter().filter(|folder| folder.is_dir());
            folders.map(|folder| folder.display().to_string()).next().unwrap_or_default()
        }
    }
}

fn text(findings: &[Finding]) -> String {
    let mut table = table(["", "WHAT", "FOUND"]);
    for finding in findings {
        let mark = match finding.health {
            Health::Ok => "ok",
            Health::Warning => "warning",
            Health::Broken => "BROKEN",
        };
        table.add_row([mark, finding.what, &finding.found]);
        if let Some(hint) = &finding.hint {
            table.add_row(["", "", &format!("hint: {hint}")]);
        }
    }
    rows(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_its_hint_below_it() {
        let findings = [Finding::ok("program", "bascule 1"), Finding::broken("port", "127.0.0.1:1 is taken", "take another")];
        let lines: Vec<String> =
            text(&findings).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines, ["WHAT FOUND", "ok program bascule 1", "BROKEN port 127.0.0.1:1 is taken", "hint: take another"]);
    }
}
