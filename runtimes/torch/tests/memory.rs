//! Memory comes back when a module is dropped. A process of its own, because other tests would take memory meanwhile.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "a test is told by its environment where libtorch is")]
#![allow(dead_code, reason = "what is shared with the other test program is not all used here")]

#[path = "torch/archive.rs"]
mod archive;
#[path = "torch/fixture.rs"]
mod fixture;

use bascule_runtime_api::conformance::Model;

use archive::{Script, write};
use fixture::{Folders, floats, floats_spec, run};

const MEGABYTES: usize = 80;
const CYCLES: usize = 50;

fn resident_bytes() -> u64 {
    // SAFETY: takes the allocator's own locks and touches only what is free.
    #[expect(unsafe_code, reason = "the gateway gives memory back in this way after each unload")]
    unsafe {
        libc::malloc_trim(0);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A module whose parameters take `MEGABYTES`.
fn heavy(folders: &Folders, result: &str) -> Model {
    let weight: Vec<f32> = (0..MEGABYTES * (1 << 20) / 4).map(|index| (index % 1009) as f32).collect();
    let content = write(&Script { forward: &format!("x: Tensor) -> Tensor:\n    return {result}"), weight: &weight });
    folders.file(&content, vec![floats_spec("x", &[1])], vec![floats_spec("y", &[1])])
}

#[test]
fn memory_comes_back_after_each_unload() {
    let folders = Folders::new();
    let model = heavy(&folders, "torch.add(torch.dot(self.weight, torch.expand(x, [torch.numel(self.weight)])), x)");
    let mut second = None;
    for cycle in 1..=CYCLES {
        let mut session = folders.load(&model);
        run(session.as_mut(), &[floats(&[1], &[1.0])]).unwrap();
        drop(session);
        if cycle == 2 {
            second = Some(resident_bytes());
        }
    }
    let (second, last) = (second.unwrap(), resident_bytes());
    let limit = second + second / 20;
    assert!(last <= limit, "{} MiB after {CYCLES} cycles, {} MiB after the second", last >> 20, second >> 20);
    what_was_folded_is_gone(&folders);
}

/// Runs after the cycles and not beside them: both look at the memory of the process.
fn what_was_folded_is_gone(folders: &Folders) {
    let mut model = heavy(folders, "torch.add(torch.sum(self.weight), x)");
    let mut taken = |freeze: &str| {
        model.options.options.insert("FREEZE".to_owned(), freeze.to_owned());
        let before = resident_bytes();
        let mut session = folders.load(&model);
        run(session.as_mut(), &[floats(&[1], &[1.0])]).unwrap();
        resident_bytes().saturating_sub(before) >> 20
    };
    let half = MEGABYTES as u64 / 2;
    let (written, frozen) = (taken("off"), taken("auto"));
    assert!(written > half && frozen < half, "{written} MiB as it was written, {frozen} MiB with its parameters folded");
}
