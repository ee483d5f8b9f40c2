//! The host's side of a runtime that is a library of its own.
//!
//! [`PluginRuntime`] looks for the library where it is told to, opens it when the first of its models is loaded, and refuses one of
//! another version of the [ABI](bascule_runtime_api::plugin). What it needs besides is opened before it, from a folder of its own, so that
//! neither the program nor the plugin has to know where that lies. Nothing that was opened is ever closed.
//!
//! Deliberately absent: what any of the runtimes does.

#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod host;
mod library;
mod runtime;

pub use self::host::Host;
pub use self::runtime::{PluginConfig, PluginRuntime};
