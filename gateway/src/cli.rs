//! The command line: one file a subcommand, and what they share.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 refused or failed, 2 usage, 3 unreachable.

mod args;
mod check;
mod demo;
mod deployed;
mod diff;
mod doctor;
mod failure;
mod gateway;
mod gc;
mod infer;
mod journals;
mod keygen;
mod listing;
mod load;
mod logging;
mod models;
mod output;
mod publish;
mod record_golden;
mod rollout;
mod serve;
mod sign;
mod signing_key;
mod status;
mod threads;
mod trial;
mod unload;
mod verify;
mod versions;
mod versions_of;
mod what;
mod where_is;
mod yank;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::env::Environment;
use failure::Failure;

/// What a subcommand comes to.
type Outcome = Result<(), Failure>;

/// Serves models, and swaps their versions while traffic runs.
#[derive(Debug, Parser)]
#[command(name = "bascule", version, disable_help_subcommand = true, max_term_width = 110)]
#[command(after_help = "Example:\n  bascule serve --registry ./models\n\nEvery command has an example: bascule publish --help")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Check(check::Check),
    Trial(Box<trial::TryVersion>),
    RecordGolden(Box<record_golden::RecordGolden>),
    Publish(Box<publish::Publish>),
    Status(status::ShowStatus),
    Models(models::Models),
    Load(load::Load),
    Unload(unload::Unload),
    Rollout(rollout::Rollout),
    Infer(infer::Infer),
    Where(where_is::Where),
    What(what::What),
    Versions(versions::Versions),
    Diff(diff::Diff),
    Yank(yank::Yank),
    Verify(verify::Verify),
    Gc(gc::Gc),
    Keygen(keygen::Keygen),
    Sign(sign::Sign),
    Demo(demo::Demo),
    Doctor(doctor::Doctor),
}

/// Runs the command that the arguments name.
pub fn run(arguments: impl IntoIterator<Item = OsString>, environment: Environment) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no error; where nobody reads, nothing is to be done.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let outcome = match cli.command {
        Command::Serve(command) => command.run(&environment),
        Command::Check(command) => command.run(&environment),
        Command::Trial(command) => command.run(&environment),
        Command::RecordGolden(command) => command.run(&environment),
        Command::Publish(command) => command.run(&environment),
        Command::Status(command) => in_background(command.run()),
        Command::Models(command) => command.run(&environment),
        Command::Load(command) => in_background(command.run()),
        Command::Unload(command) => in_background(command.run()),
        Command::Rollout(command) => in_background(command.run(&environment)),
        Command::Infer(command) => in_background(command.run()),
        Command::Where(command) => in_background(command.run(&environment)),
        Command::What(command) => in_background(command.run(&environment)),
        Command::Versions(command) => command.run(&environment),
        Command::Diff(command) => command.run(&environment),
        Command::Yank(command) => command.run(&environment),
        Command::Verify(command) => command.run(&environment),
        Command::Gc(command) => command.run(&environment),
        Command::Keygen(command) => command.run(),
        Command::Sign(command) => command.run(&environment),
        Command::Demo(command) => command.run(&environment),
        Command::Doctor(command) => command.run(&environment),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Runs a command that only asks and waits: one thread is enough.
fn in_background(command: impl Future<Output = Outcome>) -> Outcome {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => Err(anyhow::Error::new(error).context("can't start the asynchronous runtime").into()),
    }
}

#[cfg(test)]
mod tests;
