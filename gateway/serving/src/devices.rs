//! Which devices there are, and which of them a version runs on. Where it runs is decided once, before it is verified, and is never
//! another device than one that the settings allow.

use bascule_runtime_api::Device;
use serde::{Deserialize, Serialize};

use crate::budget::Budget;

/// A GPU of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// As `cuda:N` counts them.
    pub ordinal: u32,
    /// Its model, for people.
    pub name: String,
    /// Its memory, in bytes.
    pub total_bytes: u64,
    /// The part of it that nobody uses, whoever that may be.
    pub free_bytes: u64,
}

/// Looks at this machine's GPUs. Blocks for no more than a call to the driver takes.
pub trait Gpus: Send + Sync {
    /// Those that are there now; empty where there are none, or no driver.
    fn list(&self) -> Vec<Gpu>;
}

/// A machine without GPUs, or one of which nobody is to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoGpus;

impl Gpus for NoGpus {
    fn list(&self) -> Vec<Gpu> {
        Vec::new()
    }
}

/// Where a model's sessions may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Devices {
    /// On the GPU with the most room where there is one that the model's runtime can use and that has room for it, else on the processor.
    Auto,
    /// On every GPU that is there, with as many instances on each; without one there is nowhere to run.
    EveryGpu,
    /// On each of these, with as many instances on each.
    These(Vec<Device>),
}

impl Default for Devices {
    fn default() -> Self {
        Devices::These(vec![Device::Cpu])
    }
}

/// Where a version is tried out that is to run on a GPU on which there is no room for a second copy of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CrowdedTrial {
    /// On the processor: what it answers and that it does not crash is seen there, what it takes of the GPU is not.
    #[default]
    Cpu,
    /// Nowhere.
    Skip,
    /// Nowhere, and the version fails.
    Fail,
}

/// What a trial on a GPU comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TrialPlace {
    /// It is made there; with a remark where that is not where the version will run.
    On(Device, Option<String>),
    /// It is not made: why.
    Nowhere(String),
    /// The version fails: why.
    Refused(String),
}

/// Room on a GPU: what is free, and what of that the budget leaves.
fn room(gpu: &Gpu, budget: &Budget) -> u64 {
    budget.on(Device::Cuda(gpu.ordinal)).free().map_or(gpu.free_bytes, |free| free.min(gpu.free_bytes))
}

/// The GPU with the most room for so many bytes; the processor where none has. `usable` says whether the runtime can use a device.
pub(crate) fn choose(gpus: &[Gpu], budget: &Budget, bytes: u64, usable: impl Fn(Device) -> bool) -> Device {
    let roomy = gpus.iter().filter(|gpu| room(gpu, budget) >= bytes && usable(Device::Cuda(gpu.ordinal)));
    // Of two with as much room, the first.
    let best = roomy.max_by_key(|gpu| (room(gpu, budget), std::cmp::Reverse(gpu.ordinal)));
    best.map_or(Device::Cpu, |gpu| Device::Cuda(gpu.ordinal))
}

