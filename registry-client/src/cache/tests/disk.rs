//! A disk that is full.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use super::*;

/// A small file system of its own, where this user may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, told as skipped, where it may not.
    fn mount(mebibytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "bascule-test"]).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        crate::testing::skip("no tmpfs can be mounted here (it takes root)");
        None
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0.path()).status());
    }
}

/// A source of files that are as large as is wanted, and full of one byte.
struct Filler {
    /// What the listing says, in MiB, for each version; the source brings what it says.
    mebibytes: u64,
    /// Fills the disk before it brings anything, but for so many MiB.
    leaves: Option<(PathBuf, u64)>,
}

impl Filler {
    fn of(mebibytes: u64) -> Self {
        Self { mebibytes, leaves: None }
    }

    fn generation(&self, version: u64) -> Generation {
        let mut generation = generation(version);
        let content = vec![version as u8; (self.mebibytes << 20) as usize];
        let mut manifest = generation.manifest.as_ref().clone();
        manifest.files.truncate(1);
        manifest.files[0].sha256 = Some(Digest::of(&content));
        manifest.files[0].bytes = content.len() as u64;
        generation.bytes = content.len() as u64;
        generation.manifest = manifest.into();
        generation
    }
}

#[async_trait]
impl VersionSource for Filler {
    fn describe(&self) -> String {
        "filler".into()
    }

    async fn list(&self, _since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        Ok(None)
    }

    async fn fetch(&self, generation: &Generation, dest: &Path, progress: &dyn Progress) -> Result<Fetched, FetchError> {
        if let Some((ballast, mebibytes)) = &self.leaves {
            let free = free_bytes(dest).unwrap();
            let mut ballast = std::fs::File::options().append(true).create(true).open(ballast).unwrap();
            ballast.write_all(&vec![0; (free - (mebibytes << 20)) as usize]).unwrap();
        }
        let file = &generation.manifest.files[0];
        let pieces = (0..file.bytes >> 20).map(|_| Ok(vec![generation.key.version as u8; 1 << 20].into()));
        let pieces: Vec<_> = pieces.collect();
        Ok(Fetched { files: vec![bring(Content::Stream(Box::pin(futures::stream::iter(pieces))), file, dest, progress).await?] })
    }
}

fn there(cache: &Cache) -> Vec<u64> {
    let mut versions: Vec<_> = cache.generations().iter().map(|kept| kept.key.version).collect();
    versions.sort_unstable();
    versions
}

#[tokio::test]
async fn what_nobody_leases_makes_room_and_what_is_leased_stays() {
    let Some(disk) = SmallDisk::mount(14) else { return };
    let (cache, source) = (Cache::open(disk.path().join("cache")).unwrap(), Filler::of(5));
    let first = cache.ensure(&source, &source.generation(1), &NoProgress).await.unwrap();
    drop(cache.ensure(&source, &source.generation(2), &NoProgress).await.unwrap());
    assert_eq!(there(&cache), [1, 2]);
    let third = cache.ensure(&source, &source.generation(3), &NoProgress).await.unwrap();
    assert_eq!(there(&cache), [1, 3], "the one that nobody leases is gone");
    drop(third);
    let large = Filler::of(12);
    let error = cache.ensure(&large, &large.generation(4), &NoProgress).await.unwrap_err();
    let FetchError::NoSpace { path, needed, free } = &error else { panic!("{error}") };
    assert_eq!((path.as_path(), *needed), (cache.dir(), 12 << 20));
    assert!(*free < 12 << 20 && error.is_transient(), "{error}");
    assert!(error.to_string().contains("12582912 bytes are needed"), "{error}");
    assert_eq!(there(&cache), [1], "everything else was tried before");
    assert!(cache.verify(&first.digest()).is_ok());
    assert_eq!((left_in_tmp(cache.dir()), cache.bytes()), (0, 5 << 20));
    drop(first);
    cache.ensure(&large, &large.generation(4), &NoProgress).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_fills_up_meanwhile_is_told_and_leaves_nothing_half_written() {
    let Some(disk) = SmallDisk::mount(16) else { return };
    let ballast = disk.path().join("ballast");
    let (cache, mut source) = (Cache::open(disk.path().join("cache")).unwrap(), Filler::of(8));
    source.leaves = Some((ballast.clone(), 3));
    let wanted = source.generation(1);
    let error = cache.ensure(&source, &wanted, &NoProgress).await.unwrap_err();
    let FetchError::NoSpace { path, needed, free } = &error else { panic!("{error}") };
    assert!(path.ends_with("files/model.onnx") && *needed > 4 << 20 && *free < 2 << 20, "{error}");
    assert!(cache.find(&wanted.digest).is_none());
    assert_eq!((left_in_tmp(cache.dir()), cache.bytes()), (0, 0));
    std::fs::remove_file(&ballast).unwrap();
    source.leaves = None;
    assert!(cache.ensure(&source, &wanted, &NoProgress).await.is_ok(), "once there is room it works");
}

#[tokio::test]
async fn a_disk_that_fills_up_meanwhile_gets_room_from_what_nobody_leases() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let ballast = disk.path().join("ballast");
    let (cache, mut source) = (Cache::open(disk.path().join("cache")).unwrap(), Filler::of(8));
    drop(cache.ensure(&source, &source.generation(1), &NoProgress).await.unwrap());
    source.leaves = Some((ballast, 1));
    let outcome = cache.ensure(&source, &source.generation(2), &NoProgress).await;
    // The second try fills the disk again, as far as it finds it free: what counts is that there was one, with more room.
    assert!(matches!(outcome.unwrap_err(), FetchError::NoSpace { .. }));
    assert!(there(&cache).is_empty(), "what nobody leases made room");
    assert_eq!((left_in_tmp(cache.dir()), cache.bytes()), (0, 0));
}
