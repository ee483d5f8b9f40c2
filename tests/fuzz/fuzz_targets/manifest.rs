//! Manifests as an untrusted registry may hold them: what is accepted stays below the registry's root.

#![no_main]

use bascule_registry::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((manifest, _)) = Manifest::parse(bytes) {
        for file in &manifest.files {
            let path = std::path::Path::new(&file.path);
            assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))), "{}", file.path);
        }
    }
});
