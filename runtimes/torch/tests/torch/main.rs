//! The plugin, as the gateway opens it, with libtorch.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "a test is told by its environment where libtorch is")]

mod archive;
mod fixture;
mod freezing;
mod running;

use bascule_runtime_api::conformance;

use fixture::Folders;

#[test]
fn it_keeps_the_promises_of_every_runtime() {
    let folders = Folders::new();
    conformance::check(&folders.runtime, &folders);
}
