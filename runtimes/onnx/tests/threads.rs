//! Which threads sessions make. A process of its own, because it counts them, and because the first runtime of a process settles what
//! is shared.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use bascule_onnx_writer::{library, models};
use bascule_runtime_api::{LoadOptions, RunContext, Runtime, Tensor};
use bascule_runtime_onnx::{OnnxConfig, OnnxRuntime};
use tempfile::TempDir;

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn sessions_share_threads_or_have_their_own() {
    let Some(library) = library::find_or_skip() else { return };
    let before = threads();
    let runtime = OnnxRuntime::new(OnnxConfig { library: Some(library), shared_threads: 3, ..OnnxConfig::default() });
    runtime.version().unwrap();
    let shared = threads();
    // The thread that calls is the third.
    assert_eq!(shared, before + 2, "the shared threads");
    let folder = TempDir::new().unwrap();
    models::linear(&[2.0], &[1.0]).write_to(folder.path()).unwrap();
    let load = |threads: usize| {
        let options = LoadOptions { entrypoint: "model.onnx".into(), intra_op_threads: threads, ..LoadOptions::default() };
        let mut session = runtime.load(folder.path(), &options).unwrap();
        let input = Tensor::from_elements([1, 1], &[3f32]).unwrap();
        let outputs = session.run(&[input], &RunContext::default()).unwrap();
        assert_eq!(outputs, [Tensor::from_elements([1, 1], &[7f32]).unwrap()]);
        session
    };
    let sharing: Vec<_> = (0..5).map(|_| load(0)).collect();
    assert_eq!(threads(), shared, "sessions that share threads make none");
    let alone: Vec<_> = (0..5).map(|_| load(1)).collect();
    assert_eq!(threads(), shared, "sessions with one thread use the caller's");
    let own = load(4);
    assert_eq!(threads(), shared + 3, "a session with four threads makes three");
    drop((sharing, alone, own));
}
