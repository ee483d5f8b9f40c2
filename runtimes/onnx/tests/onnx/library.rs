//! What is said of a library that is missing, old, damaged or something else. None of these needs the real one, save the last.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bascule_onnx_writer::{library, models};
use bascule_runtime_api::{LoadError, Runtime};
use bascule_runtime_onnx::{OnnxConfig, OnnxRuntime};
use tempfile::TempDir;

use crate::fixture::Folders;

fn error_of(config: OnnxConfig) -> String {
    let runtime = OnnxRuntime::new(config);
    match runtime.version() {
        Err(LoadError::Unavailable { message, hint }) => {
            assert_eq!(
                hint,
                "run `make deps`, or set onnxruntime.library / BASCULE_ONNXRUNTIME_LIBRARY to your own libonnxruntime.so"
            );
            message
        }
        other => panic!("expected an unavailable library, got {other:?}"),
    }
}

fn error_of_file(path: &Path) -> String {
    error_of(OnnxConfig { library: Some(path.to_owned()), ..OnnxConfig::default() })
}

/// Builds a shared library with the linker driver that Rust itself needs.
fn build(folder: &Path, name: &str, source: &str) -> PathBuf {
    let (code, library) = (folder.join(format!("{name}.c")), folder.join(name));
    fs::write(&code, source).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status().unwrap();
    assert!(status.success(), "cc: {status}");
    library
}

/// A library that answers as ONNX Runtime of some version would; `version` is an expression of C.
fn imitation(folder: &Path, name: &str, version: &str) -> PathBuf {
    let source = format!(
        "static const void *api(unsigned version) {{ return 0; }}\n\
         static const char *name(void) {{ return {version}; }}\n\
         static struct {{ const void *(*api)(unsigned); const char *(*name)(void); }} base = {{ api, name }};\n\
         const void *OrtGetApiBase(void) {{ return &base; }}\n"
    );
    build(folder, name, &source)
}

#[test]
fn a_missing_library_is_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("libonnxruntime.so");
    let expected = format!("onnx runtime is not available: {}: not found; version 1.24 or later is needed", path.display());
    assert_eq!(error_of_file(&path), expected);
    let search = vec![folder.path().to_owned(), folder.path().join("lib")];
    let found = error_of(OnnxConfig { search, ..OnnxConfig::default() });
    for path in [path, folder.path().join("lib/libonnxruntime.so")] {
        assert!(found.contains(&format!("{}: not found", path.display())), "{found}");
    }
    let nothing = error_of(OnnxConfig::default());
    assert!(nothing.contains("no file and no folder to look in is set"), "{nothing}");
}

#[test]
fn what_is_not_a_library_is_refused() {
    let folder = TempDir::new().unwrap();
    for (name, content) in
        [("empty.so", ""), ("page.so", "<!DOCTYPE html><html>not here</html>"), ("elf.so", "\x7fELF\x02\x01\x01")]
    {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let error = error_of_file(&path);
        let expected = format!("{}: not a library that can be loaded (", path.display());
        assert!(error.contains(&expected) && error.ends_with("; version 1.24 or later is needed"), "{error}");
    }
    assert!(error_of_file(folder.path()).contains(": not a file;"));
    let pipe = folder.path().join("pipe.so");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(error_of_file(&pipe).contains(": not a file;"));
}

#[test]
fn another_library_is_refused() {
    let folder = TempDir::new().unwrap();
    let other = build(folder.path(), "libother.so", "int answer(void) { return 42; }\n");
    let null = build(folder.path(), "libnull.so", "const void *OrtGetApiBase(void) { return 0; }\n");
    let nameless = imitation(folder.path(), "libnameless.so", "0");
    for path in [other, null, nameless] {
        let error = error_of_file(&path);
        assert!(error.contains(&format!("{}: a library, but not onnx runtime;", path.display())), "{error}");
    }
}

#[test]
fn an_old_library_is_refused_by_its_version() {
    let folder = TempDir::new().unwrap();
    for version in ["1.23.2", "1.9.0", "0.99.0", "nonsense", ""] {
        let path = imitation(folder.path(), "libonnxruntime.so", &format!("\"{version}\""));
        let error = error_of_file(&path);
        let expected = format!("{}: version {version} is too old; version 1.24 or later is needed", path.display());
        assert!(error.ends_with(&expected), "{error}");
        // The loader knows files by their inode and would not look at a new content.
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_library_without_the_needed_interface_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = imitation(folder.path(), "libonnxruntime.so", "\"1.99.0\"");
    let error = error_of_file(&path);
    assert!(error.contains("version 1.99.0 lacks the interface of version 1.24"), "{error}");
}

#[test]
fn a_search_takes_what_can_be_used() {
    let Some(real) = library::find_or_skip() else { return };
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("libonnxruntime.so.99.0.0"), "not a library").unwrap();
    std::os::unix::fs::symlink(&real, folder.path().join("libonnxruntime.so")).unwrap();
    let search = vec![folder.path().join("absent"), folder.path().to_owned()];
    let runtime = OnnxRuntime::new(OnnxConfig { search, ..OnnxConfig::default() });
    assert_eq!(runtime.library_path().unwrap(), fs::canonicalize(&real).unwrap());
    let version = runtime.version().unwrap();
    assert!(version.starts_with("1."), "{version}");

    // One process has one library: a copy elsewhere is another.
    let copy = folder.path().join("copy.so");
    fs::copy(&real, &copy).unwrap();
    let error = error_of_file(&copy);
    assert!(error.contains("this process already uses") && error.contains("copy.so before a restart"), "{error}");
}

#[test]
fn the_library_opens_no_telemetry_database() {
    let Some(folders) = Folders::new() else { return };
    folders.load(&models::add());
    let open: Vec<PathBuf> =
        fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    assert!(!open.iter().any(|path| path.to_string_lossy().contains("onnxruntime.db")), "{open:?}");
}

#[test]
fn a_library_that_appears_later_is_used() {
    let Some(real) = library::find_or_skip() else { return };
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("libonnxruntime.so");
    let runtime = OnnxRuntime::new(OnnxConfig { library: Some(path.clone()), ..OnnxConfig::default() });
    assert!(runtime.version().is_err());
    std::os::unix::fs::symlink(&real, &path).unwrap();
    runtime.version().unwrap();
}
