//! The suite that every runtime passes.

use bascule_runtime_api::conformance;

use crate::fixture::Folders;

#[test]
fn it_keeps_the_promises_of_every_runtime() {
    let Some(folders) = Folders::new() else { return };
    conformance::check(&folders.runtime, &folders);
}
