//! Load and unload as the data ports offer them: which parameters they take, and how a refused command is answered.

use bascule_serving::{CommandError, InferError};

/// The parameter of an unload.
pub(crate) const UNLOAD_DEPENDENTS: &str = "unload_dependents";

/// Checks the names of a load's parameters. What would bring a configuration or files through a data port is not served.
///
/// # Errors
/// For each name: none has a meaning.
pub fn check_load_parameters<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), InferError> {
    match names.into_iter().next() {
        None => Ok(()),
        Some(name) if name == "config" || name.starts_with("file:") => {
            let name: String = name.chars().take(64).collect();
            Err(InferError::Unsupported { what: format!("bringing a configuration or files with a load (parameter '{name}')") })
        }
        Some(name) => {
            let name: String = name.chars().take(64).collect();
            Err(InferError::invalid(format!("load parameter '{name}' is not known")))
        }
    }
}

/// A refused command as an error of the data ports.
pub fn refusal(model: &str, error: CommandError) -> InferError {
    let not_ready =
        |reason: String| InferError::NotReady { model: model.to_owned(), reason, retry_after: std::time::Duration::from_secs(1) };
    match error {
        CommandError::UnknownModel { model } => InferError::UnknownModel { model },
        // As Triton answers: the request asked for what can't be.
        CommandError::LoadFailed { .. } | CommandError::NothingToLoad { .. } | CommandError::Rejected { .. } => {
            InferError::invalid(error.to_string())
        }
        CommandError::Unsupported { what } => InferError::Unsupported { what },
        CommandError::Source { .. } => not_ready("the registry can't be read".to_owned()),
        CommandError::State { message } => InferError::Internal { message },
        CommandError::Busy => InferError::Overloaded {
            what: "the queue of repository commands".to_owned(),
            retry_after: std::time::Duration::from_secs(1),
        },
        CommandError::Stopping => not_ready("the gateway is stopping".to_owned()),
    }
}
