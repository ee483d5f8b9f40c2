//! Memory comes back when a session is dropped. A process of its own, because other tests would take memory meanwhile.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use bascule_onnx_writer::{library, models};
use bascule_runtime_api::{LoadOptions, RunContext, Runtime, Tensor};
use bascule_runtime_onnx::{OnnxConfig, OnnxRuntime};
use tempfile::TempDir;

const MODEL_MEGABYTES: usize = 80;
const CYCLES: usize = 50;

/// Memory in main memory, in MiB, after free pages went back to the system.
#[expect(unsafe_code, reason = "there is no other way to have them go back")]
fn resident_megabytes() -> usize {
    // SAFETY: the call takes a number and may be made at any time.
    unsafe { libc::malloc_trim(0) };
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() / 1024
}

#[test]
fn memory_comes_back() {
    let Some(library) = library::find_or_skip() else { return };
    let runtime = OnnxRuntime::new(OnnxConfig { library: Some(library), ..OnnxConfig::default() });
    let folder = TempDir::new().unwrap();
    models::large(MODEL_MEGABYTES, None).write_to(folder.path()).unwrap();
    let options = LoadOptions { entrypoint: "model.onnx".into(), ..LoadOptions::default() };
    let load_and_run = || {
        let mut session = runtime.load(folder.path(), &options).unwrap();
        let row = Tensor::from_elements([1], &[5i64]).unwrap();
        session.run(&[row], &RunContext::default()).unwrap();
        session
    };
    let mut second = 0;
    for cycle in 1..=CYCLES {
        let before = resident_megabytes();
        let session = load_and_run();
        let loaded = resident_megabytes();
        let is_there = loaded >= before + MODEL_MEGABYTES * 9 / 10;
        assert!(cycle == 1 || is_there, "{before} MiB, then {loaded} with a model of {MODEL_MEGABYTES} MiB");
        drop(session);
        if cycle == 2 {
            second = resident_megabytes();
        }
    }
    let last = resident_megabytes();
    // The unit is coarse: one of it is no loss.
    assert!(last <= second + second / 20 + 1, "{second} MiB after the second cycle, {last} after {CYCLES}");
}
