//! Finds the shared library, looks at its version, and opens it.
//!
//! `ort` keeps one library and one environment per process, so what is opened first stays. It is given a path only after the file
//! has answered its version here: what is not a library, or too old, never reaches it.

use std::ffi::CStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bascule_runtime_api::LoadError;
use ort::environment::{Environment, EnvironmentBuilder, GlobalThreadPoolOptions};
use ort::logging::LogLevel;
use ort::sys;

/// What can be done about a library that can't be used.
const HINT: &str = "run `make deps`, or set onnxruntime.library / BASCULE_ONNXRUNTIME_LIBRARY to your own libonnxruntime.so";

/// The file's name, but for the version that may follow it.
const FILE_NAME: &str = "libonnxruntime.so";

/// The library that this process uses.
pub(crate) struct Library {
    /// Its file, with links resolved.
    pub(crate) path: PathBuf,
    /// Its version, for example `1.31.1`.
    pub(crate) version: String,
    /// What sessions are made in; it is never dropped.
    pub(crate) environment: Environment,
    /// Whether sessions may share a pool of threads.
    pub(crate) has_shared_threads: bool,
}

/// What this process has given to `ort`. The path stays even where the environment could not be made.
struct Opened {
    path: Option<PathBuf>,
    library: Option<Arc<Library>>,
}

static OPENED: Mutex<Opened> = Mutex::new(Opened { path: None, library: None });

/// Opens the first usable file of `candidates`, or finds it open.
///
/// # Errors
/// [`LoadError::Unavailable`] names each file and what is wrong with it.
pub(crate) fn open(candidates: &[PathBuf], shared_threads: usize) -> Result<Arc<Library>, LoadError> {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let usable = first_usable(candidates)?;
    match (&opened.path, &opened.library) {
        (Some(path), _) if *path != usable.path => {
            let (used, other) = (path.display(), usable.path.display());
            Err(unavailable(format!("this process already uses {used}, so it can't use {other} before a restart")))
        }
        (_, Some(library)) => Ok(Arc::clone(library)),
        _ => {
            let builder =
                ort::init_from(&usable.path).map_err(|error| unavailable(format!("{}: {error}", usable.path.display())))?;
            opened.path = Some(usable.path.clone());
            let environment = environment(builder, shared_threads).map_err(|error| unavailable(error.to_string()))?;
            tracing::info!(path = %usable.path.display(), version = usable.version, "opened onnx runtime");
            let library =
                Library { path: usable.path, version: usable.version, environment, has_shared_threads: shared_threads > 0 };
            Ok(Arc::clone(opened.library.insert(Arc::new(library))))
        }
    }
}

/// The files that a search of `folders` finds, newest version first in each; a folder without one stands for the file it lacks.
pub(crate) fn search(folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in folders {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut versions: Vec<(Vec<u32>, PathBuf)> =
            entries.filter_map(|entry| Some((file_version(entry.file_name().to_str()?)?, entry.path()))).collect();
        versions.sort_by(|left, right| right.cmp(left));
        if versions.is_empty() {
            versions.push((Vec::new(), folder.join(FILE_NAME)));
        }
        found.extend(versions.into_iter().map(|(_, path)| path));
    }
    found
}

/// The version in a library's file name, empty where it has none; `None` for other names.
fn file_version(name: &str) -> Option<Vec<u32>> {
    match name.strip_prefix(FILE_NAME)? {
        "" => Some(Vec::new()),
        suffix => suffix.strip_prefix('.')?.split('.').map(|part| part.parse().ok()).collect(),
    }
}

fn environment(builder: EnvironmentBuilder, shared_threads: usize) -> ort::Result<Environment> {
    let mut builder = builder.with_name("bascule").with_telemetry(false).with_logger(Arc::new(log));
    if shared_threads > 0 {
        let threads = GlobalThreadPoolOptions::default().with_intra_threads(shared_threads)?;
        // Sessions that run operators side by side have threads of their own, so that nothing would use a shared pool for that.
        let threads = threads.with_inter_threads(1)?.with_spin_control(false)?;
        builder = builder.with_global_thread_pool(threads);
    }
    let environment = builder.build()?;
    // Below this level the library would format messages only for us to drop them.
    environment.set_log_level(LogLevel::Warning);
    Ok(environment)
}

fn log(level: LogLevel, _category: &str, id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Fatal => tracing::error!(target: "onnxruntime", id, location, "{message}"),
        // An error comes back as a status too and is reported by whoever handles that; a caller's bad input is one of them, and
        // must not fill the log.
        LogLevel::Error => tracing::debug!(target: "onnxruntime", id, location, "{message}"),
        LogLevel::Warning => tracing::warn!(target: "onnxruntime", id, location, "{message}"),
        LogLevel::Info | LogLevel::Verbose => tracing::trace!(target: "onnxruntime", id, location, "{message}"),
    }
}

