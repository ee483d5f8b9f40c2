//! Arguments → subcommand → exit code.

use std::process::ExitCode;

use bascule::cli;
use bascule::config::env::Environment;

fn main() -> ExitCode {
    cli::run(std::env::args_os(), Environment::of_process())
}
