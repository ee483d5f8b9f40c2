//! Memory comes back when a module is dropped.

use crate::archive::{Script, write};
use crate::fixture::{Folders, floats, floats_spec, run};

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

#[test]
fn memory_comes_back_after_each_unload() {
    let folders = Folders::new();
    let weight: Vec<f32> = (0..MEGABYTES * (1 << 20) / 4).map(|index| (index % 1009) as f32).collect();
    let content =
        write(&Script { forward: "x: Tensor) -> Tensor:\n    return torch.add(torch.sum(self.weight), x)", weight: &weight });
    let model = folders.file(&content, vec![floats_spec("x", &[1])], vec![floats_spec("y", &[1])]);
    drop((weight, content));
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
    // The other tests of this program run beside it and take some memory of their own, far less than one of the models.
    let limit = second + second / 20 + (24 << 20);
    assert!(last <= limit, "{} MiB after {CYCLES} cycles, {} MiB after the second", last >> 20, second >> 20);
}