fn unavailable(message: String) -> LoadError {
    LoadError::Unavailable { message: format!("onnx runtime is not available: {message}"), hint: HINT.to_owned() }
}

/// Why a file is not a library that can be used.
#[derive(Debug)]
enum Fault {
    Absent,
    NotAFile,
    NotLoadable(String),
    NotOnnxRuntime,
    TooOld(String),
    NoInterface(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Absent => f.write_str("not found"),
            Fault::NotAFile => f.write_str("not a file"),
            Fault::NotLoadable(why) => write!(f, "not a library that can be loaded ({why})"),
            Fault::NotOnnxRuntime => f.write_str("a library, but not onnx runtime"),
            Fault::TooOld(version) => write!(f, "version {version} is too old"),
            Fault::NoInterface(version) => write!(f, "version {version} lacks the interface of version 1.{}", ort::MINOR_VERSION),
        }
    }
}

/// A library that has told a version that we can use, and is kept loaded while `ort` opens it.
struct Usable {
    path: PathBuf,
    version: String,
    _handle: libloading::Library,
}

fn first_usable(candidates: &[PathBuf]) -> Result<Usable, LoadError> {
    let mut faults = Vec::new();
    for path in candidates {
        match look_at(path) {
            Ok(usable) => return Ok(usable),
            Err(fault) => faults.push(format!("{}: {fault}", path.display())),
        }
    }
    let faults = if faults.is_empty() { "no file and no folder to look in is set".to_owned() } else { faults.join("; ") };
    Err(unavailable(format!("{faults}; version 1.{} or later is needed", ort::MINOR_VERSION)))
}

fn look_at(path: &Path) -> Result<Usable, Fault> {
    // Checked first because opening a pipe would wait for its other end.
    match fs::metadata(path) {
        Err(_) => return Err(Fault::Absent),
        Ok(metadata) if !metadata.is_file() => return Err(Fault::NotAFile),
        Ok(_) => {}
    }
    let path = fs::canonicalize(path).map_err(|error| Fault::NotLoadable(error.to_string()))?;
    let handle = dlopen(&path)?;
    let version = check_version(&handle)?;
    Ok(Usable { path, version, _handle: handle })
}

#[expect(unsafe_code, reason = "opening a library runs its code")]
fn dlopen(path: &Path) -> Result<libloading::Library, Fault> {
    // SAFETY: the operator names the file, so that its initialisers are trusted as much as this program.
    unsafe { libloading::Library::new(path) }.map_err(|error| Fault::NotLoadable(error.to_string()))
}

/// The version that a library tells, where it is one that `ort` can use.
#[expect(unsafe_code, reason = "the version is told by a function of the library")]
fn check_version(handle: &libloading::Library) -> Result<String, Fault> {
    // SAFETY: the symbol of this name has this type in every version of ONNX Runtime; nothing else exports it.
    let base = unsafe { handle.get::<unsafe extern "system" fn() -> *const sys::OrtApiBase>(b"OrtGetApiBase") };
    // SAFETY: as above; the function takes nothing and may be called at any time. What it gives is static or null.
    let base = unsafe { base.map_err(|_| Fault::NotOnnxRuntime)?().as_ref() };
    let base = base.ok_or(Fault::NotOnnxRuntime)?;
    // SAFETY: the two functions of the base have been its only members in every version. The version is static or null.
    let version = unsafe { (base.GetVersionString)() };
    if version.is_null() {
        return Err(Fault::NotOnnxRuntime);
    }
    // SAFETY: a version that is not null is a string that ends with a NUL.
    let version = unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let is_new_enough = numbers.next() == Some(1) && numbers.next().is_some_and(|minor| minor >= ort::MINOR_VERSION);
    if !is_new_enough {
        return Err(Fault::TooOld(version));
    }
    // SAFETY: as above; a library gives null for an interface that it does not have.
    match unsafe { (base.GetApi)(sys::ORT_API_VERSION) }.is_null() {
        false => Ok(version),
        true => Err(Fault::NoInterface(version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_searched_for_the_newest_version_first() {
        let folder = tempfile::TempDir::new().unwrap();
        let names =
            ["libonnxruntime.so.1.9.1", "libonnxruntime.so.1.31.1", "libonnxruntime.so", "libonnxruntime_providers_shared.so"];
        for name in names.into_iter().chain(["libonnxruntime.so.bak", "libonnxruntime.so.1.31.1.tmp"]) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let absent = folder.path().join("absent");
        let found = search(&[absent.clone(), folder.path().to_owned()]);
        let expected = ["libonnxruntime.so.1.31.1", "libonnxruntime.so.1.9.1", "libonnxruntime.so"];
        assert_eq!(found[0], absent.join("libonnxruntime.so"));
        assert_eq!(found[1..], expected.map(|name| folder.path().join(name)));
    }
}
