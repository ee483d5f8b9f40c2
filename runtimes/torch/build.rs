//! Compiles the few C++ functions in `shim/`, against the same libtorch as `torch-sys`.

#![allow(clippy::disallowed_methods, reason = "cargo talks to build scripts through the environment")]

use std::env;
use std::path::PathBuf;

const SOURCE: &str = "shim/shim.cpp";

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed={SOURCE}");
    let include = root()?.join("include");
    let abi = told("LIBTORCH_CXX11_ABI").unwrap_or_else(|| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .define("GLOG_USE_GLOG_EXPORT", None)
        // libtorch's own headers are not ours to warn about.
        .warnings(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file(SOURCE)
        .try_compile("bascule_torch_shim")
        .map_err(|error| format!("{SOURCE} can't be compiled: {error}"))
}

/// The folder that has `include`: what `torch-sys` is told, or else the one above the libraries that it found.
fn root() -> Result<PathBuf, String> {
    if let Some(root) = told("LIBTORCH_INCLUDE").or_else(|| told("LIBTORCH")) {
        return Ok(PathBuf::from(root));
    }
    let libraries = env::var("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from).map_err(|_| "torch-sys did not say where libtorch is")?;
    libraries.parent().map(PathBuf::from).ok_or_else(|| format!("{}: expected a folder in libtorch's", libraries.display()))
}

fn told(variable: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={variable}");
    env::var(variable).ok()
}
