//! Manifests of a registry. One that is accepted is accepted again as it is written.
#![no_main]

use bascule_registry::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((manifest, _)) = Manifest::parse(bytes) else { return };
    let written = serde_json::to_vec(&manifest).expect("every manifest can be written");
    let (again, _) = Manifest::parse(&written).expect("what was written can be read");
    assert_eq!(again, manifest);
});
