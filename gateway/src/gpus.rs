//! This machine's NVIDIA GPUs, as the driver's management library tells them: no library of CUDA is opened for that, and no context made.
//!
//! A GPU's number is that of CUDA in this process: by slot, among those that `CUDA_VISIBLE_DEVICES` leaves.

use std::sync::{Once, OnceLock};

use bascule_serving::{Gpu, Gpus};
use nvml_wrapper::Nvml;

/// The library that comes with the driver.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// How CUDA counts. Its own way is by speed, which nothing else shares.
const ORDER: (&str, &str) = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");

/// Which GPUs a process may see, and in which order.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// The driver's GPUs. The library is opened when it is first asked, and stays open.
#[derive(Debug, Default)]
pub(crate) struct NvidiaGpus {
    library: OnceLock<Option<Nvml>>,
}

/// A GPU, whether or not this process may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    uuid: String,
    name: String,
    total_bytes: u64,
    free_bytes: u64,
}

/// Has CUDA count GPUs as they are counted here, unless the environment says how it counts. Before the program starts threads.
#[expect(unsafe_code, reason = "CUDA has no other switch for it")]
#[expect(clippy::disallowed_methods, reason = "this is no setting of ours: CUDA reads it from the environment alone")]
pub(crate) fn count_by_slot() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::env::var_os(ORDER.0).is_none() {
            // SAFETY: as for the variable that the runtime of ONNX models sets: once, and before other threads start.
            unsafe { std::env::set_var(ORDER.0, ORDER.1) }
        }
    });
}

impl Gpus for NvidiaGpus {
    #[expect(clippy::disallowed_methods, reason = "this is no setting of ours: it is CUDA's own")]
    fn list(&self) -> Vec<Gpu> {
        let library = self.library.get_or_init(|| {
            let opened = Nvml::builder().lib_path(LIBRARY.as_ref()).init();
            opened.inspect_err(|error| tracing::debug!(%error, "no NVIDIA driver is there")).ok()
        });
        let found = library.as_ref().map(found).unwrap_or_default();
        visible(found, std::env::var(VISIBLE).ok().as_deref())
    }
}

fn found(library: &Nvml) -> Vec<Found> {
    let one = |index: u32| {
        let device = library.device_by_index(index)?;
        let memory = device.memory_info()?;
        let (uuid, name) = (device.uuid()?, device.name()?);
        Ok::<_, nvml_wrapper::error::NvmlError>(Found { uuid, name, total_bytes: memory.total, free_bytes: memory.free })
    };
    let told = |index| {
        // One that has failed keeps its place: the others are counted as CUDA counts them.
        one(index).unwrap_or_else(|error| {
            tracing::debug!(index, %error, "a GPU does not answer");
            Found { uuid: String::new(), name: "does not answer".to_owned(), total_bytes: 0, free_bytes: 0 }
        })
    };
    (0..library.device_count().unwrap_or_default()).map(told).collect()
}

/// Those that the variable names, in its order: by number or by the beginning of an identifier. CUDA stops at the first word that names
/// none, and so does this.
fn visible(found: Vec<Found>, variable: Option<&str>) -> Vec<Gpu> {
    let chosen: Vec<Found> = match variable {
        None => found,
        Some(words) => {
            let named = |word: &str| match word.trim().parse::<usize>() {
                Ok(index) => found.get(index).cloned(),
                Err(_) => {
                    let word = word.trim();
                    found.iter().find(|gpu| !word.is_empty() && gpu.uuid.starts_with(word)).cloned()
                }
            };
            words.split(',').map_while(named).collect()
        }
    };
    let gpu = |(ordinal, found): (u32, Found)| {
        let Found { name, total_bytes, free_bytes, .. } = found;
        Gpu { ordinal, name, total_bytes, free_bytes }
    };
    (0..).zip(chosen).map(gpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_counted_as_cuda_counts_them() {
        let check = |variable: Option<&str>| {
            let found = ["a", "b", "c"].map(|name| Found {
                uuid: format!("GPU-{name}123"),
                name: name.to_owned(),
                total_bytes: 2,
                free_bytes: 1,
            });
            let gpus = visible(found.to_vec(), variable);
            assert!(gpus.iter().enumerate().all(|(at, gpu)| gpu.ordinal as usize == at), "{gpus:?}");
            gpus.into_iter().map(|gpu| gpu.name).collect::<String>()
        };
        assert_eq!(check(None), "abc");
        assert_eq!(check(Some("2,0")), "ca");
        assert_eq!(check(Some(" GPU-b1, 0")), "ba");
        assert_eq!(check(Some("")), "");
        assert_eq!(check(Some("-1")), "");
        assert_eq!(check(Some("1,9,0")), "b");
        assert_eq!(check(Some("NoDevFiles")), "");
    }
}
