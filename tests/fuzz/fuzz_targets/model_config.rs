//! Triton's `config.pbtxt`: text that people write, and that repositories may hold in any state.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = bascule_proto::model_config::parse_model_config(text) {
        bascule_proto::model_config::to_json(&config).expect("what was read can be shown");
    }
});
