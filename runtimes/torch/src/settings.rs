//! Load options → how a module is run. Keys are those of Triton's backend where it has them; `FREEZE` is ours.

use bascule_runtime_api::{LoadError, LoadOptions, switch};

/// How the modules of a process are run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    /// Threads of one operator, for all models together; the thread that runs a model is one of them.
    pub(crate) threads: u16,
}

/// How one module is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The graph executor rewrites the module for what it is run with.
    pub(crate) optimized: bool,
    /// Runs keep nothing that only gradients need. A module that asks for gradients itself needs it off.
    pub(crate) inference_mode: bool,
    pub(crate) freeze: Freeze,
}

/// What becomes of a module when it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freeze {
    /// It stays as it was written.
    Off,
    /// Parameters become constants, where that can be done.
    Auto,
    /// That, and convolutions and products become those of oneDNN. Not for every module: a convolution without a batch then fails.
    Optimize,
}

const KEYS: [&str; 3] = ["DISABLE_OPTIMIZED_EXECUTION", "FREEZE", "INFERENCE_MODE"];

impl Settings {
    /// Reads and checks every option.
    ///
    /// # Errors
    /// [`LoadError::Option`] for an unknown key or a wrong value.
    pub(crate) fn new(options: &LoadOptions) -> Result<Settings, LoadError> {
        let mut settings = Settings { optimized: true, inference_mode: true, freeze: Freeze::Auto };
        for (key, value) in &options.options {
            match key.as_str() {
                "DISABLE_OPTIMIZED_EXECUTION" => settings.optimized = !switch(key, value)?,
                "FREEZE" => settings.freeze = freeze(key, value)?,
                "INFERENCE_MODE" => settings.inference_mode = switch(key, value)?,
                _ => return Err(LoadError::unknown_option(key, &KEYS)),
            }
        }
        if options.intra_op_threads > 1 {
            let message = "libtorch has one number for all models of a process; set torch.threads instead".to_owned();
            return Err(LoadError::option("intra_op_threads", message));
        }
        // Who wants the module run as it was written does not want it rewritten before.
        if !settings.optimized {
            settings.freeze = Freeze::Off;
        }
        Ok(settings)
    }
}

fn freeze(key: &str, value: &str) -> Result<Freeze, LoadError> {
    match value.trim().to_ascii_lowercase().as_str() {
        "off" => Ok(Freeze::Off),
        "auto" => Ok(Freeze::Auto),
        "optimize" => Ok(Freeze::Optimize),
        _ => Err(LoadError::option(key, format!("expected auto, optimize or off, got '{value}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &str, value: &str) -> Result<Settings, String> {
        let options = LoadOptions { options: [(key.to_owned(), value.to_owned())].into(), ..LoadOptions::default() };
        Settings::new(&options).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_known_and_values_checked() {
        let default = Settings { optimized: true, inference_mode: true, freeze: Freeze::Auto };
        assert_eq!(check("FREEZE", "auto"), Ok(default));
        assert_eq!(check("FREEZE", "off"), Ok(Settings { freeze: Freeze::Off, ..default }));
        assert_eq!(check("FREEZE", "optimize"), Ok(Settings { freeze: Freeze::Optimize, ..default }));
        assert_eq!(check("DISABLE_OPTIMIZED_EXECUTION", "true"), Ok(Settings { optimized: false, freeze: Freeze::Off, ..default }));
        assert_eq!(check("INFERENCE_MODE", "0"), Ok(Settings { inference_mode: false, ..default }));
        assert_eq!(check("FREEZE", "1"), Err("setting 'FREEZE': expected auto, optimize or off, got '1'".into()));
        assert_eq!(check("INFERENCE_MODE", "fast"), Err("setting 'INFERENCE_MODE': expected true or false, got 'fast'".into()));
        assert_eq!(
            check("ENABLE_NVFUSER", "true"),
            Err("setting 'ENABLE_NVFUSER': unknown, expected one of DISABLE_OPTIMIZED_EXECUTION, FREEZE, INFERENCE_MODE".into())
        );
    }
}