/// Where a trial of a version is made that is to run on `device` and takes so many bytes of it.
pub(crate) fn trial_place(device: Device, bytes: u64, gpus: &[Gpu], crowded: CrowdedTrial) -> TrialPlace {
    let Device::Cuda(ordinal) = device else { return TrialPlace::On(device, None) };
    // A GPU of which nothing is known is tried: what then happens happens in the trial.
    let Some(gpu) = gpus.iter().find(|gpu| gpu.ordinal == ordinal) else { return TrialPlace::On(device, None) };
    if gpu.free_bytes >= bytes {
        return TrialPlace::On(device, None);
    }
    let why = format!("{device} has {} bytes free and its trial needs {bytes} by estimate", gpu.free_bytes);
    match crowded {
        CrowdedTrial::Cpu => TrialPlace::On(Device::Cpu, Some(format!("tried on the processor: {why}"))),
        CrowdedTrial::Skip => TrialPlace::Nowhere(format!("not tried: {why}")),
        CrowdedTrial::Fail => TrialPlace::Refused(format!("{why}; trial.device says what is done then")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::DeviceBytes;

    fn gpus(free: &[u64]) -> Vec<Gpu> {
        let gpu = |(ordinal, free_bytes): (usize, &u64)| Gpu {
            ordinal: u32::try_from(ordinal).unwrap(),
            name: "a gpu".to_owned(),
            total_bytes: 1000,
            free_bytes: *free_bytes,
        };
        free.iter().enumerate().map(gpu).collect()
    }

    fn budget(limits: &[u64], reserved: &[u64]) -> Budget {
        let devices = |bytes: &[u64]| -> Vec<(Device, u64)> {
            bytes.iter().enumerate().map(|(at, bytes)| (Device::Cuda(u32::try_from(at).unwrap()), *bytes)).collect()
        };
        let mut budget = Budget::default();
        budget.limit(&devices(limits).into_iter().collect());
        let mut taken = DeviceBytes::default();
        devices(reserved).into_iter().for_each(|(device, bytes)| taken.add(device, bytes));
        budget.reserve(&taken);
        budget
    }

    #[test]
    fn auto_takes_the_gpu_with_the_most_room() {
        let check = |free: &[u64], limits: &[u64], reserved: &[u64], bytes, usable: &[u32]| {
            let usable = |device| matches!(device, Device::Cuda(ordinal) if usable.contains(&ordinal));
            choose(&gpus(free), &budget(limits, reserved), bytes, usable).to_string()
        };
        assert_eq!(check(&[], &[], &[], 10, &[0, 1]), "cpu", "no gpu");
        assert_eq!(check(&[100, 200], &[], &[], 10, &[0, 1]), "cuda:1", "the most that is free");
        assert_eq!(check(&[200, 200], &[], &[], 10, &[0, 1]), "cuda:0", "the first of equals");
        assert_eq!(check(&[100, 200], &[], &[], 10, &[0]), "cuda:0", "only what the runtime can use");
        assert_eq!(check(&[100, 200], &[], &[], 10, &[]), "cpu", "nothing that it can use");
        assert_eq!(check(&[100, 200], &[100, 200], &[0, 150], 10, &[0, 1]), "cuda:0", "what the budget leaves");
        assert_eq!(check(&[100, 200], &[100, 200], &[95, 195], 10, &[0, 1]), "cpu", "no room");
        assert_eq!(check(&[5, 5], &[], &[], 10, &[0, 1]), "cpu", "others have it all");
    }

    #[test]
    fn a_trial_without_room_goes_where_the_settings_say() {
        let check = |device, free: &[u64], crowded| trial_place(device, 100, &gpus(free), crowded);
        let gpu = Device::Cuda(1);
        assert_eq!(check(gpu, &[0, 100], CrowdedTrial::Fail), TrialPlace::On(gpu, None));
        assert_eq!(check(gpu, &[0], CrowdedTrial::Fail), TrialPlace::On(gpu, None), "nothing is known of it");
        assert_eq!(check(Device::Cpu, &[0, 0], CrowdedTrial::Fail), TrialPlace::On(Device::Cpu, None));
        let why = "cuda:1 has 99 bytes free and its trial needs 100 by estimate";
        let on_cpu = TrialPlace::On(Device::Cpu, Some(format!("tried on the processor: {why}")));
        assert_eq!(check(gpu, &[0, 99], CrowdedTrial::Cpu), on_cpu);
        assert_eq!(check(gpu, &[0, 99], CrowdedTrial::Skip), TrialPlace::Nowhere(format!("not tried: {why}")));
        let refused = format!("{why}; trial.device says what is done then");
        assert_eq!(check(gpu, &[0, 99], CrowdedTrial::Fail), TrialPlace::Refused(refused));
    }
}
