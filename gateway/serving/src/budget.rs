//! Memory by device: what versions take, and what they may take together. Main memory is that of [`Device::Cpu`].

use std::collections::BTreeMap;
use std::fmt;

use bascule_runtime_api::{Device, Footprint};

/// Bytes on each device; a device without any is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct DeviceBytes(BTreeMap<Device, u64>);

impl DeviceBytes {
    /// What a session on a device takes.
    pub(crate) fn of(footprint: Footprint, device: Device) -> DeviceBytes {
        let mut bytes = DeviceBytes::default();
        bytes.add(Device::Cpu, footprint.host_bytes);
        bytes.add(device, footprint.device_bytes);
        bytes
    }

    /// Main memory alone.
    #[cfg(test)]
    pub(crate) fn main(bytes: u64) -> DeviceBytes {
        DeviceBytes::of(Footprint { host_bytes: bytes, ..Footprint::default() }, Device::Cpu)
    }

    pub(crate) fn add(&mut self, device: Device, bytes: u64) {
        if bytes > 0 {
            let sum = self.0.entry(device).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }

    pub(crate) fn set(&mut self, device: Device, bytes: u64) {
        self.0.remove(&device);
        self.add(device, bytes);
    }

    pub(crate) fn add_all(&mut self, other: &DeviceBytes) {
        other.iter().for_each(|(device, bytes)| self.add(device, bytes));
    }

    pub(crate) fn on(&self, device: Device) -> u64 {
        self.0.get(&device).copied().unwrap_or_default()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Device, u64)> {
        self.0.iter().map(|(device, bytes)| (*device, *bytes))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left of it once so much is there.
    pub(crate) fn beyond(&self, there: impl Fn(Device) -> u64) -> DeviceBytes {
        let mut beyond = DeviceBytes::default();
        self.iter().for_each(|(device, bytes)| beyond.add(device, bytes.saturating_sub(there(device))));
        beyond
    }
}

impl fmt::Display for DeviceBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.iter().map(|(device, bytes)| match device {
            Device::Cpu => format!("{bytes} bytes"),
            gpu => format!("{bytes} bytes of {gpu}"),
        });
        f.write_str(&each.collect::<Vec<String>>().join(" and "))
    }
}

/// One device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ledger {
    /// `None` for no limit.
    pub(crate) limit: Option<u64>,
    /// Taken, or promised to loads.
    pub(crate) reserved: u64,
    /// The part of `reserved` that drains will give back.
    pub(crate) freeing: u64,
}

impl Ledger {
    /// What may still be taken; `None` for no limit.
    pub(crate) fn free(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.reserved))
    }
}

/// Memory that versions may take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Budget(BTreeMap<Device, Ledger>);

impl Budget {
    /// Sets every limit; what is reserved stays.
    pub(crate) fn limit(&mut self, limits: &BTreeMap<Device, u64>) {
        self.0.values_mut().for_each(|ledger| ledger.limit = None);
        for (device, limit) in limits {
            self.0.entry(*device).or_default().limit = Some(*limit);
        }
    }

    pub(crate) fn on(&self, device: Device) -> Ledger {
        self.0.get(&device).copied().unwrap_or_default()
    }

    /// Every device that has a limit or something reserved.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Device, Ledger)> {
        self.0.iter().map(|(device, ledger)| (*device, *ledger))
    }

    pub(crate) fn reserve(&mut self, bytes: &DeviceBytes) {
        self.change(bytes, |ledger, bytes| ledger.reserved = ledger.reserved.saturating_add(bytes));
    }

    pub(crate) fn give_back(&mut self, bytes: &DeviceBytes) {
        self.change(bytes, |ledger, bytes| ledger.reserved = ledger.reserved.saturating_sub(bytes));
    }

    /// A drain will give so much back.
    pub(crate) fn expect_back(&mut self, bytes: &DeviceBytes) {
        self.change(bytes, |ledger, bytes| ledger.freeing = ledger.freeing.saturating_add(bytes));
    }

    /// It has, or is not counted on any more.
    pub(crate) fn expect_no_more(&mut self, bytes: &DeviceBytes) {
        self.change(bytes, |ledger, bytes| ledger.freeing = ledger.freeing.saturating_sub(bytes));
    }

    fn change(&mut self, bytes: &DeviceBytes, change: impl Fn(&mut Ledger, u64)) {
        for (device, bytes) in bytes.iter() {
            change(self.0.entry(device).or_default(), bytes);
        }
    }
}
