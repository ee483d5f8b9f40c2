//! `instance_group`: on which devices a model runs, and with how many instances on each.

use std::collections::BTreeMap;

use bascule_proto::inference::ModelInstanceGroup;
use bascule_proto::inference::model_instance_group::Kind;
use bascule_runtime_api::Device;
use bascule_serving::Devices;

/// What the groups come to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Instances {
    pub(super) devices: Devices,
    /// On each of them.
    pub(super) count: u32,
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Where a group wants to be. The order is that in which the first is found that several groups come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    On(Device),
    EveryGpu,
    Auto,
}

/// Reads the groups; `None` where there are none.
pub(super) fn read(groups: &[ModelInstanceGroup]) -> Option<Instances> {
    let first = groups.first()?;
    let mut read = Instances::default();
    let mut counts: BTreeMap<Place, u32> = BTreeMap::new();
    for (at, group) in groups.iter().enumerate() {
        let count = match u32::try_from(group.count) {
            // Triton's own default.
            Ok(0) => 1,
            Ok(count) => count,
            Err(_) => {
                read.problems.push(format!("`instance_group[{at}].count`: expected 0 or more, got {}", group.count));
                continue;
            }
        };
        for place in places(at, group, &mut read) {
            let sum = counts.entry(place).or_default();
            *sum = sum.saturating_add(count);
        }
    }
    read.count = counts.values().copied().max().unwrap_or(1);
    if counts.values().any(|count| *count != read.count) {
        read.warnings.push(format!(
            "`instance_group`: each device has {} instances, as many as the one that is to have the most",
            read.count
        ));
    }
    let devices: Vec<Device> =
        counts.keys().filter_map(|place| if let Place::On(device) = place { Some(*device) } else { None }).collect();
    read.devices = match (devices.len() == counts.len(), places(0, first, &mut Instances::default()).first()) {
        (true, _) => Devices::These(devices),
        (false, first) => {
            if counts.len() > 1 {
                read.warnings.push("`instance_group`: all instances run where the first group wants to be".to_owned());
            }
            match first {
                Some(Place::Auto) => Devices::Auto,
                Some(Place::On(device)) => Devices::These(vec![*device]),
                Some(Place::EveryGpu) | None => Devices::EveryGpu,
            }
        }
    };
    Some(read)
}

fn places(at: usize, group: &ModelInstanceGroup, read: &mut Instances) -> Vec<Place> {
    match group.kind() {
        Kind::Cpu => vec![Place::On(Device::Cpu)],
        Kind::Model => {
            read.warnings.push(format!("`instance_group[{at}].kind`: KIND_MODEL is served as KIND_CPU"));
            vec![Place::On(Device::Cpu)]
        }
        Kind::Auto => {
            if !group.gpus.is_empty() {
                read.warnings.push(format!(
                    "`instance_group[{at}].gpus`: KIND_AUTO takes the GPU with the most room; KIND_GPU asks for these"
                ));
            }
            vec![Place::Auto]
        }
        Kind::Gpu if group.gpus.is_empty() => vec![Place::EveryGpu],
        Kind::Gpu => {
            let mut gpus = Vec::new();
            for gpu in &group.gpus {
                match u32::try_from(*gpu) {
                    Ok(ordinal) => gpus.push(Place::On(Device::Cuda(ordinal))),
                    Err(_) => read.problems.push(format!("`instance_group[{at}].gpus`: expected numbers from 0, got {gpu}")),
                }
            }
            gpus
        }
    }
}
