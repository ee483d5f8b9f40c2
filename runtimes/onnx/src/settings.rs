//! Load options → settings of a session. Keys and values are those of Triton's backend where it has them.

use std::str::FromStr;

use bascule_runtime_api::{LoadError, LoadOptions, switch};
use ort::ep::CPU;
use ort::logging::LogLevel;
use ort::session::RunOptions;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::providers::Providers;

/// More threads than any machine has; a mistyped number must not exhaust the process.
const MAX_THREADS: usize = 1024;

/// How a session is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// 0 for the shared threads, or where there are none for the caller's alone.
    intra_threads: usize,
    inter_threads: usize,
    parallel: bool,
    optimization: GraphOptimizationLevel,
    arena: bool,
    memory_pattern: bool,
    device_allocator_for_initializers: bool,
    arena_shrinkage: Option<String>,
    pub(crate) providers: Providers,
}

impl Settings {
    /// Reads and checks every option.
    ///
    /// # Errors
    /// [`LoadError::Option`] for an unknown key or a wrong value.
    pub(crate) fn new(options: &LoadOptions) -> Result<Settings, LoadError> {
        let mut settings = Settings {
            intra_threads: options.intra_op_threads,
            inter_threads: options.inter_op_threads,
            parallel: options.inter_op_threads > 1,
            optimization: GraphOptimizationLevel::All,
            arena: true,
            memory_pattern: true,
            device_allocator_for_initializers: false,
            arena_shrinkage: None,
            providers: Providers::default(),
        };
        for (key, value) in &options.options {
            match key.as_str() {
                "intra_op_thread_count" => settings.intra_threads = number(key, value)?,
                "inter_op_thread_count" => settings.inter_threads = number(key, value)?,
                "execution_mode" => settings.parallel = switch(key, value)?,
                "optimization_level" | "graph_optimization_level" => settings.optimization = level(key, value)?,
                "enable_mem_arena" => settings.arena = switch(key, value)?,
                "enable_mem_pattern" => settings.memory_pattern = switch(key, value)?,
                "session.use_device_allocator_for_initializers" => {
                    settings.device_allocator_for_initializers = switch(key, value)?;
                }
                ARENA_SHRINKAGE => settings.arena_shrinkage = Some(value.clone()),
                _ if settings.providers.take(key, value)? => {}
                _ => return Err(LoadError::unknown_option(key, &KEYS)),
            }
        }
        for (key, threads) in [("intra_op_thread_count", settings.intra_threads), ("inter_op_thread_count", settings.inter_threads)]
        {
            if threads > MAX_THREADS {
                return Err(LoadError::option(key, format!("expected at most {MAX_THREADS}, got {threads}")));
            }
        }
        settings.providers.check(options)?;
        Ok(settings)
    }

    /// Puts the settings into a builder. `has_shared_threads` says whether the environment has threads to share.
    pub(crate) fn apply(&self, builder: SessionBuilder, has_shared_threads: bool) -> ort::Result<SessionBuilder> {
        let mut builder = builder
            .with_optimization_level(self.optimization)?
            .with_parallel_execution(self.parallel)?
            .with_memory_pattern(self.memory_pattern)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .with_execution_providers([CPU::default().with_arena_allocator(self.arena).build().error_on_failure()])?;
        if self.device_allocator_for_initializers {
            builder = builder.with_device_allocated_initializers()?;
        }
        if has_shared_threads && self.intra_threads == 0 && !self.parallel {
            return Ok(builder);
        }
        let threads = self.intra_threads.max(1);
        Ok(builder.with_independent_thread_pool()?.with_intra_threads(threads)?.with_inter_threads(self.inter_threads)?)
    }

    /// The options that each run of the session gets.
    pub(crate) fn run_options(&self) -> ort::Result<RunOptions> {
        let mut options = RunOptions::new()?;
        // What goes wrong in a run comes back as its error. Without this, a model whose outputs differ from what its file says would
        // fill the log with a warning for each run.
        options.set_log_level(LogLevel::Fatal)?;
        if let Some(devices) = &self.arena_shrinkage {
            options.set(ARENA_SHRINKAGE, devices)?;
        }
        Ok(options)
    }
}

/// The devices whose arenas give memory back after each run: `cpu:0;gpu:0`.
const ARENA_SHRINKAGE: &str = "memory.enable_memory_arena_shrinkage";

const KEYS: [&str; 13] = [
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "optimization_level",
    "graph_optimization_level",
    "enable_mem_arena",
    "enable_mem_pattern",
    "session.use_device_allocator_for_initializers",
    ARENA_SHRINKAGE,
    "providers",
    "cpu_fallback",
    "cuda.*",
    "tensorrt.*",
];

/// Whether an option says something of a GPU.
pub(crate) fn is_for_gpus(key: &str, value: &str) -> bool {
    key == ARENA_SHRINKAGE && value.contains("gpu")
}

fn number(key: &str, value: &str) -> Result<usize, LoadError> {
    usize::from_str(value.trim())
        .map_err(|_| LoadError::option(key, format!("expected a number of threads from 0 to {MAX_THREADS}, got '{value}'")))
}

/// Triton's numbers, in which 2 means none, and names beside them.
fn level(key: &str, value: &str) -> Result<GraphOptimizationLevel, LoadError> {
    match value.trim() {
        "2" | "none" => Ok(GraphOptimizationLevel::Disable),
        "-1" | "basic" => Ok(GraphOptimizationLevel::Level1),
        "1" | "extended" => Ok(GraphOptimizationLevel::Level2),
        "layout" => Ok(GraphOptimizationLevel::Level3),
        "0" | "all" => Ok(GraphOptimizationLevel::All),
        _ => Err(LoadError::option(
            key,
            format!("expected none, basic, extended, layout, all or Triton's 2, -1, 1, 0, got '{value}'"),
        )),
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
    fn every_key_is_known_and_checked() {
        let default = Settings::new(&LoadOptions::default()).unwrap();
        // Those of providers have tests of their own.
        for key in KEYS.into_iter().filter(|key| !["providers", "cpu_fallback", "cuda.*", "tensorrt.*"].contains(key)) {
            let value = if key.starts_with("memory.") { "cpu:0" } else { "2" };
            let refused = key.contains("enable_mem_") || key.starts_with("session.") || key == "execution_mode";
            assert_eq!(check(key, value).is_err(), refused, "{key}");
            assert!(key.starts_with("memory.") || check(key, "many").is_err(), "{key}");
            let other = match key {
                "memory.enable_memory_arena_shrinkage" => "cpu:0",
                "enable_mem_arena" | "enable_mem_pattern" => "0",
                _ => "1",
            };
            assert_ne!(check(key, other).unwrap(), default, "{key} changes nothing");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        assert_eq!(check("execution_mode", "fast"), Err("setting 'execution_mode': expected true or false, got 'fast'".into()));
        assert_eq!(
            check("intra_op_thread_count", "9999"),
            Err("setting 'intra_op_thread_count': expected at most 1024, got 9999".into())
        );
        assert!(
            check("threads", "1").unwrap_err().starts_with("setting 'threads': unknown, expected one of intra_op_thread_count, ")
        );
    }
}
