//! This machine's NVIDIA GPUs, as the driver's management library tells them: no library of CUDA is opened for that, and no context made.
//!
//! A GPU's number is that of CUDA in this process: by slot, among those that `CUDA_VISIBLE_DEVICES` leaves.

use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bascule_serving::{Gpu, Gpus};
use nvml_wrapper::Nvml;

/// The library that comes with the driver.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// How CUDA counts. Its own way is by speed, which nothing else shares.
const ORDER: (&str, &str) = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");

/// Which GPUs a process may see, and in which order.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Between two tries to open the library where it can't be: a driver may come up after the gateway.
const RETRY: Duration = Duration::from_secs(30);

/// The driver's GPUs. The library is opened when it is first asked, and stays open.
#[derive(Debug, Default)]
pub(crate) struct NvidiaGpus {
    library: OnceLock<Nvml>,
    /// When it last could not be opened.
    failed: Mutex<Option<Instant>>,
}

impl NvidiaGpus {
    fn library(&self) -> Option<&Nvml> {
        if let Some(library) = self.library.get() {
            return Some(library);
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_some_and(|at| at.elapsed() < RETRY) {
            return None;
        }
        match Nvml::builder().lib_path(LIBRARY.as_ref()).init() {
            Ok(library) => Some(self.library.get_or_init(|| library)),
            Err(error) => {
                tracing::debug!(%error, "no NVIDIA driver is there");
                *failed = Some(Instant::now());
                None
            }
        }
    }
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
        static WARNED: Once = Once::new();
        let found = self.library().map(found).unwrap_or_default();
        let variable = std::env::var(VISIBLE).ok();
        if let Some(word) = variable.as_deref().and_then(|words| unknown(&found, words)) {
            WARNED.call_once(|| {
                tracing::warn!(
                    word,
                    "{VISIBLE} names what is no whole GPU: it and those after it are not counted here, nor limited, nor chosen by `auto`"
                );
            });
        }
        visible(found, variable.as_deref())
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

/// The GPU that a word of the variable names.
fn named<'a>(found: &'a [Found], word: &str) -> Option<&'a Found> {
    let word = word.trim();
    match word.parse::<usize>() {
        Ok(index) => found.get(index),
        Err(_) => found.iter().find(|gpu| !word.is_empty() && gpu.uuid.starts_with(word)),
    }
}

/// The first word that names none although it is meant to, such as a part of a GPU: CUDA may know it.
fn unknown<'a>(found: &[Found], words: &'a str) -> Option<&'a str> {
    let word = words.split(',').map(str::trim).find(|word| named(found, word).is_none())?;
    let is_meant = word.starts_with("MIG-") || word.starts_with("GPU-");
    (is_meant && !found.is_empty()).then_some(word)
}

/// Those that the variable names, in its order: by number or by the beginning of an identifier. CUDA stops at the first word that names
/// none, and so does this.
fn visible(found: Vec<Found>, variable: Option<&str>) -> Vec<Gpu> {
    let chosen: Vec<Found> = match variable {
        None => found,
        Some(words) => words.split(',').map_while(|word| named(&found, word).cloned()).collect(),
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
    fn parts_of_gpus_are_not_understood_and_that_is_told() {
        let gpu = Found { uuid: "GPU-a1".to_owned(), name: "a".to_owned(), total_bytes: 2, free_bytes: 1 };
        let check = |words| unknown(std::slice::from_ref(&gpu), words);
        assert_eq!(check("0, MIG-77/1/0,0"), Some("MIG-77/1/0"));
        assert_eq!(check("GPU-b"), Some("GPU-b"));
        for words in ["0", "GPU-a", "", "-1", "9", "NoDevFiles"] {
            assert_eq!(check(words), None, "{words}");
        }
        assert_eq!(unknown(&[], "MIG-77"), None, "there is no driver to say anything");
    }

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
