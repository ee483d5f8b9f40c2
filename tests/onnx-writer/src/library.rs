//! Where tests find ONNX Runtime, and what they say where it is absent.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

/// Names the library that tests use; it must exist where it is set.
pub const LIBRARY_VARIABLE: &str = "BASCULE_ONNXRUNTIME_LIBRARY";

/// Names a file to which a test that can't run adds the line `skipped: <test>: <reason>`.
pub const SKIP_LOG_VARIABLE: &str = "BASCULE_SKIP_LOG";

/// The library, from [`LIBRARY_VARIABLE`] or else from the folder that `make deps` fills; where there is none, the test that calls
/// this is reported as skipped, under the name that the test harness gave its thread.
///
/// # Panics
/// Where the variable names something that is not a file, or the report can't be written: a test must not pass by mistake.
pub fn find_or_skip() -> Option<PathBuf> {
    if let Some(path) = env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) {
        assert!(path.is_file(), "{LIBRARY_VARIABLE} is {}, which is not a file", path.display());
        return Some(path);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.deps/onnxruntime/lib");
    let found = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).find(|path| is_library(path));
    if found.is_none() {
        let test = thread::current().name().unwrap_or("unnamed test").to_owned();
        report_skipped(&test, "ONNX Runtime is not installed; `make deps` installs it");
    }
    found
}

fn is_library(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libonnxruntime.so"))
}

/// Adds a line to the skip log, or prints it where there is none.
///
/// # Panics
/// Where the log can't be written.
pub fn report_skipped(test: &str, reason: &str) {
    let line = format!("skipped: {test}: {reason}\n");
    let written = match env::var_os(SKIP_LOG_VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => OpenOptions::new().create(true).append(true).open(path).and_then(|mut log| log.write_all(line.as_bytes())),
        None => std::io::stderr().write_all(line.as_bytes()),
    };
    if let Err(error) = written {
        panic!("can't report that {test} is skipped: {error}");
    }
}
