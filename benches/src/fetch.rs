//! A version of half a gigabyte out of an S3 on this machine: fetched, verified and kept, beside a bare reader of the same object that
//! reads ranges in parallel, writes them to the same disk, and hashes nothing.

mod bare;
mod s3;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bascule_registry::{Cache, Generation, ModelName, NoProgress, PublishRequest, Registry};
use object_store::ObjectStore;
use object_store::path::Path as StorePath;

use crate::Plan;
use crate::bars::{Bar, Bars};
use crate::report::Report;
use crate::stats::median;
use s3::SeaweedFs;

const MEBIBYTES: usize = 512;
/// Runs of each side in a pair.
const RUNS: usize = 2;
const MODEL: &str = "large";
const ROW: &str = "registry fetch, 512 MiB from S3 on this machine: throughput ÷ a bare parallel reader's that hashes nothing";
const BAR: Bar = Bar::AtLeast(0.9);
/// What a fetch may hold in memory at a time, and twice as much again for buffers of sockets and of the allocator.
const MEMORY_MIB: f64 = 3.0 * 128.0;

/// One pair: what both runs of a side took.
struct Pair {
    ours: Duration,
    bare: Duration,
}

/// Fetches with both sides in turn.
pub(crate) async fn measure(plan: &Plan, weed: &Path, report: &mut Report, bars: &mut Bars) -> Result<()> {
    if !weed.exists() {
        bars.skip(ROW, BAR, &format!("there is no {} (python3 scripts/deps.py seaweedfs)", weed.display()));
        return Ok(());
    }
    let (pairs, peak) = pairs(weed, plan.pairs, plan.scratch.path()).await?;
    let ratios: Vec<f64> = pairs.iter().map(|pair| pair.bare.as_secs_f64() / pair.ours.as_secs_f64()).collect();
    let rate = |seconds: &dyn Fn(&Pair) -> Duration| {
        median(&pairs.iter().map(|pair| (RUNS * MEBIBYTES) as f64 / seconds(pair).as_secs_f64()).collect::<Vec<_>>())
    };
    let (ours, bare) = (rate(&|pair| pair.ours), rate(&|pair| pair.bare));
    bars.add(ROW, BAR, &ratios, "both sync what they wrote");
    bars.add_once("the same: peak of resident memory over what it was before, MiB", Bar::AtMost(MEMORY_MIB), peak, "whole process");
    let rows = [("bascule", ours), ("bare reader", bare)].map(|(who, rate)| vec![who.to_owned(), format!("{rate:.0}")]);
    report.table("Fetching from S3", &["by", "MiB/s"], &rows);
    Ok(())
}

/// All pairs, and by how many MiB resident memory grew at the most while ours ran.
async fn pairs(weed: &Path, count: usize, scratch: &Path) -> Result<(Vec<Pair>, f64)> {
    let server = SeaweedFs::start(weed, scratch).await?;
    let store: Arc<dyn ObjectStore> = Arc::new(server.store()?);
    let registry = Registry::over(Arc::clone(&store), StorePath::default(), "S3");
    let generation = publish(&registry, scratch).await?;
    let file = generation.manifest.files.first().context("a version without files")?;
    let digest = file.sha256.context("a file without digest")?;
    let blob = StorePath::from(format!("{MODEL}/blobs/{digest}"));
    let (mut pairs, mut peak) = (Vec::new(), 0.0_f64);
    // The first pair does not count: the server reads the object from its disk then.
    for nth in 0..=count {
        let mut times = [Duration::ZERO; 2];
        // Each side runs first and last in turn, twice: on a virtual machine every other run pays for memory that comes back to it.
        for side in if nth % 2 == 0 { [0, 1, 1, 0] } else { [1, 0, 0, 1] } {
            let dir = tempfile::tempdir_in(scratch)?;
            times[side] += if side == 0 {
                let before = memory("VmRSS:")?;
                // From here on the peak is counted anew.
                std::fs::write("/proc/self/clear_refs", "5").context("can't reset the peak of resident memory")?;
                let took = fetch(&registry, &generation, dir.path()).await?;
                peak = peak.max((memory("VmHWM:")? - before) / 1024.0);
                took
            } else {
                bare::read(&store, &blob, file.bytes, &dir.path().join("bare")).await?
            };
        }
        if nth > 0 {
            pairs.push(Pair { ours: times[0], bare: times[1] });
        }
    }
    Ok((pairs, peak))
}

/// A version of one file that no compression makes smaller.
async fn publish(registry: &Registry, scratch: &Path) -> Result<Generation> {
    let file: PathBuf = scratch.join("large.bin");
    let mut state = 1_u64;
    let mut words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    let mut out = std::io::BufWriter::new(std::fs::File::create(&file)?);
    for _ in 0..MEBIBYTES << 17 {
        use std::io::Write as _;
        out.write_all(&words.next().context("endless")?.to_le_bytes())?;
    }
    drop(out);
    let model = ModelName::new(MODEL)?;
    let files = vec![("large.bin".to_owned(), file.clone())];
    let published = registry.publish(PublishRequest::new(model.clone(), "onnx", "large.bin", files), &NoProgress).await?;
    std::fs::remove_file(&file)?;
    let versions = registry.versions(&model).await?;
    let generation = versions.get(&published.key.version).context("what was published is not there")?;
    Ok(generation.as_ref().clone())
}

async fn fetch(registry: &Registry, generation: &Generation, dir: &Path) -> Result<Duration> {
    let cache = Cache::open(dir.join("cache"))?;
    let began = Instant::now();
    let lease = cache.ensure(registry, generation, &NoProgress).await?;
    let took = began.elapsed();
    ensure!(lease.files().len() == 1, "a version of one file has {}", lease.files().len());
    Ok(took)
}

/// A line of this process's status, in KiB.
fn memory(line: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value =
        status.lines().find_map(|text| text.strip_prefix(line)).with_context(|| format!("no {line} in /proc/self/status"))?;
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}
