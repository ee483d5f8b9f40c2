//! Entries of a rollout journal, one a line. Whatever they say, the fold is the same however often and in how many parts it is made.
#![no_main]

use bascule_registry::{Entry, Rollout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|lines: &[u8]| {
    let entries: Vec<Entry> = lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let rollout = Rollout::fold(&entries);
    if let Some((_, weight_bp)) = rollout.candidate {
        assert!(weight_bp < 10_000, "{rollout:?}");
    }
    // A checkpoint stands for the entries before it.
    let half = Rollout::fold(&entries[..entries.len() / 2]);
    let stored = serde_json::to_vec(&half).expect("every state can be written");
    let mut resumed: Rollout = serde_json::from_slice(&stored).expect("what was written can be read");
    entries.iter().for_each(|entry| resumed.apply(entry));
    assert_eq!(resumed, rollout);
});
