//! Triton's `config.pbtxt`. What was read survives being written as JSON.
#![no_main]

use bascule_proto::model_config::{from_json, parse_model_config, set_fields, to_json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(config) = parse_model_config(text) else { return };
    set_fields(&config);
    let json = to_json(&config).expect("every configuration can be written");
    let again = from_json(&json.to_string()).expect("what was written can be read");
    assert_eq!(to_json(&again).expect("and written again"), json);
});
