//! A local directory as an object store whose symbolic links can't lead out of it.
//!
//! Links inside the directory are followed. A link that is changed between the check and the use is not caught: whoever can
//! do that can write in the directory anyway.

use std::fmt;
use std::io;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::{Path, PathPart};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

const STORE: &str = "directory";
/// An upload that has not moved for so long will not end.
const ABANDONED: Duration = Duration::from_secs(24 * 3_600);
/// Folders of a listing below the place that it begins at.
const MAX_DEPTH: usize = 12;
/// Staged uploads to one place that are looked at.
const MAX_STAGED: u32 = 64;

/// The store.
#[derive(Debug, Clone)]
pub(crate) struct ContainedDirectory {
    inner: Arc<LocalFileSystem>,
    /// Without symbolic links.
    root: Arc<PathBuf>,
}

impl ContainedDirectory {
    /// The directory has to exist.
    pub(crate) fn open(root: &FsPath) -> io::Result<Self> {
        let root = root.canonicalize()?;
        if !root.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory"));
        }
        let inner = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?.with_fsync(true);
        Ok(Self { inner: Arc::new(inner), root: Arc::new(root) })
    }

    /// Checks where something is to be put, and removes what uploads to the same place have left there that were killed.
    async fn check_target(&self, location: &Path) -> Result<()> {
        self.check(location).await?;
        let path = self.inner.path_to_filesystem(location)?;
        off_thread(move || {
            sweep(&path);
            Ok(())
        })
        .await
    }

    async fn check(&self, location: &Path) -> Result<()> {
        let (this, path) = (self.clone(), self.inner.path_to_filesystem(location)?);
        off_thread(move || if leads_out(&this.root, &path)? { Err(leads_out_error(&path)) } else { Ok(()) }).await
    }
}

/// Runs what blocks.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// Whether an error says that nothing is there, or a link that leads nowhere. Every other error leaves that open: a disk that fails or
/// a server that does not answer must never look like something that was removed.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG))
}

/// Whether the path, or as much of it as exists, lies outside of `root` once its symbolic links are followed. Blocks.
pub(crate) fn leads_out(root: &FsPath, path: &FsPath) -> Result<bool> {
    let mut existing = path;
    loop {
        match existing.canonicalize() {
            Ok(real) => return Ok(!real.starts_with(root)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match existing.parent() {
                Some(parent) => existing = parent,
                None => return Ok(true),
            },
            // A file where a directory should be: nothing lies below it.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(not_found(path, error)),
            Err(error) => return Err(generic(error)),
        }
    }
}

/// Removes staged uploads to this path that nobody has written to for long: their publisher was killed. Blocks.
fn sweep(path: &FsPath) {
    // `LocalFileSystem` counts them from 1 and takes the first number that is free.
    for number in 1..=MAX_STAGED {
        let mut staged = path.as_os_str().to_owned();
        staged.push(format!("#{number}"));
        let staged = PathBuf::from(staged);
        let Ok(written) = std::fs::metadata(&staged).and_then(|meta| meta.modified()) else { break };
        if written.elapsed().is_ok_and(|age| age > ABANDONED)
            && let Err(error) = std::fs::remove_file(&staged)
        {
            tracing::debug!(staged = %staged.display(), %error, "can't remove what a killed upload has left");
        }
    }
}

fn leads_out_error(path: &FsPath) -> Error {
    generic(io::Error::other(format!("a symbolic link in {} leads out of the registry", path.display())))
}

fn generic(error: io::Error) -> Error {
    Error::Generic { store: STORE, source: error.into() }
}

fn not_found(path: &FsPath, error: io::Error) -> Error {
    Error::NotFound { path: path.display().to_string(), source: error.into() }
}

/// One level of a directory. What has a name that no object can have, or leads out of the root, is left out. Blocks.
fn list_level(root: &FsPath, dir: &FsPath, prefix: &Path) -> Result<ListResult> {
    let mut level = ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() };
    let entries = match dir.read_dir() {
        Ok(entries) => entries,
        // Without its root a store is broken; without a directory below it, that directory is empty.
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir != root => return Ok(level),
        Err(error) => return Err(generic(error)),
    };
    for entry in entries {
        let entry = entry.map_err(generic)?;
        let Some(part) = entry.file_name().to_str().and_then(|name| PathPart::parse(name).ok().map(|_| name.to_owned())) else {
            continue;
        };
        // Uploads that are under way, as `LocalFileSystem` names them.
        let staged = part.rsplit_once('#').is_some_and(|(_, number)| number.bytes().all(|byte| byte.is_ascii_digit()));
        let meta = match std::fs::metadata(entry.path()) {
            Ok(meta) => meta,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(generic(error)),
        };
        let is_link = entry.file_type().map_err(generic)?.is_symlink();
        if staged || (is_link && leads_out(root, &entry.path())?) {
            continue;
        }
        let location = prefix.clone().join(part.as_str());
        if meta.is_dir() {
            level.common_prefixes.push(location);
        } else if meta.is_file() {
            let last_modified = meta.modified().map_err(generic)?.into();
            level.objects.push(ObjectMeta { location, last_modified, size: meta.len(), e_tag: None, version: None });
        }
    }
    level.common_prefixes.sort_unstable();
    level.objects.sort_unstable_by(|a, b| a.location.cmp(&b.location));
    Ok(level)
}

