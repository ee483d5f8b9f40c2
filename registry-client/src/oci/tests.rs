//! An OCI registry that is slow of wit, hostile or broken; what a real one does is shown by the tests against real servers.

mod access;
mod fake;
mod looks;
mod publishing;
mod transfers;

use super::*;
use crate::clock::ManualClock;
use crate::listing::Listing;
use crate::source::{SourceError, VersionSource as _};
use fake::Fake;

const MODEL: &[(&str, &[u8])] = &[("model.onnx", b"the model")];

/// A registry at this place, with a clock that stands.
fn open(place: &str) -> (OciRegistry, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let options = OciOptions { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..OciOptions::default() };
    (OciRegistry::open(place, options).unwrap(), clock)
}

fn name(model: &str) -> ModelName {
    ModelName::new(model).unwrap()
}

async fn list(registry: &OciRegistry) -> Listing {
    registry.list(None).await.unwrap().unwrap()
}

/// An error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    crate::registry::versions::with_causes(error)
}
