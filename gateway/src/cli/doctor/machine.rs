//! The machine: processors, devices, memory, limits. Read from `/proc` and `/sys`; what is not there is not complained of.

use std::fs;
use std::path::Path;

use bascule_serving::Gpu;

use super::super::output::bytes;
use super::Finding;
use crate::compose::gpus;

/// Connections, files of models and watches together; the default of many systems is 1024.
const WANTED_FILES: u64 = 8192;
/// Below this, little more than the program itself fits.
const WANTED_MEMORY_BYTES: u64 = 256 << 20;
/// One for each directory of the registry.
const WANTED_WATCHES: u64 = 8192;

pub(super) fn look() -> Vec<Finding> {
    let mut findings = vec![devices(&gpus().list(), Path::new("/dev/nvidiactl").exists())];
    findings.extend(read("/proc/self/limits").and_then(|text| open_files(&text)));
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    findings.extend(read("/proc/meminfo").and_then(|text| memory(&text, limit)));
    let watches = read("/proc/sys/fs/inotify/max_user_watches").and_then(|text| text.trim().parse().ok());
    findings.extend(watches.map(file_watches));
    findings
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn devices(gpus: &[Gpu], has_driver: bool) -> Finding {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut found = format!("cpu, {processors} processors");
    if gpus.is_empty() && has_driver {
        let hint = "libnvidia-ml.so.1 of the driver is not found, or CUDA_VISIBLE_DEVICES hides every GPU";
        return Finding::warning("devices", found + "; an NVIDIA driver is there, but no GPU can be seen", hint);
    }
    for Gpu { ordinal, name, total_bytes, free_bytes } in gpus {
        found += &format!("; cuda:{ordinal} {name}, {} of {} free", bytes(*free_bytes), bytes(*total_bytes));
    }
    Finding::ok("devices", found)
}

fn open_files(limits: &str) -> Option<Finding> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_whitespace();
    let (soft, hard) = (words.next()?, words.next()?);
    let found = format!("{soft} (up to {hard})");
    match soft.parse::<u64>() {
        Ok(files) if files < WANTED_FILES => {
            Some(Finding::warning("open files", found, format!("ulimit -n {WANTED_FILES}: each connection takes one")))
        }
        // `unlimited` is no number.
        _ => Some(Finding::ok("open files", found)),
    }
}

fn memory(meminfo: &str, limit_bytes: Option<u64>) -> Option<Finding> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10;
    let usable = available.min(limit_bytes.unwrap_or(u64::MAX));
    let limit = limit_bytes.map(|limit| format!(", limited to {}", bytes(limit))).unwrap_or_default();
    let found = format!("{} available{limit}", bytes(available));
    if usable < WANTED_MEMORY_BYTES {
        return Some(Finding::warning(
            "memory",
            found,
            "large models will not load; load.memory_budget keeps the gateway within a limit",
        ));
    }
    Some(Finding::ok("memory", found))
}

fn file_watches(watches: u64) -> Finding {
    let found = format!("{watches} for this user");
    if watches < WANTED_WATCHES {
        let hint = "changes may be seen at the next poll only; raise fs.inotify.max_user_watches";
        return Finding::warning("file watches", found, hint);
    }
    Finding::ok("file watches", found)
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let limits = |soft: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax open files            {soft}                 524288               files     \n"
            )
        };
        let few = open_files(&limits("1024")).unwrap();
        assert_eq!((few.health, few.found.as_str()), (Health::Warning, "1024 (up to 524288)"));
        assert_eq!(open_files(&limits("unlimited")).unwrap().health, Health::Ok);
        assert_eq!(open_files(&limits("65536")).unwrap().health, Health::Ok);
        assert_eq!(open_files("nothing"), None);
    }

    #[test]
    fn memory_counts_the_container_s_limit() {
        let meminfo = "MemTotal:       16384 kB\nMemAvailable:    4194304 kB\n";
        assert_eq!(memory(meminfo, None).unwrap().health, Health::Ok);
        let limited = memory(meminfo, Some(64 << 20)).unwrap();
        assert_eq!((limited.health, limited.found.as_str()), (Health::Warning, "4.0 GiB available, limited to 64.0 MiB"));
        assert_eq!(memory("", None), None);
        assert_eq!(file_watches(10).health, Health::Warning);
        assert_eq!(devices(&[], true).health, Health::Warning);
        let gpu = Gpu { ordinal: 1, name: "a gpu".to_owned(), total_bytes: 2 << 30, free_bytes: 1 << 30 };
        let found = devices(&[gpu], true);
        assert!(found.health == Health::Ok && found.found.ends_with("; cuda:1 a gpu, 1.0 GiB of 2.0 GiB free"), "{found:?}");
    }
}