impl fmt::Display for ContainedDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "directory {}", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for ContainedDirectory {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.check_target(location).await?;
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.check_target(location).await?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.check(location).await?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let checked = locations.then(move |location| {
            let this = this.clone();
            async move {
                let location = location?;
                this.check(&location).await?;
                Ok(location)
            }
        });
        self.inner.delete_stream(checked.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        // One level at a time, the deepest that is known next.
        let next = move |mut folders: Vec<(Path, usize)>| {
            let this = this.clone();
            async move {
                let Some((folder, depth)) = folders.pop() else { return Ok(None) };
                let level = this.list_with_delimiter(Some(&folder)).await?;
                // Links can lead round in circles.
                if depth < MAX_DEPTH {
                    folders.extend(level.common_prefixes.into_iter().map(|folder| (folder, depth + 1)));
                }
                Ok::<_, Error>(Some((futures::stream::iter(level.objects.into_iter().map(Ok)), folders)))
            }
        };
        futures::stream::try_unfold(vec![(prefix, 0)], next).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (this, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        let dir = if prefix.as_ref().is_empty() { this.root.to_path_buf() } else { self.inner.path_to_filesystem(&prefix)? };
        off_thread(
            move || if leads_out(&this.root, &dir)? { Err(leads_out_error(&dir)) } else { list_level(&this.root, &dir, &prefix) },
        )
        .await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.check(from).await?;
        self.check(to).await?;
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use object_store::{ObjectStoreExt as _, PutMode};

    use super::*;

    #[tokio::test]
    async fn links_inside_are_followed_and_links_out_are_refused() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), b"secret").unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        std::fs::write(root.path().join("real/file"), b"content").unwrap();
        symlink("real", root.path().join("linked")).unwrap();
        symlink(outside.path(), root.path().join("escape")).unwrap();
        symlink("../..", root.path().join("real/up")).unwrap();
        symlink(outside.path().join("secret"), root.path().join("real/secret")).unwrap();
        let store = ContainedDirectory::open(root.path()).unwrap();

        assert_eq!(store.get(&Path::from("linked/file")).await.unwrap().bytes().await.unwrap(), "content");
        for out in ["escape/secret", "real/secret", "real/up/x", "escape/new/deep"] {
            let out = Path::from(out);
            assert!(store.get(&out).await.unwrap_err().to_string().contains("leads out"), "{out}");
            let put = store.put_opts(&out, "x".into(), PutMode::Create.into()).await;
            assert!(put.unwrap_err().to_string().contains("leads out"), "{out}");
            assert!(store.put_multipart(&out).await.is_err() && store.delete(&out).await.is_err(), "{out}");
        }
        let top = store.list_with_delimiter(None).await.unwrap();
        assert_eq!(top.common_prefixes, [Path::from("linked"), Path::from("real")]);
        let real = store.list_with_delimiter(Some(&Path::from("real"))).await.unwrap();
        assert_eq!(real.objects.iter().map(|object| object.location.as_ref()).collect::<Vec<_>>(), ["real/file"]);
        assert!(store.list_with_delimiter(Some(&Path::from("escape"))).await.is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "nothing was written outside");
    }

    #[test]
    fn only_what_says_so_is_absent() {
        for absent in [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::ENAMETOOLONG] {
            assert!(is_absent(&io::Error::from_raw_os_error(absent)), "{absent}");
        }
        for open in [libc::EIO, libc::ESTALE, libc::EACCES, libc::ETIMEDOUT, libc::ENODEV, libc::EMFILE, libc::ENOTCONN] {
            assert!(!is_absent(&io::Error::from_raw_os_error(open)), "{open}");
        }
        assert!(!is_absent(&io::Error::other("unknown")));
    }

    #[tokio::test]
    async fn odd_names_do_not_break_a_listing_and_a_lost_root_does() {
        use std::os::unix::ffi::OsStrExt as _;
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), b"").unwrap();
        std::fs::write(root.path().join("a\nb"), b"").unwrap();
        std::fs::write(root.path().join("manifest.json#1"), b"half").unwrap();
        std::fs::write(root.path().join("good"), b"").unwrap();
        symlink("nowhere", root.path().join("dangling")).unwrap();
        let store = ContainedDirectory::open(root.path()).unwrap();
        let names = store.list_with_delimiter(None).await.unwrap().objects;
        assert_eq!(names.iter().map(|object| object.location.as_ref()).collect::<Vec<_>>(), ["good"]);
        assert!(store.list_with_delimiter(Some(&Path::from("nothing/here"))).await.unwrap().objects.is_empty());
        root.close().unwrap();
        assert!(store.list_with_delimiter(None).await.is_err(), "a root that is gone is not an empty registry");
    }
}
