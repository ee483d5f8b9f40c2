//! libtorch as a runtime: loads and runs models of the format `torchscript`.
//!
//! A library of its own, which the gateway opens when the first such model is loaded, after libtorch's: see
//! [`bascule_runtime_api::plugin`]. It is made for the version of libtorch that it was built with.
//!
//! A TorchScript file says nothing of its inputs and outputs that can be relied on, so that the signature always comes from elsewhere;
//! [`signature`] says how its names find their places.
//!
//! What libtorch's C functions don't reach is a few functions of C++, in `shim/`.
//!
//! Deliberately absent: files of pickled Python objects, which run code when they are read.

mod archive;
mod forward;
mod module;
mod runtime;
mod session;
mod settings;
mod shim;
mod signature;
mod value;

use bascule_runtime_api::plugin::Plugin;
use bascule_runtime_api::plugin::guest;

static PLUGIN: Plugin = guest::table::<runtime::TorchRuntime>();

/// What the gateway looks for.
#[expect(unsafe_code, reason = "the name is the plugin's one agreement with the gateway; no other library of the process has it")]
#[unsafe(no_mangle)]
pub extern "C" fn bascule_runtime_plugin() -> *const Plugin {
    &raw const PLUGIN
}
