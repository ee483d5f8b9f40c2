//! Devices as settings name them: where a model runs, and what of each GPU's memory it may take.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use bascule_runtime_api::Device;
use bascule_serving::{CrowdedTrial, Devices};
use serde_json::{Value as Json, json};

use super::raw::Raw;
use super::value::{ByteCount, Value, expected, text, words};

const DEVICES: &str = "\"auto\", \"cpu\", a GPU such as \"cuda:0\", or a list of devices";

words!(CrowdedTrial, "cpu" => CrowdedTrial::Cpu, "skip" => CrowdedTrial::Skip, "fail" => CrowdedTrial::Fail);

impl Value for Devices {
    fn schema() -> Json {
        json!({ "type": ["string", "array"], "items": { "type": "string" }, "description": DEVICES })
    }

    fn show(&self) -> String {
        match self {
            Devices::Auto => "auto".to_owned(),
            Devices::EveryGpu => "gpus".to_owned(),
            Devices::These(devices) => devices.iter().map(Device::to_string).collect::<Vec<String>>().join(","),
        }
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let one = |raw: &Raw| text(raw).and_then(|text| Device::from_str(text).ok());
        let devices = match raw {
            Raw::List(items) => items.iter().map(|item| one(&item.raw)).collect::<Option<Vec<Device>>>(),
            raw if text(raw) == Some("auto") => return Ok(Devices::Auto),
            raw => one(raw).map(|device| vec![device]),
        };
        let devices = devices.filter(|devices| !devices.is_empty());
        let Some(devices) = devices else { return expected(DEVICES, raw) };
        let repeated = devices.iter().enumerate().find(|(at, device)| devices[..*at].contains(device));
        match repeated {
            Some((_, device)) => Err(format!("{device} is named twice; `instances` says how many sessions each device has")),
            None => Ok(Devices::These(devices)),
        }
    }
}

/// What of GPUs' memory all versions may take together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuBudgets {
    /// So much of each.
    Each(ByteCount),
    /// So much of those that are named, and no limit for others.
    Of(BTreeMap<Device, ByteCount>),
}

const BUDGETS: &str = "a size for every GPU such as \"20GiB\", or a list such as [\"cuda:0=20GiB\", \"cuda:1=10GiB\"]";

impl Value for GpuBudgets {
    fn schema() -> Json {
        json!({ "type": ["string", "integer", "array"], "items": { "type": "string" }, "description": BUDGETS })
    }

    fn show(&self) -> String {
        match self {
            GpuBudgets::Each(size) => size.show(),
            GpuBudgets::Of(sizes) => {
                sizes.iter().map(|(device, size)| format!("{device}={}", size.show())).collect::<Vec<String>>().join(",")
            }
        }
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let one = |text: &str| {
            let (device, size) = text.split_once('=')?;
            let device = Device::from_str(device.trim()).ok().filter(|device| *device != Device::Cpu)?;
            Some((device, ByteCount::read(&Raw::Word(size.trim().to_owned())).ok()?))
        };
        let sizes = match raw {
            Raw::List(items) => items.iter().map(|item| text(&item.raw).and_then(one)).collect::<Option<BTreeMap<_, _>>>(),
            raw => match text(raw).filter(|text| text.contains('=')) {
                Some(words) => words.split(',').map(one).collect::<Option<BTreeMap<_, _>>>(),
                None => return ByteCount::read(raw).map(GpuBudgets::Each).or_else(|_| expected(BUDGETS, raw)),
            },
        };
        match sizes.filter(|sizes| !sizes.is_empty()) {
            Some(sizes) => Ok(GpuBudgets::Of(sizes)),
            None => expected(BUDGETS, raw),
        }
    }
}

impl GpuBudgets {
    /// The limit of each GPU, where there are these.
    pub(crate) fn limits(&self, gpus: impl Iterator<Item = u32>) -> BTreeMap<Device, u64> {
        match self {
            GpuBudgets::Each(size) => gpus.map(|ordinal| (Device::Cuda(ordinal), size.0)).collect(),
            GpuBudgets::Of(sizes) => sizes.iter().map(|(device, size)| (*device, size.0)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Raw {
        Raw::Word(text.to_owned())
    }

    #[test]
    fn budgets_are_for_each_gpu_or_for_those_that_are_named() {
        let check = |text: &str| GpuBudgets::read(&word(text)).map(|budgets| (budgets.limits(0..2), budgets.show()));
        let gib = 1 << 30;
        let (first, second) = (Device::Cuda(0), Device::Cuda(1));
        assert_eq!(check("2GiB"), Ok(([(first, 2 * gib), (second, 2 * gib)].into(), "2GiB".to_owned())));
        let named = "cuda:1=1GiB,cuda:7=2GiB";
        assert_eq!(check(named), Ok(([(second, gib), (Device::Cuda(7), 2 * gib)].into(), named.to_owned())));
        for wrong in ["cpu=1GiB", "cuda:x=1GiB", "cuda:0=", "much", "cuda:0=1GiB,"] {
            let error = check(wrong).unwrap_err();
            assert!(error.starts_with("expected a size for every GPU such as"), "{wrong}: {error}");
        }
    }
}
