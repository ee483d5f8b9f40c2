//! Which devices there are, and which of them a version runs on. Where it runs is decided once, before it is verified, and is never
//! another device than one that the settings allow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bascule_runtime_api::Device;
use serde::{Deserialize, Serialize};

use crate::budget::{Budget, DeviceBytes};

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

/// What versions will take of devices on which they were placed and are not loaded yet: the driver does not count it, and the budget only
/// from when their memory is reserved. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placements(Arc<Mutex<Placing>>);

#[derive(Debug, Default)]
struct Placing {
    next: u64,
    placed: BTreeMap<u64, Expected>,
}

#[derive(Debug)]
struct Expected {
    bytes: DeviceBytes,
    /// Whether the budget has them, too.
    is_reserved: bool,
}

/// One version's place, until this is dropped: by then it is loaded, or will not be.
#[derive(Debug)]
pub(crate) struct Placed {
    all: Placements,
    id: u64,
}

impl Placements {
    /// Places a version where it was told to be.
    pub(crate) fn place(&self, bytes: DeviceBytes) -> Placed {
        self.add(&mut self.locked(), bytes)
    }

    /// Places a version of so many bytes on the one of these GPUs that has the most room for it; on the processor where none has.
    pub(crate) fn choose(&self, gpus: &[Gpu], budget: &Budget, bytes: u64) -> (Device, Placed) {
        let mut placing = self.locked();
        let roomy = gpus.iter().map(|gpu| (gpu.ordinal, placing.room(gpu, budget))).filter(|(_, room)| *room >= bytes);
        // Of two with as much room, the first.
        let best = roomy.max_by_key(|(ordinal, room)| (*room, std::cmp::Reverse(*ordinal)));
        let device = best.map_or(Device::Cpu, |(ordinal, _)| Device::Cuda(ordinal));
        let mut takes = DeviceBytes::default();
        takes.add(device, bytes);
        (device, self.add(&mut placing, takes))
    }

    fn add(&self, placing: &mut Placing, bytes: DeviceBytes) -> Placed {
        placing.next += 1;
        placing.placed.insert(placing.next, Expected { bytes, is_reserved: false });
        Placed { all: self.clone(), id: placing.next }
    }

    fn locked(&self) -> MutexGuard<'_, Placing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Placing {
    /// Room on a GPU: what is free, without what others will take who were placed there.
    fn room(&self, gpu: &Gpu, budget: &Budget) -> u64 {
        let device = Device::Cuda(gpu.ordinal);
        let ledger = budget.on(device);
        let on_it = |expected: &Expected| expected.bytes.on(device);
        let expected: u64 = self.placed.values().map(on_it).sum();
        let unreserved: u64 = self.placed.values().filter(|expected| !expected.is_reserved).map(on_it).sum();
        // What was reserved since the budget was looked at is in the second.
        let promised = ledger.reserved.saturating_add(unreserved).max(expected);
        let limit = ledger.limit.map_or(gpu.total_bytes, |limit| limit.min(gpu.total_bytes));
        limit.saturating_sub(promised).min(gpu.free_bytes.saturating_sub(expected))
    }
}

impl Placed {
    /// From now on the budget has what it takes.
    pub(crate) fn reserved(&self) {
        if let Some(expected) = self.all.locked().placed.get_mut(&self.id) {
            expected.is_reserved = true;
        }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        self.all.locked().placed.remove(&self.id);
    }
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
        let check = |free: &[u64], limits: &[u64], reserved: &[u64], bytes| {
            Placements::default().choose(&gpus(free), &budget(limits, reserved), bytes).0.to_string()
        };
        assert_eq!(check(&[], &[], &[], 10), "cpu", "no gpu");
        assert_eq!(check(&[100, 200], &[], &[], 10), "cuda:1", "the most that is free");
        assert_eq!(check(&[200, 200], &[], &[], 10), "cuda:0", "the first of equals");
        assert_eq!(check(&[100, 200], &[100, 200], &[0, 150], 10), "cuda:0", "what the budget leaves");
        assert_eq!(check(&[900, 900], &[], &[600, 100], 10), "cuda:1", "what is reserved, though nothing is limited");
        assert_eq!(check(&[100, 200], &[100, 200], &[95, 195], 10), "cpu", "no room");
        assert_eq!(check(&[5, 5], &[], &[], 10), "cpu", "others have it all");
    }

    #[test]
    fn what_was_placed_and_is_not_loaded_takes_room() {
        let placements = Placements::default();
        let choose = |budget: &Budget| placements.choose(&gpus(&[400, 300]), budget, 100);
        let free = Budget::default();
        let (first, one) = choose(&free);
        assert_eq!(first, Device::Cuda(0));
        let (second, two) = choose(&free);
        assert_eq!(second, Device::Cuda(0), "the first of equals");
        let placed: Vec<_> = (0..5).map(|_| choose(&free)).collect();
        let devices: Vec<String> = placed.iter().map(|(device, _)| device.to_string()).collect();
        assert_eq!(devices, ["cuda:1", "cuda:0", "cuda:1", "cuda:0", "cuda:1"]);
        assert_eq!(choose(&free).0, Device::Cpu, "both are full");
        drop(two);
        assert_eq!(choose(&free).0, Device::Cuda(0), "it is loaded by now, or has failed");
        drop(placed);
        // One whose memory is reserved counts once.
        one.reserved();
        assert_eq!(choose(&budget(&[300, 100], &[100, 0])).0, Device::Cuda(0));
        assert_eq!(choose(&budget(&[300, 100], &[250, 0])).0, Device::Cuda(1));
        assert_eq!(choose(&budget(&[150, 50], &[0, 0])).0, Device::Cpu, "reserved after the budget was looked at");
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
